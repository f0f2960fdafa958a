"""Softplus for step sizes, without `log1p`, which torch does not vectorise on a CPU (about ten times slower there)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)), accurate to rounding for small and large results.

    Args:
        x: any shape, float32 or float64.
    """
    return _Softplus.apply(x) if x.device.type == "cpu" else F.softplus(x)


class _Softplus(torch.autograd.Function):
    """max(x, 0) + log1p(exp(-|x|)), with log1p(e) = log(w) e / (w - 1) for w the rounded 1 + e.

    The errors of log(w) and of w - 1 cancel (Goldberg 1991, "What every computer scientist should know about
    floating-point arithmetic", theorem 4).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        e = x.abs().neg_().exp_()
        w = e + 1.0
        small = w == 1.0  # there log1p(e) is e, and the quotient is 0/0
        quotient = torch.log(w).mul_(e).div_(w.sub_(1.0))
        return torch.where(small, e, quotient, out=quotient).add_(x.clamp(min=0.0))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.sigmoid(x) * dy
