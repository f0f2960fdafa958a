"""Seeds and random streams: each purpose has a seed of its own, each trainer a stream of torch's numbers of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def derived_seed(seed: int, purpose: str) -> int:
    """Return a seed of its own for each purpose, so that what one part draws never moves another's numbers.

    Args:
        seed: of the run.
        purpose: any text.

    Returns:
        A number from 0 to 2**56 - 1.

    >>> derived_seed(0, "dropout") == derived_seed(0, "dropout")
    True
    >>> derived_seed(0, "dropout") == derived_seed(0, "head")
    False
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


class RandomStream:
    """A stream of torch's random numbers (CPU and, where given, one GPU) that others do not draw from.

    Args:
        device: where the numbers are drawn beside the CPU.
        seed: of the stream.

    >>> stream = RandomStream("cpu", seed=7)
    >>> with stream.active():
    ...     first = torch.rand(1)
    >>> _ = torch.manual_seed(99)
    >>> with stream.active():
    ...     second = torch.rand(1)
    >>> _ = torch.manual_seed(7)
    >>> [torch.rand(1).item() for _ in range(2)] == [first.item(), second.item()]
    True
    """

    def __init__(self, device: str, *, seed: int) -> None:
        self.device = device
        self.is_active = False
        self.restart(seed)

    def restart(self, seed: int) -> None:
        """Begin anew from a seed."""
        torch.manual_seed(seed)
        self.set_to_current()

    def set_to_current(self) -> None:
        """Go on from where torch's generators stand."""
        self.state = _torch_state(self.device)

    @contextmanager
    def active(self) -> Iterator[None]:
        """While this is open, torch draws from this stream; entering it again inside changes nothing."""
        if self.is_active:
            yield
            return
        torch.set_rng_state(self.state[0])
        if self.state[1] is not None and torch.device(self.device).type == "mps":
            torch.mps.set_rng_state(self.state[1])
        elif self.state[1] is not None:
            torch.cuda.set_rng_state(self.state[1], self.device)
        self.is_active = True
        try:
            yield
        finally:
            self.is_active = False
            self.set_to_current()


def _torch_state(device: str) -> tuple[Tensor, Tensor | None]:
    kind, other = torch.device(device).type, None
    if kind == "cuda":
        other = torch.cuda.get_rng_state(device)
    elif kind == "mps":
        other = torch.mps.get_rng_state()
    return torch.get_rng_state(), other
