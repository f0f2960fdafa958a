"""Fill the report's page: one HTML file with tables, figures and clips that opens offline and runs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...errors import SettingsError
from . import formats, tables_text
from .costs import CostTable
from .dataset import ShownClip
from .figures import ReportFigure, colour
from .gates import shown_gates
from .runs import Prediction, Run
from .table import Table

Answer = tuple[str, bool, float | None]


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
) -> str:
    """Render page.html.jinja.

    Args:
        table: built from `variants` and `blind`.
        variants: the runs of each variant, in the order of the rows.
        costs, figures: of the same runs.
        title: of the page.
        notes: paragraphs above everything.
        blind: the baseline's answers by question id, where the table has its row.
        clips: clips to show; each must have questions among the predictions.

    Raises:
        SettingsError: a clip without a question.
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
        figures=figures,
        gates=shown_gates(variants, table.labels, clips),
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
    firsts = [runs[0] for runs in variants.values()]
    by_run = [{p.question_id: p for p in run.predictions if p.clip_id == clip_id} for run in firsts]
    if not by_run[0]:
        raise SettingsError(f"clip {clip_id!r} is to be shown, but no {firsts[0].split} question is about it")
    questions = []
    for name, question in by_run[0].items():
        given: list[Answer] = [] if blind is None else [(blind[name], blind[name] == question.answer, None)]
        own = [predictions[name] for predictions in by_run]
        questions.append((question, given + [(p.prediction, p.correct, p.probability) for p in own]))
    return questions
