"""Times, sizes and counts as every message and report prints them."""

from __future__ import annotations

import math


def readable_seconds(seconds: float | None) -> str:
    """Format a time in the unit that suits it, to at most three digits.

    >>> [readable_seconds(s) for s in (None, 3.4, 75.0, 720.0, 20_160.0)]
    ['–', '3.4 s', '75 s', '12 min', '5.6 h']
    """
    if seconds is None:
        return "–"
    size, unit = next(((s, u) for s, u in ((3600.0, "h"), (60.0, "min")) if seconds >= 1.5 * s), (1.0, "s"))
    return f"{seconds / size:,.0f} {unit}" if seconds >= 99.5 * size else f"{seconds / size:.3g} {unit}"


def readable_bytes(count: float) -> str:
    """Format a size in decimal units.

    >>> [readable_bytes(n) for n in (1_500, 2_500_000, 3.2e12)]
    ['2 kB', '2.5 MB', '3.2 TB']
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def readable_count(number: float | None) -> str:
    """Format a count to three digits.

    >>> [readable_count(n) for n in (None, 812, 12_345, 1_234_567, 4_500_000_000)]
    ['–', '812', '12.3 k', '1.23 M', '4.50 G']
    """
    if number is None:
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            digits = max(0, 2 - int(math.log10(number / size * 1.0005)))
            return f"{number / size:.{digits}f} {unit}"
    return str(number)
