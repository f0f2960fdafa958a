"""Copies of stored batches to the training device, from pinned memory, ahead and without waiting on a GPU.

A batch is released, so that its reader reads the next one into the same memory, as soon as its copy is complete: on a
GPU when the copy's event has come, on a CPU, where tensors are views, at the end of the block that uses them.

On a GPU batches are made one ahead by a thread on a stream of its own (`made_ahead`), so that what it copies, converts
and computes runs beside the step before, and what it waits for does not hold the step up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypedDict, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...cache.read.batch import Allocate, Batch
from ...cache.read.boundary_reader import Verify, prefetched
from ...cache.read.local_rows import ReadPath

K = TypeVar("K")
V = TypeVar("V")
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

    def allocate(size_bytes: int) -> NDArray[np.uint8]:
        with torch.cuda.device(device):  # a thread begins on the first GPU
            memory: NDArray[np.uint8] = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True).numpy()
            return memory

    return allocate


def recorded(device: torch.device) -> torch.cuda.Event:
    """Return an event that comes when all that a CUDA device's current stream was given so far is done."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


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
        self._waits = self._device.type not in ("cpu", "mps")
        self._pending: deque[tuple[Event, Batch]] = deque()

    @contextmanager
    def of(self, batch: Batch) -> Iterator[Callable[[NDArray[Any]], Tensor]]:
        """Yield a function from an array of `batch` to its tensor on the device; afterwards the batch is released.

        On a CPU the tensor is a view of the array: what is kept beyond the block must be copied inside it.
        """
        yield lambda values: torch.from_numpy(values).to(self._device, non_blocking=self._waits)
        if not self._waits:
            batch.release()
            return
        self._pending.append((self._record(), batch))
        while self._pending and (len(self._pending) > _IN_FLIGHT or self._pending[0][0].query()):
            event, copied = self._pending.popleft()
            event.synchronize()
            copied.release()


class SideStream:
    """A CUDA stream beside the one that a device computes on.

    Args:
        device: the CUDA device.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device)

    def active(self) -> AbstractContextManager[object]:
        """While this is open, this thread's work goes to the stream, and to its device."""
        return torch.cuda.stream(self._stream)

    def mark(self) -> torch.cuda.Event:
        """Return an event that comes when all that this thread's stream was given so far is done."""
        return recorded(self._device)

    def hand_over(self, event: torch.cuda.Event, tensors: Iterable[Tensor]) -> None:
        """Let the caller's stream wait for an event, and the memory of tensors for what the caller's stream does."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(event)
        for tensor in tensors:
            if tensor.is_cuda:  # a model may hand its units a number that stays on the host
                tensor.record_stream(stream)


def made_ahead(
    make: Callable[[K], V], wanted: Iterable[K], side: SideStream, tensors_of: Callable[[V], Iterable[Tensor]]
) -> Iterator[V]:
    """Yield `make(w)` for each `w` of `wanted`, each made by a thread while the one before it is used.

    Args:
        make: called in the thread, on the side stream, without gradients.
        wanted: iterated in the thread. An error of it or of `make` is raised here, after the results before it.
        side: the stream.
        tensors_of: the tensors in a result that lie on the device.
    """

    def on_side(one: K) -> tuple[V, torch.cuda.Event]:
        with torch.no_grad(), side.active():
            made = make(one)
            return made, side.mark()

    for made, event in prefetched(on_side, wanted, depth=1):
        side.hand_over(event, tensors_of(made))
        yield made
