"""Build the report's two tables from runs: accuracy by question type, and the comparisons between variants."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from ...errors import RunError, SettingsError, unknown_name
from ..scoring.metrics import GROUPS, macro_f1, order_types
from .runs import Prediction, Run
from .statistics import Difference, MeanInterval, Outcomes, compare, holm, mean_interval

BLIND = "blind"
BLIND_LABEL = "blind baseline"
AVERAGE = "Avg"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the accuracy table: accuracies in percent, averaged over seeds.

    Attributes:
        by_type, by_group, overall: of the questions of each type, of each group of types, and of all.
        seconds: of training and evaluation, mean over seeds.
        flops: operations per question above the states that the variant starts from. flops_trained: those of adapters
            and head alone. None where the runs do not record them.
        device: "cpu" or "cuda"; None where the runs do not record it or differ.
        validation: accuracy on the validation split of the epochs that the runs are scored with, percent, mean over
            seeds; None where it was not recorded, or the table itself is of validation.
        macro_f1: mean over the true answers of the F1 of each, percent, mean over seeds; of all rows.
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
    validation: float | None = None
    macro_f1: float | None = None

    @property
    def trained(self) -> bool:
        """False for the blind baseline."""
        return self.name != BLIND

    def cell(self, column: str) -> MeanInterval:
        """Look up the accuracy of a type, a group ("Audio", …) or of all ("Avg")."""
        if column == AVERAGE:
            return self.overall
        return self.by_type[column] if column in self.by_type else self.by_group[column]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Accuracy of variant `a` minus that of variant `b`, with a p-value corrected for multiple comparisons.

    Attributes:
        a, b: names of the variants. a_label, b_label: their printed names.
        p_corrected: the p-value after Holm, over all comparisons of the table.
        by_type: the same for the questions of each type, where one variant is the table's baseline and the other was
            trained; corrected over all types of all such comparisons.
    """

    a: str
    b: str
    a_label: str
    b_label: str
    difference: Difference
    p_corrected: float
    by_type: Mapping[str, Comparison] = field(default_factory=dict)

    def reversed(self) -> Comparison:
        """Compare `b` with `a`."""
        return replace(
            self,
            a=self.b,
            b=self.a,
            a_label=self.b_label,
            b_label=self.a_label,
            difference=self.difference.reversed(),
            by_type={name: comparison.reversed() for name, comparison in self.by_type.items()},
        )

    def values(self) -> dict[str, float | bool]:
        """List the numbers: points, interval, level and p-values, parts by type left out."""
        found = {**asdict(self.difference), "p_holm": self.p_corrected}
        return {**found, "excludes_zero": self.difference.excludes_zero}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Accuracies of all variants and the comparisons between them.

    Attributes:
        types: question types, in the order of their columns.
        num_by_type: test questions of each type.
        rows: the blind baseline first, if the table has one, then the variants.
        comparisons: in the requested order.
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
        """Number of all test questions."""
        return sum(self.num_by_type.values())

    @property
    def trained(self) -> list[Row]:
        """All rows but the blind baseline's."""
        return [row for row in self.rows if row.trained]

    @property
    def labels(self) -> dict[str, str]:
        """Printed name of each row by its name."""
        return {row.name: row.label for row in self.rows}

    def deltas(self) -> tuple[Comparison, ...]:
        """Select the comparisons that were made by type, each as another row minus the baseline."""
        made = (c for c in self.comparisons if c.by_type)
        return tuple(c if c.b == self.baseline else c.reversed() for c in made)

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Sort the types into their groups ("Audio", …); types of no group stand under ""."""
        group_of = {t: name for name, members in GROUPS.items() for t in members}
        groups = {name: tuple(t for t in self.types if group_of.get(t, "") == name) for name in (*GROUPS, "")}
        return {name: members for name, members in groups.items() if members}

    def is_best(self, row: Row, column: str) -> bool:
        """Tell whether a row's mean is, as printed, the highest of several trained rows in a column."""
        means = [other.cell(column).mean for other in self.trained]
        return row.trained and len(means) > 1 and f"{row.cell(column).mean:.1f}" == f"{max(means):.1f}"


