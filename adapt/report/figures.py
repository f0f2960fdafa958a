"""Draw the report's figures with matplotlib: SVG and PDF files for a paper, and inline SVG for the page.

The page's SVG takes its colours from the page's CSS variables, so that it follows light and dark, and shows exact
numbers on hovering. The same runs give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from .costs import CostTable
from .formats import format_cell, format_count, format_interval, format_points, format_time, shorten
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
    "text.color": SOFT,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}
_DASHED: dict[str, Any] = {"color": SOFT, "linestyle": (0, (5, 4))}
_HALO = [withStroke(linewidth=3, foreground=CARD)]
_MINUTE, _HOUR = 60.0, 3600.0
_ROUND_SECONDS = (
    *(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    *(k * _MINUTE for k in (1, 3, 10, 30)),
    *(k * _HOUR for k in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)),
)


@dataclass(frozen=True, kw_only=True)
class ReportFigure:
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
    """Draw every figure that these runs have the numbers for.

    Args:
        table: built from `variants`.
        variants: the runs of each variant, in the order of the rows.
        costs: of the same runs.
    """
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
        self.columns = max(1, int(width / 1.6))  # of the legend
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
        handles, trained = [], 0
        for row in rows:
            style = _line_style(trained) if row.trained else _DASHED
            handles.append(Line2D([], [], linewidth=4 if row.trained else 1.6, **style))
            trained += row.trained
        legend = self.figure.legend(
            handles, [""] * len(rows), loc="outside lower center", ncols=min(self.columns, len(rows))
        )
        for text, row in zip(legend.get_texts(), rows, strict=True):
            text.set_text(shorten(row.label, 40))  # given as labels, names that begin with "_" would be left out

    def name_dots(self, dots: Sequence[tuple[float, float, str]]) -> None:
        """Write names to the right of dots (x, y, name), pushed apart vertically, with lines from dot to name."""
        self._lay_out()
        pixels_per_point = self.figure.dpi / 72
        heights = [float(self.axes.transData.transform((x, y))[1]) / pixels_per_point for x, y, _ in dots]
        lowest = math.inf
        for index in sorted(range(len(dots)), key=lambda i: -heights[i]):
            x, y, name = dots[index]
            lowest = min(heights[index], lowest - 11)
            self.axes.annotate(
                shorten(name, 40),
                (x, y),
                (14, lowest - heights[index]),
                textcoords="offset points",
                va="center",
                color=INK,
                path_effects=_HALO,
                arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4},
            )

    def _lay_out(self) -> None:
        """Place the axes, once: each file's drawing would do it again."""
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")

    def finish(self, name: str, caption: str, detail: str = "", *, wide: bool = True) -> ReportFigure:
        """Write the figure in both formats and for the page."""
        if self.figure.get_layout_engine() is not None:
            self._lay_out()
        svg, pdf = io.BytesIO(), io.BytesIO()
        undated = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self.figure.savefig(svg, format="svg", metadata=undated)
        undated = dict.fromkeys(("Creator", "CreationDate", "Producer"))
        self.figure.savefig(pdf, format="pdf", metadata=undated)
        inline = _inline_svg(svg.getvalue(), caption, self._hints)
        return ReportFigure(
            name=name, caption=caption, detail=detail, wide=wide, svg=svg.getvalue(), pdf=pdf.getvalue(), inline=inline
        )


