"""Writer of a boundary in object storage: each shard is made in a folder of this machine, then put.

The order there is that of a store in a folder: small arrays, their documents, the boundary's document; of a shard its
data files, its checksums, and last its receipt. A file is put whole, and only where nothing stands, or what stood
there when the shard was begun: of two that make the same shard, one finishes it.

A shard that was finished here and could not be put (the server was gone, the process was killed) is put by the next
writer on this machine, if the store still has its items in its rows: until then, `.unput/c.SHARD` in the boundary's
folder holds its small files and what they stand for.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import ObjectChangedError, StoreError, StoreFullError
from ..atomic_io import make_folder, write_file
from ..format import catalog as catalog_
from ..format.catalog import Catalog
from ..format.digests import canonical_json, digest_json
from ..format.int8 import MEASURED, Int8Error
from ..format.layout import Layout
from ..format.zarr_metadata import METADATA_NAME, group_document
from ..write.boundary_writer import BoundaryRequest, BoundaryWriter
from ..write.disk_space import refuse_if_full, shard_bytes
from ..write.locks import ShardLock
from ..write.row_allocation import missing_shards
from ..write.shard_writer import Shard, ShardStream, ShardWriter
from .address import ObjectAddress
from .boundary_commit import commit_files, decided_commit, finish_commit, pack, unpack
from .client import Objects
from .mirror import Mirror
from .shard_cache import ShardCache

_MEANING = "meaning"  # in a file of .unput, beside the small files: the digest of what they stand for


@contextmanager
def named(url: str, folder: Path) -> Iterator[None]:
    """Let errors about a folder that stands for a URL name the URL."""
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

    def open(self, shard: Shard, error: Int8Error | None = None, *, owned: bool = False) -> ShardStream | None:
        """Begin a shard in a folder of this machine, from where it is put when it is finished; see `ShardWriter.open`.

        Raises:
            ObjectChangedError: another process is putting this shard; what is finished here is kept.
        """
        mirror, layout = self._here()
        receipt = layout.receipts.chunk_path(shard.index)
        with named(self.address.url, mirror.folder):
            if not receipt.exists():
                mirror.place(mirror.objects.get_all([mirror.key(receipt)]))  # another process may have put it
            if mirror.is_synced(mirror.key(receipt)) or self.put_finished(mirror, layout, shard):
                return None
            receipt.unlink(missing_ok=True)
            seen = seen_tags(mirror, layout, shard.index)
            inner = ShardWriter(layout=layout, provenance=self.provenance, num_records=self.num_records)
            lock = inner.lock(shard)
            return (
                None if lock is None else _ObjectShardStream(self, inner, shard, lock, error, mirror, seen, owned=owned)
            )

    def receipt(self, shard: Shard) -> NDArray[np.uint64]:
        """Return the receipt (fields,) of a shard as it is known on this machine, zeros where it has none."""
        return catalog_.read_receipt(self._here()[1], shard.index)

    def put_new(self, mirror: Mirror, layout: Layout, shard: Shard, seen: Mapping[str, str]) -> None:
        """Put a shard that has just been finished here; until it is put whole, it counts for nobody."""
        small = {mirror.key(path): path.read_bytes() for path in _small_files(layout, shard.index)}
        bundle = _bundle(layout, shard.index)
        make_folder(bundle.parent)
        write_file(bundle, pack({**small, _MEANING: self._meaning(layout, shard)}))
        layout.receipts.chunk_path(shard.index).unlink()
        self._put(mirror, layout, shard.index, small, seen)

    def put_finished(self, mirror: Mirror, layout: Layout, shard: Shard) -> bool:
        """Put a shard that was finished here before, if there is one and it has the same items; return whether so."""
        bundle = _bundle(layout, shard.index)
        small = unpack(bundle.read_bytes()) if bundle.exists() else {}
        if small.pop(_MEANING, b"") != self._meaning(layout, shard):
            return False
        if not all(array.shard_path(shard.index).exists() for array in layout.data):
            return False
        self._put(mirror, layout, shard.index, small, seen_tags(mirror, layout, shard.index))
        return True

    def _put(
        self, mirror: Mirror, layout: Layout, shard: int, small: Mapping[str, bytes], seen: Mapping[str, str]
    ) -> None:
        """Put a finished shard and give its files to this machine's readers."""
        tags = put_shard(mirror, layout, shard, small, seen)
        readers = Mirror(mirror.objects, self.address.read_folder)
        cache = ShardCache(self.address.cache_root, self.address.cache_bytes)
        for key in tags.keys() - small.keys():
            cache.adopt(mirror.folder / key, readers, key, tags[key])
        _bundle(layout, shard).unlink()

    def _meaning(self, layout: Layout, shard: Shard) -> bytes:
        """Return a digest of what a shard's files are made of."""
        made_with = catalog_.read_attributes(layout.folder)["provenance"][self.provenance]
        made_with = {name: value for name, value in made_with.items() if name != MEASURED}
        keys = [item.key for item in shard.items]
        rows = [shard.rows, shard.lengths, shard.starts]
        return digest_json([layout.grid.to_json(), keys, rows, self.provenance, made_with]).encode()

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
        mirror.pull(layout.spec.path, shards=False)
        return mirror, layout


