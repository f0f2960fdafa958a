"""A folder that holds the small files of a store in object storage: brought if they changed there, put if here.

Beside the folder stands `.NAME.synced.json`: of each file its entity tag there, and its size and time here, as they
were when both were the same. A file whose tag or time is another has changed on that side.

Bringing: the boundaries' documents are got first and put in place last, so that a copy never says more than it holds,
whatever a writer does meanwhile. Putting: each file on the condition that the object is still the one that was seen.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...errors import StoreError, StoreFormatError
from ..atomic_io import disk_errors, write_file
from ..file_locks import open_locked
from ..format.zarr_metadata import METADATA_NAME
from .boundary_commit import decided_commit
from .client import Objects, Stored, in_parallel

_PULLS = 5


def is_data(key: str) -> bool:
    """Return whether a key is that of a shard's data file: `visual/b09-…/hidden/c.0.0`."""
    parts = key.split("/")
    return len(parts) >= 4 and parts[2] in ("hidden", "inputs") and parts[-1].startswith("c.")


class Mirror:
    """Such a folder; several processes may bring files into one, one may write in it."""

    def __init__(self, objects: Objects, folder: Path) -> None:
        """Read what is known of the folder."""
        self.objects = objects
        self.folder = folder
        self._known_path = folder.with_name(f".{folder.name}.synced.json")

    def key(self, path: Path) -> str:
        """Return the key of a file."""
        return path.relative_to(self.folder).as_posix()

    def pull(self, folder: str = "", keep: Container[str] = ()) -> dict[str, Stored]:
        """Bring every small file, and take away what is no longer there, shards that were brought before included.

        A boundary whose first rows are decided and not yet there (boundary_commit.py) is as if it were not there.

        Args:
            folder: a boundary's path, to bring that boundary alone; all by default.
            keep: keys of files that stay although they are not there (yet).

        Returns:
            All objects, shards too, as they are there.

        Raises:
            StoreFormatError: no store there.
            StoreError: no answer.
        """
        with self._knowing() as known:
            for _ in range(_PULLS):
                listing = {k: s for k, s in self.objects.list(folder).items() if not _is_hidden(k)}
                if not folder and METADATA_NAME not in listing:
                    raise StoreFormatError(
                        f"{self.objects.url}: there is no store; run `talik extract` to make one"
                        if not listing
                        else f"{self.objects.url}: what is there is no talik store (no {METADATA_NAME})"
                    )
                if self._brought(listing, known):
                    break
            else:
                raise StoreError(f"{self.objects.url}: changes faster than it can be read; run again")
            for key in {key for key in known if key.startswith(folder)} - set(listing):
                del known[key]
            here = (self.folder / folder).rglob("*")
            for path in sorted(p for p in here if p.is_file() and not p.name.startswith(".")):
                key = self.key(path)
                there = listing.get(key)
                stale = there is None or (is_data(key) and known.get(key, [""])[0] != there.etag)
                if stale and key not in keep:
                    path.unlink(missing_ok=True)
            return listing

    def _brought(self, listing: dict[str, Stored], known: dict[str, Any]) -> bool:
        """Get what changed; False: it changed again meanwhile, and nothing was put in place."""
        wanted = [k for k, s in listing.items() if not is_data(k) and not self._same(k, s.etag, known)]
        boundaries = [k for k in wanted if is_boundary(k)]
        documents = dict(zip(boundaries, in_parallel(self.objects.get, boundaries), strict=True))
        if any(got is None or got[1] != listing[k].etag for k, got in documents.items()):
            return False
        for key, got in list(documents.items()):
            token, first = decided_commit(got[0] if got else None)
            if token and first:
                _leave_out(key.removesuffix(METADATA_NAME), listing, documents)
        others = [k for k in wanted if not is_boundary(k) and k in listing]
        rest = dict(zip(others, in_parallel(self.objects.get, others), strict=True))
        if any(got is None for got in rest.values()):
            return False
        for key, got in [*rest.items(), *documents.items()]:
            assert got is not None
            self._place(key, *got, known)
        return True

    def pull_new(self, folder: str) -> None:
        """Bring the small files in a folder that are not here at all: shards' receipts, say, that workers wrote."""
        there = [key for key in self.objects.list(folder) if not _is_hidden(key)]
        self.pull_some(key for key in there if not (self.folder / key).exists())

    def pull_some(self, keys: Iterable[str]) -> None:
        """Bring small files as they are now; those that are not there are left alone."""
        wanted = list(keys)
        with self._knowing() as known:
            for key, got in zip(wanted, in_parallel(self.objects.get, wanted), strict=True):
                if got is not None:
                    self._place(key, *got, known)

    def changed(self, folder: str = "") -> list[str]:
        """Return the small files here that are not as they were when they were the same there, documents last.

        What belongs to one shard, its checksums and its receipt, is not among them.
        """
        with self._knowing() as known:
            found = []
            for path in (self.folder / folder).rglob("*"):
                key = self.key(path)
                small = path.is_file() and not _is_hidden(key) and not is_data(key) and not _is_of_shard(key)
                if small and not (key in known and self._same(key, known[key][0], known)):
                    found.append(key)
            return sorted(found, key=lambda key: (is_boundary(key), key == METADATA_NAME, key))

    def changed_above(self, boundary: str) -> list[str]:
        """Return the key of the document of a boundary's modality, if it changed here; else nothing."""
        key = f"{boundary.partition('/')[0]}/{METADATA_NAME}"
        return [] if self.is_synced(key) else [key]

    def push(self, keys: Iterable[str]) -> None:
        """Put small files, in order, each on the condition that nobody else has written it since it was seen.

        Raises:
            ObjectChangedError: somebody has.
        """
        for key in keys:
            self.note(key, self.objects.put(key, (self.folder / key).read_bytes(), expect=self.tag(key)))

    def delete_gone_receipts(self, folder: str = "") -> None:
        """Take the receipts away there that were taken away here."""
        with self._knowing() as known:
            gone = [k for k in known if k.startswith(folder) and _is_receipt(k) and not (self.folder / k).exists()]
        for key in sorted(gone):
            self.objects.delete(key)
        with self._knowing() as known:
            for key in gone:
                known.pop(key, None)

    def note(self, key: str, etag: str) -> None:
        """Remember that a file here is the object of that tag."""
        with self._knowing() as known:
            self._note(key, etag, known)

    def is_synced(self, key: str) -> bool:
        """Return whether a file here is known to be there too, unchanged since."""
        with self._knowing() as known:
            return key in known and self._same(key, known[key][0], known)

    def tag(self, key: str) -> str:
        """Return the entity tag that an object had when it was last seen, "" if it was not there."""
        with self._knowing() as known:
            return str(known.get(key, [""])[0])

    def _same(self, key: str, etag: str, known: dict[str, Any]) -> bool:
        try:
            state = (self.folder / key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return known.get(key) == [etag, state.st_size, state.st_mtime_ns]

    def _note(self, key: str, etag: str, known: dict[str, Any]) -> None:
        state = (self.folder / key).stat()
        known[key] = [etag, state.st_size, state.st_mtime_ns]

    def _place(self, key: str, content: bytes, etag: str, known: dict[str, Any]) -> None:
        """Put a file in place in one rename; not durable, since it can be fetched again."""
        path = self.folder / key
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content, durable=False)
        self._note(key, etag, known)

    @contextmanager
    def _knowing(self) -> Iterator[dict[str, Any]]:
        """Give the table of what is known, alone among processes, and keep what became of it."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            guard = open_locked(self._known_path.with_suffix(".lock"), wait=True)
        try:
            before = self._read()
            known = dict(before)
            try:
                yield known
            finally:
                if known != before:
                    self._write(known)
        finally:
            os.close(guard)

    def _read(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            found = json.loads(self._known_path.read_bytes())
            if isinstance(found, dict):
                return found
        return {}

    def _write(self, known: dict[str, Any]) -> None:
        write_file(self._known_path, json.dumps(known).encode(), durable=False)


def _is_hidden(key: str) -> bool:
    return any(part.startswith(".") for part in key.split("/"))


def is_boundary(key: str) -> bool:
    """Return whether a key is that of a boundary's document: `visual/b09-…/zarr.json`."""
    return key.count("/") == 2 and key.endswith(f"/{METADATA_NAME}")


def _is_receipt(key: str) -> bool:
    return "/receipts/c." in key


def _is_of_shard(key: str) -> bool:
    return _is_receipt(key) or "/crc/c." in key


def _leave_out(folder: str, *tables: dict[str, Any]) -> None:
    for table in tables:
        for key in [key for key in table if key.startswith(folder)]:
            del table[key]
