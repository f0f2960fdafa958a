"""Drawing with matplotlib: SVG and PDF files for a paper, and inline SVG for the page.

The page's SVG takes its colours from the page's CSS variables, so that it follows light and dark, and shows exact
numbers on hovering. The same runs give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from .formats import shorten
from .table import Row

INK, SOFT, LINE, CARD, ACCENT = "#1c1f23", "#5d656f", "#e3e4e0", "#ffffff", "#2a6fb0"
MOST_NAMED = 13  # a dozen variants and the blind baseline
COLOURS = (
    *("#2f6fb3", "#d9702b", "#2a9463", "#a9479a", "#94791a", "#5d55c4"),
    *("#1590a0", "#bf3f55", "#5a6b7a", "#6fa01f", "#8a5a36", "#d45f9b"),
)
_CSS = {INK: "--ink", SOFT: "--soft", LINE: "--line", CARD: "--card", ACCENT: "--accent"}
_CSS |= {colour: f"--c{index}" for index, colour in enumerate(COLOURS)}
STYLE: dict[Any, object] = {  # keys are literals in matplotlib's type hints
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
DASHED: dict[str, Any] = {"color": SOFT, "linestyle": (0, (5, 4))}
HALO = [withStroke(linewidth=3, foreground=CARD)]


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


def css_colour(index: int) -> str:
    """Name the same colour as the page's CSS has it, for light and dark."""
    return f"var(--c{index % len(COLOURS)})"


def line_style(index: int) -> dict[str, Any]:
    """Return the colour and dashes of the `index`-th trained row's lines."""
    dashes = (0, (2 + 3 * (index // len(COLOURS)), 3))
    return {"color": colour(index), "linestyle": "solid" if index < len(COLOURS) else dashes}


def rings(points: Sequence[Hashable]) -> list[float]:
    """Return what to add to the size of each dot's marker so that dots at one place show as rings, three at most.

    >>> rings(["a", "b", "a"])
    [4.0, 0.0, 0.0]
    """
    left = Counter(points)
    sizes = []
    for point in points:
        left[point] -= 1
        sizes.append(4.0 * min(3, left[point]))
    return sizes


class Plot:
    """One set of axes, with words that show on hovering over parts of it."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), layout="constrained")
        self.axes = self.figure.subplots()
        self._hints: dict[str, tuple[str, str]] = {}

    def hint(self, artist: Artist, words: str, row: str = "") -> None:
        """Show words on hovering over an artist, which belongs to the row of that name."""
        artist.set_gid(f"hint-{len(self._hints)}")
        artist.set_in_layout(False)  # it lies within the axes; to measure thousands takes minutes
        self._hints[f"hint-{len(self._hints)}"] = (words, row)

    def dot(self, x: float, y: float, words: str, row: str = "", **style: Any) -> None:
        """Draw a dot that shows words on hovering."""
        self.hint(self.axes.plot([x], [y], "o", **style)[0], words, row)

    def legend(self, rows: Sequence[Row]) -> None:
        """Name the rows' colours below the axes; of more than a dozen, only hovering names them."""
        if len(rows) > MOST_NAMED:
            return
        styles = iter(map(line_style, range(len(rows))))
        handles = [
            Line2D([], [], linewidth=4, **next(styles)) if row.trained else Line2D([], [], linewidth=1.6, **DASHED)
            for row in rows
        ]
        columns = min(max(1, int(self.figure.get_figwidth() / 1.6)), len(rows))
        legend = self.figure.legend(handles, [""] * len(rows), loc="outside lower center", ncols=columns)
        for text, row in zip(legend.get_texts(), rows, strict=True):
            text.set_text(shorten(row.label, 40))  # given as labels, names that begin with "_" would be left out

    def name_dots(self, dots: Sequence[tuple[float, float, str]]) -> None:
        """Write names to the right of dots (x, y, name), pushed apart vertically, with lines from dot to name."""
        self._lay_out()
        if len(dots) > MOST_NAMED:  # the highest alone: names of all would cover each other
            dots = sorted(dots, key=lambda dot: -dot[1])[:MOST_NAMED]
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
                path_effects=HALO,
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


def _inline_svg(svg: bytes, label: str, hints: Mapping[str, tuple[str, str]]) -> Markup:
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
        if element.tag == "g" and (hint := hints.get(element.attrib.pop("id", ""))):
            words, row = hint
            if words:
                title = ElementTree.Element("title")
                title.text = words
                element.insert(0, title)
            if row:
                element.set("data-row", row)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))
