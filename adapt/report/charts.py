"""The report's plots as inline SVG, drawn in the page's own colours and fonts, so that they follow light and dark.

Every text goes through markupsafe. Colours are the page's CSS variables --c0 … --c11, by the variant's place among the
trained rows; beyond twelve they come round again with dashes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from .drawing import (
    BOTTOM,
    HALF_HEIGHT,
    HALF_WIDTH,
    HEIGHT,
    RIGHT,
    TOP,
    WIDTH,
    Frame,
    colour,
    dashes,
    dot,
    named_dots,
    polyline,
    svg,
    tag,
    text,
    ticks,
    titled,
)
from .formats import format_cell, format_count, format_points
from .runs import Epoch, Run
from .statistics import MeanInterval
from .table import Comparison, Row, Table, cell_of

_BAR_WIDTH = 240.0


def learning_curves(variants: Mapping[str, Sequence[Run]], *, field: str) -> Markup | None:
    """Draw `field` of Epoch ("val_accuracy" in percent, "train_loss") over epochs: thin by seed, thick the mean.

    Returns:
        The SVG, or None where fewer than two epochs have a finite value.
    """
    scale = 100.0 if field.endswith("accuracy") else 1.0
    lines = {name: [_points(run.epochs, field, scale) for run in runs] for name, runs in variants.items()}
    every = [point for seeds in lines.values() for seed in seeds for point in seed]
    if len({x for x, _ in every}) < 2:
        return None
    frame = Frame([x for x, _ in every], [y for _, y in every], width=HALF_WIDTH, height=HALF_HEIGHT)
    parts = [*frame.grid_y(), *frame.grid_x("epoch")]
    for index, (name, seeds) in enumerate(lines.items()):
        style = {"stroke": colour(index), "stroke_dasharray": dashes(index), "fill": "none"}
        if len(seeds) > 1:
            parts += [polyline(frame, seed, stroke_width=1, opacity=0.3, **style) for seed in seeds if seed]
        mean = _mean_line(seeds)
        parts.append(polyline(frame, mean, stroke_width=2.2, **style))
        parts += [dot(frame.x(x), frame.y(y), index, f"{name}, epoch {x:g}: {y:.4g}", radius=2.6) for x, y in mean]
    return svg(parts, f"{field.replace('_', ' ')} over epochs", width=HALF_WIDTH, height=HALF_HEIGHT)


def type_bars(table: Table) -> Markup:
    """Draw each variant's accuracy by question type, from zero, with the blind baseline as a line across."""
    columns = [*table.types, "Avg"]
    trained = [row for row in table.rows if row.trained]
    blind = next((row for row in table.rows if not row.trained), None)
    frame = Frame([0, len(columns)], [0, 100])
    parts = list(frame.grid_y(unit=" %"))
    slot = frame.x(1) - frame.x(0)
    gap = min(14.0, slot * 0.2)
    bar = (slot - gap) / max(1, len(trained))
    for place, column in enumerate(columns):
        left = frame.x(place) + gap / 2
        for index, row in enumerate(trained):
            parts += _bar(frame, left + index * bar, bar, row, column, index)
        if blind is not None:
            height, reach = frame.y(cell_of(blind, column).mean), left + bar * len(trained)
            line = _over_bars("blind", x1=left - 2, x2=reach + 2, y1=height, y2=height)
            parts.append(titled(line, f"{blind.label}, {column}: {format_cell(cell_of(blind, column))} %"))
        parts.append(text(column, left + (slot - gap) / 2, HEIGHT - BOTTOM + 17, anchor="middle"))
    return svg(parts, "accuracy by question type")


def accuracy_over_params(table: Table) -> Markup:
    """Draw each variant's average accuracy over its trainable parameters (logarithmic), the baseline as a line."""
    trained = [row for row in table.rows if row.trained]
    blind = next((row for row in table.rows if not row.trained), None)
    xs = [math.log10(max(1, row.trainable_params or 1)) for row in trained]
    cells = [row.overall for row in trained]
    ys = [end for cell in cells for end in _ends(cell)]
    span = max(0.5, max(xs) - min(xs))
    reach = [min(xs) - 0.12 * span, max(xs) + 0.3 * span]  # the labels stand to the right of their points
    frame = Frame(reach, [*ys, *([blind.overall.mean] if blind else [])])
    parts = [*frame.grid_y(unit=" %"), *_decades(frame)]
    if blind is not None:
        parts += _across(frame, blind.overall.mean, blind.label)
    points = []
    for index, (row, x) in enumerate(zip(trained, xs, strict=True)):
        low, high = map(frame.y, _ends(row.overall))
        parts.append(tag("line", x1=frame.x(x), x2=frame.x(x), y1=low, y2=high, stroke=colour(index), stroke_width=1.5))
        hint = f"{row.label}: {format_cell(row.overall)} %, {format_count(row.trainable_params)} parameters"
        points.append((index, x, row.overall.mean, row.label, hint))
    return svg([*parts, *named_dots(frame, points)], "accuracy over trainable parameters")


