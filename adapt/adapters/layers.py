"""Layers that adapters share: the mean of real tokens, sinusoidal positions, attention between two sets of tokens.

Letters: B items, L tokens, T positions, Q queries, K keys, d width, h heads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..scan.member_axis import at_once, fold, has_members, num_members, of_each, unfold

_KERNELS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]


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


@functools.lru_cache(maxsize=64)
def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines of 0 … T - 1 (Vaswani et al. 2017, sec. 3.5): (T, d), float32; the same tensor at each call.

    Args:
        length: T, segments or tokens.
        width: d.
        device: where the result lies.
    """
    with torch.inference_mode(False):  # an inference tensor could not be used by a later training step
        place = torch.arange(length, device=device, dtype=torch.float32)[:, None]
        rate = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * (-math.log(SLOWEST) / width))
        encoding = torch.zeros(length, width, device=device, dtype=torch.float32)
        encoding[:, 0::2] = torch.sin(place * rate)
        encoding[:, 1::2] = torch.cos(place * rate)[:, : width // 2]
    return encoding


def scaled(x: Tensor, scale: float) -> Tensor:
    """Return scale · x; x itself where the scale is 1, which costs no kernel.

    >>> x = torch.ones(2)
    >>> scaled(x, 1.0) is x, scaled(x, 0.5).tolist()
    (True, [0.5, 0.5])
    """
    return x if isinstance(scale, float) and scale == 1.0 else scale * x  # members of a group may have a tensor


class CrossAttention(nn.Module):
    """Attention of queries to keys (Vaswani et al. 2017, eq. 1), both normalised first (Xiong et al. 2020).

    Args:
        width: d, of queries, keys and result.
        num_heads: heads that the width is shared out to.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_q = nn.LayerNorm(width)
        self.norm_kv = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            queries: (B, Q, d).
            keys: (B, K, d).
            mask: bool, broadcastable to (B, Q, K), true where a query may see a key; every query must see one.

        Returns:
            (B, Q, d).
        """
        b, num_queries, width = queries.shape
        q = self.q(self.norm_q(queries)).view(b, num_queries, self.num_heads, -1).transpose(1, 2)  # (B, h, Q, d/h)
        k, v = self.kv(self.norm_kv(keys)).view(b, keys.shape[1], 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        seen = None if mask is None else mask.unsqueeze(-3)  # (B, 1, Q, K)
        mixed = _attention(q, k, v, seen)
        return self.out(mixed.transpose(1, 2).reshape(b, num_queries, width))


def _attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    """Let queries (B, h, Q, e) see keys (B, h, K, e) where `seen` is true, a mask that broadcasts to (B, h, Q, K)."""
    if has_members(q, k, v, seen):
        return at_once(_attention_of_members, q, k, v, seen)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def _attention_of_members(shared: Sequence[bool], q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    """Attend with the queries (P, B, h, Q, e) of several members as with those of a batch of P·B."""
    num = num_members(shared, (q, k, v, seen))
    q, k, v = (of_each(x, same, num) for x, same in zip((q, k, v), shared, strict=False))
    if seen is not None and not (shared[3] and (seen.dim() < 4 or len(seen) == 1)):
        whole = of_each(seen, shared[3], num)
        whole = whole.reshape(num, *[1] * (5 - whole.dim()), *whole.shape[1:])
        seen = whole.expand(num, q.shape[1], *whole.shape[2:]).flatten(0, 1)
    with sdpa_kernel(_KERNELS):  # a caller that runs vmap's own way to attention may have left the plain one alone
        mixed = F.scaled_dot_product_attention(fold(q, 0), fold(k, 0), fold(v, 0), attn_mask=seen)
        return unfold(mixed, 0, num)
