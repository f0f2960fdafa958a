"""Copy, in a folder of this machine, of the small files of a store in object storage; changes go either way.

Beside the folder stands `.NAME.synced.json`: of each file its entity tag there, and of a small file its size and time
here, as they were when both were the same. A file whose tag or time is another has changed on that side.

A pull gets the boundaries' documents first and puts them in place last, so that a copy never says more than it holds,
whatever a writer does meanwhile. A push puts each file on the condition that the object is still the one last seen.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...errors import NoStoreError, StoreError, StoreFormatError
from ..atomic_io import disk_errors, write_file
from ..file_locks import open_locked
from ..format.zarr_metadata import METADATA_NAME
from .boundary_commit import decided_commit
from .client import Objects, Stored

_PULLS = 5


def is_data(key: str) -> bool:
    """Return whether a key is that of a shard's data file: `visual/b09-…/hidden/c.0.0`."""
    parts = key.split("/")
    return len(parts) >= 4 and parts[2] in ("hidden", "inputs") and parts[-1].startswith("c.")


def is_boundary(key: str) -> bool:
    """Return whether a key is that of a boundary's document: `visual/b09-…/zarr.json`."""
    return key.count("/") == 2 and key.endswith(f"/{METADATA_NAME}")


class Mirror:
    """Such a folder; several processes may pull files into one, one may write in it."""

    def __init__(self, objects: Objects, folder: Path) -> None:
        self.objects = objects
        self.folder = folder
        self._known_path = folder.with_name(f".{folder.name}.synced.json")

    def key(self, path: Path) -> str:
        """Return the key of a file."""
        return path.relative_to(self.folder).as_posix()

    def pull(self, folder: str = "", *, shards: bool = True) -> dict[str, Stored]:
        """Get every small file that changed, and remove the files that are no longer there.

        A boundary whose first rows are decided and not yet there (boundary_commit.py) is as if it were not there.

        Args:
            folder: a boundary's path, to pull that boundary alone; all by default.
            shards: remove data files that are no longer there as well.

        Returns:
            All objects, data files too, as they are there.

        Raises:
            NoStoreError: nothing is there.
            StoreFormatError: what is there is no store.
            StoreError: no answer.
        """
        with self._table() as known:
            for _ in range(_PULLS):
                listing = {k: s for k, s in self.objects.list(folder).items() if not _is_hidden(k)}
                if not folder and METADATA_NAME not in listing:
                    found = f"what is there is no talik store (no {METADATA_NAME})"
                    if not listing:
                        raise NoStoreError(f"{self.objects.url}: there is no store; run `talik extract` to make one")
                    raise StoreFormatError(f"{self.objects.url}: {found}")
                if self._get_changed(listing, known):
                    break
            else:
                raise StoreError(f"{self.objects.url}: changes faster than it can be read; run again")
            for key in {key for key in known if key.startswith(folder)} - set(listing):
                del known[key]
            for key, path in self._files(folder):
                stale = key not in listing
                if is_data(key):
                    stale = shards and (stale or known.get(key, [""])[0] != listing[key].etag)
                if stale:
                    path.unlink(missing_ok=True)
            return listing

    def _get_changed(self, listing: dict[str, Stored], known: dict[str, Any]) -> bool:
        """Get what changed; False: it changed again meanwhile, and nothing was put in place."""
        wanted = [k for k, s in listing.items() if not is_data(k) and not self._same(k, s.etag, known)]
        documents = self.objects.get_all(filter(is_boundary, wanted))
        if any(is_boundary(k) and (k not in documents or documents[k][1] != listing[k].etag) for k in wanted):
            return False
        for boundary in [
            key.removesuffix(METADATA_NAME) for key, got in documents.items() if all(decided_commit(got[0]))
        ]:
            for table in (listing, documents):
                for key in [key for key in table if key.startswith(boundary)]:
                    del table[key]
        others = [key for key in wanted if not is_boundary(key) and key in listing]
        got = self.objects.get_all(others)
        if len(got) < len(others):
            return False
        self._place({**got, **documents}, known)
        return True

    def pull_new(self, folder: str) -> None:
        """Get the small files in a folder that are not here at all: shards' receipts, say, that workers wrote."""
        there = self.objects.list(folder)
        self.place(self.objects.get_all(k for k in there if not _is_hidden(k) and not (self.folder / k).exists()))

    def place(self, files: Mapping[str, tuple[bytes, str]]) -> None:
        """Write files here, each from its content and the entity tag of the object that has it."""
        with self._table() as known:
            self._place(files, known)

    def changed(self, folder: str = "") -> list[str]:
        """Return the small files here that are not as they were when they were the same there, documents last.

        What belongs to one shard, its checksums and its receipt, is not among them.
        """
        with self._table() as known:
            small = [k for k, _ in self._files(folder) if not (is_data(k) or _is_receipt(k) or "/crc/c." in k)]
            found = [key for key in small if not (key in known and self._same(key, known[key][0], known))]
        return sorted(found, key=lambda key: (is_boundary(key), key == METADATA_NAME, key))

    def push(self, keys: Iterable[str]) -> None:
        """Put small files, in order, each on the condition that nobody else has written it since it was seen.

        Raises:
            ObjectChangedError: somebody has.
        """
        for key in keys:
            content = (self.folder / key).read_bytes()
            self.note({key: self.objects.put(key, content, expect=self.tags([key]).get(key, ""))})

    def delete_gone_receipts(self, folder: str = "") -> None:
        """Delete the objects of receipts that were removed here."""
        with self._table() as known:
            for key in sorted(k for k in known if k.startswith(folder) and _is_receipt(k)):
                if not (self.folder / key).exists():
                    self.objects.delete(key)
                    del known[key]

    def note(self, tags: Mapping[str, str]) -> None:
        """Remember that files here are the objects of these entity tags; a data file may come just after."""
        with self._table() as known:
            for key, etag in tags.items():
                self._note(key, etag, known)

    def is_synced(self, key: str) -> bool:
        """Return whether a file here is known to be there too, unchanged since."""
        with self._table() as known:
            return key in known and self._same(key, known[key][0], known)

    def tags(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the entity tags that objects had when they were last seen, of those that were there."""
        with self._table() as known:
            return {key: known[key][0] for key in keys if key in known}

    def _files(self, folder: str) -> list[tuple[str, Path]]:
        """Return key and path of every file here that is not hidden."""
        found = ((self.key(path), path) for path in (self.folder / folder).rglob("*") if path.is_file())
        return [(key, path) for key, path in found if not _is_hidden(key)]

    def _same(self, key: str, etag: str, known: dict[str, Any]) -> bool:
        with suppress(FileNotFoundError, NotADirectoryError):
            state = (self.folder / key).stat()
            return bool(known.get(key) == [etag, state.st_size, state.st_mtime_ns])
        return False

    def _note(self, key: str, etag: str, known: dict[str, Any]) -> None:
        known[key] = [etag]
        if not is_data(key):
            state = (self.folder / key).stat()
            known[key] += [state.st_size, state.st_mtime_ns]

    def _place(self, files: Mapping[str, tuple[bytes, str]], known: dict[str, Any]) -> None:
        """Put each file in place in one rename; not durable, since it can be fetched again."""
        for key, (content, etag) in files.items():
            path = self.folder / key
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, content, durable=False)
            self._note(key, etag, known)

    @contextmanager
    def _table(self) -> Iterator[dict[str, Any]]:
        """Give the table of what is known, to one process at a time, and keep what it becomes."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            guard = open_locked(self._known_path.with_suffix(".lock"), wait=True)
        known: dict[str, Any] = {}
        try:
            with suppress(OSError, ValueError, TypeError):
                known = dict(json.loads(self._known_path.read_bytes()))
            before = dict(known)
            try:
                yield known
            finally:
                if known != before:
                    write_file(self._known_path, json.dumps(known).encode(), durable=False)
        finally:
            os.close(guard)


def _is_hidden(key: str) -> bool:
    return any(part.startswith(".") for part in key.split("/"))


def _is_receipt(key: str) -> bool:
    return "/receipts/c." in key