def build_table(
    variants: Mapping[str, Sequence[Run]],
    *,
    labels: Mapping[str, str] | None = None,
    blind: Mapping[str, str] | None = None,
    comparisons: Iterable[tuple[str, str]] | None = None,
    baseline: str | None = None,
    resamples: int = 10_000,
) -> Table:
    """Average the accuracies of each variant over seeds, and compare variants.

    Args:
        variants: the runs of each variant, in the order of the rows; all on the same questions.
        labels: printed names by variant name ("blind" for the baseline); the name itself where absent.
        blind: the baseline's answer to every test question, by question id.
        comparisons: pairs of variant names, or "blind"; by default each variant against the blind baseline, and each
            other against `baseline`.
        baseline: a variant, or "blind"; the first variant where neither it nor comparisons are given. Comparisons with
            it are made by question type too.
        resamples: of the bootstrap, at least 100.

    Raises:
        RunError: no run, a variant named "blind", or a blind baseline that leaves a question unanswered.
        SettingsError: labels, comparisons or a baseline that name no variant.
    """
    if not variants:
        raise RunError("no run to report; expected at least one finished run folder")
    if BLIND in variants:
        raise RunError(f"a variant is named {BLIND!r}, which is the baseline's name here; give it another name")
    first = next(iter(variants.values()))[0]
    questions = first.predictions
    types = [p.type for p in questions]
    labels = {BLIND: BLIND_LABEL, **(labels or {})}
    _check_names("labels", labels, [*variants, BLIND])
    outcomes = {} if blind is None else {BLIND: _blind_outcomes(questions, blind)}
    for name, runs in variants.items():
        right = [{p.question_id: p.correct for p in run.predictions} for run in runs]
        outcomes[name] = _outcomes(questions, right)
    rows = [_row(name, labels.get(name, name), o, types, variants.get(name, ())) for name, o in outcomes.items()]
    _check_names("baseline", [] if baseline is None else [baseline], outcomes)
    if comparisons is None:
        baseline = baseline or next(iter(variants))
        against_blind = [(name, BLIND) for name in variants if blind is not None]
        pairs = against_blind + [(name, baseline) for name in variants if baseline not in (BLIND, name)]
    else:
        pairs = list(comparisons)
    _check_names("comparisons", [name for pair in pairs for name in pair], outcomes)
    printed = {row.name: row.label for row in rows}
    with_baseline = [pair for pair in pairs if baseline in pair and BLIND not in {*pair} - {baseline}]
    keys = [(a, b, kind) for kind in order_types(types) for a, b in with_baseline]
    by_type: dict[tuple[str, str], dict[str, Comparison]] = {pair: {} for pair in pairs}
    for (a, b, kind), comparison in zip(keys, _compare(keys, outcomes, printed, types, resamples), strict=True):
        by_type[a, b][kind] = comparison
    overall = _compare([(a, b, None) for a, b in pairs], outcomes, printed, types, resamples)
    return Table(
        types=order_types(types),
        num_by_type={name: types.count(name) for name in order_types(types)},
        num_clips=len({p.clip_id for p in questions}),
        split=first.split,
        rows=tuple(rows),
        comparisons=tuple(replace(c, by_type=by_type[c.a, c.b]) for c in overall),
        baseline=baseline,
    )


def _check_names(place: str, names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise SettingsError(unknown_name(f"variant in {place}", name, known))


def _row(name: str, label: str, outcomes: Outcomes, types: Sequence[str], runs: Sequence[Run]) -> Row:
    def accuracy(members: Collection[str]) -> MeanInterval:
        return mean_interval((100 * outcomes.correct[:, [t in members for t in types]].mean(axis=1)).tolist())

    row = Row(
        name=name,
        label=label,
        num_seeds=outcomes.num_seeds,
        by_type={kind: accuracy([kind]) for kind in order_types(types)},
        by_group={group: accuracy(members) for group, members in GROUPS.items() if not {*types}.isdisjoint(members)},
        overall=accuracy(types),
    )
    if not runs:
        return row
    params, devices = {run.trainable_params for run in runs}, {run.device for run in runs}
    if len(params) > 1:
        raise RunError(f"variant {name!r}: seeds differ in trainable parameters, {sorted(params)}; one must be stale")
    return replace(
        row,
        trainable_params=params.pop(),
        seconds=mean_interval([run.train_seconds for run in runs]).mean,
        flops=_mean_count([run.flops for run in runs]),
        flops_trained=_mean_count([run.flops_trained for run in runs]),
        device=devices.pop() if len(devices) == 1 else None,
        validation=_mean([None if run.split == "val" else run.validation for run in runs]),
        macro_f1=_mean([_macro_f1(run.predictions) for run in runs]),
    )


def _macro_f1(predictions: Sequence[Prediction]) -> float:
    return macro_f1([p.answer for p in predictions], [p.prediction for p in predictions])


def _mean(shares: Sequence[float | None]) -> float | None:
    """Return the mean of shares in percent; None where one is not known."""
    known = [100 * share for share in shares if share is not None]
    return sum(known) / len(known) if known and len(known) == len(shares) else None


def _mean_count(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return round(sum(known) / len(known)) if len(known) == len(counts) else None


def _outcomes(questions: Sequence[Prediction], runs: Sequence[Mapping[str, bool]], *, trained: bool = True) -> Outcomes:
    """Order the answers of each run, right or wrong by question id, as the questions."""
    return Outcomes(
        question_ids=tuple(p.question_id for p in questions),
        clip_ids=tuple(p.clip_id for p in questions),
        correct=np.array([[right[p.question_id] for p in questions] for right in runs], dtype=np.bool_),
        trained=trained,
    )


def _blind_outcomes(questions: Sequence[Prediction], blind: Mapping[str, str]) -> Outcomes:
    missing = [p.question_id for p in questions if p.question_id not in blind]
    if missing:
        raise RunError(f"the blind baseline has no answer to {len(missing)} test questions, {missing[0]!r} for one")
    return _outcomes(questions, [{p.question_id: blind[p.question_id] == p.answer for p in questions}], trained=False)


def _compare(
    keys: Sequence[tuple[str, str, str | None]],
    outcomes: Mapping[str, Outcomes],
    labels: Mapping[str, str],
    types: Sequence[str],
    resamples: int,
) -> list[Comparison]:
    """Compare the two sides of each key on the questions of its type, or of all, and correct over all keys."""
    masks = {kind: [kind in (name, None) for name in types] for *_, kind in keys}
    sides = [(outcomes[a].only(masks[kind]), outcomes[b].only(masks[kind])) for a, b, kind in keys]
    differences = [compare(a, b, resamples=resamples) for a, b in sides]
    corrected = holm([difference.p_value for difference in differences])
    return [
        Comparison(a=a, b=b, a_label=labels[a], b_label=labels[b], difference=difference, p_corrected=p)
        for (a, b, _), difference, p in zip(keys, differences, corrected, strict=True)
    ]
