"""The `zarr.json` documents of Zarr v3 groups and arrays, each with a digest of itself.

The digest is in the document, at attributes → talik → digest: the SHA-256 of the document's canonical JSON with that
field empty. So one rename replaces a document together with its digest, and folders hold nothing that is not Zarr. A
file is intact if it is, byte for byte, the canonical JSON of its own content.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import StoreFormatError
from ..atomic_io import write_file
from .digests import canonical_json, digest_json

METADATA_NAME = "zarr.json"
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC = {"name": "crc32c"}


def group_document(attributes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the document of a group with `attributes` under `talik`."""
    return _sealed({"zarr_format": 3, "node_type": "group", "attributes": {"talik": attributes or {}}})


def array_document(
    *,
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: str,
    inner: tuple[int, ...] | None = None,
    inner_checksum: bool = True,
) -> dict[str, Any]:
    """Return the document of an array.

    Args:
        shape: of the array.
        chunk: of one file.
        dtype: Zarr's name of the data type.
        inner: of one inner chunk, for an array of sharded files; None: a file is one chunk with a CRC32C at its end.
        inner_checksum: each inner chunk ends in its CRC32C.
    """
    bytes_codec = {"name": "bytes"} if dtype in ("bool", "int8", "uint8") else _BYTES
    codecs: list[dict[str, Any]] = [bytes_codec, _CRC]
    if inner is not None:
        sharding = {
            "chunk_shape": list(inner),
            "codecs": [bytes_codec, _CRC] if inner_checksum else [bytes_codec],
            "index_codecs": [_BYTES, _CRC],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    fill: Any = "NaN" if "float" in dtype else dtype != "bool" and 0  # a row without data must not read as zeros
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": {"talik": {}},
    }
    return _sealed(document)


def write_document(folder: Path, document: dict[str, Any]) -> None:
    """Write `folder/zarr.json` durably, unless it is the same already."""
    path, content = folder / METADATA_NAME, canonical_json(document)
    if not (path.is_file() and path.read_bytes() == content):
        write_file(path, content)


def read_document(folder: Path) -> dict[str, Any]:
    """Read and check the document in `folder/zarr.json`.

    Raises:
        StoreFormatError: no such file, not one of ours, or content that does not match its digest.
    """
    path = folder / METADATA_NAME
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise StoreFormatError(f"{path}: no such file; {folder} is not part of a talik store") from None
    try:
        document: dict[str, Any] = json.loads(content)
        digest = document["attributes"]["talik"]["digest"]
    except (ValueError, KeyError, TypeError):
        raise StoreFormatError(
            f"{path}: not a metadata file that talik wrote, or a damaged one; expected attributes.talik.digest"
        ) from None
    if canonical_json(document) != content or _sealed(document)["attributes"]["talik"]["digest"] != digest:
        raise StoreFormatError(
            f"{path}: its content is not what its digest says ({str(digest)[:12]}…): damaged, or edited by hand; "
            "restore the file, or extract into a new store"
        )
    return document


def _sealed(document: dict[str, Any]) -> dict[str, Any]:
    attributes = document["attributes"]
    ours = {**attributes["talik"], "digest": ""}
    unsealed = {**document, "attributes": {**attributes, "talik": ours}}
    ours = {**ours, "digest": digest_json(unsealed)}
    return {**document, "attributes": {**attributes, "talik": ours}}
