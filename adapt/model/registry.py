"""Heads and losses of one's own: a settings dataclass and a module, made known by one call or by an entry point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from ...config import from_mapping
from ...errors import SettingsError, unknown_name
from ...registry import load_entry_points
from ...user_code import is_user_name, user_object, user_settings, ways_to_bring

HEADS, LOSSES = "talik.heads", "talik.losses"  # groups of entry points; the name is the kind


@dataclass(frozen=True)
class Part:
    """One registered head or loss: its settings (a frozen dataclass) and the module that they build."""

    name: str
    settings: type
    module: type[nn.Module]


_PARTS: dict[str, dict[str, Part]] = {HEADS: {}, LOSSES: {}}


def register_head(name: str, settings: type, module: type[nn.Module]) -> None:
    """Make a head known under `name`, for `[task] head = { kind = name, … }`.

    Args:
        name: what `kind` says. (A class beside the experiment file needs no registration: `kind = "module:Class"`.)
        settings: a frozen dataclass; the table's other keys are its fields.
        module: `module(settings, dims, num_classes)`, `dims` the channels D of each modality; called with the features
            (visual and audio (B, T, N, D), text (B, L, D)) and the text's mask (B, L) or None; returns logits
            (B, C), or (B, T, C) where the task is by segment.

    Example:
        >>> from dataclasses import dataclass
        >>> import talik
        >>> @dataclass(frozen=True, kw_only=True)
        ... class MeanSettings:
        ...     pass
        >>> class Mean(nn.Module):
        ...     def __init__(self, settings, dims, num_classes):
        ...         super().__init__()
        ...         self.linear = nn.Linear(dims["visual"], num_classes)
        ...     def forward(self, features, text_mask):
        ...         return self.linear(features["visual"].flatten(1, 2).mean(1))
        >>> talik.register_head("mean", MeanSettings, Mean)
        >>> make_part(HEADS, {"kind": "mean"}, {"visual": 8}, 3, where="head").linear
        Linear(in_features=8, out_features=3, bias=True)
    """
    _PARTS[HEADS][name] = Part(name, settings, module)


def register_loss(name: str, settings: type, module: type[nn.Module]) -> None:
    """Make a loss known under `name`, for `[train] loss = { kind = name, … }`, of all variants or of one.

    Args:
        name: what `kind` says.
        settings: a frozen dataclass; the table's other keys are its fields.
        module: `module(settings)`; called with logits (B, C) or (B, T, C) over all classes and the true classes (B,) or
            (B, T) int64, for "multi-label" (B, C) of 0 and 1 in the logits' type; returns a scalar. It has no
            parameters of its own that are trained.

    Example:
        >>> from dataclasses import dataclass
        >>> import talik, torch
        >>> @dataclass(frozen=True, kw_only=True)
        ... class SmoothSettings:
        ...     amount: float = 0.1
        >>> talik.register_loss("smooth", SmoothSettings, lambda s: nn.CrossEntropyLoss(label_smoothing=s.amount))
        >>> loss = make_part(LOSSES, {"kind": "smooth", "amount": 0.2}, where="loss")
        >>> loss(torch.zeros(1, 4), torch.tensor([0])).item() == torch.tensor(4.0).log().item()
        True
    """
    _PARTS[LOSSES][name] = Part(name, settings, module)


def check_part(group: str, table: Mapping[str, Any], *, where: str) -> None:
    """Refuse a table that names no registered part of the group, or keys that it does not have.

    Raises:
        SettingsError: as said.
    """
    _parsed(group, table, where)


def make_part(group: str, table: Mapping[str, Any], *args: Any, where: str) -> nn.Module:
    """Build the module that a table names: `module(settings, *args)`."""
    part, settings = _parsed(group, table, where)
    return part.module(settings, *args)


def _parsed(group: str, table: Mapping[str, Any], where: str) -> tuple[Part, Any]:
    name = table.get("kind")
    if not isinstance(name, str):
        raise SettingsError(f"{where}.kind: found {name!r}, expected the name of a registered {where}")
    if name not in _PARTS[group] and is_user_name(name):
        module = user_object(name)
        part = Part(name, user_settings(module), module)
        return part, _settings(part, table, where)
    if name not in _PARTS[group]:
        load_entry_points(group, name)
    if name not in _PARTS[group]:
        known = {*_PARTS[group], *(p.name for p in entry_points(group=group))}
        unknown = unknown_name(where, name, known) if known else f"unknown {where} {name!r}; none is registered"
        raise SettingsError(f"{where}.kind: {unknown}{ways_to_bring(where, group)}")
    part = _PARTS[group][name]
    return part, _settings(part, table, where)


def _settings(part: Part, table: Mapping[str, Any], where: str) -> Any:
    return from_mapping(part.settings, {k: v for k, v in table.items() if k != "kind"}, where=where)
