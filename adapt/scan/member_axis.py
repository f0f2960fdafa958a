"""The axis of the members under `torch.vmap`, folded into another one for kernels that vmap cannot batch.

Members of a lockstep group whose modules have one structure run as one module under vmap. Where an operation has no
batching rule, or a slow one, `at_once` hands it the whole tensors, the members' axis first.

Letters: P members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

Rule = Callable[..., Tensor]


def has_members(*operands: object) -> bool:
    """Whether one of the operands is a tensor of several members, seen from inside `torch.vmap`.

    >>> torch.vmap(lambda x: x + has_members(x))(torch.zeros(2)).tolist(), has_members(torch.zeros(2))
    ([1.0, 1.0], False)
    """
    return any(isinstance(x, Tensor) and is_batchedtensor(x) for x in operands)


def at_once(rule: Rule, *operands: object) -> Tensor:
    """Call `rule(shared, *operands)` on the whole tensors of all members, from inside `torch.vmap`.

    Args:
        rule: takes `shared`, a tuple that says of each operand whether all members have the same, and the operands:
            a shared one as it is, a tensor of the members (P, …). Its result is (P, …). Gradients and autocast apply
            inside as they do outside vmap.
        operands: at least one of them a tensor of several members (see `has_members`).

    >>> double = lambda shared, x, y: 2 * x + y
    >>> torch.vmap(lambda x: at_once(double, x, torch.ones(3)))(torch.eye(2, 3)).tolist()
    [[3.0, 1.0, 1.0], [1.0, 3.0, 1.0]]
    """
    return _AtOnce.apply(rule, *operands)


class _AtOnce(torch.autograd.Function):
    """Has a rule for vmap alone; what the rule does is recorded by autograd as any other operation."""

    @staticmethod
    def forward(*_: object) -> Tensor:
        raise AssertionError("at_once: no operand is of several members")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: there is no backward of its own."""

    @staticmethod
    def vmap(_: Any, in_dims: Any, *given: Any) -> tuple[Tensor, int]:
        rule, *operands = given
        dims = in_dims[1:]
        whole = [x if dim is None else x.movedim(dim, 0) for x, dim in zip(operands, dims, strict=True)]
        return rule(tuple(dim is None for dim in dims), *whole), 0


def num_members(shared: Sequence[bool], operands: Sequence[object]) -> int:
    """Return P, from the first of a rule's operands that is of several members."""
    return next(len(x) for x, same in zip(operands, shared, strict=True) if isinstance(x, Tensor) and not same)


def of_each(x: Tensor, shared: bool, num_members: int) -> Tensor:
    """Return a tensor with the members' axis ahead, one that they share repeated without a copy."""
    return x.expand(num_members, *x.shape) if shared else x


def fold(x: Tensor, axis: int) -> Tensor:
    """Fold the members' axis into another one, member by member: (P, …, K, …) → (…, P·K, …).

    Args:
        x: the members' axis first.
        axis: of the result, at or above 0.

    >>> fold(torch.arange(8).view(2, 2, 2), 1).tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    return x.movedim(0, axis).flatten(axis, axis + 1)


def unfold(x: Tensor, axis: int, num_members: int) -> Tensor:
    """Undo `fold`: (…, P·K, …) → (P, …, K, …)."""
    return x.unflatten(axis, (num_members, -1)).movedim(axis, 0)
