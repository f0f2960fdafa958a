"""`parallel`: the scaled parallel adapter of He et al.: a bottleneck beside a unit, reading what the unit reads.

Source: He, Zhou, Ma, Berg-Kirkpatrick, Neubig, *Towards a Unified View of Parameter-Efficient Transfer Learning*, ICLR
2022, sec. 3.3 and table 1 ("scaled parallel adapter"):

    h ← F(x) + s · ReLU(x W_down) W_up

F is the feed-forward sub-layer there; here a unit is a black box and F is the unit (`placement = "parallel"`, without
which the same module stands at the boundary). s = 4, W_down as in LoRA and W_up = 0 are published (sec. 4.1), so that
the untrained adapter changes no bit. Each modality has its own, and none sees another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ...cache.errors import SettingsError
from .bottleneck import MODALITIES, Bottleneck, EachItsOwn
from .latents import check_sizes
from .registry import register_adapter


@dataclass(frozen=True, kw_only=True)
class ParallelSettings:
    """Every choice of the parallel adapter.

    Args:
        d_bottleneck: channels of the narrow middle; published are 512 beside a feed-forward sub-layer, 102 for most.
        scale: s.
        activation: "relu" as published.
        pre_norm: normalise x first: the published sub-layer does so in an encoder with norms ahead of it.
        text: the text's tokens have an adapter too.
    """

    d_bottleneck: int = 64
    scale: float = 4.0
    activation: Literal["gelu", "relu"] = "relu"
    pre_norm: bool = False
    text: bool = True

    def __post_init__(self) -> None:
        check_sizes(self, ("d_bottleneck",))
        if self.scale <= 0:
            raise SettingsError(f"scale: found {self.scale}, expected more than 0")


class ParallelAdapter(nn.Module):
    """The adapters of all insertions.

    Args:
        settings: every choice.
        dims: for each insertion, the channels of each modality.
    """

    def __init__(self, settings: ParallelSettings, dims: Sequence[dict[str, int]]) -> None:
        super().__init__()
        self.insertions = nn.ModuleList(
            EachItsOwn(
                {
                    m: Bottleneck(
                        here[m],
                        settings.d_bottleneck,
                        activation=settings.activation,
                        pre_norm=settings.pre_norm,
                        start="zero",
                        scale=settings.scale,
                    )
                    for m in MODALITIES
                    if m in here and (m != "text" or settings.text)
                }
            )
            for here in dims
        )

    def at(self, index: int) -> nn.Module:
        """The adapter of the index-th insertion."""
        return self.insertions[index]


register_adapter("parallel", ParallelSettings, ParallelAdapter)
