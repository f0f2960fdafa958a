"""Draw the report's figures over a property of the variants: parameters, depth of insertion."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from matplotlib.ticker import FuncFormatter, LogLocator

from ...formats import readable_count, readable_seconds
from .costs import CostTable
from .drawing import CARD, DASHED, LINE, SOFT, Plot, ReportFigure, colour, rings
from .formats import format_cell
from .runs import Run
from .table import Table

_DEPTH = "depth of the first insertion: 0 before the first unit, 1 after the last (mean over the trunks)"
_ROUND_SECONDS = (
    *(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0),
    *(3600.0 * hours for hours in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)),
)


def accuracy_over_params(table: Table) -> ReportFigure:
    """Draw each variant's average accuracy over its trainable parameters (logarithmic), the baseline as a line."""
    plot, dots = Plot(9.6, 3.6), []
    sizes = rings([(row.trainable_params, round(row.overall.mean, 1)) for row in table.trained])
    for index, row in enumerate(table.trained):
        x, cell = max(1, row.trainable_params or 1), row.overall
        if spread := cell.spread(table.spread):
            plot.axes.plot([x, x], [cell.mean - spread, cell.mean + spread], color=colour(index), linewidth=1.2)
        params = readable_count(row.trainable_params)
        words = f"{row.label}: {format_cell(cell, spread=table.spread)} %, {params} parameters"
        plot.dot(x, cell.mean, words, row.name, color=colour(index), markersize=6 + sizes[index])
        dots.append((float(x), cell.mean, row.label))
    for row in table.rows[: len(table.rows) - len(table.trained)]:
        y = row.overall.mean
        plot.hint(plot.axes.axhline(y, **DASHED), f"{row.label}: {y:.1f} %")
        plot.axes.annotate(row.label, (1, y), (0, 3), ("axes fraction", "data"), "offset points", ha="right")
    low, high = min(x for x, *_ in dots), max(x for x, *_ in dots)
    span = max(high / low, 3)
    plot.axes.set(xscale="log", xlim=(low * span**-0.12, high * span**0.35))
    plot.axes.set(xlabel="trainable parameters", ylabel=f"{table.metric.label} (%)")
    plot.axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plot.axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _short_count(x)))
    plot.axes.minorticks_off()
    plot.name_dots(dots)
    caption, detail = f"{table.metric.title} over trainable parameters", "all questions; logarithmic scale"
    return plot.finish("accuracy_over_parameters", caption, detail)


def accuracy_over_depth(table: Table, variants: Mapping[str, Sequence[Run]]) -> ReportFigure | None:
    """Draw average accuracy over the depth of the first insertion; lines join variants that differ in nothing else.

    None unless variants sit at two depths or more.
    """
    rows = {row.name: (index, row) for index, row in enumerate(table.trained)}
    depths = {n: runs[0].depth for n, runs in variants.items() if runs[0].insertions and runs[0].depth is not None}
    if len(set(depths.values())) < 2:
        return None
    plot, dots = Plot(9.6, 3.6), []
    families: dict[str, list[str]] = {}
    for name in depths:
        families.setdefault(_but_for_depth(variants[name][0]), []).append(name)
    for family in families.values():
        line = sorted((depths[name] or 0.0, rows[name][1].overall.mean) for name in family)
        if len(line) > 1:
            plot.axes.plot(*zip(*line, strict=True), color=SOFT, linewidth=1, zorder=1)
    sizes = rings([(depth, round(rows[name][1].overall.mean, 1)) for name, depth in depths.items()])
    for (name, depth), size in zip(depths.items(), sizes, strict=True):
        index, row = rows[name]
        cell, x = row.overall, depth or 0.0
        if spread := cell.spread(table.spread):
            plot.axes.plot([x, x], [cell.mean - spread, cell.mean + spread], color=colour(index), linewidth=1.2)
        words = f"{row.label}, depth {x:.2f}: {format_cell(cell, spread=table.spread)} %"
        plot.dot(x, cell.mean, words, name, color=colour(index), markersize=6 + size)
        dots.append((x, cell.mean, row.label))
    low, high = min(x for x, *_ in dots), max(x for x, *_ in dots)
    plot.axes.set(
        xlim=(low - 0.05 * (high - low), high + 0.35 * (high - low)), ylabel=f"{table.metric.label} (%)", xlabel=_DEPTH
    )
    plot.name_dots(dots)
    detail = "all questions; lines join variants that differ in insertion alone"
    return plot.finish("accuracy_over_depth", f"{table.metric.title} over depth of insertion", detail)


def _but_for_depth(run: Run) -> str:
    """Return a text of a run's settings but for its name, seed, insertion and store."""
    left_out = ("experiment", "variant", "seed", "insertion", "store", "encoders")
    return json.dumps({k: v for k, v in run.config.items() if k not in left_out}, sort_keys=True, default=str)


def cost_over_depth(
    labels: Mapping[str, str], variants: Mapping[str, Sequence[Run]], costs: CostTable
) -> ReportFigure | None:
    """Draw the seconds of one run (mean over seeds, logarithmic) over the depth of its first insertion.

    A ring above a dot is the plan's prediction for that run without the cache. None where no run records its depth.
    """
    by_name = {cost.name: cost for cost in costs.variants}
    plot, dots, with_live = Plot(9.6, 3.6), [], False
    places = [(runs[0].depth, f"{(by_name[name].actual or 0) / len(runs):.2g}") for name, runs in variants.items()]
    sizes = rings(places)
    for index, (name, runs) in enumerate(variants.items()):
        depth, cost = runs[0].depth, by_name[name]
        if depth is None or not cost.actual:
            continue
        label, seconds = labels[name], cost.actual / len(runs)
        if cost.without_cache is not None:
            with_live, live = True, cost.without_cache / len(runs)
            plot.axes.plot([depth, depth], [seconds, live], color=LINE, linewidth=1)
            words = f"{label} without the cache: {readable_seconds(live)}"
            plot.dot(depth, live, words, name, color=colour(index), markerfacecolor=CARD)
        words = f"{label}, depth {depth:.2f}: {readable_seconds(seconds)}"
        plot.dot(depth, seconds, words, name, color=colour(index), markersize=6 + sizes[index])
        dots.append((depth, seconds, label))
    if not dots:
        return None
    plot.axes.set_yscale("log")
    low, high = plot.axes.get_ylim()
    shown = _ROUND_SECONDS[::2] if high / low > 300 else _ROUND_SECONDS
    plot.axes.set_yticks([s for s in shown if low <= s <= high])
    plot.axes.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: readable_seconds(seconds)))
    plot.axes.minorticks_off()
    plot.axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    plot.axes.set(xlim=(-0.03, 1.35), ylim=(low, high))
    plot.axes.set_xlabel(_DEPTH)
    plot.name_dots(dots)
    detail = "one run, training and evaluation; logarithmic scale" + "; rings: without the cache" * with_live
    return plot.finish("cost_over_depth", "Cost over depth of insertion", detail)


def _short_count(value: float) -> str:
    return re.sub(r"\.0+(?=\D|$)", "", readable_count(round(value)))
