"""The head of the task "events": a class for each segment, from that segment and its place among the others.

Letters: B items, T segments, L text tokens, N tokens, D channels of an encoder, d width of the head, C classes.

Each modality's tokens are averaged over a segment, the segments attend to each other within the modality, and a
classifier reads all modalities of a segment side by side (our reading of the supervised setting of Tian et al.,
Audio-Visual Event Localization in Unconstrained Videos, ECCV 2018, sec. 4; widths and attention in place of their
recurrent layers are ours).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .sinusoids import sinusoids
from .task import TaskSettings, masked_mean


class EventHead(nn.Module):
    """Logits over the classes for each segment, from the ends of the encoders.

    Args:
        dims: channels D of each modality that the head reads; at least one of "visual" and "audio".
        num_classes: C.
        settings: widths.
    """

    def __init__(self, dims: Mapping[str, int], num_classes: int, settings: TaskSettings) -> None:
        super().__init__()
        d = settings.d_head
        self.project = nn.ModuleDict(
            {m: nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, d)) for m, dim in dims.items()}
        )
        self.over_time = nn.ModuleDict(
            {m: nn.MultiheadAttention(d, settings.num_heads, batch_first=True) for m in dims if m != "text"}
        )
        self.classifier = nn.Sequential(
            nn.LayerNorm(len(dims) * d),
            nn.Linear(len(dims) * d, d),
            nn.GELU(),
            nn.Dropout(settings.dropout),
            nn.Linear(d, num_classes),
        )

    def forward(self, features: Mapping[str, Tensor], text_mask: Tensor | None) -> Tensor:
        """Classify every segment.

        Args:
            features: "visual" and "audio" (B, T, N, D), "text" (B, L, D); those of the head's modalities are read.
            text_mask: (B, L) bool, true where a text token is real.

        Returns:
            Logits (B, T, C), float32.
        """
        with torch.autocast(next(iter(features.values())).device.type, enabled=False):
            return self._classify({m: features[m].float() for m in self.project}, text_mask)

    def _classify(self, features: Mapping[str, Tensor], text_mask: Tensor | None) -> Tensor:
        parts = []
        for modality, attention in self.over_time.items():
            steps = self.project[modality](features[modality].mean(dim=2))  # (B, T, d)
            placed = steps + sinusoids(steps.shape[1], steps.shape[2], steps.device)
            mixed, _ = attention(placed, placed, placed, need_weights=False)
            parts.append(steps + mixed)
        if "text" in features:
            question = self.project["text"](masked_mean(features["text"], text_mask))  # (B, d)
            parts.append(question[:, None].expand(-1, parts[0].shape[1], -1))
        return self.classifier(torch.cat(parts, dim=-1))  # (B, T, C)
