"""Shards reached through memory maps: the fast way for what is in memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CorruptItemError
from ..format.layout import DataArray
from ..format.sharding import shard_where
from .shard_index import ShardPlaces, read_places
from .shard_reader import StoredShard, copy_block

Array = np.ndarray[Any, Any]
MAX_MAPS = 16_384  # Linux allows a process 65 530


class MappedShard(StoredShard):
    """One shard's file, mapped.

    Attributes:
        content: (bytes,) uint8, read-only.
    """

    def __init__(self, array: DataArray, shard: int, where: str, places: ShardPlaces | None = None) -> None:
        """Map the file.

        Args:
            array: which the shard is of.
            shard: its number.
            where: names store and boundary, for messages.
            places: its parsed index, if that was read before.

        Raises:
            CorruptItemError: no such file, one that got shorter, or a damaged index.
        """
        super().__init__(array, places or read_places(array, shard, where))
        path = array.shard_path(shard)
        try:
            self._file = FileMap(path)
        except FileNotFoundError:
            raise CorruptItemError(
                f"{shard_where(where, array, shard)}: {path.name} is missing; run `talik store repair`"
            ) from None
        self.content = self._file.content
        if len(self.content) != self.places.size_bytes:
            raise CorruptItemError(
                f"{shard_where(where, array, shard)}: {len(self.content)} bytes, expected {self.places.size_bytes}; "
                "it changed while it was read: open the store again, or run `talik store repair`"
            )

    @property
    def base_address(self) -> int:
        """Where chunk 0 stands in memory, or would; 0 if the chunks do not lie one after the other."""
        base = self.places.regular_base
        return 0 if base is None else self._file.address + base

    def copy(self, begin: int, out: Array, crc: int | None) -> int | None:
        """Copy the file's bytes from `begin` on into `out` (bytes,) uint8; return `crc` extended by them, or None."""
        return copy_block(self.content[begin : begin + len(out)], out, crc)

    def copy_sealed(self, begin: int, out: Array) -> bool:
        """Copy likewise; return whether the CRC32C that follows in the file is that of the bytes."""
        end = begin + len(out)
        return self.copy(begin, out, 0) == int(self.content[end : end + 4].view("<u4")[0])

    def item_resident(self, slot: int) -> bool:
        """Return whether one item of a dense array is in memory, by its first, middle and last page."""
        begin = self.places.item(slot)
        return begin < 0 or self._file.resident(begin, self._array.unit_bytes)

    def tokens_resident(self, first: int, length: int) -> bool:
        """Return the same of the tokens of one item of a ragged array."""
        pieces = self.places.tokens(first, length * self._array.unit_bytes)
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
    """

    def __init__(self, path: Path) -> None:
        """Map `path`.

        Raises:
            OSError: it cannot be opened or mapped.
        """
        self.address = 0
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size:
                self.address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        if self.address == _FAILED:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
        if not size:
            self.content: np.ndarray[Any, Any] = np.zeros(0, np.uint8)
            return
        memory = (ctypes.c_ubyte * size).from_address(self.address)
        weakref.finalize(memory, _libc.munmap, self.address, size)
        self.content = np.frombuffer(memoryview(memory), np.uint8)  # keeps `memory`, as do all views of it
        self.content.flags.writeable = False

    def resident(self, begin: int, size: int) -> bool:
        """Return whether the first, the middle and the last page of these bytes are in memory.

        Only the file's owner, and who may write it, are told; anyone else hears that all is in memory.
        """
        last = begin + max(size, 1) - 1
        state = ctypes.c_ubyte()
        for at in {begin, (begin + last) // 2, last}:
            page = self.address + at // mmap.PAGESIZE * mmap.PAGESIZE
            if _libc.mincore(page, 1, ctypes.byref(state)) or not state.value & 1:
                return False
        return True
