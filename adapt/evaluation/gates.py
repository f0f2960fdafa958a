"""Gates of an adapter's selection: for each question, how much of every segment and token each modality kept.

One JSON line a question and insertion, in gates-<split>.jsonl beside the predictions:
    question_id, clip_id    as in predictions.jsonl
    insertion               from 0, in the order in which the trunks reach them
    visual, audio           T numbers, one a segment
    text, tokens            a number a real token, and the tokens' strings where the encoder has a tokenizer
A number is the mean over channels of the gates at that place, in (0, 2): 1 lets pass, 0 suppresses, 2 doubles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ...extract.datasets.types import Question
from ..data.batch import Source
from ..model.joint_model import JointModel


@torch.no_grad()
def gate_records(
    model: JointModel, source: Source, questions: Sequence[Question], *, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Yield the lines of gates-<split>.jsonl, question by question, in eval mode; the model's mode is restored.

    Args:
        model: with an adapter that has gates.
        source: of batches.
        questions: in the order of the lines.
        batch_size: questions answered at once.

    Raises:
        SettingsError: an adapter without gates.
    """
    was_training = model.training
    model.eval()
    for batch in source.batches([questions[i : i + batch_size] for i in range(0, len(questions), batch_size)]):
        _, gates = model.with_gates(batch)
        mask = batch.text_mask
        for row, question in enumerate(batch.questions):
            for insertion, by_modality in enumerate(gates):
                record: dict[str, Any] = {"question_id": question.id, "clip_id": question.clip_id}
                record["insertion"] = insertion
                for modality, values in by_modality.items():
                    kept = values[row]
                    if modality == "text" and mask is not None:
                        kept = kept[mask[row]]
                    record[modality] = [round(v, 4) for v in kept.tolist()]
                if "text" in record:
                    record["tokens"] = model.encoders["text"].token_names(question.text)
                yield record
    model.train(was_training)
