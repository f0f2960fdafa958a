"""`lstta`: importance of each segment without a state space, then interaction of neighbouring segments.

Source: Liu, Xie, Gao, Yu, *Parameter-Efficient Transfer Learning for Audio-Visual-Language Tasks*, ACM MM 2023
(arXiv:2308.14274), the predecessor of `trimodal`, known to us by its abstract and the caption of its figure 1: a
"long-term semantic filtering" that rates each frame over the whole video and suppresses the less important ones, and
after it a "short-term semantic interaction" among the modalities within short periods, inserted between the blocks.
Everything below is our reading of these sentences. Letters: B items, T segments, L text tokens, N tokens of a frame or
window, D channels of an encoder, d width.

Filtering. Each modality's tokens are projected to d and averaged to one descriptor a segment; a fixed encoding of t is
added. All descriptors, and the question's tokens, attend to each other once (no state space, no order but the
encoding). From the result z of a segment comes one number, its importance:

    x ← x + x · tanh(w · z)                    importance = "sigmoid": 1 + tanh(u) = 2σ(2u), each segment for itself
    x ← x + x · (T softmax_t(w · z) − 1)       importance = "softmax": segments compete, their gates average to 1

w starts at zero: every gate is 1 at first. `trimodal` differs in that its gates are one a channel, come from a scan
and are there for the text too; here the question only helps to rate the segments.

Interaction. The filtered tokens of a segment t attend to the descriptors of both modalities in the segments t - window
… t + window and to the question's tokens; the text's tokens attend to the descriptors of all segments. What they read
is projected up by a matrix that starts at zero.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import Count, CountOrZero, settings_class
from ...errors import SettingsError
from .base import AdapterPerInsertion, Deltas, InsertionModule, Triple
from .latents import real_text
from .layers import CrossAttention, sinusoids
from .registry import register_adapter

MEDIA = ("visual", "audio")


@settings_class
class LsttaSettings:
    """Every choice of LSTTA.

    Args:
        filtering: rate the segments; false leaves the module out (the paper's ablation).
        interaction: let neighbours interact; false leaves the module out (the paper's ablation).
        importance: "sigmoid" rates each segment for itself, "softmax" against the others of its clip.
        window: radius of the interaction in segments, 0 for the segment alone.
        d_model: width d.
        num_heads: of every attention.
        text: the question takes part; false: it enters at the head only.
    """

    filtering: bool = True
    interaction: bool = True
    importance: Literal["sigmoid", "softmax"] = "sigmoid"
    window: CountOrZero = 1
    d_model: Count = 64
    num_heads: Count = 4
    text: bool = True

    def __post_init__(self) -> None:
        if not (self.filtering or self.interaction):
            raise SettingsError('filtering and interaction: both false; expected at least one (or kind = "probe")')
        if self.d_model % self.num_heads:
            raise SettingsError(f"d_model: found {self.d_model}, expected a multiple of num_heads = {self.num_heads}")


class Narrow(nn.Module):
    """The tokens of one modality in width d: GELU of a projection of the normalised tokens."""

    def __init__(self, width: int, d_model: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Project down, (…, D) → (…, d_model)."""
        return F.gelu(self.down(self.norm(x)))


class Filtering(nn.Module):
    """One number a segment and modality, zero where the segment is kept as it is.

    Args:
        dims: channels of each modality that takes part.
        settings: importance, d_model, num_heads.
    """

    def __init__(self, dims: dict[str, int], settings: LsttaSettings) -> None:
        super().__init__()
        self.compete = settings.importance == "softmax"
        self.narrow = nn.ModuleDict({m: Narrow(dim, settings.d_model) for m, dim in dims.items()})
        self.attention = CrossAttention(settings.d_model, settings.num_heads)
        self.norm = nn.LayerNorm(settings.d_model)
        self.rate = nn.ModuleDict({m: nn.Linear(settings.d_model, 1, bias=False) for m in dims if m != "text"})
        for linear in self.rate.values():
            nn.init.zeros_(linear.weight)  # type: ignore[arg-type]

    def forward(self, triple: Triple) -> dict[str, Tensor]:
        """Return importance - 1 of each segment, (B, T, 1, 1), by modality."""
        lines = {m: self.narrow[m](triple.get(m)).mean(2) for m in self.rate}  # (B, T, d)
        _, t, width = next(iter(lines.values())).shape
        lines = {m: line + sinusoids(t, width, line.device) for m, line in lines.items()}
        line, mask = _with_question(torch.cat(list(lines.values()), 1), triple, self.narrow)
        line = self.norm(line + self.attention(line, line, mask))
        gates = {}
        for index, (modality, rate) in enumerate(self.rate.items()):
            rated = rate(line[:, index * t : (index + 1) * t])  # (B, T, 1)
            gates[modality] = (_against_others(rated) if self.compete else rated.tanh())[..., None]
        return gates


def _against_others(rated: Tensor) -> Tensor:
    """T · softmax - 1 over the segments of (B, T, 1), and zero to the bit where all are rated alike."""
    return rated.shape[1] * (rated.softmax(1) - torch.zeros_like(rated).softmax(1))


class Interaction(nn.Module):
    """What each modality's tokens take from their neighbourhood.

    Args:
        dims: channels of each modality that takes part.
        settings: window, d_model, num_heads.
    """

    def __init__(self, dims: dict[str, int], settings: LsttaSettings) -> None:
        super().__init__()
        self.window = settings.window
        self.narrow = nn.ModuleDict({m: Narrow(dim, settings.d_model) for m, dim in dims.items()})
        self.read = nn.ModuleDict({m: CrossAttention(settings.d_model, settings.num_heads) for m in dims})
        self.up = nn.ModuleDict({m: nn.Linear(settings.d_model, dim) for m, dim in dims.items()})
        for linear in self.up.values():
            nn.init.zeros_(linear.weight)  # type: ignore[arg-type]
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]

    def forward(self, triple: Triple) -> dict[str, Tensor]:
        """Return what is to be added to each modality's tokens, of their shapes."""
        tokens = {m: self.narrow[m](triple.get(m)) for m in MEDIA if m in self.narrow}  # (B, T, N, d)
        _, t, _, width = next(iter(tokens.values())).shape
        lines = [x.mean(2) + sinusoids(t, width, x.device) for x in tokens.values()]
        line, mask = _with_question(torch.cat(lines, 1), triple, self.narrow)  # (B, 2T + L, d), (B, 1, 2T + L)
        deltas = {}
        for modality, x in tokens.items():
            seen = mask & self._near(t, len(lines), x.shape[2], line)
            deltas[modality] = self.up[modality](
                F.gelu(x + self.read[modality](x.flatten(1, 2), line, seen).view(x.shape))
            )
        if "text" in self.narrow:
            own = self.narrow["text"](triple.text)
            segments = line[:, : t * len(lines)]
            deltas["text"] = self.up["text"](F.gelu(own + self.read["text"](own, segments)))
        return deltas

    def _near(self, t: int, num_lines: int, num_tokens: int, line: Tensor) -> Tensor:
        """(T·N, keys): which descriptors a segment's tokens may see; the question's all."""
        segments = torch.arange(t, device=line.device)
        near = ((segments[:, None] - segments[None]).abs() <= self.window).repeat(1, num_lines)
        question = near.new_ones(t, line.shape[1] - near.shape[1])
        return torch.cat([near, question], 1).repeat_interleave(num_tokens, 0)


def _with_question(line: Tensor, triple: Triple, narrow: nn.ModuleDict) -> tuple[Tensor, Tensor]:
    """The line with the question's tokens behind it, and its mask (B, 1, keys)."""
    mask = torch.ones(line.shape[:2], dtype=torch.bool, device=line.device)
    if "text" in narrow and triple.text is not None:
        text, real = real_text(triple)
        line, mask = torch.cat([line, narrow["text"](text)], 1), torch.cat([mask, real], 1)
    return line, mask[:, None]


class LsttaInsertion(InsertionModule):
    """The two modules at one insertion; the identity at initialisation."""

    def __init__(self, settings: LsttaSettings, dims: dict[str, int]) -> None:
        super().__init__()
        self.question_enters = settings.text
        dims = {m: dim for m, dim in dims.items() if m != "text" or settings.text}
        if not any(m in dims for m in MEDIA):
            raise SettingsError("lstta: the insertion has neither visual nor audio; expected at least one")
        self.filtering = Filtering(dims, settings) if settings.filtering else None
        self.interaction = Interaction(dims, settings) if settings.interaction else None

    def forward(self, triple: Triple) -> Deltas:
        """Return what is to be added to each modality's tokens."""
        triple = Triple(triple.visual, triple.audio, real_text(triple)[0], triple.text_mask)
        deltas: dict[str, Tensor] = {}
        filtered = {m: triple.get(m) for m in MEDIA}
        if self.filtering is not None:
            for modality, gate in self.filtering(triple).items():
                x = triple.get(modality)
                assert x is not None
                deltas[modality] = x * gate
                filtered[modality] = x + deltas[modality]
        if self.interaction is not None:
            near = self.interaction(Triple(text=triple.text, text_mask=triple.text_mask, **filtered))
            deltas |= {m: deltas[m] + delta if m in deltas else delta for m, delta in near.items()}
        return Deltas(**deltas)


class Lstta(AdapterPerInsertion):
    """The adapters of all insertions."""

    make = LsttaInsertion


register_adapter("lstta", LsttaSettings, Lstta)
