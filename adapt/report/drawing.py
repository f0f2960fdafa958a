"""Pieces of an inline SVG: a plotting area with its grid, lines, dots and text, all of it escaped."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT = 960.0, 350.0
HALF_WIDTH, HALF_HEIGHT = 460.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 16.0, 14.0, 40.0
_NUM_COLOURS = 12
_LABEL_GAP, _CHARACTER = 19.0, 7.0  # from a dot to its name; width of a name's letter


def colour(index: int) -> str:
    """Return the CSS colour of the `index`-th trained row."""
    return f"var(--c{index % _NUM_COLOURS})"


def dashes(index: int) -> str:
    """Return the stroke pattern of the `index`-th trained row: none, then dashes from the thirteenth."""
    return "none" if index < _NUM_COLOURS else f"{2 + 3 * (index // _NUM_COLOURS)} 3"


class Frame:
    """A plotting area of `width` x `height` with room for labels: data to SVG coordinates, grid lines at round numbers.

    Args:
        xs, ys: values that must fit in; at least one of each.
        left, right: room beside the area.
    """

    def __init__(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        *,
        left: float = LEFT,
        right: float = RIGHT,
        width: float = WIDTH,
        height: float = HEIGHT,
    ) -> None:
        self.left, self.right, self.bottom = left, width - right, height - BOTTOM
        self.x_low, self.x_high = min(xs), max(xs)
        self.y_ticks = ticks(min(ys), max(ys))
        self.y_low, self.y_high = min(self.y_ticks[0], min(ys)), max(self.y_ticks[-1], max(ys))

    def x(self, value: float) -> float:
        """Return the place of a value across."""
        return self.left + (value - self.x_low) / ((self.x_high - self.x_low) or 1.0) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Return the place of a value, larger ones higher."""
        return self.bottom - (value - self.y_low) / ((self.y_high - self.y_low) or 1.0) * (self.bottom - TOP)

    def grid_y(self, *, unit: str = "") -> Iterable[Markup]:
        """Lines across at round numbers, with the numbers."""
        for tick in self.y_ticks:
            yield tag("line", x1=self.left, x2=self.right, y1=self.y(tick), y2=self.y(tick), class_="grid")
            yield text(f"{tick:g}{unit}", self.left - 7, self.y(tick) + 4, anchor="end")

    def grid_x(self, label: str) -> Iterable[Markup]:
        """Lines upwards at whole numbers, with the numbers and a label below."""
        for tick in ticks(self.x_low, self.x_high, inside=True):
            if tick == int(tick):
                yield tag("line", x1=self.x(tick), x2=self.x(tick), y1=TOP, y2=self.bottom, class_="grid")
                yield text(f"{tick:g}", self.x(tick), self.bottom + 16, anchor="middle")
        yield text(label, (self.left + self.right) / 2, self.bottom + 33, anchor="middle")


def named_dots(frame: Frame, points: Sequence[tuple[int, float, float, str, str]]) -> list[Markup]:
    """Draw dots with their names to the right, pushed apart and beyond other dots, with lines from dot to name.

    Args:
        frame: of the plot.
        points: place among the trained rows, x and y in data, name, and what shows on hovering.
    """
    places = [(frame.x(x), frame.y(y)) for _, x, y, _, _ in points]
    lines, dots, names = [], [], []
    for (index, _, _, name, hint), (x, y), height in zip(points, places, _spread(frame, places), strict=True):
        left = x
        for other_x, other_y in sorted(places):
            if abs(other_y - height) < 14 and left < other_x < left + _LABEL_GAP + _CHARACTER * len(name):
                left = other_x
        lines.append(tag("line", x1=x + 7, x2=left + _LABEL_GAP - 3, y1=y, y2=height, class_="leader"))
        dots.append(dot(x, y, index, hint, radius=5.5))
        names.append(text(name, left + _LABEL_GAP, height + 4, class_="name"))
    return [*lines, *dots, *names]


def _spread(frame: Frame, places: Sequence[tuple[float, float]]) -> list[float]:
    """Heights for the names of dots, pushed apart so that none covers another."""
    heights = [y for _, y in places]
    order = sorted(range(len(heights)), key=heights.__getitem__)
    for above, below in itertools.pairwise(order):
        heights[below] = max(heights[below], heights[above] + 15)
    over = heights[order[-1]] - frame.bottom
    return [height - max(0.0, over) for height in heights]


def ticks(low: float, high: float, *, inside: bool = False) -> list[float]:
    """About five round numbers over the range; all `inside` it, or from the one below to the one above."""
    span = (high - low) or max(abs(high), 1.0)
    raw = span / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first, last = (math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9))
    if not inside:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        last += last == first
    return [round(k * step, 10) + 0.0 for k in range(first, last + 1)]


def polyline(frame: Frame, points: Iterable[tuple[float, float]], **style: object) -> Markup:
    """Join points with a line."""
    places = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    return tag("polyline", points=places, stroke_linejoin="round", **style)


def dot(x: float, y: float, index: int, hint: str, *, radius: float) -> Markup:
    """Draw a dot in the colour of the `index`-th trained row; `hint` shows on hovering."""
    return titled(tag("circle", cx=x, cy=y, r=radius, fill=colour(index)), hint)


def text(words: str, x: float, y: float, *, anchor: str = "start", class_: str = "tick") -> Markup:
    """Write words at a place."""
    attributes = _attributes({"x": x, "y": y, "text_anchor": anchor, "class_": class_})
    return Markup("<text{}>{}</text>").format(attributes, words)


def titled(shape: Markup, hint: str) -> Markup:
    """Give a shape words that show on hovering."""
    return Markup("<g><title>{}</title>{}</g>").format(hint, shape)


def tag(name: str, **attributes: object) -> Markup:
    """Return an empty element; a trailing _ of a name is dropped, others become -."""
    return Markup("<{}{}/>").format(Markup(name), _attributes(attributes))


def _attributes(attributes: Mapping[str, object]) -> Markup:
    drawn = ((k, f"{v:.1f}" if isinstance(v, float) else v) for k, v in attributes.items())
    pairs = (Markup(' {}="{}"').format(k.rstrip("_").replace("_", "-"), value) for k, value in drawn)
    return Markup("").join(pairs)


def svg(parts: Iterable[Markup], label: str, *, width: float = WIDTH, height: float = HEIGHT) -> Markup:
    """Put parts together; `label` is for readers who do not see them."""
    return Markup('<svg viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        width, height, escape(label), Markup("").join(parts)
    )
