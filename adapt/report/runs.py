"""Finished runs as a report takes them, grouped by variant: alike in settings, data and questions, or refused."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass as checked_dataclass

from ...cache.format.spec import FieldDifference, differences
from ...errors import RunError, SettingsError
from ...extract.datasets.answer_scores import Scoring, answer_scores
from ..config.run_config import completed, is_place
from ..scoring.metrics import Scores, validation_of
from ..scoring.multi_label import LabelScores, label_scores
from ..training.run_data import RunData, data_differences, split_digest
from ..training.run_folder import RunFolder

CHECKED = pydantic.ConfigDict(strict=True, extra="ignore", arbitrary_types_allowed=True)


@checked_dataclass(frozen=True, kw_only=True, config=CHECKED)
class Prediction:
    """Answer of a run to one question; `probability` in [0, 1] is the one that the run gave this answer.

    `segment` is that of the clip which the answer is about, from 0, where each segment has its own. `answers` are all
    right answers, as often as they were given, where there are several; `score` is what the prediction scores, where
    answers are not either right or wrong. Of multi-label answers `labels` are the true ones, `given` the run's, and
    `probabilities` (C,) float64 those of each of its classes.
    """

    question_id: str
    clip_id: str
    type: str
    template: str
    question: str
    answer: str
    prediction: str
    probability: float | None = None
    correct: bool
    segment: int | None = None
    answers: list[str] | None = None
    score: float | None = None
    labels: list[str] | None = None
    given: list[str] | None = None
    probabilities: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)

    @property
    def value(self) -> float:
        """What the prediction scores, 0 to 1."""
        return self.correct if self.score is None else self.score

    @property
    def true(self) -> str:
        """The true answer; of several right ones the one that was predicted, if it is among them."""
        return self.prediction if self.correct else self.answer

    @property
    def right(self) -> tuple[str, ...]:
        """The right answers, each once."""
        return tuple(dict.fromkeys(self.answers or [self.answer]))

    def value_of(self, answer: str) -> float:
        """Return what another answer to this question scores, 0 to 1."""
        scoring: Scoring = "any" if self.score is None else "vqa"
        return answer_scores(self.answer, self.answers or (), scoring=scoring).get(answer, 0.0)


@checked_dataclass(frozen=True, kw_only=True, config=CHECKED)
class Epoch:
    """Metrics of one training epoch; `val_accuracy` or `val_map` in [0, 1], `seconds` of wall time."""

    epoch: int
    step: int
    train_loss: float
    val_loss: float | None = None
    val_accuracy: float | None = None
    val_map: float | None = None
    seconds: float

    @property
    def validation(self) -> float | None:
        """The validation by the task's metric, 0 to 1; None if not recorded."""
        return validation_of(vars(self))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run: a variant trained with one seed and evaluated on one split.

    Runs of older versions leave some attributes None.

    Attributes:
        path: the run's folder.
        config: its resolved settings, as config.toml has them.
        data: what it was trained on; None where its folder does not say.
        train_seconds: wall time of training and evaluation.
        device: "cpu" or "cuda".
        live: whether it was trained without the cache.
        together: number of variants trained in lockstep.
        flops, flops_trained: floating-point operations per question: all above the cached states; adapters and head.
        depth: position of the first insertion, from 0 (before the first unit) to 1 (after the last); mean over trunks.
        insertions: number of insertions.
        num_units: of the longest trunk with an insertion.
    """

    path: Path
    experiment: str
    variant: str
    seed: int
    config: Mapping[str, Any]
    epochs: tuple[Epoch, ...]
    predictions: tuple[Prediction, ...]
    scores: Scores
    split: str
    best_epoch: int | None
    train_seconds: float
    trainable_params: int
    device: str | None = None
    live: bool = False
    together: int | None = None
    flops: int | None = None
    flops_trained: int | None = None
    depth: float | None = None
    insertions: int | None = None
    num_units: int | None = None
    data: RunData | None = None

    @property
    def validation(self) -> float | None:
        """Validation, by the task's metric, of the epoch whose weights are scored, 0 to 1; None if not recorded."""
        return next((epoch.validation for epoch in self.epochs if epoch.epoch == self.best_epoch), None)

    @property
    def base(self) -> Path:
        """Folder of the experiment's file, from which relative paths of the settings count."""
        return RunFolder(self.path).base

    @property
    def name(self) -> str:
        """Path below the runs folder, as messages and files name it."""
        return f"{self.experiment}/{self.variant}/seed{self.seed}"


