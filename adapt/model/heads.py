"""The task's settings, and the head that answers: question-guided pooling over segments, then a classifier.

Letters: B items, T segments, L text tokens, N tokens, D channels of an encoder, d width of the head, C answers.

The head follows the common AVQA form (Li et al., *Learning to answer questions in dynamic audio-visual scenarios*,
CVPR 2022, sec. 4.3: question-guided attention over time, fusion by element-wise product); widths, the fixed time
encoding and the exact fusion are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...config import Count, Share, ShareBelowOne, settings_class
from ...errors import SettingsError
from ...extract.datasets.answer_scores import Scoring
from ..adapters.layers import masked_mean, sinusoids
from .registry import HEADS, check_part

TaskKind = Literal["answers", "classes", "multi-label", "events"]


@settings_class
class TaskSettings:
    """What is predicted, and the head's size.

    Args:
        kind: "answers": one answer of the data set's vocabulary for each question; "classes": one class for each
            clip, without questions; "multi-label": for each clip or question all labels that are true of it, or none;
            "events": one class for each segment.
        d_head: width d of the head.
        num_heads: of the attention over segments.
        dropout: in the classifier, 0 to 1.
        scoring: of questions with several right answers: "any", each of them scores 1; "vqa", one that n people gave
            scores min(n / 3, 1).
        threshold: of "multi-label", the probability from which on a label is given; F1 depends on it, mAP does not.
        head: a registered head in place of talik's own: its `kind` and that kind's own settings.
    """

    kind: TaskKind = "answers"
    d_head: Count = 256
    num_heads: Count = 4
    dropout: ShareBelowOne = 0.1
    scoring: Scoring = "any"
    threshold: Share = 0.5
    head: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.d_head % self.num_heads:
            raise SettingsError(f"d_head: found {self.d_head}, expected a multiple of num_heads = {self.num_heads}")
        if self.scoring != "any" and self.kind in ("events", "multi-label"):
            raise SettingsError(f"scoring: {self.scoring!r} is not of kind {self.kind!r}; remove it")
        if self.head is not None:
            check_part(HEADS, self.head, where="head")


class Head(nn.Module):
    """What both heads of talik's own are made of: projections to d, attention over the segments, a classifier.

    Args:
        dims: channels D of each modality that the head reads.
        num_classes: C.
        settings: widths.
        num_parts: how many vectors of width d the classifier reads side by side.
    """

    def __init__(self, dims: Mapping[str, int], num_classes: int, settings: TaskSettings, *, num_parts: int) -> None:
        super().__init__()
        d = settings.d_head
        self.project = nn.ModuleDict(
            {m: nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, d)) for m, dim in dims.items()}
        )
        self.over_time = nn.ModuleDict(
            {m: nn.MultiheadAttention(d, settings.num_heads, batch_first=True) for m in dims if m != "text"}
        )
        self.classifier = nn.Sequential(
            nn.LayerNorm(num_parts * d),
            nn.Linear(num_parts * d, d),
            nn.GELU(),
            nn.Dropout(settings.dropout),
            nn.Linear(d, num_classes),
        )

    def forward(self, features: Mapping[str, Tensor], text_mask: Tensor | None) -> Tensor:
        """Classify.

        Args:
            features: "visual" and "audio" (B, T, N, D), "text" (B, L, D); those of the head's modalities are read.
            text_mask: (B, L) bool, true where a text token is real.

        Returns:
            Logits (B, C), or (B, T, C) of a head that classifies each segment, float32.
        """
        with torch.autocast(next(iter(features.values())).device.type, enabled=False):
            means = {m: features[m].mean(dim=2, dtype=torch.float32) for m in self.project if m != "text"}
            texts = {m: features[m].float() for m in self.project if m == "text"}
            return self._classify({**means, **texts}, text_mask)

    def _classify(self, features: Mapping[str, Tensor], text_mask: Tensor | None) -> Tensor:
        """The logits from what the head's modalities say, float32: a segment's mean (B, T, D), the text (B, L, D)."""
        raise NotImplementedError


class AnswerHead(Head):
    """Logits (B, C) over the vocabulary from the ends of the encoders.

    Args:
        dims: channels D of each modality that the head reads.
        num_answers: C.
        settings: widths.
    """

    def __init__(self, dims: Mapping[str, int], num_answers: int, settings: TaskSettings) -> None:
        products = len(dims) - 1 if "text" in dims else 0  # of each medium's part with the question
        super().__init__(dims, num_answers, settings, num_parts=len(dims) + products)

    def _classify(self, features: Mapping[str, Tensor], text_mask: Tensor | None) -> Tensor:
        question = None
        if "text" in features:
            question = self.project["text"](masked_mean(features["text"], text_mask))  # (B, d)
        parts = []
        for modality, attention in self.over_time.items():
            steps = self.project[modality](features[modality])  # (B, T, d)
            steps = steps + sinusoids(steps.shape[1], steps.shape[2], steps.device)
            query = steps.mean(dim=1) if question is None else question
            mixed, _ = attention(query[:, None], steps, steps, need_weights=False)
            pooled = mixed[:, 0] + steps.mean(dim=1)
            parts += [pooled] if question is None else [pooled, pooled * question]
        if question is not None:
            parts.append(question)
        return self.classifier(torch.cat(parts, dim=-1))


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
            steps = self.project[modality](features[modality])  # (B, T, d)
            placed = steps + sinusoids(steps.shape[1], steps.shape[2], steps.device)
            mixed, _ = attention(placed, placed, placed, need_weights=False)
            parts.append(steps + mixed)
        if "text" in features:
            question = self.project["text"](masked_mean(features["text"], text_mask))  # (B, d)
            parts.append(question[:, None].expand(-1, parts[0].shape[1], -1))
        return self.classifier(torch.cat(parts, dim=-1))  # (B, T, C)
