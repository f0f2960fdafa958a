"""What updates the trained weights: AdamW with its parameter groups, the learning rate's schedule, moving averages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..config.experiment import TrainSettings
from ..model.joint_model import JointModel


def count_parameters(model: JointModel) -> tuple[int, int]:
    """Count the trained parameters, and all: trained and frozen; one that is trained in a copy counts once."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for e in model.encoders.values() for p in e.model.parameters())
    frozen -= 0 if model.adapter is None else model.adapter.num_replaced
    return trainable, trainable + frozen


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Build AdamW on a model's trained parameters, at the settings' peak learning rates."""
    head_lr = settings.lr if settings.head_lr is None else settings.head_lr
    groups = parameter_groups(model, lr=settings.lr, head_lr=head_lr, weight_decay=settings.weight_decay)
    on_cuda = all(p.is_cuda for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, fused=True if on_cuda and groups else None)  # one kernel for many parameters


def parameter_groups(model: nn.Module, *, lr: float, head_lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's groups: adapter and head at rates of their own, weight decay for matrices only.

    Vectors (biases, norms) are not decayed, nor what a module names in `no_weight_decay()`: the scan's `A_log` and `D`,
    as in Mamba's own training code (https://github.com/state-spaces/mamba, `_no_weight_decay`), learned latents.

    >>> model = nn.ModuleDict({"adapter": nn.Linear(2, 3), "head": nn.Linear(3, 4)})
    >>> groups = parameter_groups(model, lr=1e-3, head_lr=1e-2, weight_decay=0.1)
    >>> [(group["lr"], group["weight_decay"], len(group["params"])) for group in groups]
    [(0.001, 0.1, 1), (0.001, 0.0, 1), (0.01, 0.1, 1), (0.01, 0.0, 1)]
    """
    named = {f"{place}.{n}" for place, module in model.named_modules() for n in _not_decayed(module)}
    chosen: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kept = parameter.ndim < 2 or name in named
            key = (head_lr if name.startswith("head.") else lr, 0.0 if kept else weight_decay)
            chosen.setdefault(key, []).append(parameter)
    return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in chosen.items()]


def _not_decayed(module: nn.Module) -> Iterable[str]:
    names = getattr(module, "no_weight_decay", None)
    return names() if callable(names) else ()


def learning_rate_scale(step: int, *, total: int, warmup: float) -> float:
    """Return the share of the peak learning rate at a step: a linear rise, then a cosine to zero.

    Args:
        step: from 0 to total - 1.
        total: optimiser steps of the whole training.
        warmup: the share of all steps that the rise takes, 0 to 1.

    >>> [round(learning_rate_scale(step, total=5, warmup=0.4), 2) for step in range(5)]
    [0.5, 1.0, 1.0, 0.75, 0.25]
    """
    rise = max(1, round(total * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


class Averages:
    """The exponential moving averages of a model's trained parameters, which are evaluated and saved in their place.

    The rule is torch's own (`torch.optim.swa_utils.get_ema_multi_avg_fn`, as its `AveragedModel` applies it): the
    average starts as the weights after the first step. `AveragedModel` itself copies the whole model, frozen encoders
    included.

    Args:
        model: its parameters that require gradients are averaged.
        decay: the share of the old average that each update keeps, 0 to 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._rule = get_ema_multi_avg_fn(decay)
        self._trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._means: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as an optimiser step left them."""
        if self._means:
            self._rule(list(self._means.values()), list(self._trained.values()), 0)
        else:
            self._means = {n: p.detach().clone() for n, p in self._trained.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While this is open, the model's parameters are the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, mean in self._means.items():
            parameter = self._trained[name]
            parameter.data, self._means[name] = mean, parameter.data

    def state(self) -> dict[str, Tensor]:
        """Return the averages by the parameters' names; {} before the first step."""
        return dict(self._means)

    def load(self, means: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self._means = {n: means[n].to(p) for n, p in self._trained.items()} if means else {}
