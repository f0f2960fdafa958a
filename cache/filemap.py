"""A file's bytes as an array, without an open file: Python's own mmap keeps a descriptor for each map (until 3.13 it
has no choice), and a large store has more shards than a process may have descriptors.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

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
