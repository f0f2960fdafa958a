"""Answers of a model to a list of questions, as predictions.jsonl has them: one a question or segment, or labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...extract.datasets.answer_scores import answer_scores
from ...extract.datasets.types import BACKGROUND, Question
from ..data.batch import Batch, Source, content_order
from ..model.heads import TaskSettings
from ..model.joint_model import JointModel
from ..model.targets import labels_of, restricted, target_shares
from .metrics import mean_class_accuracy, score
from .multi_label import (
    LabelScores,
    by_label,
    label_scores,
    label_text,
    macro_f1_of_labels,
    mean_average_precision,
    micro_f1,
    score_labels,
)

_ANSWERS = TaskSettings()


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The model's answer to one question, or its class for one segment.

    Args:
        record: the question (and the segment), as predictions.jsonl has it.
        prediction: the most probable answer.
        probability: its probability, 0 to 1.
        log_likelihood: log-probability of the true answer; of several its mean, as the loss weights them.
        score: what the prediction scores, 0 to 1, where answers are not either right or wrong.
        labels: of multi-label answers, those that are given; `prediction` names them all, and `probability` is that of
            just this set.
        probabilities: of each class, for multi-label answers.
    """

    record: dict[str, Any]
    prediction: str
    probability: float
    log_likelihood: float
    score: float | None = None
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()

    @property
    def correct(self) -> bool:
        """Whether the prediction is the true answer, or one of the right ones."""
        return self.prediction in (self.record.get("answers") or [self.record["answer"]])

    @property
    def value(self) -> float:
        """What the prediction scores: `score`, or whether it is correct."""
        return self.correct if self.score is None else self.score


@torch.no_grad()
def answer(
    model: JointModel,
    source: Source,
    questions: Sequence[Question],
    *,
    answers: Sequence[str],
    batch_size: int,
    task: TaskSettings = _ANSWERS,
) -> list[Prediction]:
    """Answer questions in their order, in eval mode; the model's mode is restored.

    A model whose logits are by segment gives one prediction a segment, with "<question id>/<segment>" as its id. The
    questions of one clip are answered together, which spares running its units for each of them.
    """
    order = clip_order(questions)
    out: list[Prediction] = []
    for batch in source.batches(batches_of([questions[i] for i in order], batch_size), by_clip=True):
        out += answer_batch(model, batch, answers=answers, task=task)
    return restore_order(out, order)


def clip_order(questions: Sequence[Question]) -> list[int]:
    """Return the indices of the questions sorted by clip and content (see `content_order`).

    Evaluation answers in this order: the questions of a clip share its states in a batch, and the batches do not depend
    on the order of a file's lines.
    """
    return sorted(range(len(questions)), key=lambda i: content_order(questions[i]))


def batches_of(questions: Sequence[Question], size: int) -> list[Sequence[Question]]:
    """Cut questions into batches of `size`; the last may be smaller."""
    return [questions[i : i + size] for i in range(0, len(questions), size)]


def restore_order(predictions: Sequence[Prediction], order: Sequence[int]) -> list[Prediction]:
    """Return predictions, made for questions in `order`, in the questions' own order.

    Args:
        predictions: the same number, one or several, for each question.
        order: for each place, the index of the question that was answered there.
    """
    each = len(predictions) // max(1, len(order))
    places = sorted(range(len(order)), key=order.__getitem__)
    return [predictions[place * each + i] for place in places for i in range(each)]


@torch.no_grad()
def answer_batch(
    model: JointModel, batch: Batch, *, answers: Sequence[str], task: TaskSettings = _ANSWERS
) -> list[Prediction]:
    """Answer the questions of one batch in eval mode; the model's mode is restored."""
    was_training = model.training
    model.eval()
    logits = model(batch)
    model.train(was_training)
    return predictions_of(logits, batch.questions, answers, task=task)


def predictions_of(
    logits: Tensor, questions: Sequence[Question], answers: Sequence[str], *, task: TaskSettings = _ANSWERS
) -> list[Prediction]:
    """Turn logits into predictions.

    Args:
        logits: (B, C), or (B, T, C) of a head that classifies segments.
        questions: B of them.
        answers: the C classes.
        task: what is predicted, and what each of several right answers scores.

    Returns:
        B predictions, or B·T with t fastest.
    """
    classes = {a: i for i, a in enumerate(answers)}
    logits = logits.float()
    if task.kind == "multi-label":
        return _label_predictions(logits, questions, answers, threshold=task.threshold)
    log_probs = restricted(logits, questions, classes).log_softmax(-1).cpu()
    labels = labels_of(questions, classes, log_probs)
    if log_probs.ndim == 3:
        records = [r for q in questions for r in _segment_records(q)]
        pairs = zip(records, log_probs.flatten(0, -2), labels.flatten().tolist(), strict=True)
        return [_predicted(record, row, answers, likelihood=float(row[label])) for record, row, label in pairs]
    out: list[Prediction] = []
    for question, row, label in zip(questions, log_probs, labels.tolist(), strict=True):
        likelihood, score = float(row[label]), None
        if len(question.right) > 1:
            shares = target_shares(question, scoring=task.scoring).items()
            likelihood = math.fsum(share * float(row[classes[right]]) for right, share in shares)
        if task.scoring != "any":
            scores = answer_scores(question.answer, question.answers, scoring=task.scoring)
            score = scores.get(answers[int(row.argmax())], 0.0)
        out.append(_predicted(_record(question), row, answers, likelihood=likelihood, score=score))
    return out