class _ObjectShardStream(ShardStream):
    """A shard that is written in a folder of this machine, and put when it is finished."""

    def __init__(
        self,
        owner: ObjectShardWriter,
        inner: ShardWriter,
        shard: Shard,
        lock: ShardLock,
        error: Int8Error | None,
        mirror: Mirror,
        seen: Mapping[str, str],
        *,
        owned: bool,
    ) -> None:
        self._owner, self._mirror, self._seen = owner, mirror, seen
        super().__init__(inner, shard, lock, error, owned=owned)

    def finish(self, shard: Shard | None = None) -> NDArray[np.uint64]:
        """Finish the shard here and put it; see `ShardStream.finish`.

        Raises:
            ObjectChangedError: another process is putting this shard; what is finished here is kept.
        """
        shard, layout = shard or self.shard, self.writer.layout
        with named(self._owner.address.url, self._mirror.folder):
            super().finish(shard)
            self._owner.put_new(self._mirror, layout, shard, self._seen)
            return catalog_.read_receipt(layout, shard.index)


class ObjectWriter(BoundaryWriter):
    """Writer of a boundary; made by `ObjectStore.writer`, used as a context manager.

    Args:
        mirror: the folder; the boundary's small files in it are as they are in the store.
        address: of the store.
        request, commit: as those of `BoundaryWriter`.
    """

    def __init__(self, mirror: Mirror, address: ObjectAddress, request: BoundaryRequest, *, commit: bool) -> None:
        self._mirror, self._address = mirror, address
        self._document = f"{request.spec.path}/{METADATA_NAME}"
        self._document_tag = mirror.tags([self._document]).get(self._document, "")  # of the document with these rows
        with named(address.url, mirror.folder):
            super().__init__(mirror.folder, request, commit=False)
        try:
            if commit:
                self.commit()
        except BaseException:
            self.close()
            raise

    def missing(self) -> list[Shard]:
        """Return the shards that are still to be computed for the items asked for."""
        mirror, layout, writer = self._mirror, self._catalog.layout, self.shard_writer
        mirror.pull_new(mirror.key(layout.receipts.folder))
        missing = {shard.index for shard in super().missing() if not writer.put_finished(mirror, layout, shard)}
        data = (path for array in layout.data for path in array.folder.glob("c.*"))
        for path in (*data, *_bundle(layout, 0).parent.glob("c.*")):  # of shards that others have finished
            if int(path.name.split(".")[1]) not in missing:
                path.unlink()
        return super().missing()

    def measured(self, error: Int8Error) -> None:
        """Add to the provenance what int8 changed in shards."""
        objects = self._mirror.objects
        while True:
            finish_commit(objects, self.spec.path)
            found = objects.get(self._document)
            if found is None:
                raise ObjectChangedError(f"{self._address.url}/{self._document}: is gone; run again")
            if decided_commit(found[0])[0]:
                continue
            ours = json.loads(found[0])["attributes"]["talik"]
            error.add_to(ours["provenance"][self._provenance])
            content = canonical_json(group_document({name: ours[name] for name in ours if name != "digest"}))
            with suppress(ObjectChangedError):
                tag = objects.put(self._document, content, expect=found[1])
                if found[1] == self._document_tag:  # else another process has added rows or measures since
                    self._document_tag = tag
                    error.add_to(self._catalog.provenance[self._provenance])
                    self._mirror.place({self._document: (content, tag)})
                return

    def _write_rows(self) -> None:
        boundary, mirror = self.spec.path, self._mirror
        before = catalog_.attributes(self._stored)
        with named(self._address.url, mirror.folder):
            super()._write_rows()
        mirror.delete_gone_receipts(boundary)
        above = f"{self.spec.modality}/{METADATA_NAME}"
        mirror.push(() if mirror.is_synced(above) else [above])
        changed = mirror.changed(boundary)
        if changed:
            files = {key: (mirror.folder / key).read_bytes() for key in {*changed, self._document}}
            tags = {**mirror.tags(files), self._document: self._document_tag}
            put = commit_files(mirror.objects, boundary, files, before, tags)
            self._document_tag = put.get(self._document, "")  # "": whoever goes on from there is another
            mirror.note(put)
        self._catalog = replace(self._catalog, layout=replace(self._catalog.layout, shown=self._address.url))

    @property
    def shard_writer(self) -> ObjectShardWriter:
        """What another process, on any machine that reaches the storage, needs to write some of the missing shards."""
        return ObjectShardWriter(**vars(super().shard_writer), address=self._address, owner=this_process())

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
    *checksums, _ = _small_files(layout, shard)
    paths = [*(array.shard_path(shard) for array in layout.data), *checksums]
    found = mirror.objects.head_all(map(mirror.key, paths))
    return {key: stored.etag for key, stored in found.items()}


