"""Batches of stored states, and the pool of buffers that they are read into.

Fresh memory costs a page fault every few kilobytes, as much time as the copy into it. A pool therefore keeps the
buffers of batches that were released, and gives them to later batches. Nothing else makes a buffer free: a batch that
is never released keeps its memory for as long as one of its arrays is referenced.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import StoreError

Allocate = Callable[[int], NDArray[np.uint8]]  # size in bytes -> (at least that many,) uint8, owned by the caller
AllocateArray = Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]  # shape, dtype -> undefined values
_POOLED_BYTES = 1 << 16  # smaller arrays come from the allocator's own pools


class BufferPool:
    """Buffers (bytes,) uint8 that no batch uses at the moment; any thread may take one or give one back.

    >>> pool = BufferPool()
    >>> buffer = pool.take(100_000)
    >>> pool.give_back(buffer)
    >>> pool.take(99_000) is buffer
    True
    """

    def __init__(self, limit: int = 8, allocate: Allocate | None = None) -> None:
        """Create an empty pool.

        Args:
            limit: most unused buffers kept; the oldest one beyond it is dropped.
            allocate: returns new memory for a size in bytes (pinned, page-aligned, …); NumPy's own by default.
        """
        self._limit = limit
        self._allocate = allocate or (lambda size_bytes: np.empty(size_bytes, np.uint8))
        self._unused: list[NDArray[np.uint8]] = []
        self._guard = threading.Lock()

    def take(self, size_bytes: int) -> NDArray[np.uint8]:
        """Return a buffer of at least `size_bytes`, an unused one of at most twice the size if there is one."""
        with self._guard:
            for i, buffer in enumerate(self._unused):
                if size_bytes <= buffer.nbytes <= 2 * size_bytes:
                    return self._unused.pop(i)
        step = 1 << max(size_bytes.bit_length() - 3, 0)  # the next batch may be a little longer
        return self._allocate(-(-size_bytes // step) * step)

    def give_back(self, buffer: NDArray[np.uint8]) -> None:
        """Keep a buffer for a later `take`; the caller must not use it again."""
        with self._guard:
            self._unused.append(buffer)
            del self._unused[: -self._limit]


class BatchMemory:
    """The pooled buffers that the arrays of one batch lie in."""

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._buffers: list[NDArray[np.uint8]] = []

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array of undefined values that nothing else uses until `release`."""
        size = prod(shape) * dtype.itemsize
        if size < _POOLED_BYTES:
            return np.empty(shape, dtype)
        self._buffers.append(self._pool.take(size))
        return self._buffers[-1][:size].view(dtype).reshape(shape)

    def release(self) -> None:
        """Give every buffer back to the pool; a second call does nothing."""
        buffers, self._buffers = self._buffers, []
        for buffer in buffers:
            self._pool.give_back(buffer)


class Batch:
    """Stored states of B items, in the order of the keys they were read by.

    A batch owns its memory: its arrays keep their values for as long as anything references them. `release()`, or
    leaving a `with batch:` block, lets the reader use that memory for a later batch, which saves the page faults of
    fresh memory. From then on `hidden`, `lengths` and `inputs` raise `StoreError`, and arrays or tensors that were
    taken from them earlier must not be used (copy what you need first). Not releasing is always safe, only slower.

    >>> with Batch(hidden=np.ones((2, 3), np.float32)) as batch:
    ...     total = float(batch.hidden.sum())
    >>> total, batch.released
    (6.0, True)

    Attributes:
        dtype: data type of `hidden`: "float32", "float16" or "bfloat16" as stored; "float32" for states stored as int8;
            "int8" only from `BoundaryReader.read_stored`.
        released: whether `release` was called.
    """

    def __init__(
        self,
        *,
        hidden: NDArray[Any],
        lengths: NDArray[np.int64] | None = None,
        inputs: Mapping[str, NDArray[Any]] | None = None,
        dtype: str = "float32",
        memory: BatchMemory | None = None,
    ) -> None:
        """Describe arrays that were read.

        Args:
            hidden: dense (B, *shape); ragged (B, longest, *shape), zeros beyond each item's length.
            lengths: (B,) number of tokens of each item; None for a dense boundary.
            inputs: by name, arrays of B items likewise.
            dtype: data type of `hidden`.
            memory: buffers that the arrays lie in; None if there is nothing to give back.
        """
        self.dtype = dtype
        self.released = False
        self._hidden = hidden
        self._lengths = lengths
        self._inputs = dict(inputs or {})
        self._memory = memory

    @property
    def hidden(self) -> NDArray[Any]:
        """States: dense (B, *shape); ragged (B, longest, *shape), zeros beyond each item's length.

        bfloat16 comes as int16 bit patterns, which `torch.from_numpy(hidden).view(torch.bfloat16)` understands.
        """
        self._refuse_if_released()
        return self._hidden

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """(B,) number of tokens of each item; None for a dense boundary."""
        self._refuse_if_released()
        return self._lengths

    @property
    def inputs(self) -> dict[str, NDArray[Any]]:
        """Small stored inputs by name: (B, *shape), or ragged (B, longest, *shape) with zeros beyond each length."""
        self._refuse_if_released()
        return self._inputs

    def release(self) -> None:
        """Give the memory back to the reader that filled it; a second call does nothing."""
        if not self.released:
            self.released = True
            del self._hidden, self._lengths, self._inputs
            if self._memory is not None:
                self._memory.release()

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _refuse_if_released(self) -> None:
        if self.released:
            raise StoreError("this batch was released and its memory may hold another; copy arrays before release()")
