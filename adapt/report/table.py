"""Builds the report's two tables from runs: accuracy by question type, and the comparisons between variants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...errors import RunError, SettingsError, unknown_name
from ..evaluation.metrics import GROUPS, Scores, order_types, score
from .runs import Prediction, Run
from .statistics import Difference, MeanInterval, Outcomes, compare, holm, mean_interval

BLIND = "blind"
BLIND_LABEL = "blind baseline"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; accuracies in percent, `seconds` of training, both averaged over seeds.

    `flops` of answering one question, from the states that the variant starts from; `flops_trained` those of adapters
    and head alone; `device` is "cpu" or "cuda"; None where the runs do not say.
    """

    name: str
    label: str
    num_seeds: int
    by_type: Mapping[str, MeanInterval]
    by_group: Mapping[str, MeanInterval]
    overall: MeanInterval
    trainable_params: int | None = None
    seconds: float | None = None
    flops: int | None = None
    flops_trained: int | None = None
    device: str | None = None

    @property
    def trained(self) -> bool:
        """False for the blind baseline."""
        return self.name != BLIND


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """A difference with its p-value corrected for all that stand beside it."""

    difference: Difference
    p_corrected: float

    def reversed(self) -> Corrected:
        """The same seen from the other side."""
        return replace(self, difference=self.difference.reversed())


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Variant `a` against variant `b` (names; labels for print), with the p-value corrected over all comparisons.

    `by_type` holds the same by question type, where one is the table's baseline and the other was trained; its p-values
    are corrected over all types of all such comparisons.
    """

    a: str
    b: str
    a_label: str
    b_label: str
    difference: Difference
    p_corrected: float
    by_type: Mapping[str, Corrected] = field(default_factory=dict)

    def reversed(self) -> Comparison:
        """`b` against `a`."""
        return Comparison(
            a=self.b,
            b=self.a,
            a_label=self.b_label,
            b_label=self.a_label,
            difference=self.difference.reversed(),
            p_corrected=self.p_corrected,
            by_type={name: corrected.reversed() for name, corrected in self.by_type.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Table:
    """All that the report prints of the runs' accuracy.

    Args:
        types: question types, in the order of their columns.
        num_by_type: test questions of each type.
        rows: the blind baseline first, if there is one, then the variants.
        comparisons: in the order asked.
        baseline: the variant that the others are compared with by question type.
    """

    types: tuple[str, ...]
    num_by_type: Mapping[str, int]
    num_clips: int
    split: str
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    baseline: str | None = None

    @property
    def num_questions(self) -> int:
        """Test questions in all."""
        return sum(self.num_by_type.values())

    def deltas(self) -> tuple[Comparison, ...]:
        """Return the comparisons that were made by type, each as another row minus the baseline."""
        made = (c for c in self.comparisons if c.by_type)
        return tuple(c if c.b == self.baseline else c.reversed() for c in made)

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return the groups that have a question and the types of each, types that belong to none under ""."""
        present = {name: tuple(t for t in members if t in self.types) for name, members in GROUPS.items()}
        known = {t for members in GROUPS.values() for t in members}
        present[""] = tuple(t for t in self.types if t not in known)
        return {name: members for name, members in present.items() if members}

    def best(self) -> dict[str, float]:
        """Return the highest mean of the trained rows by type, by group ("Audio", …), and of all under "Avg"."""
        trained = [row for row in self.rows if row.trained]
        columns = [*self.types, *(name for name in self.groups() if name), "Avg"]
        return {column: max(cell_of(row, column).mean for row in trained) for column in columns}


def cell_of(row: Row, column: str) -> MeanInterval:
    """Return a row's cell in the column of a type, a group, or "Avg"."""
    if column == "Avg":
        return row.overall
    return row.by_type[column] if column in row.by_type else row.by_group[column]


def build_table(
    variants: Mapping[str, Sequence[Run]],
    *,
    labels: Mapping[str, str] | None = None,
    blind: Mapping[str, str] | None = None,
    comparisons: Iterable[tuple[str, str]] | None = None,
    baseline: str | None = None,
    resamples: int = 10_000,
) -> Table:
    """Average over seeds, and compare.

    Args:
        variants: the runs of each variant, in the order of the rows; all on the same questions.
        labels: what to print for a variant's name ("blind" for the baseline); the name itself where absent.
        blind: the baseline's answer to every test question, by question id.
        comparisons: pairs of variant names, or "blind"; by default each variant against the blind baseline, and each
            other against `baseline`.
        baseline: a variant, or "blind"; the first variant where neither it nor comparisons are given. Comparisons with
            it are made by question type too.
        resamples: of the bootstrap.

    Raises:
        RunError: no run, a variant named "blind", or a blind baseline that leaves a question unanswered.
        SettingsError: labels, comparisons or a baseline that name no variant.
    """
    if not variants:
        raise RunError("no run to report; expected at least one finished run folder")
    if BLIND in variants:
        raise RunError(f"a variant is named {BLIND!r}, which is the baseline's name here; give it another name")
    asked = next(iter(variants.values()))[0].predictions
    labels = {BLIND: BLIND_LABEL, **(labels or {})}
    for name in labels:
        if name not in variants and name != BLIND:
            raise SettingsError(unknown_name("variant in labels", name, [*variants, BLIND]))
    types = order_types(p.type for p in asked)
    outcomes = {name: _outcomes(asked, runs) for name, runs in variants.items()}
    rows = [_variant_row(name, labels.get(name, name), runs) for name, runs in variants.items()]
    if blind is not None:
        outcomes = {BLIND: _blind_outcomes(asked, blind), **outcomes}
        rows.insert(0, _blind_row(labels[BLIND], asked, outcomes[BLIND]))
    if baseline is not None and baseline not in outcomes:
        raise SettingsError(unknown_name("variant in baseline", baseline, outcomes))
    if comparisons is None:
        baseline = baseline or next(iter(variants))
    pairs = list(_default_pairs(outcomes, baseline) if comparisons is None else comparisons)
    labelled = {row.name: row.label for row in rows}
    return Table(
        types=types,
        num_by_type={name: sum(p.type == name for p in asked) for name in types},
        num_clips=len({p.clip_id for p in asked}),
        split=next(iter(variants.values()))[0].split,
        rows=tuple(rows),
        comparisons=_compare_all(pairs, outcomes, labelled, [p.type for p in asked], baseline, resamples),
        baseline=baseline,
    )


