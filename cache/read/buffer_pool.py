"""Large NumPy buffers that are used again once nobody holds them.

Fresh memory costs a page fault every few kilobytes, which is as much as the copy into it. The pool keeps what it gave
out and hands a buffer out again only when no array, tensor or memoryview refers to it any more, so whoever holds a
batch owns it for as long as it is held.

Where the memory comes from can be said: pinned, for a GPU, or page-aligned. Whoever copies out of a buffer without
waiting (CUDA's `non_blocking`) must hold the batch until that is done.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

Allocate = Callable[[int], "np.ndarray[Any, Any]"]  # size in bytes -> (at least that,) uint8, the caller's alone
_POOLED_BYTES = 1 << 16  # smaller ones come from the allocator's own pools
_FREE_REFERENCES = 3  # the list, the loop's variable, getrefcount's argument


class BufferPool:
    """At most `limit` buffers, each at least as large as what it is used for."""

    def __init__(self, limit: int = 8, allocate: Allocate | None = None) -> None:
        """Make an empty pool.

        Args:
            limit: of buffers kept.
            allocate: gives memory, (size in bytes,) uint8; NumPy's own by default.
        """
        self._limit = limit
        self._allocate = allocate
        self._buffers: list[np.ndarray[Any, Any]] = []

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Return an array of undefined content that nobody else holds."""
        size = prod(shape) * dtype.itemsize
        if size < _POOLED_BYTES:
            return np.empty(shape, dtype)
        buffer = self._free(size)
        if buffer is None:
            room = -(-size // (step := 1 << max(size.bit_length() - 3, 0))) * step  # the next batch may be longer
            buffer = self._allocate(room) if self._allocate else np.empty(room, np.uint8)
            self._keep(buffer)
        return buffer[:size].view(dtype).reshape(shape)

    def _free(self, size: int) -> np.ndarray[Any, Any] | None:
        for buffer in self._buffers:
            if size <= buffer.nbytes <= 2 * size and sys.getrefcount(buffer) == _FREE_REFERENCES:
                return buffer
        return None

    def _keep(self, buffer: np.ndarray[Any, Any]) -> None:
        if len(self._buffers) >= self._limit:
            self._buffers.pop(0)  # whoever holds it goes on holding it
        self._buffers.append(buffer)
