"""`lavish`: latent tokens carry sound to vision and vision to sound, then a grouped bottleneck, beside each unit.

Source: Lin, Sung, Lei, Bansal, Bertasius, *Vision Transformers are Parameter-Efficient Audio-Visual Learners*, CVPR
2023, sec. 3.2, and its code for MUSIC-AVQA (https://github.com/GenjiB/LAVISH). For x the tokens of one modality in a
segment and Y the other's of the same segment:

    L   = L₀ + softmax(L₀ Yᵀ) Y                            K latent tokens collect the other modality
    x'  = x + c · softmax(x Lᵀ) L                          and are read
    out = g · LN(Up(ReLU(Down(LN(x')))))                   Down and Up grouped, without bias

Published are L₀ = 0, c = 0, g = 0, reduction 8, 4 groups, 64 latents, one such adapter for each direction beside the
attention and one beside the MLP of every block, 8.84 M parameters on Swin-V2-L. Two facts about them:

- Latents that start at zero all read the same, so they stay equal for ever: their number does nothing then. The same
  authors' code for AVE starts them at random; `latents` offers both.
- With c and g both zero the latents get their first gradient at the third step, two factors being zero until then.
  Here c starts at 0.1 (`cross_gate`), which leaves the untrained adapter the identity, since g is zero.

The code's batch normalisation, which its MUSIC-AVQA command turns off, is left out: it would let the questions of a
batch influence each other. The published model hands the question to the head only, which is `text = false`; with
`text = true` the question's tokens join Y (ours).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ...config import Count, settings_class
from .base import AdapterPerInsertion, Triple
from .latents import BothWays, GroupedBottleneck, LatentRead, OtherTokens
from .registry import register_adapter


@settings_class
class LavishSettings:
    """Every choice of LAVISH; the defaults are the published ones but for `cross_gate`.

    Args:
        reduction: channels of a modality over those of its bottleneck.
        groups: of both maps of the bottleneck.
        num_latents: K; without effect while `latents` is "zero".
        latents: how L₀ starts, "zero" (code for MUSIC-AVQA) or "random" (code for AVE, uniform in [0, 1)).
        cross_gate: c at first; 0.0 as published.
        pre_norm: normalise what enters the bottleneck.
        post_norm: normalise what leaves it.
        text: the question's tokens are read too; false: the question enters at the head only, as published.
        after_attention: a second adapter after the attention of the unit, as published; needs placement = "parallel".
    """

    reduction: Count = 8
    groups: Count = 4
    num_latents: Count = 64
    latents: Literal["zero", "random"] = "zero"
    cross_gate: float = 0.1
    pre_norm: bool = True
    post_norm: bool = True
    text: bool = False
    after_attention: bool = False


class _Direction(nn.Module):
    """What one modality takes from the other."""

    def __init__(self, settings: LavishSettings, dims: dict[str, int], modality: str) -> None:
        super().__init__()
        self.modality = modality
        self.other = OtherTokens(dims, modality, text=settings.text)
        self.read = LatentRead(
            dims[modality], num_latents=settings.num_latents, start=settings.latents, gate=settings.cross_gate
        )
        self.bottleneck = GroupedBottleneck(
            dims[modality],
            reduction=settings.reduction,
            groups=settings.groups,
            pre_norm=settings.pre_norm,
            post_norm=settings.post_norm,
        )

    def forward(self, triple: Triple) -> Tensor:
        x = triple.get(self.modality)
        assert x is not None
        return self.bottleneck(self.read(x.flatten(0, 1), *self.other(triple))).view(x.shape)


class LavishInsertion(BothWays):
    """Both directions at one place."""

    kind, direction = "lavish", _Direction


class Lavish(AdapterPerInsertion):
    """The adapters of all insertions."""

    make = LavishInsertion


register_adapter("lavish", LavishSettings, Lavish)
