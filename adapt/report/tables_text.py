"""Prints the report's tables as text of fixed width, Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence

from .formats import (
    format_cell,
    format_count,
    format_hours,
    format_interval,
    format_p,
    format_points,
    format_time,
    short_type,
    verdict,
)
from .ledger import Ledger
from .table import Comparison, Corrected, Row, Table, cell_of

DELTA_NOTE = "Points; * where p is below 0.05 after Holm's correction over all types and rows (Avg: over comparisons)."

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {c: "\\" + c for c in "&%$#_{}"}
LEDGER_HEAD = ("cost", "actual", "predicted", "without the cache")
_GAP = 2
_DEVICES = {"cpu": "CPU", "cuda": "GPU"}


def device_word(table: Table) -> str:
    """Return "CPU" or "GPU" where all runs were trained on one, else ""."""
    devices = {row.device for row in table.rows if row.trained}
    return _DEVICES.get(devices.pop() or "", "") if len(devices) == 1 else ""


def cost_heads(table: Table, params: str, flops: str, hours: str) -> list[str]:
    """Return the heads of the last columns: what a variant trains and costs; FLOPs where a run has them counted."""
    word = device_word(table)
    return [params, *([flops] if _has_flops(table) else []), f"{word} {hours}".strip()]


def cost_cells(table: Table, row: Row) -> list[str]:
    """Return a row's cells of the last columns."""
    flops = [format_count(row.flops)] if _has_flops(table) else []
    device = "" if device_word(table) else _DEVICES.get(row.device or "", "")
    return [format_count(row.trainable_params), *flops, f"{format_hours(row.seconds)} {device}".strip()]


def _has_flops(table: Table) -> bool:
    return any(row.flops is not None for row in table.rows)


def delta_head(table: Table) -> list[str]:
    """Return the head of the table of differences by type."""
    labels = {row.name: row.label for row in table.rows}
    return [f"against {labels[table.baseline]}" if table.baseline else "", *table.types, "Avg"]


def delta_cells(table: Table) -> list[list[str]]:
    """Return a row for each variant compared with the baseline by type: points, starred where p (Holm) is below 0.05.

    The types are corrected together, over all rows; Avg as in the table of comparisons.
    """
    return [[c.a_label, *(starred(c.by_type[t]) for t in table.types), starred(c)] for c in table.deltas()]


def starred(corrected: Corrected | Comparison) -> str:
    """Return a difference in points, with a star where p (Holm) is below 0.05."""
    return format_points(corrected.difference.points) + "*" * (corrected.p_corrected < 0.05)


def to_text(table: Table, *, width: int = 160) -> str:
    """Return the tables in at most `width` columns (at least 40): columns that do not fit go on below."""
    head = ["variant", *table.types, "Avg", *cost_heads(table, "params", "FLOPs", "h")]
    body = [_plain_cells(table, row, " ± ") for row in table.rows]
    if _total_width([head, *body]) > width:
        body = [_plain_cells(table, row, "±") for row in table.rows]
    blocks = [_fixed(head, body, width)]
    if table.comparisons:
        blocks.append(_fixed(_comparison_head(table), _comparison_cells(table), width, num_left=2))
    if deltas := delta_cells(table):
        blocks.append(_fixed(delta_head(table), deltas, width) + f"\n{DELTA_NOTE}")
    return "\n\n".join(blocks) + "\n"


def to_markdown(table: Table) -> str:
    """Return the tables in Markdown; the best mean of each column is bold."""
    head = ["variant", *table.types, "Avg", *cost_heads(table, "trainable parameters", "FLOPs a question", "hours")]
    lines = _markdown_rows(head, [styled_cells(table, row, "**{}**".format) for row in table.rows], num_left=1)
    if table.comparisons:
        lines += ["", *_markdown_rows(_comparison_head(table), _comparison_cells(table), num_left=2)]
    if deltas := delta_cells(table):
        lines += ["", *_markdown_rows(delta_head(table), deltas, num_left=1), "", DELTA_NOTE.replace("*", "\\*")]
    return "\n".join(lines) + "\n"


