"""Print the report's tables as text of fixed width, Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from ...formats import readable_count, readable_seconds
from . import formats
from .costs import CostTable
from .table import AVERAGE, Comparison, Row, Table

DELTA_NOTE = "Points; * where p is below 0.05 after Holm's correction over all types and rows (Avg: over comparisons)."
COST_FIELDS = ("macro_f1", "validation", "trainable_params", "seconds", "device", "flops", "flops_trained")

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {c: "\\" + c for c in "&%$#_{}"}
_GAP = 2
_DEVICES = {"cpu": "CPU", "cuda": "GPU"}


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
    costs: tuple[str, str, str],
    *,
    bold: Callable[[str], str] = str,
    plus_minus: str = " ± ",
    grouped: bool = False,
) -> Cells:
    """Format the accuracy table.

    Args:
        table: the accuracies.
        costs: names of the last columns: trainable parameters, operations, hours.
        bold: marks the best mean of each column.
        plus_minus: printed between a mean and its half-interval.
        grouped: follow the types of each group by the group's average.
    """
    groups = table.groups()
    with_averages = [c for name, members in groups.items() for c in (*members, *([name] if name else []))]
    columns = [*(with_averages if grouped else table.types), AVERAGE]

    def accuracy(row: Row, column: str) -> str:
        mean, separator, half = formats.format_cell(row.cell(column), plus_minus=plus_minus).partition(plus_minus)
        return f"{bold(mean) if table.is_best(row, column) else mean}{separator}{half}"

    body = [[row.label, *(accuracy(row, c) for c in columns), *cost_cells(table, row)] for row in table.rows]
    return Cells(["variant", *columns, *cost_heads(table, *costs)], body)


def cost_heads(table: Table, params: str, flops: str, hours: str) -> list[str]:
    """Name the last columns: validation and operations where runs recorded them, the device where all had the same."""
    counted = any(row.flops is not None for row in table.rows)
    validation, operations = ["val"] * _validated(table), [flops] * counted
    return [*validation, params, *operations, f"{_common_device(table)} {hours}".strip()]


def cost_cells(table: Table, row: Row) -> list[str]:
    """Format a row's cells of the last columns: validation, trained parameters, operations, hours."""
    validation = ["–" if row.validation is None else f"{row.validation:.1f}"] if _validated(table) else []
    flops = [readable_count(row.flops)] if any(r.flops is not None for r in table.rows) else []
    device = "" if _common_device(table) else _DEVICES.get(row.device or "", "")
    hours = f"{formats.format_hours(row.seconds)} {device}".strip()
    return [*validation, readable_count(row.trainable_params), *flops, hours]


def comparison_cells(table: Table) -> Cells | None:
    """Format the comparisons with their intervals and p-values; None where the table has none."""
    if not table.comparisons:
        return None
    level = f"{100 * table.comparisons[0].difference.level:g} % interval"
    body = []
    for c in table.comparisons:
        p_values = [formats.format_p(c.difference.p_value), formats.format_p(c.p_corrected)]
        points = [formats.format_points(c.difference.points), formats.format_interval(c.difference)]
        body.append([c.a_label, c.b_label, *points, *p_values, "yes" if c.difference.excludes_zero else "no"])
    return Cells(["variant", "against", "points", level, "p", "p (Holm)", "excludes zero"], body, num_left=2)


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
    return formats.format_points(comparison.difference.points) + "*" * (comparison.p_corrected < 0.05)


def cost_table_cells(costs: CostTable, labels: Mapping[str, str]) -> Cells:
    """Format the cost table with the printed names of its variants."""
    body = [[labels.get(name, name), *map(readable_seconds, seconds)] for name, *seconds in costs.rows()]
    return Cells(["cost", "actual", "predicted", "without the cache"], body)


def to_text(table: Table, *, width: int = 160) -> str:
    """Print the tables in at most `width` columns (at least 40): columns that do not fit are continued below."""
    names = ("params", "FLOPs", "h")
    accuracy = accuracy_cells(table, names)
    if _total_width([accuracy.head, *accuracy.body]) > width:
        accuracy = accuracy_cells(table, names, plus_minus="±")
    tables = [accuracy, *_differences(table)]
    return "\n\n".join(_fixed(t, width) + f"\n{t.note}" * bool(t.note) for t in tables) + "\n"


def to_markdown(table: Table) -> str:
    """Print the tables in Markdown; the best mean of each column is bold."""
    accuracy = accuracy_cells(table, ("trainable parameters", "FLOPs a question", "hours"), bold="**{}**".format)
    return "\n".join(map(cells_to_markdown, (accuracy, *_differences(table))))


