"""Scores by question type; accuracy is counted as MUSIC-AVQA counts it.

All averages are micro averages: correct answers over questions, of one type, of one group of types, and of all
questions. (Li et al., Learning to Answer Questions in Dynamic Audio-Visual Scenarios, CVPR 2022, table 3.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import RunError, counted

if TYPE_CHECKING:
    import pandas

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Audio": ("A-count", "A-comp"),
    "Visual": ("V-count", "V-loc"),
    "Audio-Visual": ("AV-exist", "AV-loc", "AV-count", "AV-comp", "AV-temp"),
}
TYPE_ORDER: tuple[str, ...] = tuple(name for members in GROUPS.values() for name in members)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What the answers of a task are scored by: a number from 0 to 1, the higher the better.

    Attributes:
        name: its key in result.json; after "val_", that in metrics.jsonl.
        label, title: as printed, within and at the beginning of a line.
        note: what its percentages are, in a sentence.
    """

    name: str
    label: str
    title: str
    note: str


ACCURACY = Metric(
    name="accuracy",
    label="accuracy",
    title="Accuracy",
    note="Percent of the questions answered correctly; averages are over questions.",
)
VQA_ACCURACY = Metric(
    name="accuracy",
    label="VQA accuracy",
    title="VQA accuracy",
    note="Percent; an answer that n people gave scores min(n / 3, 1); averages are over questions.",
)
MEAN_AP = Metric(
    name="map",
    label="mAP",
    title="mAP",
    note="Percent; the mean over labels of average precision, on the questions of each type and on all.",
)
_KEYS = tuple(f"val_{metric.name}" for metric in (ACCURACY, MEAN_AP))


def metric_of(kind: str) -> Metric:
    """Return the metric by which a kind of task is validated, and its best epoch chosen."""
    return MEAN_AP if kind == "multi-label" else ACCURACY


def validation_of(record: Mapping[str, object]) -> float | None:
    """Return an epoch's validation by its task's metric, 0 to 1; None where the record has none.

    >>> validation_of({"epoch": 1, "val_accuracy": 0.5}), validation_of({"val_map": 0.25}), validation_of({})
    (0.5, 0.25, None)
    """
    found = (record.get(key) for key in _KEYS)
    return next((float(value) for value in found if isinstance(value, int | float)), None)


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many of `total` questions (at least 1) were answered correctly: the sum of what their answers score."""

    correct: float
    total: int

    def __post_init__(self) -> None:
        if not 0 <= round(self.correct, 6) <= self.total or self.total < 1:
            raise RunError(f"a tally of {self.correct} of {self.total}: expected 0 <= correct <= total, and a question")

    @property
    def accuracy(self) -> float:
        """The fraction that is correct, in [0, 1]."""
        return self.correct / self.total

    def __str__(self) -> str:
        correct = f"{self.correct:.2f}" if self.correct % 1 else f"{self.correct:.0f}"
        return f"{correct} of {self.total}"


@dataclass(frozen=True, kw_only=True)
class Measure(Tally):
    """A metric of `total` questions that is no share of them: `correct` is its value times their number."""

    def __str__(self) -> str:
        return counted(self.total, "question")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Tallies of one run on one split; types, groups and subsets without a question are absent.

    Subsets are the parts of a split that a release tells apart (frequent and rare answers of MUSIC-AVQA-R). Of
    multi-label answers there are measures of their mAP in place of tallies, and none of groups.
    """

    by_type: dict[str, Tally]
    by_group: dict[str, Tally]
    overall: Tally
    by_subset: dict[str, Tally] = field(default_factory=dict)
    metric: Metric = ACCURACY

    @property
    def headline(self) -> str:
        """The metric on all questions, as "accuracy 61.20 %"."""
        return f"{self.metric.label} {100 * self.overall.accuracy:.2f} %"

    def to_json(self) -> dict[str, object]:
        """Return `{"accuracy": fraction, "by_type": {type: {"correct": …, "total": …}}}`, as result.json has it.

        With subsets there is "by_subset" of the same form. Of multi-label answers it is
        `{"map": fraction, "by_type": {type: {"value": fraction, "total": …}}}`.
        """
        found: dict[str, object] = {self.metric.name: self.overall.accuracy, "by_type": _counts(self.by_type)}
        return {**found, "by_subset": _counts(self.by_subset)} if self.by_subset else found

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table: a row for each type, group, subset and for all ("Avg"), with correct, total and accuracy.

        Example:
            >>> score(["a", "b"], [True, False]).to_pandas().loc["Avg", "accuracy"].item()
            0.5
        """
        import pandas

        rows = {**self.by_type, **self.by_group, **self.by_subset, "Avg": self.overall}
        if self.metric.name != "accuracy":
            shown = [(t.total, t.accuracy) for t in rows.values()]
            return pandas.DataFrame(shown, index=list(rows), columns=["total", self.metric.name])
        values = [(t.correct, t.total, t.accuracy) for t in rows.values()]
        return pandas.DataFrame(values, index=list(rows), columns=["correct", "total", "accuracy"])

    def _repr_html_(self) -> str:
        return str(self.to_pandas().to_html(float_format="{:.4f}".format))


def read_scores(values: Mapping[str, Any]) -> Scores:
    """Return the scores that `Scores.to_json` wrote.

    Raises:
        KeyError, TypeError: a part is missing or of another form.

    Example:
        >>> read_scores(score(["a", "b"], [True, False]).to_json()).by_type["a"]
        Tally(correct=1, total=1)
    """
    by_type, by_subset = (
        {str(name): _read_tally(t) for name, t in values.get(part, {}).items()} for part in ("by_type", "by_subset")
    )
    by_type = {name: by_type[name] for name in order_types(by_type)}
    if MEAN_AP.name in values:
        total = sum(tally.total for tally in by_type.values())
        whole = Measure(correct=float(values[MEAN_AP.name]) * total, total=total)
        return Scores(by_type=by_type, by_group={}, overall=whole, by_subset=by_subset, metric=MEAN_AP)
    groups = {g: [by_type[name] for name in members if name in by_type] for g, members in GROUPS.items()}
    by_group = {group: _sum(tallies) for group, tallies in groups.items() if tallies}
    return Scores(by_type=by_type, by_group=by_group, overall=_sum(by_type.values()), by_subset=by_subset)


def _read_tally(value: Mapping[str, Any]) -> Tally:
    total = int(value["total"])
    if "value" in value:
        return Measure(correct=float(value["value"]) * total, total=total)
    return Tally(correct=value["correct"] + 0, total=total)


def _sum(tallies: Iterable[Tally]) -> Tally:
    found = list(tallies)
    return Tally(correct=sum(t.correct for t in found), total=sum(t.total for t in found))


def order_types(types: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names: MUSIC-AVQA's in their usual order first, others in order of appearance."""
    seen = dict.fromkeys(types)
    return tuple(t for t in TYPE_ORDER if t in seen) + tuple(t for t in seen if t not in TYPE_ORDER)


