"""The selective scan as a plain loop over time: the definition that every backend must equal.

Letters: B batch, d channels, L time steps, N state size, G groups (d divisible by G).
"""

from __future__ import annotations

import torch
from torch import Tensor


def scan_loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Run h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t and y_t = C_t h_t, one step after another.

    The discretisation is the one that Mamba-1's code uses: zero-order hold for A, Euler for B
    (Gu and Dao 2023, section 2 and https://github.com/state-spaces/mamba, `selective_scan_ref`).

    Args:
        u: (B, L, G, d/G) float32 or float64, the input.
        delta: (B, L, G, d/G), the step sizes as they are applied (bias and softplus done).
        A: (G, N, d/G), the real diagonal of the state matrix.
        B: (B, L, G, N), the input vectors.
        C: (B, L, G, N), the output vectors.

    Returns:
        y (B, L, G, d/G) and the last state (B, G, N, d/G), both differentiable to any order.
    """
    batch, length, groups, width = u.shape
    h = u.new_zeros(batch, groups, A.shape[1], width)  # (B, G, N, d/G)
    outputs = []
    for u_t, delta_t, B_t, C_t in zip(u.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        h = torch.exp(delta_t.unsqueeze(-2) * A) * h + (delta_t * u_t).unsqueeze(-2) * B_t.unsqueeze(-1)
        outputs.append((C_t.unsqueeze(-1) * h).sum(-2))
    y = torch.stack(outputs, dim=1) if length else torch.zeros_like(u)
    return y, h
