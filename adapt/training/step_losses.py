"""The losses of an epoch's batches: they stay on the device, and each is looked at when it has come over by itself.

Reading a number makes the host wait for all that the device has still to do. On a GPU a loss is copied into pinned
memory behind the step's other work, with an event behind the copy; a later step, or the epoch's end, finds it there. So
a loss that is not finite is noticed a few steps late, by the number of the step that it is of, and never later than at
the epoch's end, before anything is evaluated or saved.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import RunError
from ..data.device_transfer import Event, recorded

_BLOCK = 1024  # losses that come over into one piece of memory


class StepLosses:
    """The losses of the batches since `clear`, in order.

    Args:
        label: of the run, for messages.
        device: where losses are computed. On a CPU each is looked at at once.
        record: returns an event that comes when the copies ordered so far are done.

    Attributes:
        at_once: whether a loss is read when it is added; else when its event has come.

    >>> losses = StepLosses("probe/seed0", "cpu")
    >>> losses.add(torch.tensor(0.5), step=0), losses.values()
    (0, [0.5])
    >>> losses.add(torch.tensor(float("nan")), step=1)
    Traceback (most recent call last):
    talik.errors.RunError: probe/seed0: the loss is nan at step 1; lower lr or set clip_norm
    """

    def __init__(self, label: str, device: torch.device | str, record: Callable[[], Event] | None = None) -> None:
        self._label, self._device = label, torch.device(device)
        self._record = record or (lambda: recorded(self._device))
        self.at_once = self._device.type != "cuda"
        self.clear()

    def clear(self) -> None:
        """Forget all losses."""
        self._blocks: list[Tensor] = []  # pinned on CUDA, (_BLOCK,) float64
        self._count = 0
        self._pending: deque[tuple[int, int, Event]] = deque()  # index, step

    def add(self, loss: Tensor, *, step: int) -> int:
        """Take in a batch's loss, a scalar on the device; return its index.

        Raises:
            RunError: this loss, or an earlier one that has come by now, is not finite.
        """
        index = self._count
        if index % _BLOCK == 0 and index // _BLOCK == len(self._blocks):
            pinned = self._device.type == "cuda"
            self._blocks.append(torch.empty(_BLOCK, dtype=torch.float64, pin_memory=pinned))
        place = self._blocks[index // _BLOCK][index % _BLOCK]
        given = loss.detach().cpu() if self.at_once else loss.detach()  # MPS has no float64
        place.copy_(given.double(), non_blocking=True)
        self._count += 1
        if self.at_once:
            self._look(index, step)
        else:
            self._pending.append((index, step, self._record()))
            while self._pending and self._pending[0][2].query():
                self._look(*self._pending.popleft()[:2])
        return index

    def values(self) -> list[float]:
        """Return all losses; on a GPU this waits for the last of them.

        Raises:
            RunError: one of them is not finite.
        """
        while self._pending:
            index, step, event = self._pending.popleft()
            event.synchronize()
            self._look(index, step)
        return [self._value(index) for index in range(self._count)]

    def __len__(self) -> int:
        """Count the losses."""
        return self._count

    def truncate(self, count: int) -> None:
        """Forget all losses but the first `count`."""
        self._count = count
        self._pending = deque(pending for pending in self._pending if pending[0] < count)

    def _value(self, index: int) -> float:
        return float(self._blocks[index // _BLOCK].numpy()[index % _BLOCK])

    def _look(self, index: int, step: int) -> None:
        value = self._value(index)
        if not math.isfinite(value):
            raise RunError(f"{self._label}: the loss is {value} at step {step}; lower lr or set clip_norm")
