"""Which axes of the hidden tensor are tokens and channels at each boundary, and the tokens ahead of the grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import TrunkError
from .forward_patching import Inputs
from .state import Layout
from .trunk import Trunk


def find_layouts(trunk: Trunk, probe: Inputs) -> list[tuple[Layout, int]]:
    """Return (layout, number of prefix tokens) at boundaries 0 … num_units.

    Args:
        trunk: of the encoder.
        probe: inputs that it can be run on: a shape alone does not tell where height, width or channels are equal.

    Raises:
        TrunkError: a hidden tensor that is neither a sequence nor a feature map.
    """
    guessed = [_by_shape(trunk.hidden_shapes[k], k) for k in range(trunk.num_units + 1)]
    layouts: list[Layout | None] = list(guessed)
    if any(layout != "NLC" for layout in guessed):
        used = _by_use(trunk, probe)
        # After the last unit nothing is left that uses the tensor: it is laid out as that unit takes it.
        told = [*used, used[-1] if len(trunk.hidden_shapes[-1]) == 4 else None]
        layouts = [found or known for found, known in zip(told, guessed, strict=True)]
    return [(layout, _prefix_tokens(trunk, k)) for k, layout in enumerate(_as_neighbours(layouts))]


def _as_neighbours(layouts: Sequence[Layout | None]) -> list[Layout]:
    """Fill what neither shape nor use told with the layout of the boundary before, or else of the one after."""
    known = [layout for layout in layouts if layout]
    last: Layout = known[0] if known else "NHWC"
    filled: list[Layout] = []
    for layout in layouts:
        last = layout or last
        filled.append(last)
    return filled


def _by_shape(shape: tuple[int, ...], boundary: int) -> Layout | None:
    if len(shape) == 3:
        return "NLC"
    if len(shape) != 4:
        raise TrunkError(f"boundary {boundary}: found a hidden tensor of shape {shape}, expected 3 or 4 axes")
    if shape[1] == shape[2] != shape[3]:
        return "NHWC"
    return "NCHW" if shape[2] == shape[3] != shape[1] else None


@torch.no_grad()
def _by_use(trunk: Trunk, probe: Inputs) -> list[Layout | None]:
    """How each unit's first module that reads its hidden tensor reads it; None where none is of a known kind."""
    hidden, context = trunk.embed(probe)
    found: list[Layout | None] = []
    for k in range(trunk.num_units):
        link = trunk.links[trunk.bounds[k]]
        with _watched(link.module) as seen:
            hidden = trunk.run(hidden, context, k, k + 1)
        found.append(next((layout for layout in seen if layout), None))
    return found


@contextmanager
def _watched(unit: nn.Module) -> Iterator[list[Layout | None]]:
    """Collect the layouts by which leaf modules of a unit read the very tensor that the unit was given."""
    seen: list[Layout | None] = []
    given: list[Tensor] = []

    def entered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.ndim == 4]
        if module is unit and not given:
            given.extend(tensors[:1])
        if given and tensors and not any(True for _ in module.children()):
            seen.append(_read_as(module, tensors[0], given[0]))

    handles = [m.register_forward_pre_hook(entered, with_kwargs=True) for m in unit.modules()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _read_as(module: nn.Module, taken: Tensor, given: Tensor) -> Layout | None:
    """The layout of `given` by a module whose channel axis is known and that takes it, or a permuted view of it."""
    if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.GroupNorm) or type(module).__name__.endswith("Norm2d"):
        axis = 1
    elif type(module) in (nn.Linear, nn.LayerNorm):
        axis = 3
    else:
        return None
    views_it = (
        taken.untyped_storage().data_ptr() == given.untyped_storage().data_ptr() and taken.numel() == given.numel()
    )
    places = [j for j in (1, 3) if given.stride(j) == taken.stride(axis) and given.shape[j] == taken.shape[axis]]
    if not views_it or len(places) != 1:
        return None
    return "NCHW" if places[0] == 1 else "NHWC"


def _prefix_tokens(trunk: Trunk, boundary: int) -> int:
    shape = trunk.hidden_shapes[boundary]
    declared = getattr(trunk.model, "num_prefix_tokens", None)
    if len(shape) != 3:
        return 0
    if isinstance(declared, int):
        return declared
    pixels = [s for name, s, _ in trunk.probe_signature if name == "pixel_values"]
    patch = getattr(getattr(trunk.model, "config", None), "patch_size", None)
    if not pixels or len(pixels[0]) != 3 or not isinstance(patch, int):
        return 0
    extra = shape[1] - (pixels[0][1] // patch) * (pixels[0][2] // patch)
    return extra if 0 <= extra <= 16 else 0