def to_latex(table: Table) -> str:
    """Return the tables as LaTeX `tabular`s for the booktabs package, types under their groups with group averages."""
    groups = table.groups()
    spans, rules, head, column = [""], [], ["Variant"], 2
    for name, members in groups.items():
        size = len(members) + bool(name)
        spans.append(rf"\multicolumn{{{size}}}{{c}}{{{_latex(name)}}}")
        rules.append(rf"\cmidrule(lr){{{column}-{column + size - 1}}}" if name else "")
        head += [_latex(short_type(m) if name else m) for m in members]
        head += ["Avg"] if name else []
        column += size
    costs = cost_heads(table, "Params", "FLOPs", "Hours")
    head += ["Avg", *costs]
    styled = [styled_cells(table, row, r"\textbf{{{}}}".format, grouped=True) for row in table.rows]
    body = [_latex_row([_latex(label), *numbers]) for label, *numbers in styled]
    split = 1 if table.rows and not table.rows[0].trained else 0
    parts = [
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        *([" & ".join([*spans, "", *("" for _ in costs)]) + r" \\", "".join(rules)] if any(groups) else []),
        _latex_row(head),
        r"\midrule",
        *body[:split],
        *([r"\midrule"] if split else []),
        *body[split:],
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if table.comparisons:
        lines = [_latex_row([*map(_latex, cells)]) for cells in (_comparison_head(table), *_comparison_cells(table))]
        parts += ["", r"\begin{tabular}{llrrrrl}", r"\toprule", lines[0], r"\midrule", *lines[1:]]
        parts += [r"\bottomrule", r"\end{tabular}"]
    if deltas := delta_cells(table):
        lines = [_latex_row([*map(_latex, cells)]) for cells in (delta_head(table), *deltas)]
        columns = "r" * (len(table.types) + 1)
        parts += ["", rf"\begin{{tabular}}{{l{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:]]
        parts += [r"\bottomrule", r"\end{tabular}", f"% {DELTA_NOTE}"]
    return "\n".join(parts) + "\n"


def to_csv(table: Table) -> str:
    """Return the first table as CSV: full precision, percent, a column for each mean and each half-interval."""
    columns = [*table.types, *(name for name in table.groups() if name), "Avg"]
    head = ["variant", "label", "seeds"]
    head += [part for column in columns for part in (column, f"{column} ±")]
    costs = ("trainable_params", "seconds", "device", "flops", "flops_trained")
    lines: list[Sequence[object]] = [[*head, *costs]]
    for row in table.rows:
        cells = [cell_of(row, column) for column in columns]
        numbers = [part for cell in cells for part in (cell.mean, "" if cell.half is None else cell.half)]
        lines.append([row.name, row.label, row.num_seeds, *numbers, *(getattr(row, name) for name in costs)])
    return _csv(lines)


def ledger_cells(ledger: Ledger, labels: Mapping[str, str]) -> list[list[str]]:
    """Return the ledger's rows as printed: what, actual, predicted, without the cache."""
    return [
        [labels.get(name, name), *("–" if s is None else format_time(s) for s in seconds)]
        for name, *seconds in ledger.rows()
    ]


def ledger_to_markdown(ledger: Ledger, labels: Mapping[str, str]) -> str:
    """Return the ledger in Markdown."""
    lines = _markdown_rows(LEDGER_HEAD, ledger_cells(ledger, labels), num_left=1)
    return "\n".join([*lines, "", *ledger.lines()]) + "\n"


def comparisons_to_csv(table: Table) -> str:
    """Return the comparisons as CSV: points, full precision; those by question type after those of all ("Avg")."""
    head = ["a", "b", "type", "difference", "low", "high", "level", "p_value", "p_holm", "excludes_zero"]
    lines: list[Sequence[object]] = [[*head, "covers_seeds"]]
    entries = [(c, "Avg", c.difference, c.p_corrected) for c in table.comparisons]
    entries += [(c, t, x.difference, x.p_corrected) for c in table.comparisons for t, x in c.by_type.items()]
    for c, kind, d, corrected in entries:
        yes_no = [str(d.excludes_zero).lower(), str(d.covers_seeds).lower()]
        lines.append([c.a, c.b, kind, d.points, d.low, d.high, d.level, d.p_value, corrected, *yes_no])
    return _csv(lines)


def _plain_cells(table: Table, row: Row, plus_minus: str) -> list[str]:
    cells = [format_cell(cell_of(row, column), plus_minus=plus_minus) for column in (*table.types, "Avg")]
    return [row.label, *cells, *cost_cells(table, row)]


def styled_cells(table: Table, row: Row, bold: Callable[[str], str], *, grouped: bool = False) -> list[str]:
    """A row's cells, each mean that is best in its column inside `bold`; with group averages if `grouped`."""
    best = table.best()
    columns = list(table.types)
    if grouped:
        columns = [c for name, members in table.groups().items() for c in (*members, *([name] if name else []))]
    cells = [row.label]
    for column in (*columns, "Avg"):
        cell = cell_of(row, column)
        mark = row.trained and sum(r.trained for r in table.rows) > 1 and f"{cell.mean:.1f}" == f"{best[column]:.1f}"
        mean, _, half = format_cell(cell).partition(" ")
        cells.append(" ".join(filter(None, [bold(mean) if mark else mean, half])))
    return [*cells, *cost_cells(table, row)]


def _comparison_head(table: Table) -> list[str]:
    level = table.comparisons[0].difference.level
    return ["variant", "against", "points", f"{100 * level:g} % interval", "p", "p (Holm)", "excludes zero"]


def _comparison_cells(table: Table) -> list[list[str]]:
    return [
        [
            c.a_label,
            c.b_label,
            format_points(c.difference.points),
            format_interval(c),
            format_p(c.difference.p_value),
            format_p(c.p_corrected),
            verdict(c),
        ]
        for c in table.comparisons
    ]


def _total_width(rows: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, column)) + _GAP for column in zip(*rows, strict=True)) - _GAP


