"""Print the report's tables as text of fixed width, Markdown and CSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from ...formats import readable_seconds
from ..scoring.metrics import MEAN_AP
from . import formats
from .columns import Column, table_columns
from .costs import CostTable
from .table import AVERAGE, Comparison, Mark, Row, Table

DELTA_NOTE = "Points; * where p is below 0.05 after Holm's correction over all types and rows (Avg: over comparisons)."
COST_FIELDS = ("macro_f1", "validation", "trainable_params", "seconds", "device", "flops", "flops_trained")

HALF_INTERVAL = " ± (half of 95 % t interval)"
DEVIATION = " sd"
_GAP = 2


@dataclass(frozen=True)
class Cells:
    """A table as strings.

    Attributes:
        head: names of the columns.
        body: rows, each as long as `head`.
        num_left: how many columns, from the first, are aligned left.
        note: printed below.
    """

    head: list[str]
    body: list[list[str]]
    num_left: int = 1
    note: str = ""


def accuracy_cells(
    table: Table,
    *,
    heads: Literal["short", "latex", "long"],
    style: Callable[[Row, str, str, Mark], str] = lambda row, column, mean, mark: mean,
    plus_minus: str = " ± ",
    grouped: bool = False,
) -> Cells:
    """Format the accuracy table.

    Args:
        table: the accuracies.
        heads: which heads the columns have.
        style: prints a mean, given its row, column, text and mark.
        plus_minus: printed between a mean and its spread.
        grouped: follow the types of each group by the group's average.
    """
    columns = table_columns(table, grouped=grouped)

    def cell(row: Row, column: Column) -> str:
        if column.cell is not None:
            return column.cell(row)
        text = formats.format_cell(row.cell(column.name), spread=table.spread, plus_minus=plus_minus)
        mean, separator, half = text.partition(plus_minus)
        return f"{style(row, column.name, mean, table.mark(row, column.name))}{separator}{half}"

    body = [[row.label, *(cell(row, column) for column in columns)] for row in table.rows]
    return Cells(["variant", *(getattr(column, heads) for column in columns)], body, note=table.spread_note())


def cell_hint(row: Row, column: str) -> str:
    """Say all that is known of one accuracy: mean, interval, deviation, seeds."""
    cell = row.cell(column)
    if cell.half is None or cell.sd is None:
        return f"{row.label}, {column}: {cell.mean:.2f} %"
    low, high = max(0.0, cell.mean - cell.half), min(100.0, cell.mean + cell.half)
    interval = f"95 % t interval {low:.2f} to {high:.2f}"
    return f"{row.label}, {column}: {cell.mean:.2f} %, {interval}, sd {cell.sd:.2f} over {cell.num} seeds"


def comparison_cells(table: Table) -> Cells | None:
    """Format the comparisons with their intervals and p-values; None where the table has none."""
    if not table.comparisons:
        return None
    level = f"{100 * table.comparisons[0].difference.level:g} % interval"
    body = []
    for c in table.comparisons:
        p_values = [formats.format_p(c.difference.p_value), formats.format_p(c.p_corrected)]
        points = [formats.format_points(c.difference.points), formats.format_interval(c.difference)]
        body.append([c.a_label, c.b_label, *points, *p_values, "yes" if c.significant else "no"])
    note = f"Significant: p below {1 - table.comparisons[0].difference.level:.2g} after Holm's correction."
    return Cells(["variant", "against", "points", level, "p", "p (Holm)", "significant"], body, num_left=2, note=note)


def delta_cells(table: Table) -> Cells | None:
    """Format each variant's differences from the baseline by question type; None where no comparison was made so."""
    deltas = table.deltas()
    if not deltas:
        return None
    head = [f"against {deltas[0].b_label}", *table.types, AVERAGE]
    return Cells(head, [[c.a_label, *map(starred, by_type(table, c))] for c in deltas], note=DELTA_NOTE)


def by_type(table: Table, comparison: Comparison) -> list[Comparison]:
    """List a comparison's parts by question type, in the order of the columns, then the whole."""
    return [*(comparison.by_type[t] for t in table.types), comparison]


def starred(comparison: Comparison) -> str:
    """Format a difference in points, with a star where p (Holm) is below 0.05."""
    return formats.format_points(comparison.difference.points) + "*" * comparison.significant


def cost_table_cells(costs: CostTable, labels: Mapping[str, str]) -> Cells:
    """Format the cost table with the printed names of its variants."""
    body = [[labels.get(name, name), *map(readable_seconds, seconds)] for name, *seconds in costs.rows()]
    return Cells(["cost", "actual", "predicted", "without the cache"], body)