def _variant_row(name: str, label: str, runs: Sequence[Run]) -> Row:
    params = {run.trainable_params for run in runs}
    if len(params) > 1:
        raise RunError(f"variant {name!r}: seeds differ in trainable parameters, {sorted(params)}; one must be stale")
    devices = {run.device for run in runs}
    return replace(
        _row(name, label, [run.scores for run in runs]),
        trainable_params=params.pop(),
        seconds=mean_interval([run.train_seconds for run in runs]).mean,
        flops=_mean_count([run.flops for run in runs]),
        flops_trained=_mean_count([run.flops_trained for run in runs]),
        device=devices.pop() if len(devices) == 1 else None,
    )


def _mean_count(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return round(sum(known) / len(known)) if len(known) == len(counts) else None


def _blind_row(label: str, asked: Sequence[Prediction], outcomes: Outcomes) -> Row:
    scores = score([p.type for p in asked], [bool(right) for right in outcomes.correct[0]])
    return _row(BLIND, label, [scores])


def _row(name: str, label: str, scores: Sequence[Scores]) -> Row:
    first = scores[0]
    return Row(
        name=name,
        label=label,
        num_seeds=len(scores),
        by_type={t: mean_interval([100 * s.by_type[t].accuracy for s in scores]) for t in first.by_type},
        by_group={g: mean_interval([100 * s.by_group[g].accuracy for s in scores]) for g in first.by_group},
        overall=mean_interval([100 * s.overall.accuracy for s in scores]),
    )


def _outcomes(asked: Sequence[Prediction], runs: Sequence[Run]) -> Outcomes:
    rows = []
    for run in runs:
        right = {p.question_id: p.correct for p in run.predictions}
        rows.append([right[p.question_id] for p in asked])
    return Outcomes(
        question_ids=tuple(p.question_id for p in asked),
        clip_ids=tuple(p.clip_id for p in asked),
        correct=np.array(rows, dtype=np.bool_),
    )


def _blind_outcomes(asked: Sequence[Prediction], blind: Mapping[str, str]) -> Outcomes:
    missing = [p.question_id for p in asked if p.question_id not in blind]
    if missing:
        raise RunError(f"the blind baseline has no answer to {len(missing)} test questions, {missing[0]!r} for one")
    right = [[blind[p.question_id] == p.answer for p in asked]]
    return Outcomes(
        question_ids=tuple(p.question_id for p in asked),
        clip_ids=tuple(p.clip_id for p in asked),
        correct=np.array(right, dtype=np.bool_),
        trained=False,
    )


def _default_pairs(names: Iterable[str], baseline: str | None) -> list[tuple[str, str]]:
    trained = [name for name in names if name != BLIND]
    against_blind = [(name, BLIND) for name in trained] if BLIND in names else []
    return against_blind + [(name, baseline) for name in trained if baseline not in (None, BLIND, name)]


def _compare_all(
    pairs: Sequence[tuple[str, str]],
    outcomes: Mapping[str, Outcomes],
    labels: Mapping[str, str],
    types: Sequence[str],
    baseline: str | None,
    resamples: int,
) -> tuple[Comparison, ...]:
    for name in (name for pair in pairs for name in pair):
        if name not in outcomes:
            raise SettingsError(unknown_name("variant in comparisons", name, outcomes))
    found = [compare(outcomes[a], outcomes[b], resamples=resamples) for a, b in pairs]
    corrected = holm([difference.p_value for difference in found])
    with_baseline = [pair for pair in pairs if baseline in pair and BLIND not in {*pair} - {baseline}]
    by_type = _compare_by_type(with_baseline, outcomes, types, resamples)
    return tuple(
        Comparison(
            a=a,
            b=b,
            a_label=labels[a],
            b_label=labels[b],
            difference=difference,
            p_corrected=p,
            by_type=by_type.get((a, b), {}),
        )
        for (a, b), difference, p in zip(pairs, found, corrected, strict=True)
    )


def _compare_by_type(
    pairs: Sequence[tuple[str, str]], outcomes: Mapping[str, Outcomes], types: Sequence[str], resamples: int
) -> dict[tuple[str, str], dict[str, Corrected]]:
    """The pairs on the questions of each type, corrected over all types and pairs."""
    found: dict[tuple[str, str, str], Difference] = {}
    for kind in order_types(types):
        wanted = [t == kind for t in types]
        of_type = {name: outcomes[name].only(wanted) for name in dict.fromkeys(name for pair in pairs for name in pair)}
        for a, b in pairs:
            found[a, b, kind] = compare(of_type[a], of_type[b], resamples=resamples)
    corrected = holm([difference.p_value for difference in found.values()])
    tables: dict[tuple[str, str], dict[str, Corrected]] = {pair: {} for pair in pairs}
    for ((a, b, kind), difference), p in zip(found.items(), corrected, strict=True):
        tables[a, b][kind] = Corrected(difference=difference, p_corrected=p)
    return tables
