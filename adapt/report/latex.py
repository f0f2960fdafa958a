r"""Print the report's tables as LaTeX floats for a paper: booktabs, captions, marks of the best and of significance.

The file is included by \input; its head names the two packages that it needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ...errors import counted
from .columns import table_columns
from .table import AVERAGE, BLIND, Comparison, Mark, Row, Table
from .tables_text import DELTA_NOTE, Cells, accuracy_cells, comparison_cells, delta_cells

_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_SPECIAL |= {c: "\\" + c for c in "&%$#_{}"} | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_SPECIAL |= {"±": r"$\pm$", "−": "$-$", "–": "--", "…": r"\ldots{}", "·": r"$\cdot$", "×": r"$\times$"}
_MARKED = {"best": "\0b{}\1", "shared": "\0u{}\1", "": "{}"}  # not escaped; commands once all else is
_COMMANDS = {"\0b": r"\textbf{", "\0u": r"\underline{", "\1": "}", "\2": r"$^{*}$"}
_ROWS_A_PAGE = 40
_SPREAD = re.compile(r"(?:\$(\^\{\*\})\$)? \$\\pm\$ (\d+\.\d)$")
_HEAD = r"% Made by talik report. \input this file in a document with \usepackage{booktabs,graphicx}."
_FIT = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"  # only what is too wide is made smaller


def to_latex(table: Table) -> str:
    r"""Print the tables as `table*` floats: accuracy (types below their groups), comparisons, differences by type.

    More than 40 rows go on in further floats.
    """
    accuracy, above = _accuracy(table)
    untrained = len(table.rows) - len(table.trained)
    size = f"{counted(table.num_questions, f'{table.split} question')} on {counted(table.num_clips, 'clip')}"
    parts = [_HEAD]
    caption = f"{table.metric.title} (\\%) by question type on {_escaped(size)}; {_seeds(table)}."
    notes = [table.spread_note(), table.mark_note(), _star_note(table)]
    caption += "".join(f" {_escaped(note)}" for note in notes if note)
    columns = "l" + "r" * (len(accuracy.head) - 1)
    parts += _floats(accuracy, columns, caption, "accuracy", above=above, rule_after=untrained)
    comparisons, deltas = comparison_cells(table), delta_cells(table)
    if comparisons is not None:
        level = f"{100 * table.comparisons[0].difference.level:g}"
        caption = (
            rf"Differences in {table.metric.label} (percentage points) on the same {_escaped(size)}, with {level}\,\% "
            "intervals of a paired bootstrap over clips"
            + (" and the seeds' spread" if any(c.difference.covers_seeds for c in table.comparisons) else "")
            + rf"; significant: $p < {1 - table.comparisons[0].difference.level:.2g}$ after Holm's correction."
        )
        parts += _floats(comparisons, "llrrrrl", caption, "differences")
    if deltas is not None:
        caption = f"Differences by question type from {_escaped(table.deltas()[0].b_label)}. {_escaped(DELTA_NOTE)}"
        parts += _floats(deltas, "l" + "r" * (len(deltas.head) - 1), caption, "differences-by-type")
    return "\n".join(parts)


def _accuracy(table: Table) -> tuple[Cells, list[str]]:
    """Format the accuracy table, and the lines above its head that name the groups of types."""

    def styled(row: Row, column: str, mean: str, mark: Mark) -> str:
        return _MARKED[mark].format(mean) + "\2" * _differs(table, row, column)

    cells = accuracy_cells(table, heads="latex", style=styled, grouped=True)
    if table.columns or not any(table.groups()):
        return cells, []
    spans, rules, head = [""], [], ["Variant"]
    for name, members in table.groups().items():
        first, size = len(head) + 1, len(members) + bool(name)
        spans.append(rf"\multicolumn{{{size}}}{{c}}{{{_escaped(name)}}}")
        rules.append(rf"\cmidrule(lr){{{first}-{first + size - 1}}}" if name else "")
        head += [*(m.rpartition("-")[2] for m in members), AVERAGE] if name else members
    others = [column.latex for column in table_columns(table, grouped=True) if not column.accuracy]
    cells.head[:] = [*head, AVERAGE, *others]
    return cells, [" & ".join([*spans, "", *("" for _ in others)]) + r" \\", "".join(rules)]


def _differs(table: Table, row: Row, column: str) -> bool:
    """Tell whether a row's accuracy differs significantly from the baseline's, in all or in a type."""
    for comparison in table.deltas():
        if comparison.a == row.name:
            part: Comparison | None = comparison if column == AVERAGE else comparison.by_type.get(column)
            return part is not None and part.significant
    return False


def _star_note(table: Table) -> str:
    if not table.deltas() or table.baseline is None:
        return ""
    baseline = table.labels[table.baseline]
    return f"* differs from {baseline} (p < 0.05, paired test on the same questions, Holm's correction)."


def _seeds(table: Table) -> str:
    found = sorted({row.num_seeds for row in table.trained})
    several = len(found) > 1
    said = f"{found[0]} to {counted(found[-1], 'seed')}" if several else counted(found[0], "seed")
    blind = "; the blind baseline has none" * any(row.name == BLIND for row in table.rows)
    return f"mean of {said} a variant{blind}" if found[-1] > 1 else f"one seed a variant{blind}"


def _floats(
    cells: Cells, columns: str, caption: str, label: str, *, above: Iterable[str] = (), rule_after: int = 0
) -> list[str]:
    """Print a table as one `table*`, or several of at most 40 rows."""
    found = []
    for start in range(0, len(cells.body), _ROWS_A_PAGE):
        rows = cells.body[start : start + _ROWS_A_PAGE]
        lines = [r"\begin{table*}[tbp]", r"\centering\small\setlength{\tabcolsep}{3.5pt}"]
        if start == 0:
            lines += [rf"\caption{{{caption}}}", rf"\label{{tab:talik-{label}}}"]
        else:
            lines += [rf"\caption{{Table~\ref{{tab:talik-{label}}}, continued.}}"]
        lines += _tabular(cells.head, rows, columns, above, rule_after=0 if start else rule_after)
        found.append("\n".join([*lines, r"\end{table*}"]) + "\n")
    return found


def _tabular(
    head: Sequence[str], body: Sequence[Sequence[str]], columns: str, above: Iterable[str], *, rule_after: int
) -> list[str]:
    """Print one `tabular` with lines `above` its head and a rule after the first `rule_after` rows."""
    printed = [_row(row) for row in body]
    first = [*printed[:rule_after], r"\midrule"] if 0 < rule_after < len(printed) else printed[:rule_after]
    begin = [_FIT, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *above, _row(head), r"\midrule"]
    return [*begin, *first, *printed[rule_after:], r"\bottomrule", r"\end{tabular}}"]


def _escaped(text: str) -> str:
    """Escape what LaTeX would read as commands, and print marks as commands."""
    escaped = "".join(_SPECIAL.get(c, c) for c in " ".join(text.split(" ")) if c >= " " or c in "\0\1\2")
    for sign, command in _COMMANDS.items():
        escaped = escaped.replace(sign, command)
    return escaped


def _row(cells: Iterable[str]) -> str:
    """Escape and join cells; a spread stands as a subscript, so that a column is narrow."""
    found = [_escaped(" ".join(cell.split())) for cell in cells]
    found = [_SPREAD.sub(lambda m: f"${m[1] or ''}_{{\\pm {m[2]}}}$", cell) for cell in found]
    return " & ".join(f"{{}}{cell}" if cell.startswith("[") else cell for cell in found) + r" \\"
