"""Draw the report's figures of accuracies: by type, differences, learning curves."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from .costs import CostTable
from .drawing import (
    ACCENT,
    CARD,
    DASHED,
    HALO,
    INK,
    MOST_NAMED,
    SOFT,
    STYLE,
    Plot,
    ReportFigure,
    colour,
    line_style,
    rings,
)
from .figures_over import accuracy_over_depth, accuracy_over_params, cost_over_depth
from .formats import format_cell, format_interval, format_points, shorten
from .runs import Run
from .search import SearchSummary
from .search_figure import search_coordinates
from .table import AVERAGE, Table


def make_figures(
    table: Table, variants: Mapping[str, Sequence[Run]], costs: CostTable, search: SearchSummary | None = None
) -> tuple[ReportFigure, ...]:
    """Draw every figure that these runs, of which `table`, `costs` and `search` were made, have the numbers for."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a PDF lacks it, the page's fonts have it
        drawn = (
            accuracy_by_type(table) if len(table.rows) <= MOST_NAMED else accuracy_matrix(table),
            intervals(table),
            learning_curves(
                table, variants, f"val_{table.metric.name}", f"Validation {table.metric.label}", "percent, "
            ),
            learning_curves(table, variants, "train_loss", "Training loss", ""),
            accuracy_over_depth(table, variants),
            accuracy_over_params(table),
            cost_over_depth(table.labels, variants, costs),
            None if search is None else search_coordinates(search),
        )
    return tuple(figure for figure in drawn if figure is not None)


def accuracy_by_type(table: Table) -> ReportFigure:
    """Draw each variant's accuracy by question type as bars from zero, with the blind baseline as a line across."""
    columns = [*table.types, AVERAGE]
    plot, width = Plot(9.6, 3.8), 0.84 / len(table.trained)
    for index, row in enumerate(sorted(table.rows, key=lambda row: not row.trained)):
        for place, column in enumerate(columns):
            cell = row.cell(column)
            if row.trained:
                x = place - 0.42 + (index + 0.5) * width
                (drawn,) = plot.axes.bar(x, cell.mean, width * 0.92, color=colour(index))
                spread = cell.spread(table.spread) or 0.0
                ends = [min(100.0, max(0.0, cell.mean + sign * spread)) for sign in (-1, 1)]
                if spread:
                    plot.axes.plot([x, x], ends, color=INK, linewidth=1, path_effects=HALO)
            else:
                ends = [place - 0.44, place + 0.44]
                (drawn,) = plot.axes.plot(ends, [cell.mean] * 2, linewidth=1.6, path_effects=HALO, **DASHED)
            plot.hint(drawn, f"{row.label}, {column}: {format_cell(cell, spread=table.spread)} %", row.name)
    plot.axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(0, 100), ylabel=f"{table.metric.label} (%)")
    turned: dict[str, Any] = {"rotation": 40, "ha": "right"} if sum(map(len, columns)) > 110 else {}
    plot.axes.set_xticks(range(len(columns)), [shorten(c, 24) for c in columns], **turned)
    plot.axes.grid(visible=False, axis="x")
    plot.legend(table.rows)
    detail = table.spread_note().replace("± is", "whiskers:").rstrip(".")
    return plot.finish("accuracy_by_type", f"{table.metric.title} by question type", detail)


def accuracy_matrix(table: Table) -> ReportFigure:
    """Draw the accuracies of many variants as a matrix, a row each, the darker the higher in its column."""
    columns = [*table.types, AVERAGE]
    plot = Plot(9.6, 0.9 + 0.19 * len(table.rows))
    means = np.array([[row.cell(column).mean for column in columns] for row in table.rows])
    low, high = means.min(axis=0), means.max(axis=0)
    shares = (means - low) / np.maximum(high - low, 1e-9)
    for place, row in enumerate(table.rows):
        for index, column in enumerate(columns):
            (drawn,) = plot.axes.barh(
                place, 0.96, 0.92, left=index - 0.48, color=ACCENT, alpha=0.04 + 0.55 * shares[place, index]
            )
            cell = row.cell(column)
            plot.hint(drawn, f"{row.label}, {column}: {format_cell(cell, spread=table.spread)} %", row.name)
            words = plot.axes.text(index, place, f"{cell.mean:.1f}", ha="center", va="center", color=INK, fontsize=7)
            words.set_in_layout(False)
    plot.axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(table.rows) - 0.5, -0.5))
    turned: dict[str, Any] = {"rotation": 40, "ha": "left"} if sum(map(len, columns)) > 110 else {}
    plot.axes.xaxis.tick_top()
    plot.axes.set_xticks(range(len(columns)), [shorten(c, 24) for c in columns], **turned)
    plot.axes.set_yticks(range(len(table.rows)), [shorten(row.label, 36) for row in table.rows], fontsize=7)
    plot.axes.grid(visible=False)
    plot.axes.spines[:].set_visible(False)
    detail = "percent, means over seeds; the darker the higher in its column"
    return plot.finish("accuracy_by_type", f"{table.metric.title} by question type", detail)


