"""Fill the report's page: one HTML file with tables, figures and clips that opens offline and runs no script."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...errors import RunError, SettingsError
from . import formats, tables_text
from .costs import CostTable
from .dataset import ShownClip
from .figures import ReportFigure, colour
from .runs import Prediction, Run
from .table import Table

Answer = tuple[str, bool, float | None]

_LEAST_REACH = 0.05  # smaller differences between gates stay pale
_SHOWN_QUESTIONS = 6


@dataclass(frozen=True, kw_only=True)
class GateChart:
    """Gates of one question at one insertion, means over channels: 1 passes a token unchanged, 0 suppresses it.

    Attributes:
        insertion: its number, from 0.
        segments: by modality ("visual", "audio"), one gate per segment.
        words: the question's tokens, each with its gate.
    """

    insertion: int
    segments: Mapping[str, tuple[float, ...]]
    words: tuple[tuple[str, float], ...]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> GateChart:
        """Read one line of gates-<split>.jsonl; tokens without a name are numbered."""
        names = [str(name) for name in record.get("tokens") or ()]
        values = [float(value) for value in record.get("text") or ()]
        names += [str(number + 1) for number in range(len(names), len(values))]
        segments = {m: tuple(map(float, record[m])) for m in ("visual", "audio") if m in record}
        words = tuple(zip(names, values, strict=False))
        return cls(insertion=int(record["insertion"]), segments=segments, words=words)

    @property
    def num_segments(self) -> int:
        """Number of segments, T; 0 where only words are gated."""
        return max(map(len, self.segments.values()), default=0)

    def shade(self, gate: float) -> str:
        """Colour a gate: accent above 1, red below, the stronger the further from 1 beside the others (CSS)."""
        shown = [*(value for _, value in self.words), *(v for gates in self.segments.values() for v in gates)]
        strength = 60 * min(1.0, abs(gate - 1) / max(_LEAST_REACH, *(abs(v - 1) for v in shown)))
        return f"color-mix(in srgb, var(--{'accent' if gate >= 1 else 'bad'}) {strength:.1f}%, transparent)"


@dataclass(frozen=True, kw_only=True)
class ShownGates:
    """Gates of one question in one variant's first run; `frames` are data URIs, one per segment, or ()."""

    label: str
    prediction: Prediction
    frames: tuple[str, ...]
    charts: tuple[GateChart, ...]


def to_html(
    table: Table,
    variants: Mapping[str, Sequence[Run]],
    costs: CostTable,
    figures: Sequence[ReportFigure],
    *,
    title: str,
    notes: Sequence[str],
    blind: Mapping[str, str] | None,
    clips: Sequence[ShownClip],
    tried: tables_text.Cells | None = None,
) -> str:
    """Render page.html.jinja.

    Args:
        table: built from `variants`, in the order of its rows, and `blind`.
        variants, costs, figures: of the same runs.
        title: of the page. notes: paragraphs above everything.
        blind: the baseline's answers by question id, where the table has its row.
        clips: clips to show; each must have questions among the predictions.
        tried: the table of what searches tried and what was stopped early.

    Raises:
        SettingsError: a clip without a question.
        RunError: a gates file that is not as evaluate writes it.
    """
    groups = table.groups()
    loader = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("page.html.jinja")
    return template.render(
        title=title,
        lead=_lead(table),
        notes=notes,
        table=table,
        groups=groups,
        group_sizes={g: sum(table.num_by_type[t] for t in members) for g, members in groups.items()},
        colours={row.name: colour(index) for index, row in enumerate(table.trained)},
        several_seeds=any(row.num_seeds > 1 for row in table.trained),
        tables=tables_text,
        formats=formats,
        method=method_note(table),
        costs=costs,
        tried=tried,
        figures=figures,
        gates=_shown_gates(variants, table.labels, clips),
        clips=[(shown, _answers(shown.clip_id, variants, blind)) for shown in clips],
    )


def method_note(table: Table) -> str:
    """Describe in one sentence or two how the intervals were made and what they cover."""
    covered = [c.difference.covers_seeds for c in table.comparisons]
    scope = "With one seed, intervals cover the choice of test clips only, not another training."
    if all(covered):
        scope = "Intervals cover the choice of test clips and of seeds."
    elif any(covered):
        scope = "Intervals cover the choice of seeds only where a side has more than one."
    how = "Differences on the same questions, by a paired bootstrap over clips"
    how += ", with the seeds' spread drawn from its t distribution" if any(covered) else ""
    return f"{how}; p-values corrected after Holm for {len(covered)} comparisons. {scope}"


def _lead(table: Table) -> str:
    num, seeds = len(table.trained), sorted({row.num_seeds for row in table.trained})
    per = f"{seeds[0]} seed{'s' * (seeds[0] > 1)}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    return (
        f"{num} variant{'s' * (num > 1)}, {per} each · {table.num_questions:,} {table.split} questions of "
        f"{len(table.types)} types on {table.num_clips:,} clips"
    )


def _answers(
    clip_id: str, variants: Mapping[str, Sequence[Run]], blind: Mapping[str, str] | None
) -> list[tuple[Prediction, list[Answer]]]:
    """Collect a clip's questions with the answers of the baseline and of each variant's first run."""
    split = next(iter(variants.values()))[0].split
    by_run = [{p.question_id: p for p in run.predictions if p.clip_id == clip_id} for run, *_ in variants.values()]
    if not by_run[0]:
        raise SettingsError(f"clip {clip_id!r} is to be shown, but no {split} question is about it")
    questions = []
    for name, question in by_run[0].items():
        given: list[Answer] = [] if blind is None else [(blind[name], blind[name] == question.answer, None)]
        own = [predictions[name] for predictions in by_run]
        questions.append((question, given + [(p.prediction, p.correct, p.probability) for p in own]))
    return questions


def _shown_gates(
    variants: Mapping[str, Sequence[Run]], labels: Mapping[str, str], clips: Sequence[ShownClip]
) -> tuple[ShownGates, ...]:
    """Read the gates of a few questions of every variant whose first run has them written by evaluate --gates.

    The order does not depend on the answers: the first question of each clip comes before the second of any, those
    about `clips` first. A clip's frames are shown where they are as many as segments.
    """
    shown = []
    frames = {clip.clip_id: clip.frames for clip in clips}
    for name, (run, *_) in variants.items():
        path = run.path / f"gates-{run.split}.jsonl"
        if not path.is_file():
            continue
        charts: dict[str, list[GateChart]] = {}
        try:
            for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
                charts.setdefault(record["question_id"], []).append(GateChart.from_record(record))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: not as talik evaluate --gates writes it ({error}); write it again") from None
        wanted, turns = [*frames], Counter[str]()
        ranked: list[tuple[int, int, int, Prediction]] = []
        for p in run.predictions:
            if p.question_id in charts:
                rank = wanted.index(p.clip_id) if p.clip_id in frames else len(wanted)
                ranked.append((turns[p.clip_id], rank, len(ranked), p))
                turns[p.clip_id] += 1
        for *_, prediction in sorted(ranked)[:_SHOWN_QUESTIONS]:
            found, own = tuple(charts[prediction.question_id]), frames.get(prediction.clip_id, ())
            fitting = own if all(len(own) == chart.num_segments for chart in found) else ()
            shown.append(ShownGates(label=labels[name], prediction=prediction, frames=fitting, charts=found))
    return tuple(shown)
