"""Answers of a model to a list of questions, as predictions.jsonl records them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..extract.manifest.types import Question
from .joint import JointModel
from .metrics import score
from .sources import Source


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The model's answer to one question.

    Args:
        record: the question, as predictions.jsonl has it.
        prediction: the most probable answer.
        probability: its probability, 0 to 1.
        log_likelihood: log-probability of the true answer.
    """

    record: dict[str, Any]
    prediction: str
    probability: float
    log_likelihood: float

    @property
    def correct(self) -> bool:
        """Whether the prediction is the true answer."""
        return bool(self.prediction == self.record["answer"])


@torch.no_grad()
def answer(
    model: JointModel,
    source: Source,
    questions: Sequence[Question],
    *,
    answers: Sequence[str],
    num_segments: int,
    batch_size: int,
    amp: str = "off",
) -> list[Prediction]:
    """Answer questions in their order, in eval mode; the model's mode is put back."""
    was_training = model.training
    model.eval()
    classes = {a: i for i, a in enumerate(answers)}
    batches = [questions[i : i + batch_size] for i in range(0, len(questions), batch_size)]
    out: list[Prediction] = []
    for batch in source.batches(batches):
        log_probs = forward(model, batch.states, num_segments, amp=amp).float().log_softmax(-1).cpu()
        best = log_probs.argmax(-1).tolist()
        for question, row, choice in zip(batch.questions, log_probs, best, strict=True):
            out.append(
                Prediction(
                    record=_record(question),
                    prediction=answers[choice],
                    probability=float(row[choice].exp()),
                    log_likelihood=float(row[classes[question.answer]]),
                )
            )
    model.train(was_training)
    return out


def forward(model: JointModel, states: Any, num_segments: int, *, amp: str) -> Tensor:
    """The model's logits under the autocast that `amp` names: "auto", "off" or "bf16"."""
    device = next(iter(states.values())).hidden.device.type
    enabled = amp == "bf16" or (amp == "auto" and device == "cuda")
    with torch.autocast(device, dtype=torch.bfloat16, enabled=enabled):
        return model(states, num_segments)


def prediction_records(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """The lines of predictions.jsonl."""
    return [
        {**p.record, "prediction": p.prediction, "probability": round(p.probability, 6), "correct": p.correct}
        for p in predictions
    ]


def score_records(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy, in all and by question type, as result.json has it; micro averages."""
    return score([r["type"] for r in records], [r["correct"] for r in records]).to_json()


def _record(question: Question) -> dict[str, Any]:
    return {
        "question_id": question.id,
        "clip_id": question.clip_id,
        "type": question.type,
        "template": question.template,
        "question": question.text,
        "answer": question.answer,
    }
