"""Seeds and random streams: each purpose has a seed of its own, each trainer a stream of torch's numbers of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
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
        self.state = torch_state(self.device)

    @contextmanager
    def active(self) -> Iterator[None]:
        """While this is open, torch draws from this stream; entering it again inside changes nothing."""
        if self.is_active:
            yield
            return
        set_torch_state(self.device, self.state)
        self.is_active = True
        try:
            yield
        finally:
            self.is_active = False
            self.set_to_current()

    def position(self) -> dict[str, Tensor]:
        """Return where the stream stands now."""
        return torch_state(self.device) if self.is_active else self.state

    def return_to(self, position: Mapping[str, Tensor]) -> None:
        """Go back to where the stream stood."""
        self.state = dict(position)
        if self.is_active:
            set_torch_state(self.device, self.state)


def torch_state(device: str) -> dict[str, Tensor]:
    """Return the states of torch's generators by the kind of device: "cpu", and "cuda" or "mps" if `device` is one."""
    kind, found = torch.device(device).type, {"cpu": torch.get_rng_state()}
    if kind == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    elif kind == "mps":
        found["mps"] = torch.mps.get_rng_state()
    return found


def set_torch_state(device: str, state: Mapping[str, Tensor]) -> None:
    """Set torch's generators to what `torch_state` returned; what is of another kind of device is passed over."""
    kind = torch.device(device).type
    torch.set_rng_state(state["cpu"])
    if kind == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])
    elif kind == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
