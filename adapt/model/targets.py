"""Targets of the head's logits: a class for each question or each segment, among all classes or given choices; labels.

Letters: B questions, T segments, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ManifestError, SettingsError
from ...extract.datasets.answer_scores import Scoring, answer_scores
from ...extract.datasets.types import Manifest, Question
from ...extract.executors.device import sent
from .heads import AnswerHead, EventHead, TaskKind, TaskSettings
from .registry import HEADS, make_part

_ANSWERS = TaskSettings()


def make_head(dims: Mapping[str, int], num_classes: int, settings: TaskSettings) -> nn.Module:
    """Return the head of a task, freshly initialised.

    Raises:
        SettingsError: a task by segments without a modality that has segments.
    """
    if settings.head is not None:
        return make_part(HEADS, settings.head, dims, num_classes, where="head")
    if settings.kind != "events":
        return AnswerHead(dims, num_classes, settings)
    if not set(dims) - {"text"}:
        raise SettingsError("task.kind: 'events' reads segments; name visual or audio among the modalities")
    return EventHead(dims, num_classes, settings)


def check_task(manifest: Manifest, settings: TaskSettings, modalities: Sequence[str]) -> None:
    """Refuse a data set that has no such targets, or no text for an encoder that wants some.

    Raises:
        ManifestError: questions without labels, or without an answer.
        SettingsError: a text encoder, and records without a question.
    """
    questions = manifest.questions
    if settings.kind == "multi-label":
        _check_labels(manifest)
    wanted = "labels" if settings.kind == "events" else "answer"
    lacking = [q.id for q in questions if not getattr(q, wanted) and settings.kind != "multi-label"]
    if lacking:
        raise ManifestError(
            f"{manifest.name}: {len(lacking)} of {len(questions)} records have no {wanted} (the first has the id "
            f"{lacking[0]!r}), which task.kind = {settings.kind!r} needs"
        )
    silent = sum(not q.text for q in questions)
    if "text" in modalities and silent:
        raise SettingsError(
            f"{manifest.name}: {silent} of {len(questions)} records ask no question; remove [encoders.text], and text "
            "from the variants' insertions and modalities"
        )


def _check_labels(manifest: Manifest) -> None:
    if not any(q.right for q in manifest.questions):
        raise ManifestError(f"{manifest.name}: no record has answers, a list of which task.kind = 'multi-label' needs")
    if any(q.choices for q in manifest.questions):
        raise SettingsError(f"task.kind: 'multi-label' has no choices, but {manifest.name} has; choose \"answers\"")


def labels_of(
    questions: Sequence[Question], classes: Mapping[str, int], logits: Tensor, *, kind: TaskKind = "answers"
) -> Tensor:
    """Return the true classes: (B,) for logits (B, C), (B, T) for logits (B, T, C).

    Of multi-label answers it is (B, C), 1 at what is true and else 0, in the data type of the logits.

    Raises:
        SettingsError: a head whose logits are by segment, for multi-label answers.
    """
    if kind == "multi-label":
        return _multi_hot(logits, questions, classes)
    if logits.ndim == 3:
        return sent(torch.tensor([[classes[label] for label in q.labels] for q in questions]), logits.device)
    return sent(torch.tensor([classes[q.answer] for q in questions]), logits.device)


def target_shares(question: Question, *, scoring: Scoring) -> dict[str, float]:
    """Return the target of a question: its right answers with shares in proportion to what each scores, 1 in all.

    >>> question = Question(id="", clip_id="", text="", answer="a", answers=("a", "b"), type="", template="", split="")
    >>> target_shares(question, scoring="any")
    {'a': 0.5, 'b': 0.5}
    """
    scores = answer_scores(question.answer, question.answers, scoring=scoring)
    return {answer: score / sum(scores.values()) for answer, score in scores.items()}


def restricted(logits: Tensor, questions: Sequence[Question], classes: Mapping[str, int]) -> Tensor:
    """Return logits (B, C) with -inf at the classes that are not among a question's choices, where it has any."""
    if logits.ndim == 3 or not any(q.choices for q in questions):
        return logits
    return logits.masked_fill(~_allowed(logits, questions, classes), float("-inf"))


def loss_of(
    logits: Tensor,
    questions: Sequence[Question],
    classes: Mapping[str, int],
    *,
    label_smoothing: float,
    task: TaskSettings = _ANSWERS,
) -> Tensor:
    """Return the mean cross-entropy over questions or segments; over a question's own choices where it has any.

    Of a question with several right answers the target is `target_shares`. Of multi-label answers it is the mean binary
    cross-entropy over questions and classes, where label smoothing draws the targets towards 0.5.
    """
    labels = labels_of(questions, classes, logits, kind=task.kind)
    if task.kind == "multi-label":
        smoothed = labels if label_smoothing == 0 else labels * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smoothed)
    if logits.ndim == 3:
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=label_smoothing)
    several = any(len(q.right) > 1 for q in questions)
    if not any(q.choices for q in questions):
        target = _shares(logits, questions, classes, task.scoring) if several else labels
        return F.cross_entropy(logits, target, label_smoothing=label_smoothing)
    allowed = _allowed(logits, questions, classes)
    log_probs = logits.masked_fill(~allowed, float("-inf")).log_softmax(-1).masked_fill(~allowed, 0.0)
    if several:
        true = -(log_probs * _shares(logits, questions, classes, task.scoring)).sum(-1)
    else:
        true = -log_probs.gather(1, labels[:, None])[:, 0]
    even = -log_probs.sum(-1) / allowed.sum(-1)
    return ((1 - label_smoothing) * true + label_smoothing * even).mean()


def _multi_hot(logits: Tensor, questions: Sequence[Question], classes: Mapping[str, int]) -> Tensor:
    if logits.ndim != 2:
        raise SettingsError(
            f"task.head: gives logits of shape {tuple(logits.shape)}, expected (questions, classes) for 'multi-label'"
        )
    found = torch.zeros(logits.shape, dtype=logits.dtype)
    for row, question in zip(found, questions, strict=True):
        row[[classes[answer] for answer in question.right]] = 1
    return sent(found, logits.device)


def _shares(logits: Tensor, questions: Sequence[Question], classes: Mapping[str, int], scoring: Scoring) -> Tensor:
    """Return the targets (B, C), rows that sum to 1."""
    shares = torch.zeros(logits.shape, dtype=logits.dtype)
    for row, question in zip(shares, questions, strict=True):
        for answer, share in target_shares(question, scoring=scoring).items():
            row[classes[answer]] = share
    return sent(shares, logits.device)


def _allowed(logits: Tensor, questions: Sequence[Question], classes: Mapping[str, int]) -> Tensor:
    """Return (B, C) bool, true at the classes that a question may be answered with."""
    allowed = torch.ones(logits.shape, dtype=torch.bool)
    for row, question in zip(allowed, questions, strict=True):
        if question.choices:
            row.fill_(False)
            row[[classes[choice] for choice in question.choices]] = True
    return sent(allowed, logits.device)
