"""Numbers that a model's own code reads from tensors (`if mask.all():`), kept, so that a second pass need not ask.

On a GPU such a read makes the host wait for all that the device has still to do. A context is made by a pass of the
model's forward, and the end of the model by another one on the same inputs: what the first read, the second is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_READS = (Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.item)


@dataclass(frozen=True)
class HostRead:
    """One number that was read.

    Attributes:
        what: function, shape and type of the tensor; the same read has the same.
        value: what it gave.
    """

    what: tuple[Any, ...]
    value: bool | int | float


class Recorded(TorchFunctionMode):
    """Notes, while it is open, the numbers that this thread reads from tensors.

    >>> import torch
    >>> with Recorded() as noted:
    ...     found = bool(torch.ones(3).all())
    >>> [read.value for read in noted.reads]
    [True]
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[HostRead] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call the function; note what it gave, if it is a read."""
        value = func(*args, **(kwargs or {}))
        if func in _READS:
            self.reads.append(HostRead(_described(func, args[0]), value))
        return value


class Replayed(TorchFunctionMode):
    """Answers, while it is open, the same reads in the same order; another read ends that, and is made.

    Args:
        reads: as they were noted.
    """

    def __init__(self, reads: Sequence[HostRead]) -> None:
        super().__init__()
        self._left = list(reversed(reads))

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Answer a read that was noted; call any other function."""
        if self._left and func in _READS:
            known = self._left.pop()
            if known.what == _described(func, args[0]):
                return known.value
            self._left = []
        return func(*args, **(kwargs or {}))


def _described(func: Callable[..., Any], tensor: Tensor) -> tuple[Any, ...]:
    return (func, tuple(tensor.shape), tensor.dtype)
