"""`dgsct`: each modality gates the other's channels and tokens, then LAVISH's latents and grouped bottleneck.

Source: Duan, Xia, Zhou, Tang, Zhu, Zhao, *Cross-modal Prompts: Adapting Large Pre-trained Models for Audio-Visual
Downstream Tasks*, NeurIPS 2023, sec. 3.2-3.3, and its code for MUSIC-AVQA (https://github.com/haoyi-duan/DG-SCT). For x
the N tokens of one modality in a segment and Y the other's of the same segment, in x's channels by a linear map:

    x'  = x + c · softmax(x Lᵀ) L,  L = L₀ + softmax(L₀ Yᵀ) Y              as in `lavish`
    a   = mean of Y over its tokens
    M_c = σ(W₄ ReLU(W₃ mean over n of ReLU(W₁ a) ⊙ ReLU(W₂ x'_n)))         one gate a channel
    M_s = σ(w · (ReLU(W₅ (x' ⊙ (1 + M_c))) ⊙ ReLU(W₆ a)))                  one gate a token
    out = g · LN(Up(ReLU(Down(LN(x' ⊙ (0.3 M_c + 0.05 M_s + 0.7))))))      0.7 = 1 - 0.3

Published are L₀ = 0, c = 0, g = 0, reduction 8, 4 groups, 2 latents. What differs here:

- c starts at 0.1 (`cross_gate`): with c and g both zero the latents have no gradient before the third step.
- The published code also mixes Y's tokens by a 1x1 convolution over token positions, to x's number of tokens. It ties
  the weights to the size of picture and spectrogram, and no equation above needs equal numbers: left out (ours).
- The paper's temporal gate has no part in the code's adapters for MUSIC-AVQA (for AVE it stands above the encoders, in
  the head): left out.
- `text = true` lets the question's tokens join Y, and so a (ours); published is `text = false`, the head alone.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...config import Count, Positive, settings_class
from .base import AdapterPerInsertion, Triple
from .latents import BothWays, GroupedBottleneck, LatentRead, OtherTokens
from .layers import masked_mean
from .registry import register_adapter


@settings_class
class DgsctSettings:
    """Every choice of DG-SCT; the defaults are the published ones but for `cross_gate` and what the module left out.

    Args:
        channel: weight of the channel gate, 0 to 1; what is kept of x in any case is 1 - channel.
        spatial: weight of the token gate, more than 0.
        reduction: channels of a modality over those of its bottleneck.
        groups: of both maps of the bottleneck.
        num_latents: K; without effect while `latents` is "zero".
        latents: how L₀ starts, "zero" (code for MUSIC-AVQA) or "random" (code for AVE, uniform in [0, 1)).
        cross_gate: c at first; 0.0 as published.
        pre_norm: normalise what enters the bottleneck.
        post_norm: normalise what leaves it.
        text: the question's tokens join Y; false: the question enters at the head only, as published.
        after_attention: a second adapter after the attention of the unit, as published; needs placement = "parallel".
    """

    channel: Annotated[float, Field(gt=0, le=1)] = 0.3
    spatial: Positive = 0.05
    reduction: Count = 8
    groups: Count = 4
    num_latents: Count = 2
    latents: Literal["zero", "random"] = "zero"
    cross_gate: float = 0.1
    pre_norm: bool = True
    post_norm: bool = True
    text: bool = False
    after_attention: bool = False


class Gates(nn.Module):
    """M_c and M_s of one modality, guided by the other.

    Args:
        width: D.
        channel, spatial: their weights.
    """

    def __init__(self, width: int, *, channel: float, spatial: float) -> None:
        super().__init__()
        self.channel, self.spatial = channel, spatial
        half = width // 2
        self.guide_channels = nn.Linear(width, width)  # W₁
        self.own_channels = nn.Linear(width, width)  # W₂
        self.squeeze = nn.Linear(width, half)  # W₃
        self.channels = nn.Linear(half, width)  # W₄
        self.own_tokens = nn.Linear(width, half)  # W₅
        self.guide_tokens = nn.Linear(width, half)  # W₆
        self.tokens = nn.Linear(half, 1)  # w

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Gate the tokens x (S, N, D) by the other modality's guide (S, D); the result has x's shape."""
        guide = guide[:, None]  # (S, 1, D)
        both = (F.relu(self.guide_channels(guide)) * F.relu(self.own_channels(x))).mean(1, keepdim=True)
        by_channel = self.channels(F.relu(self.squeeze(both))).sigmoid()  # (S, 1, D)
        own = F.relu(self.own_tokens(x * (1 + by_channel)))
        by_token = self.tokens(own * F.relu(self.guide_tokens(guide))).sigmoid()  # (S, N, 1)
        return x * (self.channel * by_channel + self.spatial * by_token + (1 - self.channel))


class _Direction(nn.Module):
    """What one modality takes from the other."""

    def __init__(self, settings: DgsctSettings, dims: dict[str, int], modality: str) -> None:
        super().__init__()
        width = dims[modality]
        self.modality = modality
        self.other = OtherTokens(dims, modality, text=settings.text)
        self.read = LatentRead(
            width, num_latents=settings.num_latents, start=settings.latents, gate=settings.cross_gate
        )
        self.gates = Gates(width, channel=settings.channel, spatial=settings.spatial)
        self.bottleneck = GroupedBottleneck(
            width,
            reduction=settings.reduction,
            groups=settings.groups,
            pre_norm=settings.pre_norm,
            post_norm=settings.post_norm,
        )

    def forward(self, triple: Triple) -> Tensor:
        x = triple.get(self.modality)
        assert x is not None
        y, mask = self.other(triple)  # (B·T, M, D)
        read = self.read(x.flatten(0, 1), y, mask)
        return self.bottleneck(self.gates(read, masked_mean(y, mask))).view(x.shape)


class DgsctInsertion(BothWays):
    """Both directions at one place."""

    kind, direction = "dgsct", _Direction


class Dgsct(AdapterPerInsertion):
    """The adapters of all insertions."""

    make = DgsctInsertion


register_adapter("dgsct", DgsctSettings, Dgsct)