def accuracy_by_type(table: Table) -> ReportFigure:
    """Draw each variant's accuracy by question type as bars from zero, with the blind baseline as a line across."""
    columns = [*table.types, AVERAGE]
    plot, width = _Plot(9.6, 3.8), 0.84 / len(table.trained)
    for index, row in enumerate(table.trained):
        for place, column in enumerate(columns):
            cell = row.cell(column)
            x = place - 0.42 + (index + 0.5) * width
            (bar,) = plot.axes.bar(x, cell.mean, width * 0.92, color=colour(index))
            plot.hint(bar, f"{row.label}, {column}: {format_cell(cell)} %")
            if cell.half:
                ends = [min(100.0, max(0.0, cell.mean + sign * cell.half)) for sign in (-1, 1)]
                plot.axes.plot([x, x], ends, color=INK, linewidth=1, path_effects=_HALO)
    for row in table.rows:
        for place, column in enumerate([] if row.trained else columns):
            y = row.cell(column).mean
            (line,) = plot.axes.plot([place - 0.44, place + 0.44], [y, y], linewidth=1.6, path_effects=_HALO, **_DASHED)
            plot.hint(line, f"{row.label}, {column}: {format_cell(row.cell(column))} %")
    plot.axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(0, 100), ylabel="accuracy (%)")
    crowded = sum(map(len, columns)) > 110
    plot.axes.set_xticks(
        range(len(columns)),
        [shorten(c, 24) for c in columns],
        rotation=40 if crowded else 0,
        ha="right" if crowded else "center",
    )
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
    scale = 100.0 if field.endswith("accuracy") else 1.0
    curves = {name: [_finite_values(run, field, scale) for run in runs] for name, runs in variants.items()}
    if len({epoch for seeds in curves.values() for seed in seeds for epoch in seed}) < 2:
        return None
    plot = _Plot(4.7, 3.1)
    for index, (name, seeds) in enumerate(curves.items()):
        for seed in seeds if len(seeds) > 1 else ():
            plot.axes.plot([*seed], [*seed.values()], alpha=0.3, linewidth=0.8, **_line_style(index))
        shared = sorted(set.intersection(*map(set, seeds)))
        means = [sum(seed[epoch] for seed in seeds) / len(seeds) for epoch in shared]
        plot.axes.plot(shared, means, **_line_style(index))
        for epoch, mean in zip(shared, means, strict=True):
            words = f"{table.labels[name]}, epoch {epoch}: {mean:.4g}"
            plot.dot(epoch, mean, words, color=colour(index), markersize=3.5)
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
        words = f"{row.label}: {format_cell(cell)} %, {format_count(row.trainable_params)} parameters"
        plot.dot(x, cell.mean, words, color=colour(index))
        dots.append((float(x), cell.mean, row.label))
    for row in table.rows:
        if not row.trained:
            y = row.overall.mean
            plot.hint(plot.axes.axhline(y, **_DASHED), f"{row.label}: {y:.1f} %")
            plot.axes.annotate(row.label, (1, y), (0, 3), ("axes fraction", "data"), "offset points", ha="right")
    xs = [x for x, _, _ in dots]
    span = max(xs) / min(xs)
    plot.axes.set_xscale("log")
    plot.axes.set(xlim=(min(xs) * max(span, 3) ** -0.12, max(xs) * max(span, 3) ** 0.35))
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
        if depth is None or cost.actual <= 0:
            continue
        label, seconds = labels[name], cost.actual / len(runs)
        if cost.without_cache is not None:
            rings, live = True, cost.without_cache / len(runs)
            plot.axes.plot([depth, depth], [seconds, live], color=LINE, linewidth=1)
            words = f"{label} without the cache: {format_time(live)}"
            plot.dot(depth, live, words, color=colour(index), markerfacecolor=CARD)
        plot.dot(depth, seconds, f"{label}, depth {depth:.2f}: {format_time(seconds)}", color=colour(index))
        dots.append((depth, seconds, label))
    if not dots:
        return None
    plot.axes.set_yscale("log")
    low, high = plot.axes.get_ylim()
    shown = _ROUND_SECONDS[::2] if high / low > 300 else _ROUND_SECONDS
    plot.axes.set_yticks([s for s in shown if low <= s <= high])
    plot.axes.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: format_time(seconds)))
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


def _finite_values(run: Run, field: str, scale: float) -> dict[int, float]:
    values = {epoch.epoch: getattr(epoch, field) for epoch in run.epochs}
    return {epoch: value * scale for epoch, value in values.items() if value is not None and math.isfinite(value)}


def _short_count(value: float) -> str:
    return re.sub(r"\.0+(?=\D|$)", "", format_count(round(value)))


def _inline_svg(svg: bytes, label: str, hints: Mapping[str, str]) -> Markup:
    """Make an SVG file part of the page: CSS colours, inherited font, hover texts, no ids but those it refers to."""
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {_html_name(name): value for name, value in element.attrib.items()}
        element.attrib.pop("clip-path", None)
        if style := element.get("style"):
            style = re.sub(r"#[0-9a-f]{6}", lambda m: f"var({_CSS[m[0]]})" if m[0] in _CSS else m[0], style)
            element.set("style", re.sub(r"font-family: [^;]*;? ?", "", style))
        if drawn := element.get("d"):
            element.set("d", re.sub(r"\d+\.\d+", lambda m: f"{float(m[0]):.1f}", " ".join(drawn.split())))
        if element.tag == "g" and (words := hints.get(element.attrib.pop("id", ""))):
            title = ElementTree.Element("title")
            title.text = words
            element.insert(0, title)
    for definitions in root.findall("defs"):  # a style for the whole page, and rectangles to clip by
        root.remove(definitions)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    _drop_whitespace(root.iter())
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _html_name(name: str) -> str:
    namespace, _, local = name.rpartition("}")
    return f"xlink:{local}" if "xlink" in namespace else local


def _drop_whitespace(elements: Iterable[ElementTree.Element]) -> None:
    for element in elements:
        if element.tail and not element.tail.strip():
            element.tail = None
        if element.text and not element.text.strip():
            element.text = None
