"""Fill the report's page: one HTML file with tables, figures and clips that opens offline and needs no other file.

Its script is page.js alone: the page's own policy lets the browser run nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ...errors import SettingsError, counted
from ..scoring.metrics import MEAN_AP
from . import formats, tables_text
from .columns import table_columns
from .costs import CostTable
from .dataset import DataSet, ShownClip
from .drawing import ReportFigure, css_colour
from .gates import shown_gates
from .page_data import packed, page_data
from .runs import Prediction, Run
from .table import AVERAGE, Table

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
    tried: tables_text.Cells | None = None,
    data: DataSet | None = None,
    out: Path | str = ".",
) -> str:
    """Render page.html.jinja.

    Args:
        table: built from `variants`, in the order of its rows, and `blind`.
        variants, costs, figures: of the same runs.
        title: of the page. notes: paragraphs above everything.
        blind: the baseline's answers by question id, where the table has its row.
        clips: clips to show; each must have questions among the predictions.
        tried: the table of what searches tried and what was stopped early.
        data: the data set of the runs, for media and unseen answers.
        out: the folder of the page, from which media are named.

    Raises:
        SettingsError: a clip without a question.
        RunError: a gates file that is not as evaluate writes it.
    """
    folder = Path(__file__).parent
    script = (folder / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    loader = FileSystemLoader(folder)
    template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("page.html.jinja")
    values = page_data(table, variants, blind=blind, data=data or DataSet(), out=Path(out))
    trained = iter(range(len(table.rows)))
    return template.render(
        title=title,
        lead=_lead(table),
        notes=notes,
        table=table,
        groups=table.groups(),
        columns=table_columns(table, grouped=True),
        heads=_heads(table),
        sizes=_sizes(table),
        colours={row.name: css_colour(next(trained)) for row in table.trained},
        several_seeds=any(row.num_seeds > 1 for row in table.trained),
        tables=tables_text,
        formats=formats,
        method=method_note(table),
        costs=costs,
        tried=tried,
        figures=figures,
        gates=shown_gates(variants, table.labels, clips),
        clips=[(shown, _answers(shown.clip_id, variants, blind)) for shown in clips],
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_digest=f"sha256-{digest}",
        data=packed(values),
        left_out=values["left_out"],
        gated=bool(values["gates"]),
    )


def _heads(table: Table) -> dict[str, str]:
    """Return the heads of columns of accuracies: below their groups types lose the group's letter."""
    short = not table.columns
    heads = {t: t.rpartition("-")[2] if g and short else t for g, members in table.groups().items() for t in members}
    return {**heads, **{g: AVERAGE if short else g for g in table.groups() if g}, AVERAGE: "All" if short else AVERAGE}


def _sizes(table: Table) -> dict[str, int]:
    """Return the questions of each type, group and of all."""
    groups = {g: sum(table.num_by_type[t] for t in members) for g, members in table.groups().items() if g}
    return {**table.num_by_type, **groups, AVERAGE: table.num_questions}


def method_note(table: Table) -> str:
    """Describe in one sentence or two how the intervals were made and what they cover."""
    covered = [c.difference.covers_seeds for c in table.comparisons]
    scope = "With one seed, intervals cover the choice of test clips only, not another training."
    if all(covered):
        scope = "Intervals cover the choice of test clips and of seeds."
    elif any(covered):
        scope = "Intervals cover the choice of seeds only where a side has more than one."
    how = "Differences on the same questions, by a paired bootstrap over clips"
    how += ", each with its pseudo-value of the mAP (infinitesimal jackknife)" if table.metric is MEAN_AP else ""
    how += ", with the seeds' spread drawn from its t distribution" if any(covered) else ""
    return f"{how}; p-values corrected after Holm for {len(covered)} comparisons. {scope}"


def _lead(table: Table) -> str:
    seeds = sorted({row.num_seeds for row in table.trained})
    per = counted(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {counted(seeds[-1], 'seed')}"
    questions = counted(table.num_questions, f"{table.split} question")
    return (
        f"{counted(len(table.trained), 'variant')}, {per} each · {questions} of {counted(len(table.types), 'type')} on "
        f"{counted(table.num_clips, 'clip')}"
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
        given: list[Answer] = [] if blind is None else [(blind[name], question.value_of(blind[name]) > 0, None)]
        own = [predictions[name] for predictions in by_run]
        questions.append((question, given + [(p.prediction, p.correct, p.probability) for p in own]))
    return questions
