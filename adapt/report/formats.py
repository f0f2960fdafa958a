"""Format numbers as every output of the report prints them."""

from __future__ import annotations

import math

from .statistics import Difference, MeanInterval


def format_cell(cell: MeanInterval, *, plus_minus: str = " ± ") -> str:
    """Format an accuracy in percent: "61.2" for one seed, "61.2 ± 3.4" for several."""
    return f"{cell.mean:.1f}" if cell.half is None else f"{cell.mean:.1f}{plus_minus}{cell.half:.1f}"


def format_count(number: int | None) -> str:
    """Format a count to three digits.

    >>> [format_count(n) for n in (None, 812, 12_345, 1_234_567, 4_500_000_000)]
    ['–', '812', '12.3 k', '1.23 M', '4.50 G']
    """
    if number is None:
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            digits = max(0, 2 - int(math.log10(number / size * 1.0005)))
            return f"{number / size:.{digits}f} {unit}"
    return str(number)


def format_hours(seconds: float | None) -> str:
    """Format seconds as hours to two digits.

    >>> [format_hours(s) for s in (None, 79.2, 5400.0, 504_000.0)]
    ['–', '0.022', '1.5', '140']
    """
    if seconds is None:
        return "–"
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 99.5 else f"{hours:.2g}" if hours >= 0.0001 else "<0.0001"


def format_time(seconds: float | None) -> str:
    """Format a time in the unit that suits it.

    >>> [format_time(s) for s in (None, 3.4, 720.0, 20_160.0)]
    ['–', '3.4 s', '12 min', '5.6 h']
    """
    if seconds is None:
        return "–"
    size, unit = next(((s, u) for s, u in ((3600.0, "h"), (60.0, "min")) if seconds >= 1.5 * s), (1.0, "s"))
    return f"{seconds / size:,.0f} {unit}" if seconds >= 99.5 * size else f"{seconds / size:.3g} {unit}"


def format_p(p_value: float) -> str:
    """Format a p-value to three decimals, or as "<0.001"."""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def format_points(points: float) -> str:
    """Format a difference with its sign.

    >>> [format_points(x) for x in (1.24, -0.4, 0.01)]
    ['+1.2', '−0.4', '0.0']
    """
    text = f"{points:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def format_interval(difference: Difference) -> str:
    """Format an interval in points, as "[+1.2, +4.0]"."""
    return f"[{format_points(difference.low)}, {format_points(difference.high)}]"


def shorten(text: str, width: int) -> str:
    """Put a text on one line of at most `width` characters, the last of them "…" where it is cut.

    >>> shorten("trimodal without interaction", 12)
    'trimodal wi…'
    """
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
