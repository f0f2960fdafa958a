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
_FAILED = ctypes.c_void_p(-1).value


class FileMap:
    """A whole file, mapped for reading; unmapped when the last view of `content` is gone.

    Attributes:
        content: (bytes,) uint8, read-only. The file must not get shorter while it is mapped.
    """

    def __init__(self, path: Path) -> None:
        """Map `path`.

        Raises:
            OSError: it cannot be opened or mapped.
        """
        self._address = 0
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size:
                self._address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        if self._address == _FAILED:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
        if not size:
            self.content: np.ndarray[Any, Any] = np.zeros(0, np.uint8)
            return
        memory = (ctypes.c_ubyte * size).from_address(self._address)
        weakref.finalize(memory, _libc.munmap, self._address, size)
        self.content = np.frombuffer(memoryview(memory), np.uint8)  # keeps `memory`, as do all views of it
        self.content.flags.writeable = False

    def will_need(self, begin: int, size: int) -> None:
        """Have the kernel begin to read these bytes, if they are not in memory; a hint, never an error."""
        page = begin // mmap.PAGESIZE * mmap.PAGESIZE
        _libc.madvise(self._address + page, min(begin + size, len(self.content)) - page, mmap.MADV_WILLNEED)
