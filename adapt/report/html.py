"""Fills the report's page: one file with tables, plots and clips that opens offline and runs no script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ...errors import SettingsError
from . import charts, formats
from . import tables_text as render
from .clips import ShownClip
from .cost_chart import cost_over_depth
from .ledger import Ledger
from .page import TEMPLATE
from .runs import Prediction, Run
from .selection import shown_gates
from .style import CSS
from .table import Row, Table, cell_of

_FOOTER = (
    "Made by talik report. Micro-averaged accuracies, as MUSIC-AVQA counts them. The same numbers stand beside this "
    "page as Markdown, LaTeX, CSV and JSON."
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot with its caption."""

    caption: str
    detail: str
    svg: Markup
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Given:
    """One row's answer to one question."""

    prediction: str
    correct: bool
    probability: float | None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question of a shown clip, with the answers in the order of the table's rows."""

    text: str
    type: str
    answer: str
    given: tuple[Given, ...]


@dataclass(frozen=True, kw_only=True)
class ClipCard:
    """A shown clip with its questions."""

    shown: ShownClip
    questions: tuple[Asked, ...]


def to_html(
    table: Table,
    variants: Mapping[str, Sequence[Run]],
    ledger: Ledger,
    *,
    title: str,
    notes: Iterable[str] = (),
    blind: Mapping[str, str] | None = None,
    clips: Iterable[ShownClip] = (),
) -> str:
    """Return the page.

    Args:
        table: built from `variants` and `blind`.
        variants: the runs of each variant, in the order of the rows.
        ledger: of the same runs.
        title: of the page.
        notes: paragraphs that stand above everything.
        blind: the baseline's answers by question id, where the table has its row.
        clips: clips to show; each must have questions among the predictions.

    Raises:
        SettingsError: a clip without a question.
    """
    trained = [row for row in table.rows if row.trained]
    best = table.best()
    clips = list(clips)
    labels = {row.name: row.label for row in table.rows}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    return environment.from_string(TEMPLATE).render(
        title=title,
        css=Markup(CSS),
        lead=_lead(table, trained),
        notes=list(notes),
        table=table,
        groups=table.groups(),
        grouped=any(table.groups()),
        group_sizes={g: sum(table.num_by_type[t] for t in members) for g, members in table.groups().items()},
        colours={row.name: charts.colour(index) for index, row in enumerate(trained)},
        counts_flops=any(row.flops is not None for row in trained),
        several_seeds=any(row.num_seeds > 1 for row in trained),
        is_best=lambda row, column: _is_best(row, column, best, len(trained)),
        cell_of=cell_of,
        method=method_note(table),
        charts=charts,
        bars=charts.type_bars(table),
        figures=_figures(table, variants, ledger),
        delta_head=render.delta_head(table),
        deltas=table.deltas(),
        delta_note=render.DELTA_NOTE,
        starred=render.starred,
        ledger_head=render.LEDGER_HEAD,
        ledger_rows=render.ledger_cells(ledger, labels),
        ledger_lines=ledger.lines(),
        clips=[_card(shown, variants, blind) for shown in clips],
        gates=shown_gates(
            variants,
            labels,
            clips=[shown.clip_id for shown in clips],
            frames={shown.clip_id: shown.frames for shown in clips},
        ),
        footer=_FOOTER,
        cost_heads=render.cost_heads(table, "trainable parameters", "FLOPs a question", "hours"),
        cost_cells=lambda row: render.cost_cells(table, row),
        format_points=formats.format_points,
        format_interval=formats.format_interval,
        format_p=formats.format_p,
        short_type=formats.short_type,
        verdict=formats.verdict,
    )


def method_note(table: Table) -> str:
    """Return in one sentence or two how the intervals were made and what they cover."""
    covered = [c.difference.covers_seeds for c in table.comparisons]
    if all(covered):
        scope = "Intervals cover the choice of test clips and of seeds."
    elif any(covered):
        scope = "Intervals cover the choice of seeds only where a side has more than one."
    else:
        scope = "With one seed, intervals cover the choice of test clips only, not another training."
    how = "Differences on the same questions, by a paired bootstrap over clips"
    how += ", with the seeds' spread drawn from its t distribution" if any(covered) else ""
    return f"{how}; p-values corrected after Holm for {len(covered)} comparisons. {scope}"


def _lead(table: Table, trained: Sequence[Row]) -> str:
    seeds = sorted({row.num_seeds for row in trained})
    per = f"{seeds[0]} seed{'s' * (seeds[0] > 1)}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    return (
        f"{len(trained)} variant{'s' * (len(trained) > 1)}, {per} each · {table.num_questions:,} {table.split} "
        f"questions of {len(table.types)} types on {table.num_clips:,} clips"
    )


def _is_best(row: Row, column: str, best: Mapping[str, float], num_trained: int) -> bool:
    return row.trained and num_trained > 1 and f"{cell_of(row, column).mean:.1f}" == f"{best[column]:.1f}"


def _figures(table: Table, variants: Mapping[str, Sequence[Run]], ledger: Ledger) -> list[Figure]:
    accuracy = charts.learning_curves(variants, field="val_accuracy")
    loss = charts.learning_curves(variants, field="train_loss")
    detail = "by epoch; thin lines are single seeds" if any(len(r) > 1 for r in variants.values()) else "by epoch"
    figures = []
    if accuracy is not None:
        figures.append(Figure(caption="Validation accuracy", detail=f"percent, {detail}", svg=accuracy))
    if loss is not None:
        figures.append(Figure(caption="Training loss", detail=detail, svg=loss))
    figures.append(
        Figure(
            caption="Accuracy over trainable parameters",
            detail="all questions; logarithmic scale",
            svg=charts.accuracy_over_params(table),
            wide=True,
        )
    )
    cost = cost_over_depth(variants, {row.name: row.label for row in table.rows}, ledger)
    if cost is not None:
        rings = any(c.without_cache is not None for c in ledger.variants)
        detail = "one run, training and evaluation; logarithmic scale" + "; rings: without the cache" * rings
        figures.append(Figure(caption="Cost over depth of insertion", detail=detail, svg=cost, wide=True))
    return figures


def _card(shown: ShownClip, variants: Mapping[str, Sequence[Run]], blind: Mapping[str, str] | None) -> ClipCard:
    firsts = [runs[0] for runs in variants.values()]
    about = [p for p in firsts[0].predictions if p.clip_id == shown.clip_id]
    if not about:
        raise SettingsError(f"clip {shown.clip_id!r} is to be shown, but no {firsts[0].split} question is about it")
    answers = [{p.question_id: p for p in run.predictions if p.clip_id == shown.clip_id} for run in firsts]
    questions = []
    for p in about:
        given = [_given(by_id[p.question_id]) for by_id in answers]
        if blind is not None:
            guess = blind[p.question_id]
            given.insert(0, Given(prediction=guess, correct=guess == p.answer, probability=None))
        questions.append(Asked(text=p.question, type=p.type, answer=p.answer, given=tuple(given)))
    return ClipCard(shown=shown, questions=tuple(questions))


def _given(prediction: Prediction) -> Given:
    return Given(prediction=prediction.prediction, correct=prediction.correct, probability=prediction.probability)
