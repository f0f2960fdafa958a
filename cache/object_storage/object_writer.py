"""Writes a boundary of a store in object storage: each shard is made in a folder of this machine, then put.

The order there is that of a store in a folder: small arrays, their documents, the boundary's document; of a shard its
data files, its checksums, and last its receipt. A file is put whole, and only where nothing stands, or what stood
there when the shard was begun: of two that make the same shard, one finishes it. What was finished here and could not
be put (the server was gone, the process was killed) is put by the next writer on this machine, if the store still has
its rows.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ObjectChangedError, StoreError, StoreFullError
from ..format import catalog as catalog_
from ..format.catalog import Catalog
from ..format.digests import canonical_json
from ..format.int8 import MEASURED, Int8Error
from ..format.layout import RECEIPT_FIELDS, Layout
from ..format.spec import BoundarySpec
from ..format.zarr_metadata import METADATA_NAME, group_document
from ..write.boundary_writer import BoundaryRequest, BoundaryWriter
from ..write.disk_space import refuse_if_full, shard_bytes
from ..write.row_allocation import missing_shards
from ..write.shard_writer import Shard, ShardWriter
from .address import ObjectAddress
from .boundary_commit import commit_files, decided_commit, finish_commit
from .client import Objects, in_parallel
from .mirror import Mirror
from .shard_cache import ShardCache, adopt_shard

Array = np.ndarray[Any, Any]


@contextmanager
def named(url: str, folder: Path) -> Iterator[None]:
    """Have what goes wrong in a folder that stands for a URL said of the URL."""
    try:
        yield
    except StoreError as error:
        if str(folder) in str(error) and not isinstance(error, StoreFullError):  # it is this machine's disk that is
            raise type(error)(str(error).replace(str(folder), url)) from None
        raise


@dataclass(frozen=True, kw_only=True)
class ObjectShardWriter(ShardWriter):
    """Writes shards of one boundary and puts them; pickles, so that other processes, on other machines too, can.

    Args:
        address: of the store.
        owner: the process that planned the shards; any other has a folder of its own.
    """

    address: ObjectAddress
    owner: tuple[str, int]

    def write(
        self, shard: Shard, states: Iterable[tuple[Array, Mapping[str, Array]]], error: Int8Error | None = None
    ) -> Array:
        """Stream `states` to the shard's files here, and put them; see `ShardWriter.write`.

        Raises:
            ObjectChangedError: another process is putting this shard; what is finished here is kept.
        """
        mirror, layout = self._here()
        self._hand_over(mirror, layout, keep=1)
        receipt_key = mirror.key(layout.receipts.chunk_path(shard.index))
        with named(self.address.url, mirror.folder):
            if not layout.receipts.chunk_path(shard.index).exists():
                mirror.pull_some([receipt_key])  # another process may have put it
            if mirror.is_synced(receipt_key):
                return catalog_.read_receipt(layout, shard.index)
            seen = seen_tags(mirror, layout, shard.index)
            inner = ShardWriter(layout=layout, provenance=self.provenance, num_records=self.num_records)
            inner.write(shard, states, error)
            put_shard(mirror, layout, shard.index, seen)
            return catalog_.read_receipt(layout, shard.index)

    def _hand_over(self, mirror: Mirror, layout: Layout, *, keep: int) -> None:
        address = self.address
        readers = Mirror(mirror.objects, address.read_folder) if self.owner == this_process() else None
        hand_over(mirror, layout, readers, ShardCache(address.cache_root, address.cache_bytes), keep=keep)

    def _here(self) -> tuple[Mirror, Layout]:
        """Return the folder that this process writes in, and the boundary there."""
        objects = Objects(self.address)
        if self.owner == this_process():
            return Mirror(objects, self.address.write_folder), self.layout
        folder = self.address.worker_folder("-".join(map(str, this_process())))
        mirror, layout = Mirror(objects, folder), replace(self.layout, store=folder)
        with suppress(StoreError):
            if catalog_.read_attributes(layout.folder)["num_records"] == self.num_records:
                return mirror, layout
        mirror.pull(layout.spec.path)
        return mirror, layout


class ObjectWriter(BoundaryWriter):
    """A writer of a boundary; made by `ObjectStore.writer`, used as a context manager."""

    def __init__(self, mirror: Mirror, address: ObjectAddress, request: BoundaryRequest, *, commit: bool) -> None:
        """See `BoundaryWriter`; the boundary's small files here are as they are in the store.

        Args:
            mirror: the folder.
            address: of the store.
            request, commit: as there.
        """
        self._mirror, self._address = mirror, address
        self._document = f"{request.spec.path}/{METADATA_NAME}"
        self._document_tag = mirror.tag(self._document)  # of the document that the rows here are of
        with named(address.url, mirror.folder):
            super().__init__(mirror.folder, **vars(request), commit=False)
        try:
            if commit:
                self.commit()
        except BaseException:
            super().close()
            raise

    def close(self) -> None:
        """Give the lock of this machine's folder back; a second call does nothing."""
        if self._lock_name:
            try:
                with suppress(StoreError):
                    self.shard_writer._hand_over(self._mirror, self._catalog.layout, keep=0)
            finally:
                super().close()

    def missing(self) -> list[Shard]:
        """Return the shards that are still to be computed for the items asked for."""
        layout = self._catalog.layout
        self._mirror.pull_new(self._mirror.key(layout.receipts.folder))
        for shard in unput_shards(self._mirror, layout):
            put_shard(self._mirror, layout, shard, seen_tags(self._mirror, layout, shard))
        return super().missing()

    def measured(self, error: Int8Error) -> None:
        """Add to the provenance what int8 changed in shards."""
        super().measured(error)
        content = (self._mirror.folder / self._document).read_bytes()
        try:
            self._document_tag = self._mirror.objects.put(self._document, content, expect=self._document_tag)
            self._mirror.note(self._document, self._document_tag)
        except ObjectChangedError:
            self._measure_newer(error)

    def _measure_newer(self, error: Int8Error) -> None:
        """Add it to the document that another process has put since, which has the same provenance and more."""
        objects, boundary = self._mirror.objects, self.spec.path
        while True:
            finish_commit(objects, boundary)
            found = objects.get(self._document)
            if found is None:
                raise ObjectChangedError(f"{self._address.url}/{self._document}: is gone; run again")
            if decided_commit(found[0])[0]:
                continue
            ours = json.loads(found[0])["attributes"]["talik"]
            entry = ours["provenance"][self._provenance]
            total = Int8Error.from_json(entry[MEASURED]) if MEASURED in entry else Int8Error()
            total.add(error)
            entry[MEASURED] = total.to_json()
            plain = {name: value for name, value in ours.items() if name != "digest"}
            with suppress(ObjectChangedError):
                objects.put(self._document, canonical_json(group_document(plain)), expect=found[1])
                return

    def _write_rows(self) -> None:
        boundary, mirror = self.spec.path, self._mirror
        before = catalog_.attributes(self._stored)
        with named(self._address.url, mirror.folder):
            super()._write_rows()
        mirror.delete_gone_receipts(boundary)
        mirror.push(mirror.changed_above(boundary))
        changed = mirror.changed(boundary)
        if changed:
            files = {key: (mirror.folder / key).read_bytes() for key in {*changed, self._document}}
            tags = {**{key: mirror.tag(key) for key in files}, self._document: self._document_tag}
            put = commit_files(mirror.objects, boundary, files, before, tags)
            self._document_tag = "" if put is None else put[self._document]  # "": whoever goes on from there is another
            for key, tag in (put or {}).items():
                mirror.note(key, tag)
        self._catalog = replace(self._catalog, layout=replace(self._catalog.layout, shown=self._address.url))

    @property
    def shard_writer(self) -> ObjectShardWriter:
        """What another process, on any machine that reaches the storage, needs to write some of the missing shards."""
        inner = super().shard_writer
        return ObjectShardWriter(**vars(inner), address=self._address, owner=this_process())

    def _refuse_if_full(self, catalog: Catalog, only: int | None = None) -> None:
        """Refuse if this machine has no room for the largest shard on its way."""
        shards = missing_shards(catalog, self._items) if only is None else [only]
        largest = max((shard_bytes(catalog, shard) for shard in shards), default=0)
        refuse_if_full(catalog.layout.store, largest, where=catalog.layout.where, what="a shard on its way")


