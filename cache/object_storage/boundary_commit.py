"""Change of a boundary's small files in object storage as one step, though each object is put by itself.

The boundary's document decides, by compare and swap. To give rows, a writer

1. puts the files as they are to be, all in one object beside the store, `NAME.commit-<token>`;
2. replaces the document that it read, if it still stands, by the same with the field `commit` = token; whoever else
   read the old one has lost. From here on the change is decided, and readers go on with the old numbers;
3. puts the files, last the new document, which has the field no more, and deletes the object of step 1.

Whoever finds a document with that field first carries out step 3 itself, so a writer that died holds up nobody. One
that sleeps and wakes there puts each file only while the document still names its token, on condition of the entity tag
that it saw before it looked: what others have changed since stays.
"""

from __future__ import annotations

import io
import json
import secrets
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ...errors import ObjectChangedError, StoreError
from ..format.digests import canonical_json
from ..format.zarr_metadata import METADATA_NAME, group_document
from .client import Objects

COMMIT = "commit"  # the field of a boundary's attributes


def decided_commit(document: bytes | None) -> tuple[str, bool]:
    """Return the token of the change that a boundary's document decided, "" if none, and whether it is the first one.

    Args:
        document: content of its `zarr.json`, None if it has none.
    """
    with suppress(ValueError, KeyError, TypeError):
        ours = json.loads(document or b"")["attributes"]["talik"]
        return str(ours.get(COMMIT, "")), not ours["generations"]
    return "", False


def commit_files(
    objects: Objects, boundary: str, files: Mapping[str, bytes], before: dict[str, Any], tags: Mapping[str, str]
) -> dict[str, str]:
    """Put the small files of a boundary, all or none of them.

    Args:
        objects: of the store.
        boundary: its path in the store.
        files: what changed, by key; the boundary's document is among them.
        before: the attributes that the document has now, or would have without any row.
        tags: entity tags of what stands in place of the files now, as this process saw it; none where nothing stands.

    Returns:
        The entity tags of the files; {} if another process carried the change out.

    Raises:
        ObjectChangedError: another process changed the boundary since; nothing was changed.
    """
    document = f"{boundary}/{METADATA_NAME}"
    if list(files) == [document]:
        return {document: objects.put(document, files[document], expect=tags.get(document, ""))}
    token = secrets.token_hex(8)
    deciding = canonical_json(group_document({**before, COMMIT: token}))
    objects.put(_bundle_key(token), pack(files), expect="")
    try:
        tag = objects.put(document, deciding, expect=tags.get(document, ""))
    except ObjectChangedError:
        objects.delete(_bundle_key(token))
        raise
    return _carry_out(objects, document, token, files, {**tags, document: tag})


def finish_commit(objects: Objects, boundary: str) -> None:
    """Carry out what a writer of a boundary decided and did not finish.

    Raises:
        StoreError: the object with its files is gone.
    """
    document = f"{boundary}/{METADATA_NAME}"
    while token := _decided(objects, document):
        found = objects.get(_bundle_key(token))
        if found is not None:
            _carry_out(objects, document, token, unpack(found[0]), None)
        elif _decided(objects, document) == token:
            raise StoreError(
                f"{objects.url}/{boundary}: its change {token} cannot be finished, since {objects.name}"
                f"{_bundle_key(token)} is gone; restore that object, or extract into a new store"
            )


def _carry_out(
    objects: Objects, document: str, token: str, files: Mapping[str, bytes], tags: Mapping[str, str] | None
) -> dict[str, str]:
    """Put the files of a decided change; return their tags, {} if another process did it.

    The tags given are those from before it was decided; without them they are asked for, each before it is looked
    whether the change still waits.
    """
    put: dict[str, str] = {}
    for key in sorted(files, key=lambda key: key == document):
        expect = None if tags is None else tags.get(key, "")
        while key not in put:
            if expect is None:
                found = objects.head(key)
                if _decided(objects, document) != token:
                    return {}
                expect = found.etag if found else ""
            try:
                put[key] = objects.put(key, files[key], expect=expect)
            except ObjectChangedError:
                expect = None
    objects.delete(_bundle_key(token))
    return put


def _decided(objects: Objects, document: str) -> str:
    found = objects.get(document)
    return decided_commit(found[0] if found else None)[0]


def _bundle_key(token: str) -> str:
    return f".{COMMIT}-{token}"


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return several files as the content of one."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as bundle:
        for key, value in files.items():
            bundle.writestr(key, value)
    return content.getvalue()


def unpack(content: bytes) -> dict[str, bytes]:
    """Return the files that `pack` was given."""
    with zipfile.ZipFile(io.BytesIO(content)) as bundle:
        return {key: bundle.read(key) for key in bundle.namelist()}