def _fixed(head: Sequence[str], body: Sequence[Sequence[str]], width: int, *, num_left: int = 1) -> str:
    """Columns side by side, the first `num_left` to the left, cut into blocks of at most `width` columns.

    Labels are cut short, though not below 24 characters, if all columns then fit beside each other.
    """
    widest = max(12, width // 3)
    for limit in (*range(widest, min(widest, 24) - 1, -1), widest):
        rows = [[_shorten(c, limit) if i < num_left else c for i, c in enumerate(r)] for r in [head, *body]]
        if _total_width(rows) <= width:
            break
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    blocks: list[list[int]] = [[]]
    room = left = width - sum(w + _GAP for w in widths[:num_left])
    for index in range(num_left, len(widths)):
        if widths[index] > left and blocks[-1]:
            blocks.append([])
            left = room
        blocks[-1].append(index)
        left -= widths[index] + _GAP
    text = []
    for block in blocks:
        chosen = [*range(num_left), *block]
        lines = [[r[i].ljust(widths[i]) if i < num_left else r[i].rjust(widths[i]) for i in chosen] for r in rows]
        drawn = [(" " * _GAP).join(line).rstrip() for line in lines]
        text.append("\n".join([drawn[0], "─" * max(map(len, drawn)), *drawn[1:]]))
    return "\n\n".join(text)


def _shorten(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _markdown_rows(head: Sequence[str], body: Iterable[Sequence[str]], *, num_left: int) -> list[str]:
    rule = ["---" if i < num_left else "---:" for i in range(len(head))]
    rows = [[" ".join(cell.split()).replace("|", r"\|") for cell in cells] for cells in (head, *body)]
    return ["| " + " | ".join(cells) + " |" for cells in (rows[0], rule, *rows[1:])]


def _latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(c.replace("±", r"$\pm$").replace("−", "$-$").replace("–", "--") for c in cells) + r" \\"


def _csv(lines: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()
