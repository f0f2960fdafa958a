"""Which axes of the hidden tensor are tokens and channels at each boundary, and the tokens ahead of the grid."""

from __future__ import annotations

from torch import nn

from ..cache.errors import TrunkError
from .state import Layout
from .trunk import Trunk


def find_layouts(trunk: Trunk) -> list[tuple[Layout, int]]:
    """Return (layout, number of prefix tokens) at boundaries 0 … num_units.

    Raises:
        TrunkError: a hidden tensor that is neither a sequence nor a feature map.
    """
    return [(_layout(trunk, k), _prefix_tokens(trunk, k)) for k in range(trunk.num_units + 1)]


def _layout(trunk: Trunk, boundary: int) -> Layout:
    shape = trunk.hidden_shapes[boundary]
    if len(shape) == 3:
        return "NLC"
    if len(shape) != 4:
        raise TrunkError(f"boundary {boundary}: found a hidden tensor of shape {shape}, expected 3 or 4 axes")
    if shape[1] == shape[2] != shape[3]:
        return "NHWC"
    if shape[2] == shape[3] != shape[1]:
        return "NCHW"
    first = trunk.links[trunk.bounds[min(boundary, trunk.num_units - 1)]].module
    convolves = any(isinstance(m, nn.Conv2d) and m.in_channels == shape[1] and m.groups == 1 for m in first.modules())
    return "NCHW" if convolves else "NHWC"


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