def labels_of(predictions: Iterable[Prediction], data: RunData | None, where: Path) -> LabelScores:
    """Return multi-label answers as arrays, in the order of the predictions.

    Args:
        predictions: of one run, at least one.
        data: of the run, which names the classes of the probabilities.
        where: the file or folder that they are from, for messages.

    Raises:
        RunError: the run does not say which classes its probabilities are of, or has none, or those of others.
    """
    if data is None:
        raise RunError(f"{where}: no data.json, which names the classes of its probabilities; train it again")
    rows = [(p.labels or (), p.given or (), p.probabilities) for p in predictions]
    if any(probabilities is None for *_, probabilities in rows):
        raise RunError(f"{where}: a prediction without probabilities; score the run again with talik evaluate")
    try:
        return label_scores([(true, given, p) for true, given, p in rows if p is not None], data.answers)
    except RunError as error:
        raise RunError(f"{where}: {error}") from None


def group_by_variant(runs: Iterable[Run]) -> dict[str, tuple[Run, ...]]:
    """Group runs by variant, in order of appearance, seeds ascending; all must answer the same questions.

    Where runs recorded the same questions and their ids differ (a manifest without ids numbers its lines), all get the
    ids of the first.

    Raises:
        RunError: one variant and seed twice, seeds of one variant with other settings or data, or runs that answer
            different questions.
    """
    grouped: dict[str, dict[int, Run]] = {}
    first: Run | None = None
    for run in runs:
        first = first or run
        run = _with_ids_of(first, run)
        _check_same_questions(first, run)
        seeds = grouped.setdefault(run.variant, {})
        if run.seed in seeds:
            twice = f"{seeds[run.seed].path} and {run.path}"
            raise RunError(f"variant {run.variant!r} with seed {run.seed} twice: {twice}")
        if seeds:
            _check_alike(next(iter(seeds.values())), run)
        seeds[run.seed] = run
    return {name: tuple(seeds[k] for k in sorted(seeds)) for name, seeds in grouped.items()}


def _check_alike(first: Run, run: Run) -> None:
    """Raise a RunError where two seeds of one variant have other settings or data: their mean would be of neither."""
    both = first.data is not None and run.data is not None
    settings = [d for d in _other_settings(first, run) if not is_place(d.field) or not (both or "store." in d.field)]
    found = [f"{d.field} ({d.requested!r} and {d.stored!r})" for d in settings]
    if first.data is not None and run.data is not None:
        other_cuts = [p for m, p in first.data.boundaries.items() if _cut(p) != _cut(run.data.boundaries.get(m, p))]
        found += data_differences(run.data, first.data, stored=other_cuts)
    if found:
        raise RunError(
            f"{run.path} and {first.path}: seeds of one variant with other settings or data (what differs: "
            f"{'; '.join(found[:5])}{'; …' if len(found) > 5 else ''}); train one of them anew with --retrain, or "
            "report them apart"
        )


def _other_settings(first: Run, run: Run) -> list[FieldDifference]:
    """Return the settings in which two runs differ, their seeds left out."""
    mine, theirs = ({**r.config, "seed": 0} for r in (run, first))
    if mine != theirs:
        with suppress(KeyError, SettingsError):  # then they are compared as they are
            mine, theirs = (completed(c, base=r.base) for c, r in ((mine, run), (theirs, first)))
    return differences(mine, theirs)


def _cut(path: str) -> str:
    """Return the number of a stored boundary: "visual/b03-1f2e3d4c5b6a" → "visual/b03"."""
    return path.partition("-")[0]


def _with_ids_of(first: Run, run: Run) -> Run:
    """Return a run with the question ids of the first one, where it answers the same questions under other ids."""
    asked = [split_digest(r.data.splits.get(r.split, ())) for r in (first, run) if r.data is not None]
    named = {(p.question_id, p.clip_id, p.type, p.answer) for p in run.predictions}
    same = named == {(p.question_id, p.clip_id, p.type, p.answer) for p in first.predictions}
    if same or len(asked) < 2 or asked[0] != asked[1]:
        return run
    ids: dict[Any, list[str]] = defaultdict(list)
    for p in reversed(first.predictions):
        ids[_content(p)].append(p.question_id)
    if Counter(map(_content, run.predictions)) != Counter({content: len(found) for content, found in ids.items()}):
        return run
    own = {ids[_content(p)].pop(): p for p in run.predictions}
    return replace(
        run, predictions=tuple(replace(own[p.question_id], question_id=p.question_id) for p in first.predictions)
    )


def _content(p: Prediction) -> tuple[Any, ...]:
    return (p.clip_id, p.segment, p.type, p.template, p.question, p.answer)


def _check_same_questions(first: Run, run: Run) -> None:
    if run.split != first.split:
        raise RunError(f"{run.name} is on split {run.split!r}, {first.name} on {first.split!r}; report one split")
    mine, theirs = (
        {(p.question_id, p.clip_id, p.type, p.answer, p.labels is None) for p in r.predictions} for r in (run, first)
    )
    if mine != theirs:
        example = next(iter(mine ^ theirs))[0]
        raise RunError(
            f"{run.name} and {first.name} answer different questions ({len(mine)} and {len(theirs)}; "
            f"one that differs: {example!r}); report runs of one data set together"
        )