def to_text(table: Table, *, width: int = 160) -> str:
    """Print the tables in at most `width` columns (at least 40): columns that do not fit are continued below."""
    accuracy = accuracy_cells(table, heads="short")
    if _total_width([accuracy.head, *accuracy.body]) > width:
        accuracy = accuracy_cells(table, heads="short", plus_minus="±")
    tables = [accuracy, *_differences(table)]
    return "\n\n".join(_fixed(t, width) + f"\n{t.note}" * bool(t.note) for t in tables) + "\n"


def to_markdown(table: Table) -> str:
    """Print the tables in Markdown; the one best mean of a column is bold, a shared one in italics."""
    styles = {"best": "**{}**", "shared": "*{}*", "": "{}"}
    accuracy = accuracy_cells(table, heads="long", style=lambda row, column, mean, mark: styles[mark].format(mean))
    marks = table.mark_note().replace("underlined", "italics")
    accuracy = replace(accuracy, note=" ".join(filter(None, [accuracy.note, marks])))
    return "\n".join(map(cells_to_markdown, (accuracy, *_differences(table))))


def cells_to_markdown(cells: Cells) -> str:
    """Print one table in Markdown, its note below."""
    rule = ["---" if i < cells.num_left else "---:" for i in range(len(cells.head))]
    head, *body = [[" ".join(cell.split()).replace("|", r"\|") for cell in row] for row in (cells.head, *cells.body)]
    lines = ["| " + " | ".join(row) + " |" for row in (head, rule, *body)]
    note = ["", cells.note.replace("*", "\\*")] if cells.note else []
    return "\n".join([*lines, *note]) + "\n"


def row_fields(table: Table) -> tuple[str, ...]:
    """Name the fields of `Row` that stand beside its accuracies in CSV and JSON."""
    return (*(("micro_f1",) if table.metric is MEAN_AP else ()), *COST_FIELDS)


def to_csv(table: Table) -> str:
    """Print the accuracy table as CSV: full precision, percent, a column for each mean, each half-interval and sd."""
    lines = []
    for row in table.rows:
        cells = {**row.by_type, **row.by_group, AVERAGE: row.overall}
        accuracies = {
            name + end: value
            for name, c in cells.items()
            for end, value in (("", c.mean), (HALF_INTERVAL, c.half), (DEVIATION, c.sd))
        }
        own = {name: getattr(row, name) for name in row_fields(table)}
        lines.append({"variant": row.name, "label": row.label, "seeds": row.num_seeds, **accuracies, **own})
    return str(pd.DataFrame(lines, dtype=object).to_csv(index=False, lineterminator="\n"))


def comparisons_to_csv(table: Table) -> str:
    """Print the comparisons as CSV: points, full precision; those by question type after those of all ("Avg")."""
    entries = [(AVERAGE, c) for c in table.comparisons]
    entries += [entry for c in table.comparisons for entry in c.by_type.items()]
    numbers = ("points", "low", "high", "level", "p_value", "p_holm", "excludes_zero", "significant", "covers_seeds")
    frame = pd.DataFrame([{"a": c.a, "b": c.b, "type": kind, **c.values()} for kind, c in entries], dtype=object)
    frame = frame.reindex(columns=["a", "b", "type", *numbers]).rename(columns={"points": "difference"})
    frame = frame.map(lambda value: str(value).lower() if isinstance(value, bool) else value)
    return str(frame.to_csv(index=False, lineterminator="\n"))


def _differences(table: Table) -> list[Cells]:
    return [cells for cells in (comparison_cells(table), delta_cells(table)) if cells is not None]


def _total_width(rows: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, column)) + _GAP for column in zip(*rows, strict=True)) - _GAP


def _fixed(cells: Cells, width: int) -> str:
    """Print columns side by side, cut into blocks of at most `width` characters that repeat the left columns.

    Labels are cut short, though not below 24 characters, if all columns then fit beside each other.
    """
    num_left, widest = cells.num_left, max(12, width // 3)
    for limit in (*range(widest, min(widest, 24) - 1, -1), widest):
        rows = [
            [*(formats.shorten(cell, limit) for cell in row[:num_left]), *row[num_left:]]
            for row in [cells.head, *cells.body]
        ]
        if _total_width(rows) <= width:
            break
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left, blocks = [*range(num_left)], [[*range(num_left)]]
    for index in range(num_left, len(widths)):
        if sum(widths[i] + _GAP for i in [*blocks[-1], index]) - _GAP > width and blocks[-1] != left:
            blocks.append([*left])
        blocks[-1].append(index)
    text = []
    for block in blocks:
        padded = [[r[i].ljust(widths[i]) if i < num_left else r[i].rjust(widths[i]) for i in block] for r in rows]
        head, *body = [(" " * _GAP).join(line).rstrip() for line in padded]
        text.append("\n".join([head, "─" * max(map(len, [head, *body])), *body]))
    return "\n\n".join(text)