def score(types: Sequence[str], correct: Sequence[float], *, subsets: Sequence[str] = ()) -> Scores:
    """Count correct answers by type, by group, by subset and in all.

    Args:
        types: the type of each question.
        correct: whether each was answered correctly, or what its answer scores, 0 to 1; as long as `types`.
        subsets: the subset of each question, "" for none; as long as `types`, or empty.

    Raises:
        RunError: no question at all, or two lengths.
    """
    if len(types) != len(correct) or not types:
        raise RunError(f"found {len(types)} question types and {len(correct)} outcomes; expected as many, at least 1")
    totals = Counter(types)
    hits: dict[str, float] = dict.fromkeys(totals, 0)
    for name, right in zip(types, correct, strict=True):
        hits[name] += right
    by_type = {name: Tally(correct=hits[name], total=totals[name]) for name in order_types(types)}
    by_group: dict[str, Tally] = {}
    for group, members in GROUPS.items():
        total = sum(totals[name] for name in members)
        if total:
            by_group[group] = Tally(correct=sum(hits.get(name, 0) for name in members), total=total)
    overall = Tally(correct=sum(hits.values()), total=totals.total())
    pairs = [(name, right) for name, right in zip(subsets, correct, strict=False) if name]
    by_subset = {
        name: Tally(correct=sum(r for n, r in pairs if n == name), total=sum(n == name for n, _ in pairs))
        for name in dict.fromkeys(name for name, _ in pairs)
    }
    return Scores(by_type=by_type, by_group=by_group, overall=overall, by_subset=by_subset)


def mean_class_accuracy(answers: Sequence[str], correct: Sequence[bool]) -> float:
    """Return the mean over the true classes that occur of the share of theirs that is correct, in [0, 1].

    Raises:
        RunError: no answer at all, or two lengths.
    """
    by_class = score(answers, correct).by_type
    return sum(tally.accuracy for tally in by_class.values()) / len(by_class)


def macro_f1(answers: Sequence[str], predictions: Sequence[str]) -> float:
    """Return the mean over the true answers that occur of the F1 of each, in [0, 1].

    Args:
        answers: the true ones.
        predictions: as many.

    Raises:
        RunError: no answer at all, or two lengths.

    Example:
        >>> macro_f1(["yes", "yes", "no"], ["yes", "no", "no"])
        0.6666666666666666
    """
    if len(answers) != len(predictions) or not answers:
        raise RunError(f"found {len(answers)} answers and {len(predictions)} predictions; expected as many, at least 1")
    true, given = Counter(answers), Counter(predictions)
    right = Counter(a for a, p in zip(answers, predictions, strict=True) if a == p)
    return sum(2 * right[name] / (true[name] + given[name]) for name in true) / len(true)


def _counts(tallies: Mapping[str, Tally]) -> dict[str, dict[str, float]]:
    return {
        name: {"value": t.accuracy, "total": t.total}
        if isinstance(t, Measure)
        else {"correct": t.correct, "total": t.total}
        for name, t in tallies.items()
    }
