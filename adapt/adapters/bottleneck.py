"""`bottleneck`: the adapter of Houlsby et al.: down, non-linearity, up, added to what comes in.

Source: Houlsby et al., *Parameter-Efficient Transfer Learning for NLP*, ICML 2019, sec. 2.1 and fig. 2:

    out = W_up f(W_down x + b_down) + b_up

Published are two of them in every layer of BERT, one behind each sub-layer's projection. Here a unit is a black box, so
that there is one behind the unit (`placement = "between"`): the form that Pfeiffer et al. (2021, *AdapterFusion*,
fig. 2) found to do as well. Each modality has its own, and none sees another.

The published start is near the identity, not the identity: weights from a normal of deviation 0.01 cut at two
deviations, biases zero (sec. 3.6). `start = "small"` is that; with "zero", the default, W_up is zero and the untrained
adapter changes no bit. The published method also trains the layer norms of the encoder, which this one does not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ...config import Count, settings_class
from ...extract.encoders.options import MODALITIES
from .base import AdapterPerInsertion, Deltas, InsertionModule, Triple
from .latents import real_text
from .layers import scaled
from .registry import register_adapter

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


@settings_class
class BottleneckSettings:
    """Every choice of the bottleneck adapter.

    Args:
        d_bottleneck: channels of the narrow middle; published are 8 to 256 (64 for most).
        activation: f.
        pre_norm: normalise x first (ours; not in the paper).
        start: "zero", the identity to the bit; "small", as published, near it.
        text: the text's tokens have an adapter too.
    """

    d_bottleneck: Count = 64
    activation: Literal["gelu", "relu"] = "gelu"
    pre_norm: bool = False
    start: Literal["zero", "small"] = "zero"
    text: bool = True


class Bottleneck(nn.Module):
    """s (W_up f(W_down x + b_down) + b_up) for the tokens of one modality.

    Args:
        width: D.
        d_bottleneck: channels of the middle.
        activation: f.
        pre_norm: normalise x first.
        start: "zero", W_up is zero and W_down torch's own; "small", both from the cut normal.
        scale: s.
    """

    def __init__(
        self, width: int, d_bottleneck: int, *, activation: str, pre_norm: bool, start: str, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if pre_norm else nn.Identity()
        self.down = nn.Linear(width, d_bottleneck)
        self.up = nn.Linear(d_bottleneck, width)
        self.activation, self.scale = ACTIVATIONS[activation], scale
        for linear in (self.down, self.up):
            nn.init.zeros_(linear.bias)
            if start == "small":
                nn.init.trunc_normal_(linear.weight, std=0.01, a=-0.02, b=0.02)
        if start == "zero":
            nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → what is to be added, (…, D)."""
        return scaled(self.up(self.activation(self.down(self.norm(x)))), self.scale)


class EachItsOwn(InsertionModule):
    """One adapter a modality at one insertion; what stands in a text's padding is not read.

    Args:
        dims: channels of each modality at this insertion.
        make: the adapter of one modality, from its channels.
        text: whether the text's tokens have an adapter.
    """

    question_enters = False

    def __init__(self, dims: dict[str, int], make: Callable[[int], nn.Module], *, text: bool) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict({m: make(dims[m]) for m in MODALITIES if m in dims and (m != "text" or text)})

    def forward(self, triple: Triple) -> Deltas:
        """Return what is to be added to the tokens of each modality that has an adapter."""
        deltas = {}
        for modality, adapter in self.adapters.items():
            tokens = real_text(triple)[0] if modality == "text" else triple.get(modality)
            deltas[modality] = None if tokens is None else adapter(tokens)
        return Deltas(**deltas)


def bottlenecks(settings: Any, dims: dict[str, int], *, start: str, scale: float = 1.0) -> EachItsOwn:
    """The bottlenecks of one insertion.

    Args:
        settings: `d_bottleneck`, `activation`, `pre_norm` and `text` are read here.
        dims: channels of each modality at this insertion.
        start: as `Bottleneck` takes it.
        scale: s.
    """
    make = partial(
        Bottleneck,
        d_bottleneck=settings.d_bottleneck,
        activation=settings.activation,
        pre_norm=settings.pre_norm,
        start=start,
        scale=scale,
    )
    return EachItsOwn(dims, make, text=settings.text)


class BottleneckAdapter(AdapterPerInsertion):
    """The adapters of all insertions."""

    @staticmethod
    def make(settings: BottleneckSettings, dims: dict[str, int]) -> EachItsOwn:
        """The adapters of one insertion."""
        return bottlenecks(settings, dims, start=settings.start)


register_adapter("bottleneck", BottleneckSettings, BottleneckAdapter)