def cells_to_markdown(cells: Cells) -> str:
    """Print one table in Markdown, its note below."""
    rule = ["---" if i < cells.num_left else "---:" for i in range(len(cells.head))]
    head, *body = [[" ".join(cell.split()).replace("|", r"\|") for cell in row] for row in (cells.head, *cells.body)]
    lines = ["| " + " | ".join(row) + " |" for row in (head, rule, *body)]
    note = ["", cells.note.replace("*", "\\*")] if cells.note else []
    return "\n".join([*lines, *note]) + "\n"


def to_latex(table: Table) -> str:
    """Print the tables as LaTeX `tabular`s for the booktabs package, types below their groups with group averages."""
    names = ("Params", "FLOPs", "Hours")
    accuracy = accuracy_cells(table, names, bold="\0{}\0".format, grouped=True)
    spans, rules, head = [""], [], ["Variant"]
    for name, members in table.groups().items():
        first, size = len(head) + 1, len(members) + bool(name)
        spans.append(rf"\multicolumn{{{size}}}{{c}}{{{_latex(name)}}}")
        rules.append(rf"\cmidrule(lr){{{first}-{first + size - 1}}}" if name else "")
        head += [*(m.rpartition("-")[2] for m in members), AVERAGE] if name else members
    costs = cost_heads(table, *names)
    above = [" & ".join([*spans, "", *("" for _ in costs)]) + r" \\", "".join(rules)] if any(table.groups()) else []
    accuracy.head[:] = [*head, AVERAGE, *costs]
    untrained = len(table.rows) - len(table.trained)
    parts = [_tabular(accuracy, "l" + "r" * (len(accuracy.head) - 1), above, rule_after=untrained)]
    for cells in _differences(table):
        columns = "llrrrrl" if cells.num_left == 2 else "l" + "r" * (len(cells.head) - 1)
        parts.append(_tabular(cells, columns) + f"% {cells.note}\n" * bool(cells.note))
    return "\n".join(parts)


def to_csv(table: Table) -> str:
    """Print the accuracy table as CSV: full precision, percent, a column for each mean and each half-interval."""
    lines = []
    for row in table.rows:
        cells = {**row.by_type, **row.by_group, AVERAGE: row.overall}
        accuracies = {name + end: value for name, c in cells.items() for end, value in (("", c.mean), (" ±", c.half))}
        own = {name: getattr(row, name) for name in COST_FIELDS}
        lines.append({"variant": row.name, "label": row.label, "seeds": row.num_seeds, **accuracies, **own})
    return str(pd.DataFrame(lines, dtype=object).to_csv(index=False, lineterminator="\n"))


def comparisons_to_csv(table: Table) -> str:
    """Print the comparisons as CSV: points, full precision; those by question type after those of all ("Avg")."""
    entries = [(AVERAGE, c) for c in table.comparisons]
    entries += [entry for c in table.comparisons for entry in c.by_type.items()]
    numbers = ("points", "low", "high", "level", "p_value", "p_holm", "excludes_zero", "covers_seeds")
    frame = pd.DataFrame([{"a": c.a, "b": c.b, "type": kind, **c.values()} for kind, c in entries], dtype=object)
    frame = frame.reindex(columns=["a", "b", "type", *numbers]).rename(columns={"points": "difference"})
    frame = frame.map(lambda value: str(value).lower() if isinstance(value, bool) else value)
    return str(frame.to_csv(index=False, lineterminator="\n"))


def _validated(table: Table) -> bool:
    return any(row.validation is not None for row in table.rows)


def _common_device(table: Table) -> str:
    devices = {row.device for row in table.trained}
    return _DEVICES.get(devices.pop() or "", "") if len(devices) == 1 else ""


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


def _tabular(cells: Cells, columns: str, above: Iterable[str] = (), *, rule_after: int = 0) -> str:
    """Print one `tabular` with lines `above` its head and a rule after the first `rule_after` rows."""
    head, *body = [_latex_row(row) for row in (cells.head, *cells.body)]
    first = [*body[:rule_after], r"\midrule"] if rule_after else []
    begin = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines = [*begin, *above, head, r"\midrule", *first, *body[rule_after:], r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)


def _latex_row(cells: Iterable[str]) -> str:
    """Escape and join cells; a text between NUL characters is bold."""
    found = []
    for cell in cells:
        before, *parts = _latex(" ".join(cell.split())).split("\0")
        bold = rf"{before}\textbf{{{parts[0]}}}{parts[1]}" if len(parts) == 2 else before
        found.append(bold.replace("±", r"$\pm$").replace("−", "$-$").replace("–", "--"))
    return " & ".join(found) + r" \\"
