"""Latent tokens that carry one modality's tokens to another's, and the grouped bottleneck: LAVISH's two halves.

Letters: S items times segments, N tokens of the modality that is adapted, M tokens that it reads, K latents,
D channels, C channels of the narrow middle, G groups.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import SettingsError
from .base import Deltas, InsertionModule, Triple

OTHER = {"visual": "audio", "audio": "visual"}


class GroupedLinear(nn.Module):
    """A linear map without bias whose channels are split into groups that do not mix: a grouped 1x1 convolution.

    Args:
        width_in: channels in, a multiple of `groups`.
        width_out: channels out, a multiple of `groups`.
        groups: G.
    """

    def __init__(self, width_in: int, width_out: int, groups: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width_in // groups)  # torch's own of a convolution: uniform, by the fan-in
        self.weight = nn.Parameter(torch.empty(groups, width_in // groups, width_out // groups).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """(…, width_in) → (…, width_out)."""
        groups, width, _ = self.weight.shape
        return torch.einsum("...gi,gio->...go", x.unflatten(-1, (groups, width)), self.weight).flatten(-2)


class GroupedBottleneck(nn.Module):
    """g · LN(Up(ReLU(Down(LN(x))))), both maps grouped (Lin et al. 2023, sec. 3.2 and code, `VisualAdapter`).

    g starts at zero, so that nothing is added at first.

    Args:
        width: D.
        reduction: D / C.
        groups: G.
        pre_norm: normalise what enters.
        post_norm: normalise what leaves, before g.

    Raises:
        SettingsError: D or C cannot be split into G groups.
    """

    def __init__(self, width: int, *, reduction: int, groups: int, pre_norm: bool, post_norm: bool) -> None:
        super().__init__()
        middle = width // reduction
        if width % groups or middle % groups or not middle:
            raise SettingsError(
                f"groups: found {groups} for {width} channels and {middle} in the middle (reduction = {reduction}); "
                "expected a divisor of both"
            )
        self.norm_before = nn.LayerNorm(width) if pre_norm else nn.Identity()
        self.down = GroupedLinear(width, middle, groups)
        self.up = GroupedLinear(middle, width, groups)
        self.norm_after = nn.LayerNorm(width) if post_norm else nn.Identity()
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(S, N, D) → what is to be added, (S, N, D)."""
        return self.gate * self.norm_after(self.up(F.relu(self.down(self.norm_before(x)))))


class LatentRead(nn.Module):
    """x' = x + c · softmax(x Lᵀ) L with L = L₀ + softmax(L₀ Yᵀ) Y (Lin et al. 2023, sec. 3.2; c: code, `gate_av`).

    Args:
        width: D, of x and Y.
        num_latents: K.
        start: L₀ at first, "zero" or "random" (uniform in [0, 1), as torch.rand).
        gate: c at first.
    """

    def __init__(self, width: int, *, num_latents: int, start: Literal["zero", "random"], gate: float) -> None:
        super().__init__()
        make = torch.zeros if start == "zero" else torch.rand
        self.latents = nn.Parameter(make(num_latents, width))
        self.gate = nn.Parameter(torch.full((1,), gate))

    def no_weight_decay(self) -> tuple[str, ...]:
        """Parameters that are trained without weight decay."""
        return ("latents",)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        """Let x (S, N, D) read y (S, M, D) through latents; mask (S, M) is true where a token of y is real."""
        scores = self.latents @ y.transpose(1, 2)  # (S, K, M)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -torch.inf)
        latents = self.latents + scores.softmax(-1) @ y  # (S, K, D)
        return x + self.gate * ((x @ latents.transpose(1, 2)).softmax(-1) @ latents)


class OtherTokens(nn.Module):
    """Y: the other modality's tokens of the same segment and, with `text`, the question's, in the channels of x.

    A linear map stands where the channels differ: the published encoder is one and the same for both modalities, which
    needs none (our reading; DG-SCT's code has this map).

    Args:
        dims: channels of each modality at this insertion.
        modality: "visual" or "audio", the one that reads.
        text: whether the question's tokens are read too.
    """

    def __init__(self, dims: dict[str, int], modality: str, *, text: bool) -> None:
        super().__init__()
        self.other = OTHER[modality]
        sources = [self.other, *(["text"] if text and "text" in dims else [])]
        width = dims[modality]
        self.match = nn.ModuleDict(
            {m: nn.Identity() if dims[m] == width else nn.Linear(dims[m], width) for m in sources}
        )

    def forward(self, triple: Triple) -> tuple[Tensor, Tensor | None]:
        """Y (B·T, M, D), and the mask (B·T, M) of its real tokens, None where all are."""
        other = triple.get(self.other)
        assert other is not None
        b, t = other.shape[:2]
        y = self.match[self.other](other.flatten(0, 1))
        text, mask = real_text(triple)
        if "text" not in self.match or text is None:
            return y, None
        question = self.match["text"](text).repeat_interleave(t, 0)  # (B·T, L, D)
        whole = torch.ones(b, y.shape[1] + text.shape[1], dtype=torch.bool, device=y.device)
        whole[:, y.shape[1] :] = mask
        return torch.cat([y, question], dim=1), whole.repeat_interleave(t, 0)


class BothWays(InsertionModule):
    """Vision from sound and sound from vision at one place, each from the tokens as they came in.

    A kind derives from it and names itself in `kind`, and in `direction` the module of what one modality takes from
    the other: made by `direction(settings, dims, modality)`, called with a `Triple`.

    Attributes:
        second: with `after_attention`, the adapter beside the rest of the unit, read from the tokens after its
            attention; what `forward` gives is then added after the attention.

    Args:
        settings: every choice of the kind; `after_attention` and `text` are read here.
        dims: channels of each modality at this insertion.

    Raises:
        SettingsError: the insertion has not both visual and audio.
    """

    kind: ClassVar[str]
    direction: ClassVar[type[nn.Module]]

    def __init__(self, settings: Any, dims: dict[str, int]) -> None:
        super().__init__()
        check_pair(self.kind, dims)
        self.question_enters = settings.text
        self.directions = nn.ModuleDict({m: self.direction(settings, dims, m) for m in OTHER})
        if settings.after_attention:
            self.second = type(self)(replace(settings, after_attention=False), dims)

    def forward(self, triple: Triple) -> Deltas:
        """Return what is to be added to vision and sound; the text gets nothing."""
        return Deltas(**{m: direction(triple) for m, direction in self.directions.items()})


def real_text(triple: Triple) -> tuple[Tensor | None, Tensor]:
    """The text with zeros in its padding, whatever stood there, and a mask (B, L), all true where none was given."""
    text = triple.text
    if text is None:
        return None, torch.empty(0)
    if triple.text_mask is None:
        return text, torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    return text.masked_fill(~triple.text_mask[..., None], 0.0), triple.text_mask


def check_pair(kind: str, dims: dict[str, int]) -> None:
    """Refuse an insertion without both visual and audio."""
    missing = [m for m in OTHER if m not in dims]
    if missing:
        raise SettingsError(f"{kind}: the insertion has no {missing[0]}; expected visual and audio to meet")
