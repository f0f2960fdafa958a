"""Draw the report's figures with matplotlib: SVG and PDF files for a paper, and inline SVG for the page.

The page's SVG takes its colours from the page's CSS variables, so that it follows light and dark, and shows exact
numbers on hovering. The same runs give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from ...formats import readable_count, readable_seconds
from .costs import CostTable
from .formats import format_cell, format_interval, format_points, shorten
from .runs import Run
from .table import AVERAGE, Row, Table

INK, SOFT, LINE, CARD, ACCENT = "#1c1f23", "#5d656f", "#e3e4e0", "#ffffff", "#2a6fb0"
COLOURS = (
    *("#2f6fb3", "#d9702b", "#2a9463", "#a9479a", "#94791a", "#5d55c4"),
    *("#1590a0", "#bf3f55", "#5a6b7a", "#6fa01f", "#8a5a36", "#d45f9b"),
)
_CSS = {INK: "--ink", SOFT: "--soft", LINE: "--line", CARD: "--card", ACCENT: "--accent"}
_CSS |= {colour: f"--c{index}" for index, colour in enumerate(COLOURS)}
_STYLE: dict[Any, object] = {  # keys are literals in matplotlib's type hints
    "svg.hashsalt": "talik",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), SOFT),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), LINE),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size", "xtick.minor.size"), 0),
}
_DASHED: dict[str, Any] = {"color": SOFT, "linestyle": (0, (5, 4))}
_HALO = [withStroke(linewidth=3, foreground=CARD)]
_ROUND_SECONDS = (
    *(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0),
    *(3600.0 * hours for hours in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)),
)


class ReportFigure(NamedTuple):
    """One figure: its file's stem, caption and detail, the files' content, and the page's SVG."""

    name: str
    caption: str
    detail: str
    wide: bool
    svg: bytes
    pdf: bytes
    inline: Markup


def colour(index: int) -> str:
    """Choose the colour of the `index`-th trained row; they repeat, with dashed lines, from the thirteenth."""
    return COLOURS[index % len(COLOURS)]


def make_figures(table: Table, variants: Mapping[str, Sequence[Run]], costs: CostTable) -> tuple[ReportFigure, ...]:
    """Draw every figure that these runs, of which `table` and `costs` were made, have the numbers for."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a PDF lacks it, the page's fonts have it
        drawn = (
            accuracy_by_type(table),
            intervals(table),
            learning_curves(table, variants, "val_accuracy", "Validation accuracy", "percent, "),
            learning_curves(table, variants, "train_loss", "Training loss", ""),
            accuracy_over_params(table),
            cost_over_depth(table.labels, variants, costs),
        )
    return tuple(figure for figure in drawn if figure is not None)


class _Plot:
    """One set of axes, with words that show on hovering over parts of it."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), layout="constrained")
        self.axes = self.figure.subplots()
        self._hints: dict[str, str] = {}

    def hint(self, artist: Artist, words: str) -> None:
        """Show words on hovering over an artist."""
        artist.set_gid(f"hint-{len(self._hints)}")
        self._hints[f"hint-{len(self._hints)}"] = words

    def dot(self, x: float, y: float, words: str, **style: Any) -> None:
        """Draw a dot that shows words on hovering."""
        self.hint(self.axes.plot([x], [y], "o", **style)[0], words)

    def legend(self, rows: Sequence[Row]) -> None:
        """Name the rows' colours below the axes."""
        styles = iter(map(_line_style, range(len(rows))))
        handles = [
            Line2D([], [], linewidth=4, **next(styles)) if row.trained else Line2D([], [], linewidth=1.6, **_DASHED)
            for row in rows
        ]
        columns = min(max(1, int(self.figure.get_figwidth() / 1.6)), len(rows))
        legend = self.figure.legend(handles, [""] * len(rows), loc="outside lower center", ncols=columns)
        for text, row in zip(legend.get_texts(), rows, strict=True):
            text.set_text(shorten(row.label, 40))  # given as labels, names that begin with "_" would be left out

    def name_dots(self, dots: Sequence[tuple[float, float, str]]) -> None:
        """Write names to the right of dots (x, y, name), pushed apart vertically, with lines from dot to name."""
        self._lay_out()
        points = self.axes.transData.transform([dot[:2] for dot in dots])[:, 1] * 72 / self.figure.dpi
        lowest = math.inf
        for height, (x, y, name) in sorted(zip(points.tolist(), dots, strict=True), key=lambda pair: -pair[0]):
            lowest = min(height, lowest - 11)
            self.axes.annotate(
                shorten(name, 40),
                (x, y),
                (14, lowest - height),
                textcoords="offset points",
                va="center",
                color=INK,
                path_effects=_HALO,
                arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4},
            )

    def _lay_out(self) -> None:
        """Place the axes, once: each file's drawing would do it again."""
        if self.figure.get_layout_engine() is not None:
            self.figure.draw_without_rendering()
            self.figure.set_layout_engine("none")

    def finish(self, name: str, caption: str, detail: str = "", *, wide: bool = True) -> ReportFigure:
        """Write the figure in both formats, without dates, and for the page."""
        self._lay_out()
        svg, pdf = io.BytesIO(), io.BytesIO()
        self.figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        self.figure.savefig(pdf, format="pdf", metadata=dict.fromkeys(("Creator", "CreationDate", "Producer")))
        inline = _inline_svg(svg.getvalue(), caption, self._hints)
        return ReportFigure(name, caption, detail, wide, svg.getvalue(), pdf.getvalue(), inline)


