"""`parallel`: the scaled parallel adapter of He et al.: a bottleneck beside a unit, reading what the unit reads.

Source: He, Zhou, Ma, Berg-Kirkpatrick, Neubig, *Towards a Unified View of Parameter-Efficient Transfer Learning*, ICLR
2022, sec. 3.3 and table 1 ("scaled parallel adapter"):

    h ← F(x) + s · ReLU(x W_down) W_up

F is the feed-forward sub-layer there; here a unit is a black box and F is the unit (`placement = "parallel"`, without
which the same module stands at the boundary). s = 4, W_down as in LoRA and W_up = 0 are published (sec. 4.1), so that
the untrained adapter changes no bit. Each modality has its own, and none sees another.
"""

from __future__ import annotations

from typing import Literal

from ...config import Count, Positive, settings_class
from .base import AdapterPerInsertion
from .bottleneck import EachItsOwn, bottlenecks
from .registry import register_adapter


@settings_class
class ParallelSettings:
    """Every choice of the parallel adapter.

    Args:
        d_bottleneck: channels of the narrow middle; published are 512 beside a feed-forward sub-layer, 102 for most.
        scale: s.
        activation: "relu" as published.
        pre_norm: normalise x first: the published sub-layer does so in an encoder with norms ahead of it.
        text: the text's tokens have an adapter too.
    """

    d_bottleneck: Count = 64
    scale: Positive = 4.0
    activation: Literal["gelu", "relu"] = "relu"
    pre_norm: bool = False
    text: bool = True


class ParallelAdapter(AdapterPerInsertion):
    """The adapters of all insertions."""

    @staticmethod
    def make(settings: ParallelSettings, dims: dict[str, int]) -> EachItsOwn:
        """The adapters of one insertion."""
        return bottlenecks(settings, dims, start="zero", scale=settings.scale)


register_adapter("parallel", ParallelSettings, ParallelAdapter)
