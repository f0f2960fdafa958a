"""Shards read by `preadv` through the page cache, straight into the caller's memory: for data that will stay in it."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptItemError
from ..format.crc32c import extend_crc32c
from ..format.layout import DataArray
from ..format.sharding import shard_where
from .shard_reader import BLOCK_BYTES, ShardIndex, StoredShard


class BufferedShard(StoredShard):
    """One shard's file, open for reading; any number of threads may read at once.

    Args:
        array, shard, index: the shard's array, number and parsed index.
        where: names store and boundary, for messages.

    Raises:
        FileNotFoundError: no such file.
    """

    def __init__(self, array: DataArray, shard: int, index: ShardIndex, *, where: str) -> None:
        super().__init__(array, index)
        self._descriptor = -1
        self._where = shard_where(where, array, shard)
        self._descriptor = os.open(array.shard_path(shard), os.O_RDONLY)

    def __del__(self) -> None:  # when no thread reads any more
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def copy(self, begin: int, out: NDArray[np.uint8], crc: int | None) -> int | None:
        """Copy the file's bytes from `begin` on into `out` (bytes,); return `crc` extended by them, or None."""
        for at in range(0, len(out), BLOCK_BYTES):
            block = out[at : at + BLOCK_BYTES]
            self._fill(begin + at, block)
            if crc is not None:
                crc = extend_crc32c(crc, block)
        return crc

    def copy_checked(self, begin: int, out: NDArray[np.uint8]) -> bool:
        """Copy likewise; return whether the CRC32C that follows in the file is that of the bytes."""
        seal = np.empty(4, np.uint8)
        crc = self.copy(begin, out, 0)
        self._fill(begin + len(out), seal)
        return crc == int(seal.view("<u4")[0])

    def _fill(self, begin: int, out: NDArray[np.uint8]) -> None:
        done = 0
        while done < len(out):
            got = os.preadv(self._descriptor, [out[done:].data], begin + done)
            if got <= 0:
                raise CorruptItemError(f"{self._where}: ends before byte {begin + len(out)}; run `talik store repair`")
            done += got
