"""Prints the report's tables as text of fixed width, Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence

from .statistics import MeanInterval
from .table import Comparison, Row, Table, cell_of

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {c: "\\" + c for c in "&%$#_{}"}
_GAP = 2


def format_cell(cell: MeanInterval, *, plus_minus: str = " ± ") -> str:
    """Return "61.2" for one seed, "61.2 ± 3.4" for several."""
    return f"{cell.mean:.1f}" if cell.half is None else f"{cell.mean:.1f}{plus_minus}{cell.half:.1f}"


def format_count(number: int | None) -> str:
    """Return a count of parameters to three digits: "–", "812", "12.3 k", "1.23 M", "4.50 G"."""
    if number is None:
        return "–"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            digits = max(0, 2 - int(math.log10(number / size * 1.0005)))
            return f"{number / size:.{digits}f} {unit}"
    return str(number)


def format_seconds(seconds: float | None) -> str:
    """Return whole seconds, one decimal below ten, or "–"."""
    if seconds is None:
        return "–"
    return f"{seconds:.1f}" if seconds < 9.95 else f"{seconds:,.0f}"


def format_p(p_value: float) -> str:
    """Return a p-value to three decimals, "<0.001" below."""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def format_interval(comparison: Comparison) -> str:
    """Return "[+1.2, +4.0]", in points."""
    return f"[{format_points(comparison.difference.low)}, {format_points(comparison.difference.high)}]"


def format_points(points: float) -> str:
    """Return a difference with its sign, "+1.2", "−0.4", "0.0"."""
    text = f"{points:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def short_type(name: str) -> str:
    """Return a type's name without its group's, as below a heading: "AV-count" -> "count"."""
    return name.rpartition("-")[2]


def verdict(comparison: Comparison) -> str:
    """Return "yes" or "no": whether the interval excludes zero."""
    return "yes" if comparison.difference.excludes_zero else "no"


def to_text(table: Table, *, width: int = 160) -> str:
    """Return both tables in at most `width` columns (at least 40): columns that do not fit go on below."""
    head = ["variant", *table.types, "Avg", "params", "s"]
    body = [_plain_cells(table, row, " ± ") for row in table.rows]
    if _total_width([head, *body]) > width:
        body = [_plain_cells(table, row, "±") for row in table.rows]
    blocks = [_fixed(head, body, width)]
    if table.comparisons:
        blocks.append(_fixed(_comparison_head(table), _comparison_cells(table), width, num_left=2))
    return "\n\n".join(blocks) + "\n"


def to_markdown(table: Table) -> str:
    """Return both tables in Markdown; the best mean of each column is bold."""
    head = ["variant", *table.types, "Avg", "trainable parameters", "seconds"]
    lines = _markdown_rows(head, [styled_cells(table, row, "**{}**".format) for row in table.rows], num_left=1)
    if table.comparisons:
        lines += ["", *_markdown_rows(_comparison_head(table), _comparison_cells(table), num_left=2)]
    return "\n".join(lines) + "\n"


def to_latex(table: Table) -> str:
    """Return both tables as LaTeX `tabular`s for the booktabs package, types under their groups with group averages."""
    groups = table.groups()
    spans, rules, head, column = [""], [], ["Variant"], 2
    for name, members in groups.items():
        size = len(members) + bool(name)
        spans.append(rf"\multicolumn{{{size}}}{{c}}{{{_latex(name)}}}")
        rules.append(rf"\cmidrule(lr){{{column}-{column + size - 1}}}" if name else "")
        head += [_latex(short_type(m) if name else m) for m in members]
        head += ["Avg"] if name else []
        column += size
    head += ["Avg", "Params", "Seconds"]
    styled = [styled_cells(table, row, r"\textbf{{{}}}".format, grouped=True) for row in table.rows]
    body = [_latex_row([_latex(label), *numbers]) for label, *numbers in styled]
    split = 1 if table.rows and not table.rows[0].trained else 0
    parts = [
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        *([" & ".join([*spans, "", "", ""]) + r" \\", "".join(rules)] if any(groups) else []),
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
    return "\n".join(parts) + "\n"


def to_csv(table: Table) -> str:
    """Return the first table as CSV: full precision, percent, a column for each mean and each half-interval."""
    columns = [*table.types, *(name for name in table.groups() if name), "Avg"]
    head = ["variant", "label", "seeds"]
    head += [part for column in columns for part in (column, f"{column} ±")]
    lines: list[Sequence[object]] = [[*head, "trainable_params", "seconds"]]
    for row in table.rows:
        cells = [cell_of(row, column) for column in columns]
        numbers = [part for cell in cells for part in (cell.mean, "" if cell.half is None else cell.half)]
        lines.append([row.name, row.label, row.num_seeds, *numbers, row.trainable_params, row.seconds])
    return _csv(lines)


def comparisons_to_csv(table: Table) -> str:
    """Return the comparisons as CSV: points, full precision."""
    head = ["a", "b", "difference", "low", "high", "level", "p_value", "p_holm", "excludes_zero", "covers_seeds"]
    lines: list[Sequence[object]] = [head]
    for c in table.comparisons:
        d = c.difference
        yes_no = [str(d.excludes_zero).lower(), str(d.covers_seeds).lower()]
        lines.append([c.a, c.b, d.points, d.low, d.high, d.level, d.p_value, c.p_corrected, *yes_no])
    return _csv(lines)


def _plain_cells(table: Table, row: Row, plus_minus: str) -> list[str]:
    cells = [format_cell(cell_of(row, column), plus_minus=plus_minus) for column in (*table.types, "Avg")]
    return [row.label, *cells, format_count(row.trainable_params), format_seconds(row.seconds)]


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
    return [*cells, format_count(row.trainable_params), format_seconds(row.seconds)]


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
