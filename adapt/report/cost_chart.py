"""The plot of what a run cost over how deep its first insertion sits, beside the same without the cache."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from .drawing import TOP, Frame, colour, named_dots, svg, tag, text, titled
from .formats import format_time
from .ledger import Ledger
from .runs import Run

_MINUTE, _HOUR = 60.0, 3600.0
_ROUND_SECONDS = (
    *(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    *(k * _MINUTE for k in (1, 3, 10, 30)),
    *(k * _HOUR for k in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)),
)


def cost_over_depth(variants: Mapping[str, Sequence[Run]], labels: Mapping[str, str], ledger: Ledger) -> Markup | None:
    """Draw the seconds of one run (mean over seeds, logarithmic) over the depth of its first insertion.

    A ring above a dot is what the plan says that the run takes without the cache.

    Returns:
        The SVG, or None where the runs do not say where their insertions sit.
    """
    costs = {cost.name: cost for cost in ledger.variants}
    points = []
    for index, (name, runs) in enumerate(variants.items()):
        depth, cost = runs[0].depth, costs[name]
        if depth is not None and cost.actual > 0:
            live = None if cost.without_cache is None else math.log10(cost.without_cache / len(runs))
            points.append((index, labels.get(name, name), depth, math.log10(cost.actual / len(runs)), live))
    if not points:
        return None
    lows = [seconds for *_, seconds, _ in points]
    frame = Frame([0.0, 1.35], [*lows, *(live for *_, live in points if live is not None)], left=58)
    parts, dots = [*_seconds_grid(frame), *_depth_grid(frame)], []
    for index, label, depth, seconds, live in points:
        x, y = frame.x(depth), frame.y(seconds)
        if live is not None:
            ring = tag("circle", cx=x, cy=frame.y(live), r=4.5, fill="none", stroke=colour(index), stroke_width=1.8)
            parts.append(tag("line", x1=x, x2=x, y1=y, y2=frame.y(live), class_="grid"))
            parts.append(titled(ring, f"{label} without the cache: {format_time(10**live)}"))
        dots.append((index, depth, seconds, label, f"{label}, depth {depth:.2f}: {format_time(10**seconds)}"))
    return svg([*parts, *named_dots(frame, dots)], "cost over depth of insertion")


def _seconds_grid(frame: Frame) -> Iterable[Markup]:
    """Lines at round times, at fewer where the range is wide."""
    wide = frame.y_high - frame.y_low > 2.5
    for seconds in _ROUND_SECONDS[::2] if wide else _ROUND_SECONDS:
        value = math.log10(seconds)
        if frame.y_low <= value <= frame.y_high:
            yield tag("line", x1=frame.left, x2=frame.right, y1=frame.y(value), y2=frame.y(value), class_="grid")
            yield text(format_time(seconds), frame.left - 7, frame.y(value) + 4, anchor="end")


def _depth_grid(frame: Frame) -> Iterable[Markup]:
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield tag("line", x1=frame.x(share), x2=frame.x(share), y1=TOP, y2=frame.bottom, class_="grid")
        yield text(f"{share:g}", frame.x(share), frame.bottom + 16, anchor="middle")
    words = "depth of the first insertion: 0 before the first unit, 1 after the last (mean over the trunks)"
    yield text(words, (frame.left + frame.right) / 2, frame.bottom + 33, anchor="middle")
