"""Short-term semantic interaction: around each segment, centre and others exchange through a few latent tokens.

Letters: B items, T segments, L text tokens, N tokens of a frame or window, M latents a segment, D channels, d width.

This file answers the abstract's sentence (Liu, Chen, Zeng 2025, see `trimodal`) that the "short-term semantic
interaction module", "centred on vision or audio", "models the interaction of local features within a short time".
Our reading: "short time" is a window of segments around each segment, and the centre is the modality whose segment the
window is laid around. The latent tokens, and everything else below, are ours. For segment t and radius w:

1. M latents, the same for every segment at first and small, so that the question soon outweighs what they are, read
   the question.
2. Told their segment by a fixed encoding of t, they read the centre's tokens of segment t, then the other modality's
   tokens of the segments t - w … t + w.
   Tokens carry a fixed encoding of their place in the frame or window, whatever is left of it in the frozen features.
3. The centre's tokens of segment t read the latents of t; the other modality's tokens of a segment s read the latents
   of every segment whose window holds s; the text's tokens read all of them.
What is read is projected up by a matrix that starts at zero, times a fixed s as LoRA's alpha / r (Hu et al. 2022), and
is what the adapter adds: with a small s the noise of that matrix's first steps stays below the tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Triple
from .layers import CrossAttention, scaled, sinusoids


class Interaction(nn.Module):
    """The exchange of one insertion.

    Args:
        dims: channels D of each modality that takes part.
        center: "visual" or "audio".
        window: w, the radius in segments; None for all segments ("global").
        num_latents: M, latent tokens a segment.
        d_model: width d.
        num_heads: of every attention.
        scale: s, of what is added.
    """

    def __init__(
        self,
        dims: dict[str, int],
        *,
        center: str,
        window: int | None,
        num_latents: int,
        d_model: int,
        num_heads: int,
        scale: float,
    ) -> None:
        super().__init__()
        self.center = center
        self.window = window
        self.scale = scale
        self.other = "audio" if center == "visual" else "visual"
        self.latents = nn.Parameter(0.1 * torch.randn(num_latents, d_model))
        self.norm = nn.ModuleDict({m: nn.LayerNorm(dim) for m, dim in dims.items()})
        self.down = nn.ModuleDict({m: nn.Linear(dim, d_model) for m, dim in dims.items()})
        self.reads = nn.ModuleDict({m: CrossAttention(d_model, num_heads) for m in dims})
        self.mlp = nn.Sequential(
            nn.LayerNorm(d_model), nn.Linear(d_model, 2 * d_model), nn.GELU(), nn.Linear(2 * d_model, d_model)
        )
        self.writes = nn.ModuleDict({m: CrossAttention(d_model, num_heads) for m in dims})
        self.up = nn.ModuleDict({m: nn.Linear(d_model, dim) for m, dim in dims.items()})
        for linear in self.up.values():
            nn.init.zeros_(linear.weight)  # type: ignore[arg-type]
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]

    def no_weight_decay(self) -> tuple[str, ...]:
        """Parameters that are trained without weight decay."""
        return ("latents",)

    def forward(self, triple: Triple) -> dict[str, Tensor]:
        """Return what is to be added to each modality's tokens, of their shapes."""
        center = triple.get(self.center)
        assert center is not None
        b, t = center.shape[:2]
        tokens = {m: self._tokens(triple, m) for m in self.down if triple.get(m) is not None}
        mask = None if triple.text_mask is None else triple.text_mask[:, None, :]
        latents = self._read(tokens, mask, b, t)
        return self._write(tokens, latents)

    def _tokens(self, triple: Triple, modality: str) -> Tensor:
        tokens = self.down[modality](self.norm[modality](triple.get(modality)))
        if modality != "text":
            tokens = tokens + sinusoids(tokens.shape[2], tokens.shape[3], tokens.device)
        return F.gelu(tokens)

    def _read(self, tokens: dict[str, Tensor], mask: Tensor | None, b: int, t: int) -> Tensor:
        num, width = self.latents.shape
        latents = self.latents.expand(b, num, width)
        if "text" in tokens:
            latents = latents + self.reads["text"](latents, tokens["text"], mask)
        center = tokens[self.center].flatten(0, 1)  # (B·T, N, d)
        when = sinusoids(t, width, latents.device)[None, :, None]  # (1, T, 1, d)
        latents = (latents.unsqueeze(1) + when).reshape(b * t, num, width)
        latents = latents + self.reads[self.center](latents, center)
        if self.other in tokens:
            other = tokens[self.other]  # (B, T, N, d)
            near = self._near(t, num, other.shape[2], other.device)  # (T·M, T·N)
            latents = latents.view(b, t * num, width)
            latents = latents + self.reads[self.other](latents, other.flatten(1, 2), near)
        latents = latents + self.mlp(latents)
        return latents.reshape(b, t, num, width)

    def _write(self, tokens: dict[str, Tensor], latents: Tensor) -> dict[str, Tensor]:
        t, num = latents.shape[1:3]
        deltas = {}
        for modality, x in tokens.items():
            if modality == self.center:
                read = self.writes[modality](x.flatten(0, 1), latents.flatten(0, 1)).view(x.shape)
            elif modality == self.other:
                near = self._near(t, x.shape[2], num, x.device)  # (T·N, T·M)
                read = self.writes[modality](x.flatten(1, 2), latents.flatten(1, 2), near).view(x.shape)
            else:
                read = self.writes[modality](x, latents.flatten(1, 2))
            deltas[modality] = scaled(self.up[modality](F.gelu(x + read)), self.scale)
        return deltas

    def _near(self, t: int, per_query: int, per_key: int, device: torch.device) -> Tensor | None:
        if self.window is None or self.window >= t - 1:
            return None
        segments = torch.arange(t, device=device)
        near = (segments[:, None] - segments[None, :]).abs() <= self.window  # (T, T)
        return near.repeat_interleave(per_query, 0).repeat_interleave(per_key, 1)
