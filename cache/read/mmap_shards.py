"""Shards reached through memory maps: the fast way for data in the page cache.

`MappedShard` copies item by item. `MappedAddresses` copies the rows of a whole batch by their addresses, in a tenth of
the Python time, out of shards that were read and checked before.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptItemError
from ..format.layout import DataArray, Layout
from ..format.sharding import shard_where
from .shard_reader import BLOCK_BYTES, ShardIndex, StoredShard, copy_block, read_index

MAX_MAPS = 16_384  # Linux allows a process 65 530


class MappedShard(StoredShard):
    """One shard's file, mapped into memory; `where` names store and boundary in messages.

    Attributes:
        content: (bytes,) uint8, read-only.

    Raises:
        CorruptItemError: a file that got shorter, or a damaged index.
        FileNotFoundError: no such file.
    """

    def __init__(self, array: DataArray, shard: int, where: str, index: ShardIndex | None = None) -> None:
        super().__init__(array, index or read_index(array, shard, where))
        self._file = FileMap(array.shard_path(shard))
        self.content = self._file.content
        if len(self.content) != self.index.size_bytes:
            raise CorruptItemError(
                f"{shard_where(where, array, shard)}: {len(self.content)} bytes, expected {self.index.size_bytes}; "
                "it changed while it was read: open the store again, or run `talik store repair`"
            )

    @property
    def base_address(self) -> int:
        """Address at which chunk 0 lies in memory, or would; 0 if the chunks do not follow each other in order."""
        base = self.index.regular_base
        return 0 if base is None else self._file.address + base

    def copy(self, begin: int, out: NDArray[np.uint8], crc: int | None) -> int | None:
        """Copy the file's bytes from `begin` on into `out` (bytes,); return `crc` extended by them, or None."""
        return copy_block(self.content[begin : begin + len(out)], out, crc)

    def copy_checked(self, begin: int, out: NDArray[np.uint8]) -> bool:
        """Copy likewise; return whether the CRC32C that follows in the file is that of the bytes."""
        end = begin + len(out)
        return self.copy(begin, out, 0) == int(self.content[end : end + 4].view("<u4")[0])

    def item_resident(self, slot: int) -> bool:
        """Return whether one item of a dense array is in memory, by its first, middle and last page."""
        begin = self.index.item(slot)
        return begin < 0 or self._file.resident(begin, self._array.unit_bytes)

    def tokens_resident(self, first: int, length: int) -> bool:
        """Return whether the tokens of one item of a ragged array are in memory, likewise."""
        pieces = self.index.tokens(first, length * self._array.unit_bytes)
        return all(self._file.resident(begin, size) for begin, size in pieces)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_ssize_t]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
_FAILED = ctypes.c_void_p(-1).value


class FileMap:
    """A whole file, mapped for reading; unmapped when the last view of `content` is gone.

    Attributes:
        content: (bytes,) uint8, read-only. The file must not get shorter while it is mapped.
        address: of its first byte in memory; 0 for an empty file.

    Raises:
        OSError: it cannot be opened or mapped.
    """

    def __init__(self, path: Path) -> None:
        self.address = 0
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size:
                self.address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        if self.address == _FAILED:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
        if not size:
            self.content: NDArray[np.uint8] = np.zeros(0, np.uint8)
            return
        memory = (ctypes.c_ubyte * size).from_address(self.address)
        weakref.finalize(memory, _libc.munmap, self.address, size)
        self.content = np.frombuffer(memoryview(memory), np.uint8)  # keeps `memory`, as do all views of it
        self.content.flags.writeable = False

    def resident(self, begin: int, size: int) -> bool:
        """Return whether the first, the middle and the last page of `size` bytes from `begin` on are in memory.

        The kernel answers truly only to the file's owner and to users who may write it; to others always yes.
        """
        last = begin + max(size, 1) - 1
        state = ctypes.c_ubyte()
        for at in {begin, (begin + last) // 2, last}:
            page = self.address + at // mmap.PAGESIZE * mmap.PAGESIZE
            if _libc.mincore(page, 1, ctypes.byref(state)) or not state.value & 1:
                return False
        return True


_copy = ctypes.CDLL(None).memcpy
_copy.restype, _copy.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


class MappedAddresses:
    """Addresses of chunk 0 of every mapped shard of every array, and copies of whole batches from them.

    Only for shards whose chunks follow each other in order. A map that is closed must be forgotten here before the
    next copy.
    """

    def __init__(self, layout: Layout, num_shards: int) -> None:
        self._where = layout.where
        self._numbers = {array.name: number for number, array in enumerate(layout.data)}
        self._bases = np.zeros((len(self._numbers), num_shards), np.int64)

    def map(self, array: DataArray, shard: int, index: ShardIndex) -> MappedShard:
        """Map a shard of an array, and note its address."""
        mapped = MappedShard(array, shard, self._where, index)
        self._bases[self._numbers[array.name], shard] = mapped.base_address
        return mapped

    def forget(self, name: str, shard: int) -> None:
        """Drop the address of a shard of array `name`."""
        self._bases[self._numbers[name], shard] = 0

    def has(self, shards: NDArray[np.int64]) -> bool:
        """Return whether every array of `shards` is mapped and has its chunks in order."""
        return bool(self._bases[:, shards].all())

    def resident(self, shard: int, begin: int) -> bool:
        """Return whether the page of `hidden` that holds byte `begin` of a shard's chunks is in memory."""
        state = ctypes.c_ubyte()
        page = (int(self._bases[0, shard]) + begin) // mmap.PAGESIZE * mmap.PAGESIZE
        return not _libc.mincore(page, 1, ctypes.byref(state)) and bool(state.value & 1)

    def copy(
        self,
        number: int,
        shards: NDArray[np.int64],
        begins: NDArray[np.int64],
        sizes: Sequence[int],
        out: NDArray[np.uint8],
    ) -> None:
        """Copy the bytes of one array for each of B rows.

        Args:
            number: 0 for `hidden`, then the inputs in order of name.
            shards: (B,) shard of each row.
            begins: (B,) first byte of each row among its shard's chunks.
            sizes: (B,) bytes of each row.
            out: (B, most bytes of a row), contiguous; zeros are written beyond a row's own.
        """
        sources = (self._bases[number, shards] + begins).tolist()
        width = out.shape[1]
        target = out.ctypes.data
        for i, (source, size) in enumerate(zip(sources, sizes, strict=True)):
            at = target + i * width
            if size <= BLOCK_BYTES:
                _copy(at, source, size)
            else:
                for done in range(0, size, BLOCK_BYTES):
                    _copy(at + done, source + done, min(BLOCK_BYTES, size - done))
            if size < width:
                ctypes.memset(at + size, 0, width - size)
