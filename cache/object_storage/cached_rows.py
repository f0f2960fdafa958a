"""Read rows of a boundary in object storage through a local copy of each shard, fetched when it is first read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from ...errors import CorruptItemError
from ..format.catalog import Catalog
from ..format.layout import DataArray, Layout
from ..read.batch import AllocateArray
from ..read.local_rows import LocalRows, ReadPath
from ..read.shard_reader import OpenShards, ShardIndex, StoredShard
from .client import Stored, in_parallel
from .mirror import Mirror
from .shard_cache import ShardCache, get_shard

Array = np.ndarray[Any, Any]
S = TypeVar("S", bound=StoredShard)
_DOWNLOADS = 4  # shards at once, each in several parts


class HeldShards(OpenShards[S]):
    """Shards that are open in one way, each brought here and held while it is."""

    def __init__(
        self,
        layout: Layout,
        like: OpenShards[S],
        bring: Callable[[DataArray, int], None],
        let_go: Callable[[str, int], None],
        one: threading.Lock,
    ) -> None:
        """Take over how `like` opens and drops shards.

        Args:
            layout: of the boundary.
            like: without any open.
            bring: brings a shard here and holds it.
            let_go: holds it no longer.
            one: held while a shard is brought and opened, so that only one of a reader's is held and not yet open:
                those that are open can be closed to make room.
        """
        dropped = like.dropped

        def both(name: str, shard: int) -> None:
            dropped(name, shard)
            let_go(name, shard)

        super().__init__(layout, like.open, like.limit, both)
        self._bring, self._let_go = bring, let_go
        self._one = one

    def get(self, array: DataArray, shard: int, indexes: dict[tuple[str, int], ShardIndex]) -> S:
        """Return a shard, brought and opened if it is not; see `OpenShards.get`."""
        if (array.name, shard) in self._shards:
            return super().get(array, shard, indexes)
        with self._one:
            try:
                self._bring(array, shard)
                return super().get(array, shard, indexes)
            except BaseException:
                self._let_go(array.name, shard)
                raise

    def drop_oldest(self) -> bool:
        """Close the longest unused; False if none is open."""
        with self._guard:
            if not self._shards:
                return False
            self.dropped(*self._shards.popitem(last=False)[0])
        return True

    def clear(self) -> None:
        """Drop all."""
        while self.drop_oldest():
            pass


class ReadThroughRows(LocalRows):
    """The rows of a boundary in object storage; the files of this machine are brought as they are needed."""

    def __init__(
        self, catalog: Catalog, path: ReadPath, mirror: Mirror, listing: Mapping[str, Stored], cache: ShardCache
    ) -> None:
        """Open nothing yet.

        Args:
            catalog: of the boundary, in the mirror's folder.
            path: how bytes are reached once they are here.
            mirror: the folder.
            listing: of the store's objects.
            cache: this reader's.
        """
        super().__init__(catalog, path)
        self._mirror, self._listing, self._cache = mirror, listing, cache
        layout, one = catalog.layout, threading.Lock()
        self.maps = HeldShards(layout, self.maps, self._bringing("map"), self._letting_go("map"), one)
        self.files = HeldShards(layout, self.files, self._bringing("file"), self._letting_go("file"), one)

    def read(self, rows: Array, check: Any, allocate: AllocateArray) -> list[Array]:
        """Return the values of rows; what fails its checksum here is got once more before it is an error."""
        try:
            return super().read(rows, check, allocate)
        except CorruptItemError:
            self.close()
            for array, shard in self._wanted(rows):
                array.shard_path(shard).unlink(missing_ok=True)
                self._indexes.pop((array.name, shard), None)
            return super().read(rows, check, allocate)

    def _run(self, job: Any, rows: Array, flat: list[Array]) -> None:
        absent = self._absent_shards(rows)
        if len(absent) > 1:  # several at once; what is pushed out again before it is read is brought again
            in_parallel(lambda one: self._brought(*one), absent, threads=_DOWNLOADS)
        super()._run(job, rows, flat)

    def _absent_shards(self, rows: Array) -> list[tuple[DataArray, int]]:
        """Return the shards of rows that are not here, as many as half the bound holds."""
        absent, size = [], 0
        for array, shard in self._wanted(rows):
            path = array.shard_path(shard)
            if not path.exists() and (stored := self._listing.get(self._mirror.key(path))):
                size += stored.size_bytes
                if size > self._cache.limit_bytes // 2:
                    break
                absent.append((array, shard))
        return absent

    def _wanted(self, rows: Array) -> list[tuple[DataArray, int]]:
        layout = self._catalog.layout
        shards = np.unique(rows // layout.grid.rows_per_shard).tolist()
        return [(array, shard) for shard in shards for array in layout.data]

    def _bringing(self, by: str) -> Callable[[DataArray, int], None]:
        def bring(array: DataArray, shard: int) -> None:
            self._cache.hold(array.shard_path(shard), by)
            self._brought(array, shard)

        return bring

    def _letting_go(self, by: str) -> Callable[[str, int], None]:
        arrays = {array.name: array for array in self._catalog.layout.data}

        def let_go(name: str, shard: int) -> None:
            self._cache.let_go(arrays[name].shard_path(shard), by)

        return let_go

    def _brought(self, array: DataArray, shard: int) -> None:
        """Have a shard's file here, as it was listed."""
        path = array.shard_path(shard)
        if path.exists():
            with suppress(OSError):
                os.utime(path)  # the time of a shard is that of its last opening
            return
        stored = self._listing.get(self._mirror.key(path))
        if stored is not None:  # else it is missing there, as opening it will say
            self._cache.make_room(path, stored.size_bytes, self._close_one)
            get_shard(self._mirror, path, stored)

    def _close_one(self) -> bool:
        opened = (self.maps, self.files)
        return any(isinstance(shards, HeldShards) and shards.drop_oldest() for shards in opened)
