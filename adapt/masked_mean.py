"""The mean of the real tokens of a padded batch."""

from __future__ import annotations

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
