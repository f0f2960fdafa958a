"""Numbers as the report prints them, in every format alike."""

from __future__ import annotations

import math

from .statistics import MeanInterval
from .table import Comparison, Corrected


def format_cell(cell: MeanInterval, *, plus_minus: str = " ± ") -> str:
    """Return "61.2" for one seed, "61.2 ± 3.4" for several."""
    return f"{cell.mean:.1f}" if cell.half is None else f"{cell.mean:.1f}{plus_minus}{cell.half:.1f}"


def format_count(number: int | None) -> str:
    """Return a count to three digits: "–", "812", "12.3 k", "1.23 M", "4.50 G", "1.20 T"."""
    if number is None:
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            digits = max(0, 2 - int(math.log10(number / size * 1.0005)))
            return f"{number / size:.{digits}f} {unit}"
    return str(number)


def format_hours(seconds: float | None) -> str:
    """Return hours to two digits, "0.022", "1.5", "140", or "–"."""
    if seconds is None:
        return "–"
    hours = seconds / 3600
    if hours >= 99.5:
        return f"{hours:,.0f}"
    return f"{hours:.2g}" if hours >= 0.0001 else "<0.0001"


def format_time(seconds: float) -> str:
    """Return a time as "3.4 s", "12 min", "5.6 h"."""
    size, unit = next(((s, u) for s, u in ((3600.0, "h"), (60.0, "min")) if seconds >= 1.5 * s), (1.0, "s"))
    return f"{seconds / size:,.0f} {unit}" if seconds >= 99.5 * size else f"{seconds / size:.3g} {unit}"


def format_p(p_value: float) -> str:
    """Return a p-value to three decimals, "<0.001" below."""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def format_interval(comparison: Comparison | Corrected) -> str:
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
