"""The random stream that one training draws from, put aside while others draw."""

from __future__ import annotations

import torch
from torch import Tensor

Stream = tuple[Tensor, Tensor | None]
"""Where the CPU's generator stands, and the CUDA device's where there is one."""


def random_state(device: str) -> Stream:
    """Return where torch's random stream stands."""
    on_gpu = torch.device(device).type == "cuda"
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_gpu else None


def set_random_state(state: Stream, device: str) -> None:
    """Let torch's random stream go on from where `random_state` found it."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
