"""What a row's answers score on any of the test questions: of each type, of each group, of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress

import numpy as np

from ...errors import RunError
from ..scoring.multi_label import LabelScores, label_scores, map_values
from .runs import Prediction, Run, labels_of
from .statistics import Outcomes


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The answers of a row of the table to all questions.

    Attributes:
        question_ids, clip_ids: of the Q questions.
        values: what the answers of each run score, by question id.
        labels: of multi-label answers, those of each run in the order of the questions; their outcomes are
            pseudo-values of the mAP (see `scoring.multi_label`).
        trained: False for the blind baseline.
    """

    question_ids: tuple[str, ...]
    clip_ids: tuple[str, ...]
    values: Sequence[Mapping[str, float]] = ()
    labels: Sequence[LabelScores] = ()
    trained: bool = True

    @cached_property
    def _whole(self) -> Outcomes:
        found = np.array([[run[name] for name in self.question_ids] for run in self.values], dtype=np.float64)
        return Outcomes(question_ids=self.question_ids, clip_ids=self.clip_ids, values=found, trained=self.trained)

    def outcomes(self, wanted: Sequence[bool]) -> Outcomes:
        """Return the outcomes on the questions that a mask of Q truth values selects, at least one of them true."""
        if not self.labels:
            return self._whole.only(wanted)
        return Outcomes(
            question_ids=tuple(compress(self.question_ids, wanted)),
            clip_ids=tuple(compress(self.clip_ids, wanted)),
            values=np.stack([map_values(run.only(wanted)) for run in self.labels]),
            trained=self.trained,
        )


def answered(questions: Sequence[Prediction], runs: Sequence[Run]) -> Answered:
    """Return a variant's answers, a run a seed.

    Args:
        questions: in the order that all rows have; each run answers the same.
        runs: of the variant.

    Raises:
        RunError: a run with multi-label answers that does not say which classes its probabilities are of.
    """
    ids, clips = tuple(p.question_id for p in questions), tuple(p.clip_id for p in questions)
    if questions[0].labels is None:
        values = [{p.question_id: p.value for p in run.predictions} for run in runs]
        return Answered(question_ids=ids, clip_ids=clips, values=values)
    labels = [labels_of(_in_order(run, ids), run.data, run.path) for run in runs]
    return Answered(question_ids=ids, clip_ids=clips, labels=labels)


def _in_order(run: Run, question_ids: Sequence[str]) -> list[Prediction]:
    own = {p.question_id: p for p in run.predictions}
    return [own[question_id] for question_id in question_ids]


def blind_answered(
    questions: Sequence[Prediction],
    blind: Mapping[str, str],
    shares: Mapping[str, Mapping[str, float]] | None,
    *,
    classes: Sequence[str],
) -> Answered:
    """Return the blind baseline's answers.

    Args:
        questions: as of the other rows.
        blind: its answer to each question, by id.
        shares: of multi-label answers, how probable it holds each label, by id.
        classes: those of multi-label answers.

    Raises:
        RunError: a question that it does not answer.
    """
    missing = [p.question_id for p in questions if p.question_id not in blind]
    if missing:
        raise RunError(f"the blind baseline has no answer to {len(missing)} test questions, {missing[0]!r} for one")
    ids, clips = tuple(p.question_id for p in questions), tuple(p.clip_id for p in questions)
    if questions[0].labels is None or shares is None:
        values = [{p.question_id: p.value_of(blind[p.question_id]) for p in questions}]
        return Answered(question_ids=ids, clip_ids=clips, values=values, trained=False)
    rows = [(p.labels or (), (), [shares[p.question_id].get(name, 0.0) for name in classes]) for p in questions]
    return Answered(question_ids=ids, clip_ids=clips, labels=[label_scores(rows, classes)], trained=False)
