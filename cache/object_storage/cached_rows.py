"""Rows of a boundary in object storage, read from copies of its shards that are got when they are first read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptItemError
from ..format.catalog import Catalog
from ..format.layout import DataArray
from ..read.batch import AllocateArray
from ..read.local_rows import LocalRows, ReadPath
from ..read.shard_reader import OpenShards, StoredShard
from .client import Stored, in_parallel
from .mirror import Mirror
from .shard_cache import ShardCache, get_shard

S = TypeVar("S", bound=StoredShard)
_DOWNLOADS = 4  # shards at once, each in several parts


class HeldShards(OpenShards[S]):
    """Shards that are open in one way, each got and held while it is.

    Args:
        like: how shards are opened and dropped; none is open yet.
        cache: holds them.
        get: gets a shard's file.
        opening: held while a shard is got and opened, so that a reader holds at most one that is not open: the others
            can be closed to make room.
    """

    def __init__(
        self, like: OpenShards[S], cache: ShardCache, get: Callable[[DataArray, int], None], opening: threading.Lock
    ) -> None:
        arrays = {array.name: array for array in like._layout.data}

        def dropped(name: str, shard: int) -> None:
            like.dropped(name, shard)
            cache.let_go(arrays[name].shard_path(shard))

        super().__init__(like._layout, like.open, like.limit, like._indexes, dropped)
        self._cache, self._get_file, self._one = cache, get, opening

    def get(self, array: DataArray, shard: int) -> S:
        """Return a shard of an array, got and opened first if necessary."""
        if (array.name, shard) in self._shards:
            return super().get(array, shard)
        with self._one:
            if (array.name, shard) in self._shards:
                return super().get(array, shard)
            path = array.shard_path(shard)
            self._cache.hold(path)
            try:
                self._get_file(array, shard)
                return super().get(array, shard)
            except BaseException:
                self._cache.let_go(path)
                raise


class ReadThroughRows(LocalRows):
    """The rows of a boundary in object storage.

    Args:
        catalog: of the boundary, in the mirror's folder.
        path: how bytes are reached once they are here.
        mirror: the folder.
        listing: of the store's objects.
        cache: this reader's.
    """

    def __init__(
        self, catalog: Catalog, path: ReadPath, mirror: Mirror, listing: Mapping[str, Stored], cache: ShardCache
    ) -> None:
        super().__init__(catalog, path)
        self._mirror, self._listing, self._cache = mirror, listing, cache
        opening = threading.Lock()
        self.maps = HeldShards(self.maps, cache, self._get_file, opening)
        self.files = HeldShards(self.files, cache, self._get_file, opening)

    def read(self, rows: NDArray[np.int64], check: Sequence[bool], allocate: AllocateArray) -> list[NDArray[Any]]:
        """Return the values of rows; what fails its checksum here is got once more before it is an error."""
        try:
            return super().read(rows, check, allocate)
        except CorruptItemError:
            self.close()
            for array, shard in self._shards_of(rows):
                array.shard_path(shard).unlink(missing_ok=True)
                self._indexes.pop((array.name, shard), None)
            return super().read(rows, check, allocate)

    def _run(self, job: Any, rows: NDArray[np.int64], flat: list[NDArray[np.uint8]]) -> None:
        absent = self._absent_shards(rows)
        if len(absent) > 1:  # several at once; what is pushed out again before it is read is got again
            in_parallel(lambda one: self._get_file(*one), absent, threads=_DOWNLOADS)
        super()._run(job, rows, flat)

    def _absent_shards(self, rows: NDArray[np.int64]) -> list[tuple[DataArray, int]]:
        """Return the shards of rows that are not here, as many as half the bound holds."""
        absent, size = [], 0
        for array, shard in self._shards_of(rows):
            path = array.shard_path(shard)
            if not path.exists() and (stored := self._listing.get(self._mirror.key(path))):
                size += stored.size_bytes
                if size > self._cache.limit_bytes // 2:
                    break
                absent.append((array, shard))
        return absent

    def _shards_of(self, rows: NDArray[np.int64]) -> list[tuple[DataArray, int]]:
        layout = self._catalog.layout
        shards = np.unique(rows // layout.grid.rows_per_shard).tolist()
        return [(array, shard) for shard in shards for array in layout.data]

    def _get_file(self, array: DataArray, shard: int) -> None:
        """Have a shard's file here, as it was listed."""
        path = array.shard_path(shard)
        if path.exists():
            with suppress(OSError):
                os.utime(path)  # the time of a shard is that of its last opening
            return
        stored = self._listing.get(self._mirror.key(path))
        if stored is not None:  # else it is missing there, as opening it will say
            self._cache.make_room(path, stored.size_bytes, lambda: self.maps.drop_oldest() or self.files.drop_oldest())
            get_shard(self._mirror, path, stored)
