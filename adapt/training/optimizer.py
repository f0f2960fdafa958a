"""Counts and groups of trainable parameters, and their optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..config.experiment import TrainSettings
from ..model.joint_model import JointModel


def count_parameters(model: JointModel) -> tuple[int, int]:
    """The number of trainable parameters, and of all: trained and frozen (what is trained in a copy counts once)."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for e in model.encoders.values() for p in e.model.parameters())
    frozen -= 0 if model.adapter is None else model.adapter.num_replaced
    return trainable, trainable + frozen


def parameter_line(model: JointModel) -> str:
    """The count as PEFT prints it."""
    trainable, every = count_parameters(model)
    return f"trainable params: {trainable:,} || all params: {every:,} || trainable%: {100 * trainable / every:.4f}"


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW on what of a model is trained, at the settings' peak rates."""
    head_lr = settings.lr if settings.head_lr is None else settings.head_lr
    return torch.optim.AdamW(
        parameter_groups(model, lr=settings.lr, head_lr=head_lr, weight_decay=settings.weight_decay)
    )


def parameter_groups(model: nn.Module, *, lr: float, head_lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: adapter and head at their own rates, decay for matrices only.

    Vectors (biases, norms) are not decayed, nor what a module names in `no_weight_decay()`: the scan's `A_log` and `D`,
    as in Mamba's own training code (https://github.com/state-spaces/mamba, `_no_weight_decay`), learned latents.
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
    """The share of the peak rate at a step: a linear rise over `warmup` of all steps, then a cosine to zero."""
    rise = max(1, round(total * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))