def accuracy_by_type(table: Table) -> ReportFigure:
    """Draw each variant's accuracy by question type as bars from zero, with the blind baseline as a line across."""
    columns = [*table.types, AVERAGE]
    plot, width = _Plot(9.6, 3.8), 0.84 / len(table.trained)
    for index, row in enumerate(sorted(table.rows, key=lambda row: not row.trained)):
        for place, column in enumerate(columns):
            cell = row.cell(column)
            if row.trained:
                x = place - 0.42 + (index + 0.5) * width
                (drawn,) = plot.axes.bar(x, cell.mean, width * 0.92, color=colour(index))
                ends = [min(100.0, max(0.0, cell.mean + sign * (cell.half or 0.0))) for sign in (-1, 1)]
                if cell.half:
                    plot.axes.plot([x, x], ends, color=INK, linewidth=1, path_effects=_HALO)
            else:
                ends = [place - 0.44, place + 0.44]
                (drawn,) = plot.axes.plot(ends, [cell.mean] * 2, linewidth=1.6, path_effects=_HALO, **_DASHED)
            plot.hint(drawn, f"{row.label}, {column}: {format_cell(cell)} %")
    plot.axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(0, 100), ylabel="accuracy (%)")
    turned: dict[str, Any] = {"rotation": 40, "ha": "right"} if sum(map(len, columns)) > 110 else {}
    plot.axes.set_xticks(range(len(columns)), [shorten(c, 24) for c in columns], **turned)
    plot.axes.grid(visible=False, axis="x")
    plot.legend(table.rows)
    several = any(row.num_seeds > 1 for row in table.trained)
    detail = "whiskers: 95 % t-interval over seeds" if several else ""
    return plot.finish("accuracy_by_type", "Accuracy by question type", detail)


def intervals(table: Table) -> ReportFigure | None:
    """Draw every comparison's difference and interval in points, filled where the interval excludes zero."""
    if not table.comparisons:
        return None
    plot = _Plot(9.6, 0.8 + 0.26 * len(table.comparisons))
    plot.axes.axvline(0, color=INK, linewidth=1)
    for place, c in enumerate(table.comparisons):
        d = c.difference
        shade = ACCENT if d.excludes_zero else SOFT
        plot.axes.plot([d.low, d.high], [place, place], color=shade)
        words = f"{c.a_label} against {c.b_label}: {format_points(d.points)} {format_interval(d)} points"
        plot.dot(d.points, place, words, color=shade, markerfacecolor=shade if d.excludes_zero else CARD)
    names = [f"{shorten(c.a_label, 36)} – {shorten(c.b_label, 36)}" for c in table.comparisons]
    plot.axes.set_yticks(range(len(names)), names)
    plot.axes.set(ylim=(len(names) - 0.5, -0.5), xlabel="difference (percentage points)")
    plot.axes.grid(visible=False, axis="y")
    level = f"{100 * table.comparisons[0].difference.level:g} % intervals; filled where zero is excluded"
    return plot.finish("differences", "Differences between variants", level)


def learning_curves(
    table: Table, variants: Mapping[str, Sequence[Run]], field: str, caption: str, unit: str
) -> ReportFigure | None:
    """Draw a metric of `Epoch` over epochs, thin by seed, thick the mean; None with fewer than two epochs."""
    curves = {}  # one row a seed, one column an epoch
    for name, runs in variants.items():
        values = pd.DataFrame([{e.epoch: getattr(e, field) for e in run.epochs} for run in runs], dtype=float)
        finite = values.where(np.isfinite(values)).dropna(axis=1, how="all").sort_index(axis=1)
        curves[name] = finite * (100.0 if field.endswith("accuracy") else 1.0)
    if len({epoch for seeds in curves.values() for epoch in seeds}) < 2:
        return None
    plot = _Plot(4.7, 3.1)
    for index, (name, seeds) in enumerate(curves.items()):
        for _, seed in seeds.iterrows() if len(seeds) > 1 else ():
            plot.axes.plot(seed.dropna(), alpha=0.3, linewidth=0.8, **_line_style(index))
        means = seeds.dropna(axis=1).mean()
        plot.axes.plot(means, **_line_style(index))
        for epoch, mean in means.items():
            plot.dot(
                epoch, mean, f"{table.labels[name]}, epoch {epoch}: {mean:.4g}", color=colour(index), markersize=3.5
            )
    plot.axes.set(xlabel="epoch")
    plot.axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plot.legend(table.trained)
    several = any(len(runs) > 1 for runs in variants.values())
    detail = f"{unit}by epoch" + "; thin lines are single seeds" * several
    return plot.finish(field, caption, detail, wide=False)


