"""Which token each direction of a scan reads at each step, and the way there and back.

Letters: B batch, L time steps, G directions, K channels.

A scan has no mask: what it reads before a valid token influences that token. So each direction reads the valid
tokens first, in its own order, and the padding last: whatever stands at padded places, in front, between or behind,
a valid token's past is the same as without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .member_axis import at_once, fold, has_members, unfold


class ScanOrder:
    """The reading order of one batch: `spread` lays tokens out for the scans, `merge` adds their outputs in place.

    Args:
        mask: (B, L) bool, true where a token is valid.
        bidirectional: read also in reverse, which makes G = 2 instead of 1.
    """

    def __init__(self, mask: Tensor, *, bidirectional: bool) -> None:
        batch, length = mask.shape
        forward = torch.argsort(~mask, dim=1, stable=True)  # (B, L): the valid places in order, then the padding
        orders = [forward]
        if bidirectional:
            steps = torch.arange(length, device=mask.device)
            num_valid = mask.sum(1, keepdim=True)
            orders.append(forward.gather(1, torch.where(steps < num_valid, num_valid - 1 - steps, steps)))
        order = torch.stack(orders, dim=2)  # (B, L, G): the place that direction g reads at step t
        self.shape = order.shape
        num_directions = len(orders)
        first = torch.arange(batch, device=mask.device).mul(length)[:, None, None]
        direction = torch.arange(num_directions, device=mask.device)
        self._source = (order + first).flatten()  # scan row (b, t, g) -> token row (b, place)
        step = torch.argsort(order, dim=1)  # the inverse permutation of each line
        self._target = ((step + first) * num_directions + direction).flatten(0, 1)  # token row -> its G scan rows

    def spread(self, x: Tensor) -> Tensor:
        """Return the tokens x (B, L, K) in each direction's order, (B, L, G, K)."""
        if has_members(x):
            return at_once(partial(_of_members, self.spread), x)
        rows = _Spread.apply(x.flatten(0, 1), self._source, self._target)
        return rows.view(*self.shape, x.shape[-1])

    def merge(self, y: Tensor) -> Tensor:
        """Return, at each token's own place, the sum of the directions' y (B, L, G, K): (B, L, K)."""
        if has_members(y):
            return at_once(partial(_of_members, self.merge), y)
        rows = _Merge.apply(y.flatten(0, 2), self._source, self._target)
        return rows.view(*self.shape[:2], y.shape[-1])


def _of_members(lay: Callable[[Tensor], Tensor], _: Sequence[bool], x: Tensor) -> Tensor:
    """Lay out the tokens (P, …, K) of several members, which have one order, as tokens of P·K channels."""
    out = lay(fold(x, x.ndim - 2))
    return unfold(out, out.ndim - 1, len(x))


class _Spread(torch.autograd.Function):
    """Copy token rows to scan rows; its gradient is a sum over fixed rows, not a scatter, so it is reproducible."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(source, target)
        return x.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return _Merge.apply(dy, *ctx.saved_tensors), None, None


class _Merge(torch.autograd.Function):
    """Add each token's scan rows; the adjoint of `_Spread`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, source: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(source, target)
        rows = y.index_select(0, target[:, 0])
        for direction in range(1, target.shape[1]):
            rows += y.index_select(0, target[:, direction])
        return rows

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None, None]:
        return _Spread.apply(dx, *ctx.saved_tensors), None, None
