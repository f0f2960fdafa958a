"""Write the notes above the numbers: size of the test, chance, differences in training, from the runs themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ...config import to_mapping
from ...errors import counted
from ..config.experiment import TrainSettings
from ..scoring.metrics import MEAN_AP
from ..training.run_data import data_differences
from .formats import format_cell, listed
from .runs import Run
from .table import BLIND, BLIND_LABEL, Table

_FEW_CLIPS = 30
#: Adapter kinds whose papers put one beside every block, with the papers' names for them.
_EVERY_BLOCK = {"lavish": "LAVISH", "dgsct": "DG-SCT"}


def make_notes(table: Table, variants: Mapping[str, Sequence[Run]]) -> tuple[str, ...]:
    """Write the notes that apply to these runs, most important first; each is one sentence or two."""
    notes = [_size(table), *_doubts(table), _other_training(table, variants), _other_data(table, variants)]
    notes += [_unknown_data(table, variants), _other_insertion(table, variants), _first_weights(table, variants)]
    return tuple(note for note in notes if note)


def _size(table: Table) -> str:
    seeds = sorted({row.num_seeds for row in table.trained})
    size = f"{counted(table.num_questions, f'{table.split} question')} on {counted(table.num_clips, 'clip')}"
    chance = _chance(table)
    if seeds == [1]:
        return f"A taste: one seed, {size}.{chance} Training again with another seed may move every row."
    if len(seeds) == 1:
        return f"{counted(seeds[0], 'seed')}, {size}.{chance}"
    uneven = listed([f"{row.label} {row.num_seeds}" for row in table.trained])
    return f"{seeds[0]} to {seeds[-1]} seeds, {size}.{chance} Rows differ in seeds: {uneven}."


def _chance(table: Table) -> str:
    """Say how large a difference must be: half the narrowest and the widest interval of the comparisons."""
    widths = sorted((f"{c.difference.half_width:.1f}" for c in table.comparisons), key=float)
    if not widths:
        return ""
    points, which = widths[0], ""
    if widths[0] != widths[-1]:
        points, which = f"{widths[0]} to {widths[-1]}", " (by comparison)"
    return f" Differences below {points} points{which} are within chance (95 %)."


def _doubts(table: Table) -> Iterator[str]:
    """Say what the blind baseline reaches, which variants do not exceed it, and whether clips are few."""
    for row in table.rows:
        if not row.trained:
            how = "answers with each template's most frequent training answer"
            if table.metric is MEAN_AP:
                how = "holds each label as probable as it is among the template's training questions"
            yield (
                f"The {BLIND_LABEL} {how} and never sees or hears "
                f"the clip: {format_cell(row.overall)} %. What a row has above that, it has from the clip or the "
                "question's words."
            )
    below = [c.a_label for c in table.comparisons if c.b == BLIND and c.difference.low <= 0]
    if below:
        yield f"Not shown to be better than the {BLIND_LABEL}: {listed(below)}."
    num = max(len(table.comparisons), sum(len(c.by_type) for c in table.comparisons))
    if num * 2 / (table.resamples + 1) >= 0.05:
        yield (
            f"No p-value of {table.resamples:,} resamples can stay below 0.05 after Holm's correction for {num:,} "
            f"comparisons: name fewer, or call talik.report with more resamples."
        )
    if table.num_clips < _FEW_CLIPS and table.comparisons:
        few = counted(table.num_clips, "test clip")
        yield f"Only {few}: intervals from fewer than {_FEW_CLIPS} are rough, often too narrow."


def _other_training(table: Table, variants: Mapping[str, Sequence[Run]]) -> str:
    """Name training settings in which the variants differ: then a row shows more than its adapter."""
    settings = {}
    for name, (run, *_) in variants.items():
        own = run.config.get("train", {})  # settings younger than the run are at their defaults
        settings[table.labels[name]] = {**to_mapping(TrainSettings()), **(own if isinstance(own, Mapping) else {})}
    told = []
    for key in sorted({key for values in settings.values() for key in values} - {"seed"}):
        found = {label: json.dumps(v[key], sort_keys=True) if key in v else "not set" for label, v in settings.items()}
        if len(set(found.values())) > 1:
            told.append(f"{key} ({listed([f'{label} {value}' for label, value in found.items()])})")
    return f"The variants were not trained alike; they differ in {'; '.join(told)}." if told else ""


def _other_data(table: Table, variants: Mapping[str, Sequence[Run]]) -> str:
    """Name variants that were trained on other data than the first: then a row shows more than its adapter."""
    first, *others = [(table.labels[name], runs[0].data) for name, runs in variants.items()]
    told = []
    for label, data in others:
        if data is not None and first[1] is not None:
            same = data.encoders.keys() == first[1].encoders.keys()  # a clip's digest is of what was read of it
            found = data_differences(replace(data, boundaries={}, clips=data.clips if same else {}), first[1])
            told += [f"{label}: {', '.join(found)}"] if found else []
    return f"Not trained on the data of {first[0]}. What differs, of {'; of '.join(told)}." if told else ""


def _unknown_data(table: Table, variants: Mapping[str, Sequence[Run]]) -> str:
    """Name variants whose seeds cannot be told to be of the same data."""
    unknown = [table.labels[n] for n, runs in variants.items() if len(runs) > 1 and any(r.data is None for r in runs)]
    what = "made by a version that did not record what a run is trained on"
    return f"Not known whether all seeds are of the same data, since some were {what}: {listed(unknown)}." * bool(
        unknown
    )


def _other_insertion(table: Table, variants: Mapping[str, Sequence[Run]]) -> str:
    """Name variants inserted at fewer blocks than in their papers: their rows say nothing of the published models."""
    told = []
    for name, (run, *_) in variants.items():
        adapter = run.config.get("adapter")
        paper = _EVERY_BLOCK.get(str(adapter.get("kind"))) if isinstance(adapter, Mapping) else None
        if paper and run.insertions and run.num_units and run.insertions < run.num_units:
            places = f"{counted(run.insertions, 'place')} of {run.num_units}"
            told.append(f"{table.labels[name]} sits at {places}, {paper} as published at every block")
    return f"Not where their papers have them: {'; '.join(told)}." if told else ""


def _first_weights(table: Table, variants: Mapping[str, Sequence[Run]]) -> str:
    """Name variants that began with another run's weights: they were trained for longer than their settings say."""
    told = [
        f"{table.labels[n]} from {r.config['start_from']}"
        for n, (r, *_) in variants.items()
        if "start_from" in r.config
    ]
    return f"Started from the weights of another run, with a schedule of their own: {'; '.join(told)}." if told else ""
