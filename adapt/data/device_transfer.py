"""Copies of stored batches to the training device, from pinned memory and without waiting on a GPU.

A batch is released, so that its reader reads the next one into the same memory, as soon as its copy is complete: on a
GPU when the copy's event has come, on a CPU, where tensors are views, at the end of the block that uses them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypedDict

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...cache.read.batch import Allocate, Batch
from ...cache.read.boundary_reader import Verify
from ...cache.read.local_rows import ReadPath

_IN_FLIGHT = 3  # batches whose copy is under way; beyond that the oldest copy is waited for


class ReadSettings(TypedDict):
    """What `FeatureStore.reader` is told beside the place."""

    verify: Verify
    path: ReadPath
    allocate: Allocate | None


class Event(Protocol):
    """The methods of torch.cuda.Event that transfers use."""

    def query(self) -> bool:
        """Return whether the device has passed the event."""

    def synchronize(self) -> None:
        """Wait until the device has passed the event."""


def pinned_allocator(device: str) -> Allocate | None:
    """Return what gives pinned memory, (size in bytes,) uint8, for batches that go to a CUDA device; else None."""
    if torch.device(device).type != "cuda":
        return None
    return lambda size_bytes: torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True).numpy()


def recorded(device: torch.device) -> Event:
    """Return an event that comes when all that a CUDA device's current stream was given so far is done."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """Return a small tensor of the CPU on a device; to a GPU by way of pinned memory, without waiting for the copy."""
    if torch.device(device).type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class Transfers:
    """Copies batches to a device and releases each one when its copy is complete."""

    def __init__(self, device: str, record: Callable[[], Event] | None = None) -> None:
        """Start with no copy under way.

        Args:
            device: destination of the copies.
            record: returns an event that comes when the copies ordered so far are done.
        """
        self._device = torch.device(device)
        self._record = record or (lambda: recorded(self._device))
        self._waits = self._device.type != "cpu"
        self._pending: deque[tuple[Event, Batch]] = deque()

    @contextmanager
    def of(self, batch: Batch) -> Iterator[Callable[[NDArray[Any]], Tensor]]:
        """Yield a function from an array of `batch` to its tensor on the device; afterwards the batch is released.

        On a CPU the tensor is a view of the array: what is kept beyond the block must be copied inside it.
        """
        yield lambda values: torch.from_numpy(values).to(self._device, non_blocking=True)
        if not self._waits:
            batch.release()
            return
        self._pending.append((self._record(), batch))
        while self._pending and (len(self._pending) > _IN_FLIGHT or self._pending[0][0].query()):
            event, copied = self._pending.popleft()
            event.synchronize()
            copied.release()