def interval_scale(table: Table) -> tuple[float, float]:
    """Return the range in points that all comparisons' intervals and zero fit in."""
    ends = [end for c in table.comparisons for end in (c.difference.low, c.difference.high)]
    return min(0.0, *ends), max(0.0, *ends)


def interval_axis(table: Table) -> Markup:
    """Draw the numbers above the column of `interval_bar`s."""
    frame = _interval_frame(table)
    shown = ticks(frame.x_low, frame.x_high, inside=True)
    parts = [text(format_points(t).removesuffix(".0"), frame.x(t), 13, anchor="middle") for t in shown]
    return svg(parts, "scale in points", width=_BAR_WIDTH, height=16)


def interval_bar(table: Table, comparison: Comparison) -> Markup:
    """Draw one comparison's difference and interval on the scale that all share, with zero marked."""
    frame, d = _interval_frame(table), comparison.difference
    parts = [
        tag("line", x1=frame.x(t), x2=frame.x(t), y1=-9, y2=31, class_="grid" if t else "zero")
        for t in ticks(frame.x_low, frame.x_high, inside=True)
    ]
    state = "sure" if d.excludes_zero else "unsure"
    parts.append(tag("line", x1=frame.x(d.low), x2=frame.x(d.high), y1=11, y2=11, class_=f"whisker {state}"))
    parts.append(tag("circle", cx=frame.x(d.points), cy=11, r=4.5, class_=f"centre {state}"))
    label = f"{comparison.a_label} against {comparison.b_label}: {format_points(d.points)} points"
    return svg(parts, label, width=_BAR_WIDTH, height=22)


def _interval_frame(table: Table) -> Frame:
    return Frame(interval_scale(table), [0, 1], left=14, width=_BAR_WIDTH, right=14)


def _bar(frame: Frame, left: float, width: float, row: Row, column: str, index: int) -> list[Markup]:
    cell = cell_of(row, column)
    top = frame.y(cell.mean)
    shape = tag(
        "rect", x=left + 0.75, y=top, width=max(0.8, width - 1.5), height=frame.bottom - top, rx=1.5, fill=colour(index)
    )
    parts = [titled(shape, f"{row.label}, {column}: {format_cell(cell)} %")]
    if cell.half:
        ends = [frame.y(min(100.0, max(0.0, end))) for end in _ends(cell)]
        middle = left + width / 2
        parts.append(_over_bars("spread", x1=middle, x2=middle, y1=ends[0], y2=ends[1]))
    return parts


def _ends(cell: MeanInterval) -> tuple[float, float]:
    """Where a cell's interval ends; at its mean for one seed."""
    return cell.mean - (cell.half or 0.0), cell.mean + (cell.half or 0.0)


def _over_bars(class_: str, **ends: float) -> Markup:
    """A line with a ground of the card's colour below it, to be seen on a bar of any colour."""
    return tag("line", class_="under", **ends) + tag("line", class_=class_, **ends)


def _decades(frame: Frame) -> Iterable[Markup]:
    """Grid lines at 1, 2 and 5 times the powers of ten."""
    for power in range(math.floor(frame.x_low), math.ceil(frame.x_high) + 1):
        for factor in (1, 2, 5):
            value = math.log10(factor) + power
            if frame.x_low <= value <= frame.x_high:
                yield tag("line", x1=frame.x(value), x2=frame.x(value), y1=TOP, y2=frame.bottom, class_="grid")
                count = format_count(round(factor * 10**power)).replace(".00", "").replace(".0", "")
                yield text(count, frame.x(value), frame.bottom + 16, anchor="middle")
    yield text("trainable parameters", (frame.left + frame.right) / 2, frame.bottom + 33, anchor="middle")


def _across(frame: Frame, value: float, label: str) -> list[Markup]:
    height = frame.y(value)
    line = tag("line", x1=frame.left, x2=WIDTH - RIGHT, y1=height, y2=height, class_="blind")
    return [titled(line, f"{label}: {value:.1f} %"), text(label, WIDTH - RIGHT, height - 6, anchor="end")]


def _points(epochs: Iterable[Epoch], field: str, scale: float) -> list[tuple[float, float]]:
    values = [(float(epoch.epoch), getattr(epoch, field)) for epoch in epochs]
    return [(x, y * scale) for x, y in values if y is not None and math.isfinite(y)]


def _mean_line(seeds: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The mean over seeds of every epoch that all seeds reached."""
    by_epoch: dict[float, list[float]] = {}
    for seed in seeds:
        for x, y in seed:
            by_epoch.setdefault(x, []).append(y)
    return [(x, sum(ys) / len(ys)) for x, ys in sorted(by_epoch.items()) if len(ys) == len(seeds)]
