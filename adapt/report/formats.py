"""Format numbers as every output of the report prints them."""

from __future__ import annotations

from collections.abc import Sequence

from .statistics import Difference, MeanInterval, Spread


def format_cell(cell: MeanInterval, *, spread: Spread = "interval", plus_minus: str = " ± ") -> str:
    """Format an accuracy in percent: "61.2" for one seed, "61.2 ± 3.4" for several."""
    half = cell.spread(spread)
    return f"{cell.mean:.1f}" if half is None else f"{cell.mean:.1f}{plus_minus}{half:.1f}"


def format_hours(seconds: float | None) -> str:
    """Format seconds as hours to two digits.

    >>> [format_hours(s) for s in (None, 79.2, 5400.0, 504_000.0)]
    ['–', '0.022', '1.5', '140']
    """
    if seconds is None:
        return "–"
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 99.5 else f"{hours:.2g}" if hours >= 0.0001 else "<0.0001"


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


def listed(names: Sequence[str], *, most: int = 8) -> str:
    """List names, of more than `most` the first ones.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)


def shorten(text: str, width: int) -> str:
    """Put a text on one line of at most `width` characters, the last of them "…" where it is cut.

    >>> shorten("trimodal without interaction", 12)
    'trimodal wi…'
    """
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
