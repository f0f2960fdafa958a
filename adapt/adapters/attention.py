"""Multi-head attention between two sets of tokens in a narrow width, with pre-normalisation and an optional mask.

Letters: B items, Q queries, K keys, d width, h heads.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


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
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.out(mixed.transpose(1, 2).reshape(b, num_queries, width))
