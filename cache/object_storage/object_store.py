"""Feature store in object storage: written shard by shard through a folder of this machine, read through another.

<cache_dir>/<bucket-…-name>-<digest>/
  NAME            the writer's: small files, and the shard being made (object_writer.py); under an flock
  NAME.*.jsonl    records that stand beside a store: what was left out, what it cost
  read/NAME       the readers': small files as of the last opening, and shards, within `cache_gb` (cached_rows.py)
  workers/…       of processes that write shards for a writer

No lock is held in the storage. Every put has a condition (client.py), rows are given in one step (boundary_commit.py),
and of two processes that write the same, one loses with one line.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..atomic_io import make_folder, write_file
from ..feature_store import FeatureStore, LocalFiles, Mode
from ..format import catalog as catalog_
from ..format.catalog import Catalog
from ..format.digests import canonical_json
from ..format.spec import BoundarySpec
from ..format.store_root import check_root, root_document
from ..format.zarr_metadata import METADATA_NAME
from ..read.batch import Allocate
from ..read.boundary_reader import BoundaryReader, Verify
from ..read.local_rows import ReadPath
from ..write import locks as lock
from ..write.boundary_writer import BoundaryRequest
from .address import ObjectAddress
from .boundary_commit import decided_commit, finish_commit
from .cached_rows import ReadThroughRows
from .client import Objects, Stored
from .mirror import Mirror, is_boundary
from .object_writer import ObjectWriter, named, this_process
from .shard_cache import ShardCache, get_shard

RECORDS = (".left-out.jsonl", ".extraction.jsonl", ".units.jsonl")


class ObjectStore(FeatureStore):
    """Such a store; `path` is the folder of this machine that stands for it.

    With mode `a` it is made where there is none.

    Raises:
        StoreFormatError: no store there, something else there, or another format version.
        StoreLockedError: mode `a`, and another process on this machine writes it through the same `cache_dir`.
        StoreError: no answer for `retry_seconds`, or no permission.
        BackendError: the package for object storage is not installed.
    """

    def __init__(self, address: ObjectAddress, mode: Mode = "r", *, check: bool = True) -> None:
        super().__init__(address.write_folder if mode == "a" else address.read_folder, address.url, mode)
        self.address = address
        self._objects = Objects(address)
        self._mirror = Mirror(self._objects, self.path)
        self._listing: Mapping[str, Stored] = {}
        if mode == "a":
            self._objects.prove_conditions()
            with self._locked("open"):
                if self._objects.head(METADATA_NAME) is None and not self._objects.list():
                    self._objects.put(METADATA_NAME, canonical_json(root_document()), expect="")
                self._mirror.pull(shards=False)
            for folder in (address.place / "workers").glob("*"):
                if _is_dead(folder.name):
                    shutil.rmtree(folder, ignore_errors=True)
        else:
            self._listing = self._mirror.pull()
        for suffix, (content, _) in self._objects.get_all(RECORDS).items():
            make_folder(address.place)
            write_file(self._record(suffix), content, durable=False)
        with named(self.where, self.path):
            if check:
                check_root(self.path)

    @contextmanager
    def editing(self, purpose: str) -> Iterator[Path]:
        """Give a folder with the store's small files as they are there, and put at the end what changed in it."""
        if self.mode != "a":
            raise self._read_only()
        with self._locked(purpose):
            for key in filter(is_boundary, self._objects.list()):
                finish_commit(self._objects, key.rpartition("/")[0])
            self._mirror.pull(shards=False)
            yield self.path
            self._mirror.push(self._mirror.changed())
            self._mirror.delete_gone_receipts()

    def open_writer(self, request: BoundaryRequest, *, commit: bool) -> ObjectWriter:
        """Return the writer of a boundary; see `FeatureStore.writer`."""
        boundary = request.spec.path
        with self._locked(f"what opens {boundary}"):
            while True:
                finish_commit(self._objects, boundary)
                self._mirror.pull(boundary, shards=False)
                document = self.path / boundary / METADATA_NAME
                if not document.exists() or not decided_commit(document.read_bytes())[0]:
                    break  # else another process has decided a change meanwhile
            return ObjectWriter(self._mirror, self.address, request, commit=commit)

    def put_records(self) -> None:
        """Put the files that stand beside the store."""
        for suffix in RECORDS:
            if self._record(suffix).is_file():
                self._objects.put(suffix, self._record(suffix).read_bytes())

    @contextmanager
    def local_files(self) -> Iterator[LocalFiles]:
        """Give a new copy of the small files in a folder that is removed afterwards; shards are got one by one."""
        self.address.cache_root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".verify-", dir=self.address.cache_root) as folder:
            mirror = Mirror(self._objects, Path(folder) / self.address.name)
            listing = mirror.pull()
            yield LocalFiles(folder=mirror.folder, shard=partial(_shard_here, mirror, listing))

    def open_reader(
        self, spec: BoundarySpec, *, verify: Verify, path: ReadPath, allocate: Allocate | None
    ) -> BoundaryReader:
        """Return the reader of a boundary; see `FeatureStore.reader`."""
        if self.mode == "a":  # what this process wrote is read as others read it
            return ObjectStore(self.address).open_reader(spec, verify=verify, path=path, allocate=allocate)
        with named(self.where, self.path):
            catalog = catalog_.load(self.path, spec)
            assert catalog is not None
            catalog = replace(catalog, layout=replace(catalog.layout, shown=self.where))
            catalog_.check_sizes(catalog, self._size_of)
            cache = ShardCache(self.address.cache_root, self.address.cache_bytes)
            rows = ReadThroughRows(catalog, path, self._mirror, self._listing, cache)
            return BoundaryReader(catalog, rows, verify=verify, allocate=allocate)

    def _size_of(self, path: Path) -> int:
        stored = self._listing.get(self._mirror.key(path))
        return -1 if stored is None else stored.size_bytes

    def _record(self, suffix: str) -> Path:
        return self.address.place / f"{self.address.name}{suffix}"

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Keep other processes of this machine out of the folder that this one writes through."""
        make_folder(self.path)
        with named(self.where, self.path):
            lock.acquire(self.path, name)
        try:
            yield
        finally:
            lock.release(self.path, name)


@contextmanager
def _shard_here(mirror: Mirror, listing: Mapping[str, Stored], catalog: Catalog, shard: int) -> Iterator[None]:
    """Have the data files of one shard in a mirror's folder, as they were listed."""
    paths = [array.shard_path(shard) for array in catalog.layout.data]
    try:
        for path in paths:
            stored = listing.get(mirror.key(path))
            if stored is not None:
                get_shard(mirror, path, stored)
        yield
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def _is_dead(worker: str) -> bool:
    """Return whether a worker's folder is that of a process that ran on this host and is no more."""
    host, _, pid = worker.rpartition("-")
    if host != this_process()[0] or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
