"""What a skipped unit returns in place of its own output: a hidden tensor of the right shape, and blanks beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .tracing import Path, at, map_leaves, paths_of, tensors
from .unit_links import Link


class _Mark:
    """A place in a structure: the hidden tensor itself (`path` None), or an argument handed on as it came."""

    def __init__(self, path: Path | None) -> None:
        self.path = path


_HIDDEN = _Mark(None)


@dataclass(frozen=True, eq=False)
class Template:
    """What a skipped unit returns.

    Attributes:
        structure: its output, with marks for the hidden tensor and for arguments handed on, blanks for other tensors.
        shape: the shape of the hidden tensor that it returns, without the batch; None where it keeps its shape.
        is_plain: nothing in it depends on the shape of the input.
        batch_size: of the call that it was made from; blanks are made anew for another batch.
    """

    structure: Any
    shape: tuple[int, ...] | None
    is_plain: bool
    batch_size: int

    def hidden_for(self, entering: Tensor, *, blank: float | None = None) -> Tensor:
        """Return a tensor such as the unit would return for `entering`: the same one, or one filled with `blank`."""
        if self.shape is None and blank is None:
            return entering
        shape = entering.shape if self.shape is None else (entering.shape[0], *self.shape)
        return entering.new_full(shape, 0.0 if blank is None else blank)

    def fill(self, hidden: Tensor, taken: Any, beside: Any = None) -> Any:
        """Return the output with `hidden` in its place; `beside` is a real output to take everything else from."""

        def place(path: Path, leaf: Any) -> Any:
            if leaf is _HIDDEN:
                return hidden
            if isinstance(leaf, _Mark):
                return at(taken, leaf.path or ())
            if beside is not None:
                return at(beside, path)
            return resized(leaf, self.batch_size, hidden.shape[0]) if isinstance(leaf, Tensor) else leaf

        return map_leaves(self.structure, place)


def make_template(link: Link, taken: Any, returned: Any) -> Template:
    """Make the template of `link` from one real call of it."""
    entering = next(t for p, t in tensors(taken) if p in link.slots)
    leaving = next(t for p, t in tensors(returned) if p in link.exit)
    others: list[Any] = []

    def blank(path: Path, leaf: Any) -> Any:
        if path in link.exit:
            return _HIDDEN
        if isinstance(leaf, Tensor):
            handed_on = paths_of(taken, leaf) - link.slots
            if handed_on:
                return _Mark(min(handed_on, key=str))
            others.append(leaf)
            return torch.full_like(leaf, float("nan")) if leaf.is_floating_point() else torch.zeros_like(leaf)
        if leaf is not None:
            others.append(leaf)
        return leaf

    structure = map_leaves(returned, blank)
    shape = None if leaving.shape == entering.shape else tuple(leaving.shape[1:])
    return Template(structure, shape, shape is None and not others, entering.shape[0])


def resized(blank: Tensor, batch_size: int, wanted: int) -> Tensor:
    """Return a blank tensor for a batch of `wanted` items, where its first axis is a batch of `batch_size`."""
    if wanted == batch_size or not blank.ndim or blank.shape[0] != batch_size:
        return blank
    return blank[:1].expand(wanted, *blank.shape[1:]).clone()
