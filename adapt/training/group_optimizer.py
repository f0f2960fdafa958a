"""One optimiser step for the members of a lockstep group, each at its own rates, its gradients clipped by their norm.

Each member keeps its own `AdamW`, with its state, schedule and checkpoint; here their kernels are called for all at
once. The numbers are those of separate steps, to the bit: AdamW works element by element, and norms are each one's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ...extract.executors.device import sent


def clip_together(gradients: Sequence[Sequence[Tensor]], largest: Sequence[float]) -> None:
    """Scale each member's gradients in place to a norm of at most its `largest`; 0 leaves them as they are.

    Args:
        gradients: of each member, on one device.
        largest: norms.

    >>> first, second = [torch.tensor([3.0, 4.0])], [torch.tensor([0.3]), torch.tensor([0.4])]
    >>> clip_together([first, second], [1.0, 1.0])
    >>> [round(x, 3) for x in (*first[0].tolist(), second[0].item())]
    [0.6, 0.8, 0.3]
    """
    clipped = [(own, limit) for own, limit in zip(gradients, largest, strict=True) if limit and own]
    if not clipped:
        return
    norms = iter(torch._foreach_norm([g for own, _ in clipped for g in own]))
    totals = torch.stack([torch.linalg.vector_norm(torch.stack([next(norms) for _ in own])) for own, _ in clipped])
    limits = sent(torch.tensor([limit for _, limit in clipped], dtype=totals.dtype), totals.device)
    scales = torch.clamp((totals + 1e-6).reciprocal() * limits, max=1.0)  # as `clip_grad_norm_` computes it
    for (own, _), scale in zip(clipped, scales.unbind(), strict=True):
        torch._foreach_mul_(list(own), scale)


def step_together(optimizers: Sequence[torch.optim.AdamW]) -> None:
    """Take one step with each optimiser: all parameters of equal rates and settings in one call of AdamW's kernel.

    An optimiser that has no state yet takes its first step by itself.

    Args:
        optimizers: as `make_optimizer` builds them, their parameters on one device.
    """
    calls: dict[tuple[Any, ...], list[list[Tensor]]] = {}
    for optimizer in optimizers:
        if not optimizer.state:
            optimizer.step()
            continue
        for group in optimizer.param_groups:
            own = [p for p in group["params"] if p.grad is not None]
            if any(p not in optimizer.state for p in own):  # it was not reached before
                optimizer.step()
                break
        else:
            for group in optimizer.param_groups:
                key = (group["lr"], *group["betas"], group["weight_decay"], group["eps"], group["fused"])
                lists = calls.setdefault(key, [[], [], [], [], []])
                for p in group["params"]:
                    if p.grad is not None:
                        state = optimizer.state[p]
                        found = (p, p.grad, state["exp_avg"], state["exp_avg_sq"], state["step"])
                        for several, one in zip(lists, found, strict=True):
                            several.append(one)
    with torch.no_grad():
        for (lr, beta1, beta2, weight_decay, eps, fused), (params, grads, means, squares, steps) in calls.items():
            adamw(
                params,
                grads,
                means,
                squares,
                [],
                steps,
                fused=fused,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=lr,
                weight_decay=weight_decay,
                eps=eps,
                maximize=False,
            )