def this_process() -> tuple[str, int]:
    """Return host and number of this process."""
    return socket.gethostname(), os.getpid()


def seen_tags(mirror: Mirror, layout: Layout, shard: int) -> dict[str, str]:
    """Return the entity tags of a shard's objects that stand in the storage without a receipt, by key.

    A process that died put them; a put replaces them if they are still those.
    """
    keys = [mirror.key(path) for path in _shard_files(layout, shard)]
    found = zip(keys, in_parallel(mirror.objects.head, keys), strict=True)
    return {key: stored.etag for key, stored in found if stored is not None}


def put_shard(mirror: Mirror, layout: Layout, shard: int, seen: Mapping[str, str]) -> None:
    """Put a finished shard: its data files, its checksums, and last the receipt that makes it count.

    If another process has finished it meanwhile, its shard is taken in place of this one.

    Args:
        mirror: the folder that holds the files.
        layout: of the boundary there.
        shard: its number.
        seen: what stood in place of the files when the shard was begun.

    Raises:
        ObjectChangedError: another process is putting it; the files here are kept.
    """
    objects, receipt = mirror.objects, layout.receipts.chunk_path(shard)
    files, tags = _shard_files(layout, shard), {}
    try:
        if objects.head(mirror.key(receipt)) is not None:
            raise ObjectChangedError("finished since")
        for path in files:
            key = mirror.key(path)
            tags[key] = objects.put(key, path, expect=seen.get(key, ""))
        if tags != seen_tags(mirror, layout, shard):
            raise ObjectChangedError("replaced since")
        tags[mirror.key(receipt)] = objects.put(mirror.key(receipt), receipt.read_bytes(), expect="")
    except ObjectChangedError:
        if objects.head(mirror.key(receipt)) is None:
            raise ObjectChangedError(
                f"{layout.where}: another process is writing shard {shard} too and has put a part of it; what is "
                "finished is kept: run again when it has ended"
            ) from None
        for path in (*files, receipt):
            path.unlink()
        mirror.pull_some([mirror.key(receipt), *([mirror.key(layout.crc.chunk_path(shard))] * layout.spec.ragged)])
        return
    for key, tag in tags.items():
        mirror.note(key, tag)


