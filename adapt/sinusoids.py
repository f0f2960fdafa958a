"""A fixed encoding of place: sines and cosines of a segment's number in a clip, or a token's in a frame."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SLOWEST = 100.0  # of the wave lengths: clips have tens of segments and frames hundreds of tokens, not thousands


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines of 0 … T - 1 (Vaswani et al. 2017, sec. 3.5): (T, d), float32.

    Args:
        length: T, segments or tokens.
        width: d.
        device: where the result lies.
    """
    place = torch.arange(length, device=device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * (-math.log(SLOWEST) / width))
    encoding = torch.zeros(length, width, device=device)
    encoding[:, 0::2] = torch.sin(place * rate)
    encoding[:, 1::2] = torch.cos(place * rate)[:, : width // 2]
    return encoding
