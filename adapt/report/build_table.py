"""Build the report's table from runs: means over seeds by question type, and tests of the differences."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...errors import RunError, SettingsError, unknown_name
from ..scoring.metrics import ACCURACY, GROUPS, MEAN_AP, VQA_ACCURACY, Metric, macro_f1, order_types
from ..scoring.multi_label import macro_f1_of_labels, micro_f1
from .outcomes import Answered, answered, blind_answered
from .runs import Prediction, Run
from .statistics import MeanInterval, Spread, compare, holm, mean_interval
from .table import BLIND, BLIND_LABEL, Comparison, Row, Table


def build_table(
    variants: Mapping[str, Sequence[Run]],
    *,
    labels: Mapping[str, str] | None = None,
    blind: Mapping[str, str] | None = None,
    blind_labels: Mapping[str, Mapping[str, float]] | None = None,
    comparisons: Iterable[tuple[str, str]] | None = None,
    baseline: str | None = None,
    spread: Spread = "interval",
    columns: Sequence[str] = (),
    resamples: int = 10_000,
) -> Table:
    """Average the accuracies of each variant over seeds, and compare variants.

    Args:
        variants: the runs of each variant, in the order of the rows; all on the same questions.
        labels: printed names by variant name ("blind" for the baseline); the name itself where absent.
        blind: the baseline's answer to every test question, by question id.
        blind_labels: of multi-label answers, how probable the baseline holds each label, by question id.
        comparisons: pairs of variant names, or "blind"; by default each variant against the blind baseline, and each
            other against `baseline`.
        baseline: a variant, or "blind"; the first variant where neither it nor comparisons are given. Comparisons with
            it are made by question type too.
        spread: what is printed after ±: "interval" or "sd".
        columns: names of the columns to print (see `columns.known_columns`); the usual ones if empty.
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
    classes = () if first.data is None else first.data.answers
    outcomes = {} if blind is None else {BLIND: blind_answered(questions, blind, blind_labels, classes=classes)}
    for name, runs in variants.items():
        outcomes[name] = answered(questions, runs)
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
        spread=spread,
        columns=tuple(columns),
        resamples=resamples,
        metric=_metric(questions),
    )


def _metric(questions: Sequence[Prediction]) -> Metric:
    if questions[0].labels is not None:
        return MEAN_AP
    return ACCURACY if questions[0].score is None else VQA_ACCURACY


def _check_names(place: str, names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise SettingsError(unknown_name(f"variant in {place}", name, known))


def _row(name: str, label: str, answers: Answered, types: Sequence[str], runs: Sequence[Run]) -> Row:
    def accuracy(members: Collection[str]) -> MeanInterval:
        values = answers.outcomes([t in members for t in types]).values
        return mean_interval((100 * values.mean(axis=1)).tolist())

    row = Row(
        name=name,
        label=label,
        num_seeds=max(1, len(runs)),
        by_type={kind: accuracy([kind]) for kind in order_types(types)},
        by_group={group: accuracy(members) for group, members in GROUPS.items() if not {*types}.isdisjoint(members)},
        overall=accuracy(types),
    )
    if not runs:
        return row
    params, devices = {run.trainable_params for run in runs}, {run.device for run in runs}
    if len(params) > 1:
        raise RunError(f"variant {name!r}: seeds differ in trainable parameters, {sorted(params)}; one must be stale")
    macro = [macro_f1_of_labels(one) for one in answers.labels] or [_macro_f1(run.predictions) for run in runs]
    micro = [micro_f1(one) for one in answers.labels]
    return replace(
        row,
        trainable_params=params.pop(),
        seconds=mean_interval([run.train_seconds for run in runs]).mean,
        flops=_mean_count([run.flops for run in runs]),
        flops_trained=_mean_count([run.flops_trained for run in runs]),
        device=devices.pop() if len(devices) == 1 else None,
        validation=_mean([None if run.split == "val" else run.validation for run in runs]),
        macro_f1=_mean(macro),
        micro_f1=_mean(micro) if micro else None,
        settings=dict(_flat(runs[0].config)),
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings by dotted name; tables of `insertion` stay whole."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value and name != "insertion":
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _macro_f1(predictions: Sequence[Prediction]) -> float:
    return macro_f1([p.true for p in predictions], [p.prediction for p in predictions])


def _mean(shares: Sequence[float | None]) -> float | None:
    """Return the mean of shares in percent; None where one is not known."""
    known = [100 * share for share in shares if share is not None]
    return sum(known) / len(known) if known and len(known) == len(shares) else None


def _mean_count(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return round(sum(known) / len(known)) if len(known) == len(counts) else None


def _compare(
    keys: Sequence[tuple[str, str, str | None]],
    outcomes: Mapping[str, Answered],
    labels: Mapping[str, str],
    types: Sequence[str],
    resamples: int,
) -> list[Comparison]:
    """Compare the two sides of each key on the questions of its type, or of all, and correct over all keys."""
    masks = {kind: [kind in (name, None) for name in types] for *_, kind in keys}
    names = dict.fromkeys((name, kind) for a, b, kind in keys for name in (a, b))
    sides = {(name, kind): outcomes[name].outcomes(masks[kind]) for name, kind in names}
    differences = [compare(sides[a, kind], sides[b, kind], resamples=resamples) for a, b, kind in keys]
    corrected = holm([difference.p_value for difference in differences])
    return [
        Comparison(a=a, b=b, a_label=labels[a], b_label=labels[b], difference=difference, p_corrected=p)
        for (a, b, _), difference, p in zip(keys, differences, corrected, strict=True)
    ]
