"""Batches on their way to a GPU: read into pinned memory, copied without waiting, held until the copy is done.

On a CPU nothing of this happens: tensors are views of what was read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
from torch import Tensor

from ...cache.read.boundary_reader import Batch, Verify
from ...cache.read.buffer_pool import Allocate
from ...cache.read.local_rows import ReadPath

_IN_FLIGHT = 3  # batches held; beyond that the oldest copy is waited for


class ReadSettings(TypedDict):
    """What `FeatureStore.reader` is told beside the place."""

    verify: Verify
    path: ReadPath
    allocate: Allocate | None


class Event(Protocol):
    """What of torch.cuda.Event is used."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


def pinned_allocator(device: str) -> Allocate | None:
    """Return what gives pinned memory, (size in bytes,) uint8, for batches that go to a CUDA device; else None."""
    if torch.device(device).type != "cuda":
        return None
    return lambda size_bytes: torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True).numpy()


def recorded() -> Event:
    """Return an event that comes when all that the current CUDA stream was given so far is done."""
    event = torch.cuda.Event()
    event.record()
    return event


class Transfers:
    """Copies of batches to a device; a batch is held while its copy is under way, so that its buffers stay its own."""

    def __init__(self, device: str, record: Callable[[], Event] = recorded) -> None:
        """Begin with none.

        Args:
            device: where to.
            record: marks the end of the copies ordered so far.
        """
        self._device = torch.device(device)
        self._record = record
        self._waits = self._device.type != "cpu"
        self._held: deque[tuple[Event, Batch]] = deque()

    @contextmanager
    def of(self, batch: Batch) -> Iterator[Callable[[np.ndarray[Any, Any]], Tensor]]:
        """Give what takes arrays of `batch` to the device; after the block the batch is held until they are there."""
        yield lambda values: torch.from_numpy(values).to(self._device, non_blocking=True)
        if not self._waits:
            return
        self._held.append((self._record(), batch))
        while self._held and (len(self._held) > _IN_FLIGHT or self._held[0][0].query()):
            self._held.popleft()[0].synchronize()