def intervals(table: Table) -> ReportFigure | None:
    """Draw every comparison's difference and interval in points, filled where the interval excludes zero."""
    if not table.comparisons:
        return None
    plot = Plot(9.6, 0.8 + 0.26 * len(table.comparisons))
    plot.axes.axvline(0, color=INK, linewidth=1)
    for place, c in enumerate(table.comparisons):
        d = c.difference
        shade = ACCENT if c.significant else SOFT
        plot.axes.plot([d.low, d.high], [place, place], color=shade)
        words = f"{c.a_label} against {c.b_label}: {format_points(d.points)} {format_interval(d)} points"
        plot.dot(d.points, place, words, c.a, color=shade, markerfacecolor=shade if c.significant else CARD)
    names = [f"{shorten(c.a_label, 36)} – {shorten(c.b_label, 36)}" for c in table.comparisons]
    plot.axes.set_yticks(range(len(names)), names)
    plot.axes.set(ylim=(len(names) - 0.5, -0.5), xlabel="difference (percentage points)")
    plot.axes.grid(visible=False, axis="y")
    level = f"{100 * table.comparisons[0].difference.level:g} % intervals; filled: significant (Holm)"
    return plot.finish("differences", "Differences between variants", level)


def learning_curves(
    table: Table, variants: Mapping[str, Sequence[Run]], field: str, caption: str, unit: str
) -> ReportFigure | None:
    """Draw a metric of `Epoch` over epochs, thin by seed, thick the mean; None with fewer than two epochs."""
    curves = {}  # one row a seed, one column an epoch
    for name, runs in variants.items():
        values = pd.DataFrame([{e.epoch: getattr(e, field) for e in run.epochs} for run in runs], dtype=float)
        finite = values.where(np.isfinite(values)).dropna(axis=1, how="all").sort_index(axis=1)
        curves[name] = finite * (100.0 if field.startswith("val_") else 1.0)
    if len({epoch for seeds in curves.values() for epoch in seeds}) < 2:
        return None
    plot = Plot(4.7, 3.1)
    means = {name: seeds.dropna(axis=1).mean() for name, seeds in curves.items()}
    groups = _close_curves(list(means.values()))
    sizes = [size / 2 for size in rings(groups)]
    for index, (name, seeds) in enumerate(curves.items()):
        for run, (_, seed) in zip(variants[name], seeds.iterrows(), strict=True) if len(seeds) > 1 else ():
            (drawn,) = plot.axes.plot(seed.dropna(), alpha=0.3, linewidth=0.8, **line_style(index))
            plot.hint(drawn, f"{table.labels[name]}, seed {run.seed}", name)
        style = {**line_style(index), **_alternating(groups, index)}
        (drawn,) = plot.axes.plot(means[name], **style)
        last = "" if means[name].empty else f": {means[name].iloc[-1]:.4g} after epoch {means[name].index[-1]}"
        plot.hint(drawn, f"{table.labels[name]}{last}", name)
        for epoch, mean in means[name].items() if len(curves) < MOST_NAMED else ():
            words = f"{table.labels[name]}, epoch {epoch}: {mean:.4g}"
            plot.dot(epoch, mean, words, name, color=colour(index), markersize=3.5 + sizes[index])
    plot.axes.set(xlabel="epoch")
    plot.axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plot.legend(table.trained)
    several = any(len(runs) > 1 for runs in variants.values())
    detail = f"{unit}by epoch" + "; thin lines are single seeds" * several
    return plot.finish(field, caption, detail, wide=False)


def _close_curves(curves: Sequence[pd.Series[float]]) -> list[int]:
    """Give curves that lie on each other, as closely as a line is thick, the same number."""
    values = np.concatenate([curve.to_numpy() for curve in curves])
    width = 0.012 * float(np.ptp(values)) if len(values) else 0.0
    groups: list[int] = []
    for index, curve in enumerate(curves):
        alike = (
            other
            for other, drawn in enumerate(curves[:index])
            if drawn.index.equals(curve.index) and bool((abs(drawn - curve) <= width).all())
        )
        other = next(alike, None)
        groups.append(index if other is None else groups[other])
    return groups


def _alternating(groups: Sequence[int], index: int) -> dict[str, Any]:
    """Return the dashes of a curve that others cover: curves at one place take turns along it; {} of one alone."""
    alike = [other for other, group in enumerate(groups) if group == groups[index]]
    if len(alike) == 1 or len(groups) >= MOST_NAMED:
        return {}
    return {"linestyle": (6.0 * alike.index(index), (6.0, 6.0 * (len(alike) - 1))), "dash_capstyle": "butt"}