def accuracy_over_params(table: Table) -> ReportFigure:
    """Draw each variant's average accuracy over its trainable parameters (logarithmic), the baseline as a line."""
    plot, dots = _Plot(9.6, 3.6), []
    for index, row in enumerate(table.trained):
        x, cell = max(1, row.trainable_params or 1), row.overall
        if cell.half:
            plot.axes.plot([x, x], [cell.mean - cell.half, cell.mean + cell.half], color=colour(index), linewidth=1.2)
        words = f"{row.label}: {format_cell(cell)} %, {readable_count(row.trainable_params)} parameters"
        plot.dot(x, cell.mean, words, color=colour(index))
        dots.append((float(x), cell.mean, row.label))
    for row in table.rows[: len(table.rows) - len(table.trained)]:
        y = row.overall.mean
        plot.hint(plot.axes.axhline(y, **_DASHED), f"{row.label}: {y:.1f} %")
        plot.axes.annotate(row.label, (1, y), (0, 3), ("axes fraction", "data"), "offset points", ha="right")
    low, high = min(x for x, *_ in dots), max(x for x, *_ in dots)
    span = max(high / low, 3)
    plot.axes.set(xscale="log", xlim=(low * span**-0.12, high * span**0.35))
    plot.axes.set(xlabel="trainable parameters", ylabel="accuracy (%)")
    plot.axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plot.axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _short_count(x)))
    plot.axes.minorticks_off()
    plot.name_dots(dots)
    caption, detail = "Accuracy over trainable parameters", "all questions; logarithmic scale"
    return plot.finish("accuracy_over_parameters", caption, detail)


def cost_over_depth(
    labels: Mapping[str, str], variants: Mapping[str, Sequence[Run]], costs: CostTable
) -> ReportFigure | None:
    """Draw the seconds of one run (mean over seeds, logarithmic) over the depth of its first insertion.

    A ring above a dot is the plan's prediction for that run without the cache. None where no run records its depth.
    """
    by_name = {cost.name: cost for cost in costs.variants}
    plot, dots, rings = _Plot(9.6, 3.6), [], False
    for index, (name, runs) in enumerate(variants.items()):
        depth, cost = runs[0].depth, by_name[name]
        if depth is None or not cost.actual:
            continue
        label, seconds = labels[name], cost.actual / len(runs)
        if cost.without_cache is not None:
            rings, live = True, cost.without_cache / len(runs)
            plot.axes.plot([depth, depth], [seconds, live], color=LINE, linewidth=1)
            words = f"{label} without the cache: {readable_seconds(live)}"
            plot.dot(depth, live, words, color=colour(index), markerfacecolor=CARD)
        plot.dot(depth, seconds, f"{label}, depth {depth:.2f}: {readable_seconds(seconds)}", color=colour(index))
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
    plot.axes.set_xlabel(
        "depth of the first insertion: 0 before the first unit, 1 after the last (mean over the trunks)"
    )
    plot.name_dots(dots)
    detail = "one run, training and evaluation; logarithmic scale" + "; rings: without the cache" * rings
    return plot.finish("cost_over_depth", "Cost over depth of insertion", detail)


def _line_style(index: int) -> dict[str, Any]:
    dashes = (0, (2 + 3 * (index // len(COLOURS)), 3))
    return {"color": colour(index), "linestyle": "solid" if index < len(COLOURS) else dashes}


def _short_count(value: float) -> str:
    return re.sub(r"\.0+(?=\D|$)", "", readable_count(round(value)))


def _inline_svg(svg: bytes, label: str, hints: Mapping[str, str]) -> Markup:
    """Make an SVG file part of the page: CSS colours, inherited font, hover texts, no ids but those it refers to."""
    root = ElementTree.fromstring(svg)
    for definitions in root.findall("{*}defs"):  # a style for the whole page, and rectangles to clip by
        root.remove(definitions)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {re.sub("{.*xlink}", "xlink:", name): value for name, value in element.attrib.items()}
        element.attrib.pop("clip-path", None)
        element.tail, element.text = (None if not (t or "").strip() else t for t in (element.tail, element.text))
        if style := element.get("style"):
            style = re.sub(r"#[0-9a-f]{6}", lambda m: f"var({_CSS[m[0]]})" if m[0] in _CSS else m[0], style)
            element.set("style", re.sub(r"font-family: [^;]*;? ?", "", style))
        if drawn := element.get("d"):
            element.set("d", re.sub(r"\d+\.\d+", lambda m: f"{float(m[0]):.1f}", " ".join(drawn.split())))
        if element.tag == "g" and (words := hints.get(element.attrib.pop("id", ""))):
            title = ElementTree.Element("title")
            title.text = words
            element.insert(0, title)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))