def _shard_files(layout: Layout, shard: int) -> list[Path]:
    checksums = [layout.crc.chunk_path(shard)] if layout.spec.ragged else []
    return [*(array.shard_path(shard) for array in layout.data), *checksums]


def unput_shards(mirror: Mirror, layout: Layout) -> list[int]:
    """Return the shards that are finished here and that the storage has not."""
    found = []
    for path in sorted(layout.receipts.folder.glob("c.*")):
        shard = int(path.name.split(".")[1])
        if not mirror.is_synced(mirror.key(path)) and _is_whole(layout, shard):
            found.append(shard)
    return found


@dataclass(frozen=True)
class Unput:
    """A shard that an earlier process on this machine finished and could not put."""

    catalog: Catalog
    shard: int
    provenance: int
    small: dict[Path, bytes]

    def data_files(self) -> list[Path]:
        """Return its data files."""
        return [array.shard_path(self.shard) for array in self.catalog.layout.data]


def find_unput(mirror: Mirror, specs: Iterable[BoundarySpec]) -> list[Unput]:
    """Return every such shard of a folder, with its small files, before they are brought anew."""
    found = []
    for spec in specs:
        with suppress(StoreError):  # what a kill left half written is brought anew
            catalog = catalog_.load(mirror.folder, spec)
            for shard in unput_shards(mirror, catalog.layout) if catalog else []:
                assert catalog is not None
                layout = catalog.layout
                paths = [layout.receipts.chunk_path(shard), *([layout.crc.chunk_path(shard)] * spec.ragged)]
                provenance = int(catalog_.read_receipt(layout, shard)[2])
                found.append(Unput(catalog, shard, provenance, {path: path.read_bytes() for path in paths}))
    return found


def put_unput(mirror: Mirror, unput: Iterable[Unput]) -> None:
    """Put these shards, if the store as it is there still has their items in their rows; else take them away."""
    for one in unput:
        layout = one.catalog.layout
        now = catalog_.load(mirror.folder, layout.spec)
        finished = now is not None and bool(catalog_.read_receipt(layout, one.shard)[0])
        if now is not None and not finished and _means(now, one) == _means(one.catalog, one):
            for path, content in one.small.items():
                path.write_bytes(content)
            put_shard(mirror, layout, one.shard, seen_tags(mirror, layout, one.shard))
        else:
            for path in one.data_files():
                path.unlink(missing_ok=True)


def _means(catalog: Catalog, one: Unput) -> Any:
    """Return what makes a shard's files and receipt those of a catalog; None if it has no such shard."""
    if one.shard >= catalog.num_shards or one.provenance >= len(catalog.provenance):
        return None
    made_with = {k: v for k, v in catalog.provenance[one.provenance].items() if k != MEASURED}
    return catalog.layout.grid, Shard.of(catalog, one.shard), made_with


def _is_whole(layout: Layout, shard: int) -> bool:
    with suppress(StoreError):
        receipt = catalog_.read_receipt(layout, shard)
        sizes = receipt[RECEIPT_FIELDS:].tolist()
        return bool(receipt[0]) and all(
            catalog_.size_of(array.shard_path(shard)) == size for array, size in zip(layout.data, sizes, strict=True)
        )
    return False


def hand_over(mirror: Mirror, layout: Layout, readers: Mirror | None, cache: ShardCache, *, keep: int) -> None:
    """Take shards that were put out of a writer's folder, all but the `keep` newest of each array.

    Args:
        mirror: the folder.
        layout: of the boundary there.
        readers: where this machine's readers find them; None: nowhere.
        cache: bounds that.
        keep: how many somebody may still look at.
    """
    for array in layout.data:
        put = [path for path in array.folder.glob("c.*") if mirror.is_synced(mirror.key(path))]
        put.sort(key=lambda path: path.stat().st_mtime_ns)
        for path in put[: len(put) - keep]:
            if readers is not None:
                adopt_shard(path, readers, mirror.key(path), mirror.tag(mirror.key(path)), cache)
            path.unlink(missing_ok=True)
