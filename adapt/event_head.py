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
from torch import Tensor

from .masked_mean import masked_mean
from .sinusoids import sinusoids
from .task import Head, TaskSettings


class EventHead(Head):
    """Logits (B, T, C) over the classes for each segment, from the ends of the encoders.

    Args:
        dims: channels D of each modality that the head reads; at least one of "visual" and "audio".
        num_classes: C.
        settings: widths.
    """

    def __init__(self, dims: Mapping[str, int], num_classes: int, settings: TaskSettings) -> None:
        super().__init__(dims, num_classes, settings, num_parts=len(dims))

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
