"""Long-term semantic selection: a selective scan over the whole clip gates the tokens of all three modalities.

Letters: B items, T segments, L text tokens, N tokens of a frame or window, D channels of an encoder, d width.

The source (Liu, Chen, Zeng, *Tri-modal adapter based on selective state space*, Journal of Computer Applications
2025, 45(2): 411-420) is known to us by its abstract, and this file answers its sentence: "the long-term semantic
selection module", "based on a selective state space", "aims to suppress redundant information in the three
modalities". That "long-term" means the whole clip on one line, that "suppress" means a gate on every channel of every
token, and each of the steps below are our reading of it.

1. Each modality's tokens are projected down; a frame's or window's tokens are averaged to one descriptor.
2. The descriptors lie on one line: the text's tokens first, then v_1, a_1, v_2, a_2, …; so the question is in the
   state before the first segment is read.
3. The line is scanned by Mamba's S6 (Gu, Dao 2023), forward and, if bidirectional, backward.
4. A token is scaled by 1 + tanh(s W y), y the scan's output at its place on the line; W starts at zero, so that the
   gates start at exactly 1. The fixed s, as LoRA's alpha / r (Hu et al. 2022), slows the gates against what feeds them.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..scan.mamba_block import MambaBlock
from .base import Triple
from .layers import CrossAttention, scaled


def mean_gate(gate: Tensor, modality: str) -> Tensor:
    """One number a place, detached: the mean over channels of 1 + `gate`, (B, T) or, for text, (B, L); float32.

    Args:
        gate: what `Selection` returns for `modality`.
    """
    means = 1.0 + gate.detach().float().mean(dim=-1)
    return means if modality == "text" else means.squeeze(2)


class Selection(nn.Module):
    """The gates of one insertion.

    Args:
        dims: channels D of each modality that takes part.
        kind: "ssm", the selective scan; "attention", self-attention over the same line, for comparison.
        d_model: width d of the line.
        d_state, d_conv, expand, bidirectional: of the Mamba block, under Mamba's names.
        num_heads: of the attention, where kind is "attention".
        scale: s, of the gates' argument.
    """

    def __init__(
        self,
        dims: dict[str, int],
        *,
        kind: Literal["ssm", "attention"],
        d_model: int,
        d_state: int,
        d_conv: int,
        expand: int,
        bidirectional: bool,
        num_heads: int,
        scale: float,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.scale = scale
        self.norm = nn.ModuleDict({m: nn.LayerNorm(dim) for m, dim in dims.items()})
        self.down = nn.ModuleDict({m: nn.Linear(dim, d_model) for m, dim in dims.items()})
        self.kind_of_token = nn.ParameterDict({m: nn.Parameter(0.02 * torch.randn(d_model)) for m in dims})
        self.line_norm = nn.LayerNorm(d_model)
        self.mixer: Any
        if kind == "ssm":
            self.mixer = MambaBlock(d_model, d_state=d_state, d_conv=d_conv, expand=expand, bidirectional=bidirectional)
        else:
            self.mixer = CrossAttention(d_model, num_heads)
        self.out_norm = nn.LayerNorm(d_model)
        self.gate = nn.ModuleDict({m: nn.Linear(d_model, dim) for m, dim in dims.items()})
        for linear in self.gate.values():
            nn.init.zeros_(linear.weight)  # type: ignore[arg-type]
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]

    def forward(self, triple: Triple) -> dict[str, Tensor]:
        """Return tanh(s W y) of each modality: (B, T, 1, D) for visual and audio, (B, L, D) for text.

        What is to be added to a token x is x · tanh(s W y): its gate is 1 + tanh(s W y), in (0, 2).
        """
        line, mask, places = self._line(triple)  # (B, S, d), (B, S), modality → (B, places)
        mixed = self.line_norm(line)
        mixed = self.mixer(mixed, mask=mask) if self.kind == "ssm" else self.mixer(mixed, mixed, mask[:, None, :])
        mixed = self.out_norm(line + mixed)
        gates = {}
        for modality, index in places.items():
            here = mixed.gather(1, index[..., None].expand(-1, -1, mixed.shape[-1]))  # (B, places, d)
            gate = torch.tanh(scaled(self.gate[modality](here), self.scale))
            gates[modality] = gate if modality == "text" else gate.unsqueeze(2)
        return gates

    @torch.no_grad()
    def largest_gate_change(self) -> float:
        """Return a bound on how far any gate can be from 1 on any input, from the weights alone; 0 to 1.

        What the gates' weights W multiply is a layer norm's output γ·n + β with ‖n‖ ≤ √d, so that a gate's argument is
        at most s(‖W γ‖·√d + |W β + b|).
        """
        gamma, beta = self.out_norm.weight, self.out_norm.bias
        bounds = [
            (linear.weight * gamma).norm(dim=1) * len(gamma) ** 0.5 + (linear.weight @ beta + linear.bias).abs()
            for linear in self.gate.values()
            if isinstance(linear, nn.Linear)
        ]
        return float(torch.tanh(self.scale * torch.cat(bounds).max())) if bounds else 0.0

    def _line(self, triple: Triple) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        parts, masks, places = [], [], {}
        length = 0
        if triple.text is not None and "text" in self.down:
            text, mask, index = self._text(triple)
            parts.append(text)
            masks.append(mask)
            places["text"] = index
            length = text.shape[1]
        steps = {m: self._descriptors(triple, m) for m in ("visual", "audio") if self._has(triple, m)}
        if steps:
            woven = torch.stack(list(steps.values()), dim=2)  # (B, T, modalities, d)
            b, t, k, d = woven.shape
            for offset, modality in enumerate(steps):
                index = length + offset + k * torch.arange(t, device=woven.device)
                places[modality] = index.expand(b, t)
            parts.append(woven.reshape(b, t * k, d))
            masks.append(torch.ones(b, t * k, dtype=torch.bool, device=woven.device))
        return torch.cat(parts, dim=1), torch.cat(masks, dim=1), places

    def _has(self, triple: Triple, modality: str) -> bool:
        return triple.get(modality) is not None and modality in self.down

    def _descriptors(self, triple: Triple, modality: str) -> Tensor:
        tokens = self.down[modality](self.norm[modality](triple.get(modality)))  # (B, T, N, d)
        return F.gelu(tokens).mean(dim=2) + self.kind_of_token[modality]  # (B, T, d)

    def _text(self, triple: Triple) -> tuple[Tensor, Tensor, Tensor]:
        # Padding is moved to the head of the line: there the state is still zero, so that a padded text leaves
        # exactly what the text alone would.
        assert triple.text is not None
        tokens = self.down["text"](self.norm["text"](triple.text)) + self.kind_of_token["text"]  # (B, L, d)
        b, length, width = tokens.shape
        mask = triple.text_mask
        if mask is None:
            mask = torch.ones(b, length, dtype=torch.bool, device=tokens.device)
        num_padding = length - mask.sum(1, keepdim=True)
        source = (torch.arange(length, device=tokens.device) - num_padding) % length  # place on the line → token
        place = (torch.arange(length, device=tokens.device) + num_padding) % length  # token → place on the line
        moved = tokens.gather(1, source[..., None].expand(-1, -1, width))
        return moved, mask.gather(1, source), place
