"""The place after a unit's attention: an adapter adds to the tokens there, and a second one reads what stands there.

A unit is any module of any library, so the place is found by trial, not by name: the first module inside the unit whose
output o enters a sum x + o with the unit's input x, such that the rest of the unit depends on that sum alone. Forced to
m - x, it makes the unit's result a function of m, whatever x was. Where the unit normalises behind the sum (BERT), the
place is before that norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SettingsError
from ...extract.encoders.encoder import Encoder
from ...extract.trunk.state import State

Change = Callable[[Tensor], Tensor]


def run_with_second(encoder: Encoder, state: State, place: nn.Module, delta: Tensor | None) -> tuple[State, State]:
    """Run the unit above `state`, with `delta` (B·T, N, D) added after its attention.

    Args:
        encoder: whose unit it is.
        state: at the unit's lower boundary.
        place: what `place_after_attention` found in the unit.
        delta: in the order of `state.tokens()`; None adds nothing.

    Returns:
        The state after the attention, addition included (its boundary is still the lower one), and the unit's result.
    """
    added = None if delta is None else state.from_tokens(delta.to(state.hidden.dtype)).hidden
    middle: list[Tensor] = []

    def add(output: Tensor) -> Tensor:
        output = output if added is None else output + added.view(output.shape)
        middle.append(state.hidden + output.view(state.hidden.shape))
        return output

    with torch.set_grad_enabled(torch.is_grad_enabled() and (state.hidden.requires_grad or delta is not None)):
        with _changed(place, add):
            after = encoder.run(state, state.boundary, state.boundary + 1)
    return state.replace(hidden=middle[0]), after


@torch.no_grad()
def place_after_attention(encoder: Encoder, state: State) -> nn.Module:
    """The module inside the unit above `state` whose output is the attention's share of the residual sum.

    Args:
        encoder: whose unit it is.
        state: at the unit's lower boundary; any batch.

    Raises:
        SettingsError: no such module in the unit.
    """
    running, encoder = encoder.units[state.boundary], encoder.full  # sums are compared in the encoder's own type
    state = encoder.enter(state)
    x = state.hidden
    noise = torch.Generator().manual_seed(0)
    moved = x + torch.randn(x.shape, generator=noise).to(x) * x.std()
    aim = moved.flip(0).roll(1, -1)  # m: any value of the right size
    unit, places = encoder.units[state.boundary], dict[int, nn.Module]()
    for module, place in zip(reversed([*unit.modules()]), reversed([*running.modules()]), strict=False):
        places[id(module)] = place  # from the end: a compiled unit is wrapped
    for module in unit.modules():
        if module is not unit and _leads(encoder, state, module, (x, moved), aim):
            return places[id(module)]
    raise SettingsError(
        f"after_attention: unit {state.boundary} of {encoder.spec} ({type(unit).__name__}) has no place between "
        "attention and the rest that could be found; leave after_attention out"
    )


def _leads(encoder: Encoder, state: State, module: nn.Module, inputs: tuple[Tensor, Tensor], aim: Tensor) -> bool:
    """Whether the unit's result follows from the sum that this module's output enters, and is not that sum itself."""
    results = []
    for x in inputs:
        fits: list[bool] = []

        def force(output: Tensor, x: Tensor = x, fits: list[bool] = fits) -> Tensor:
            fits.append(output.numel() == x.numel() and output.shape[-1] == x.shape[-1])
            return (aim - x).view(output.shape) if fits[-1] else output

        try:
            with _changed(module, force):
                given = state.replace(hidden=x)
                results.append(encoder.run(given, state.boundary, state.boundary + 1).hidden)
        except TypeError:  # an output that is no tensor
            return False
        if fits != [True]:
            return False
    first, second = results
    scale = float(first.abs().max())
    same = first.shape == second.shape and torch.allclose(first, second, rtol=1e-3, atol=1e-3 * scale)
    return same and not (first.shape == aim.shape and torch.allclose(first, aim, rtol=1e-3, atol=1e-3 * scale))


@contextmanager
def _changed(module: nn.Module, change: Change) -> Iterator[None]:
    """Within it, the module's output (the first of a tuple) passes through `change`."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        if not isinstance(output, Tensor):
            raise TypeError(f"expected a tensor, found {type(output).__name__}")
        return change(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
