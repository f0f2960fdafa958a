"""Small pieces that adapters share: the mean of real tokens, sines and cosines of a place."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def masked_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The mean (B, D) of the real tokens of (B, L, D); mask (B, L) is true where a token is real, None where all are.

    Where no token is real it is zero.
    """
    if mask is None:
        return tokens.mean(dim=1)
    weights = mask.to(tokens.dtype).unsqueeze(-1)
    # Padding may hold anything, NaN included, so it is replaced, not multiplied.
    kept = tokens.masked_fill(~mask.unsqueeze(-1), 0.0)
    return kept.sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


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