def _predicted(
    record: dict[str, Any], row: Tensor, answers: Sequence[str], *, likelihood: float, score: float | None = None
) -> Prediction:
    choice = int(row.argmax())
    return Prediction(
        record=record,
        prediction=answers[choice],
        probability=float(row[choice].exp()),
        log_likelihood=likelihood,
        score=score,
    )


def _label_predictions(
    logits: Tensor, questions: Sequence[Question], answers: Sequence[str], *, threshold: float
) -> list[Prediction]:
    """Return which labels are given, and the probabilities of all, to six digits as predictions.jsonl keeps them."""
    logits = logits.cpu()
    true = labels_of(questions, {a: i for i, a in enumerate(answers)}, logits, kind="multi-label")
    losses = F.binary_cross_entropy_with_logits(logits, true, reduction="none").mean(-1)
    out: list[Prediction] = []
    for question, row, loss in zip(questions, logits.double().sigmoid().tolist(), losses.tolist(), strict=True):
        probabilities = tuple(float(f"{p:.6g}") for p in row)
        labels = tuple(a for a, p in zip(answers, probabilities, strict=True) if p >= threshold)
        record = {k: v for k, v in _record(question).items() if k != "answers"}
        out.append(
            Prediction(
                record={**record, "answer": label_text(question.right), "labels": list(question.right)},
                prediction=label_text(labels),
                probability=math.prod(p if p >= threshold else 1 - p for p in probabilities),
                log_likelihood=-loss,
                labels=labels,
                probabilities=probabilities,
            )
        )
    return out


def validation_score(predictions: Sequence[Prediction], *, classes: Sequence[str]) -> float:
    """Return what predictions score by their task's metric, 0 to 1.

    Args:
        predictions: at least one.
        classes: in the order of the probabilities, for multi-label answers.
    """
    if "labels" in predictions[0].record:
        rows = [(p.record["labels"], p.labels, p.probabilities) for p in predictions]
        return mean_average_precision(label_scores(rows, classes))
    return sum(p.value for p in predictions) / len(predictions)


def prediction_records(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return the lines of predictions.jsonl."""
    return [
        {
            **p.record,
            "prediction": p.prediction,
            "probability": round(p.probability, 6),
            "correct": p.correct,
            **({} if p.score is None else {"score": p.score}),
            **({"given": list(p.labels), "probabilities": list(p.probabilities)} if "labels" in p.record else {}),
        }
        for p in predictions
    ]


def score_records(
    records: Sequence[dict[str, Any]], *, kind: str = "answers", classes: Sequence[str] = ()
) -> dict[str, Any]:
    """Score the lines of predictions.jsonl: the task's metric overall and by question type, as result.json has it.

    Args:
        records: the lines.
        kind: of the task; "classes" and "events" add the mean over classes; "multi-label" the F1s, average precision
            and F1 of each label, and as accuracy the share of the questions whose labels are all right.
        classes: in the order of the probabilities, for "multi-label".
    """
    subsets = [r.get("subset", "") for r in records]
    if kind == "multi-label":
        labels = labels_of_records(records, classes)
        return {
            **score_labels([r["type"] for r in records], labels, subsets=subsets).to_json(),
            "micro_f1": micro_f1(labels),
            "macro_f1": macro_f1_of_labels(labels),
            "by_label": by_label(labels, classes),
            "accuracy": sum(r["correct"] for r in records) / len(records),
        }
    values = [r.get("score", r["correct"]) for r in records]
    scores = score([r["type"] for r in records], values, subsets=subsets).to_json()
    if kind != "answers":
        scores["mean_class_accuracy"] = mean_class_accuracy(
            [r["answer"] for r in records], [r["correct"] for r in records]
        )
    return scores


def labels_of_records(records: Sequence[dict[str, Any]], classes: Sequence[str]) -> LabelScores:
    """Return the multi-label answers of predictions.jsonl as arrays."""
    return label_scores([(r["labels"], r["given"], r["probabilities"]) for r in records], classes)


def _segment_records(question: Question) -> list[dict[str, Any]]:
    """The records of a question's segments; the type of an eventless segment is the background's."""
    whole = {name: value for name, value in _record(question).items() if name != "answers"}
    return [
        {
            **whole,
            "question_id": f"{question.id}/{segment}",
            "type": BACKGROUND if label == BACKGROUND else question.type,
            "answer": label,
            "segment": segment,
        }
        for segment, label in enumerate(question.labels)
    ]


def _record(question: Question) -> dict[str, Any]:
    subset = {"subset": question.subset} if question.subset else {}
    return {
        **subset,
        "question_id": question.id,
        "clip_id": question.clip_id,
        "type": question.type,
        "template": question.template,
        "question": question.text,
        "answer": question.answer,
        **({"answers": list(question.answers)} if question.answers else {}),
    }