def put_shard(
    mirror: Mirror, layout: Layout, shard: int, small: Mapping[str, bytes], seen: Mapping[str, str]
) -> dict[str, str]:
    """Put a finished shard: its data files, its checksums, and last the receipt that makes it count.

    If another process has finished it meanwhile, its shard is taken in place of this one.

    Args:
        mirror: the folder that holds the data files.
        layout: of the boundary there.
        shard: its number.
        small: its small files' content by key, the receipt last.
        seen: what stood in place of the files when the shard was begun.

    Returns:
        The entity tags by key; {} if another process has finished the shard.

    Raises:
        ObjectChangedError: another process is putting it; the files here are kept.
    """
    objects, receipt = mirror.objects, mirror.key(layout.receipts.chunk_path(shard))
    data = {mirror.key(path): path for path in (array.shard_path(shard) for array in layout.data)}
    files: dict[str, bytes | Path] = {**data, **small}
    tags: dict[str, str] = {}
    try:
        if objects.head(receipt) is not None:
            raise ObjectChangedError("finished since")
        for key, content in files.items():
            if key == receipt and tags != seen_tags(mirror, layout, shard):
                raise ObjectChangedError("replaced since")
            tags[key] = objects.put(key, content, expect=seen.get(key, ""))
    except ObjectChangedError:
        if objects.head(receipt) is None:
            raise ObjectChangedError(
                f"{layout.where}: another process is writing shard {shard} too and has put a part of it; what is "
                "finished is kept: run again when it has ended"
            ) from None
        for path in data.values():
            path.unlink()
        mirror.place(objects.get_all(small))
        return {}
    mirror.place({key: (content, tags[key]) for key, content in small.items()})
    return tags


def _small_files(layout: Layout, shard: int) -> list[Path]:
    """Return a shard's small files: its checksums, if it is ragged, and last its receipt."""
    arrays = [layout.crc, layout.receipts] if layout.spec.ragged else [layout.receipts]
    return [array.chunk_path(shard) for array in arrays]


def _bundle(layout: Layout, shard: int) -> Path:
    """Return the file that holds the small files of a shard until it is put."""
    return layout.folder / ".unput" / f"c.{shard}"
