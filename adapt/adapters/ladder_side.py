"""`side`: a small network beside the frozen encoders, which reads their states and never enters them.

Source: Sung, Cho, Bansal, *LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning*, NeurIPS 2022,
sec. 3.2-3.3 and its code (https://github.com/ylsung/Ladder-Side-Tuning). With s_i the tokens of the frozen encoder at
the i-th boundary of the insertion:

    h_1 = block_1(down_1 s_1)
    h_i = block_i(μ_i down_i s_i + (1 − μ_i) h_{i−1}),    μ_i = σ(α_i / 0.1), α_i = 0 at first
    out = up LN(h_last)

Nothing is added below the end of the encoder: no gradient passes through its units, and where the states at all these
boundaries and at the end are in the store, none of them runs while training. Choosing few boundaries is the paper's
layer dropping. Each modality has a ladder of its own; they meet in the head.

Published (`residual = false`) the head reads `out` alone, so that the untrained model is not the frozen one; then the
encoder's end is not needed. With `residual = true`, the default, `out` is added to the end, and `up` starts at zero:
the untrained adapter changes no bit.

Our reading, since a unit is a black box here: a block is a pre-normalised transformer block of width D / reduction, its
weights random (the paper also cuts them out of the encoder's own by pruning, which it finds to help), and where the
number of tokens changes between boundaries (pyramids of feature maps) neighbouring tokens are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import Count, settings_class
from ...errors import SettingsError
from ...extract.encoders.options import MODALITIES
from .base import BesideAdapter, Triple
from .latents import real_text
from .layers import CrossAttention, masked_mean
from .registry import register_adapter

TEMPERATURE = 0.1  # of the ladder's gates


@settings_class
class SideSettings:
    """Every choice of the side network.

    Args:
        reduction: channels of an encoder at the first boundary over those of its ladder.
        num_heads: of the attention in each block.
        expand: channels inside a block's feed-forward over those of the ladder.
        attention: let the tokens of a frame, window or text see each other; false leaves the feed-forward alone.
        residual: add to the encoder's end; false: the head reads the ladder's end alone, as published.
        text: the text has a ladder too; false: the head reads its frozen end.
    """

    reduction: Count = 8
    num_heads: Count = 4
    expand: Count = 4
    attention: bool = True
    residual: bool = True
    text: bool = True


class Block(nn.Module):
    """A transformer block with norms ahead (Xiong et al. 2020).

    Args:
        width: of the ladder.
        settings: num_heads, expand, attention.
    """

    def __init__(self, width: int, settings: SideSettings) -> None:
        super().__init__()
        self.attention = CrossAttention(width, settings.num_heads) if settings.attention else None
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, settings.expand * width),
            nn.GELU(),
            nn.Linear(settings.expand * width, width),
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Run the block on x (S, N, d); mask (S, N) is true where a token is real."""
        if self.attention is not None:
            x = x + self.attention(x, x, None if mask is None else mask[:, None])
        return x + self.mlp(x)


class Ladder(nn.Module):
    """The side network of one modality.

    Args:
        widths: D of the encoder at each boundary.
        end: D of what the head reads.
        settings: sizes.
    """

    def __init__(self, widths: Sequence[int], end: int, settings: SideSettings) -> None:
        super().__init__()
        width = widths[0] // settings.reduction
        if not width or width % settings.num_heads:
            raise SettingsError(
                f"reduction: {widths[0]} channels by {settings.reduction} leave a ladder of {width}, "
                f"expected a multiple of num_heads = {settings.num_heads}"
            )
        self.down = nn.ModuleList(nn.Linear(dim, width) for dim in widths)
        self.blocks = nn.ModuleList(Block(width, settings) for _ in widths)
        self.alpha = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in widths[1:])
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, end)
        if settings.residual:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, states: Sequence[Tensor], mask: Tensor | None, num_tokens: int) -> Tensor:
        """States (S, N_i, D_i), mask (S, N) of real tokens or None → (S, num_tokens, D_end)."""
        h = self.blocks[0](self.down[0](states[0]), mask)
        for i, alpha in enumerate(self.alpha, start=1):
            gate = (alpha / TEMPERATURE).sigmoid()
            h = gate * self.down[i](states[i]) + (1 - gate) * averaged(h, states[i].shape[1])
            h = self.blocks[i](h, mask)
        return self.up(self.norm(averaged(h, num_tokens, mask)))


def averaged(x: Tensor, num_tokens: int, mask: Tensor | None = None) -> Tensor:
    """Average neighbouring tokens, (S, N, D) → (S, num_tokens, D); x itself where N is num_tokens already."""
    if x.shape[1] == num_tokens:
        return x
    if mask is not None and num_tokens == 1:
        return masked_mean(x, mask)[:, None]
    return F.adaptive_avg_pool1d(x.transpose(1, 2), num_tokens).transpose(1, 2)


class Side(BesideAdapter):
    """The ladders of all modalities.

    Args:
        settings: every choice.
        dims: for each insertion, the channels of each modality.
        ends: channels of what the head reads, by modality.
    """

    question_enters = False

    def __init__(self, settings: SideSettings, dims: Sequence[dict[str, int]], ends: Mapping[str, int]) -> None:
        super().__init__()
        self.residual = settings.residual
        named = [m for m in MODALITIES if m in dims[0] and (m != "text" or settings.text)]
        if not named:
            raise SettingsError("side: the insertion has the text alone and text = false; expected a modality to read")
        self.ladders = nn.ModuleDict({m: Ladder([d[m] for d in dims], ends[m], settings) for m in named})

    @property
    def modalities_read(self) -> tuple[str, ...]:
        """The modalities that have a ladder."""
        return tuple(self.ladders)

    def forward(self, tokens: Sequence[Triple], num_tokens: Mapping[str, int]) -> dict[str, Tensor]:
        """Return what is added to the ends of the encoders, or takes their place.

        Args:
            tokens: of every insertion.
            num_tokens: by modality, N of its end.

        Returns:
            (B, T, num_tokens, D_end) for visual and audio, (B, num_tokens, D_end) for text.
        """
        out = {}
        for modality, ladder in self.ladders.items():
            if modality == "text":
                texts = [x for triple in tokens if (x := real_text(triple)[0]) is not None]
                out[modality] = ladder(texts, real_text(tokens[0])[1], num_tokens[modality])
                continue
            own = [x for triple in tokens if (x := triple.get(modality)) is not None]
            flat = ladder([x.flatten(0, 1) for x in own], None, num_tokens[modality])
            out[modality] = flat.unflatten(0, own[0].shape[:2])
        return out


register_adapter("side", SideSettings, Side)
