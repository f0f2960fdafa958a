"""Draw what a search tried as parallel coordinates: an axis for each key that it set, the last for validation."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from .drawing import ACCENT, HALO, INK, SOFT, Plot, ReportFigure
from .formats import shorten
from .search import SearchSummary, Tried

_MOST_LABELS = 8


class _Axis:
    """One vertical axis: numbers by size (by logarithm over more than a factor of 30), others in a list."""

    def __init__(self, values: Sequence[Any]) -> None:
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        self.numeric = len(numbers) == len(values) and len(set(numbers)) > 1
        self.log = self.numeric and min(numbers) > 0 and max(numbers) > 30 * min(numbers)
        texts = sorted(set(map(_text, values)))
        self.places = {text: (i + 0.5) / len(texts) for i, text in enumerate(texts)}
        if self.numeric:
            self.places = {_text(number): self._scaled(number, numbers) for number in sorted(set(numbers))}

    def _scaled(self, value: float, numbers: Sequence[float]) -> float:
        low, high, own = (math.log(x) if self.log else x for x in (min(numbers), max(numbers), value))
        return float((own - low) / (high - low))

    def at(self, value: Any) -> float:
        """Return the height of a value, 0 to 1."""
        return self.places[_text(value)]

    def labels(self) -> list[tuple[float, str]]:
        """Return the heights and texts to print, at most eight, the lowest and highest among them."""
        found = sorted((height, text) for text, height in self.places.items())
        step = max(1, math.ceil((len(found) - 1) / (_MOST_LABELS - 1)))
        return [*found[:-1:step], found[-1]]


def search_coordinates(search: SearchSummary) -> ReportFigure | None:
    """Draw each tried point as a line over its values and its validation accuracy; None without two such points."""
    tried = [one for one in search.tried if one.values and one.score is not None]
    keys = list(dict.fromkeys(key for one in tried for key in one.values))
    keys = [key for key in keys if len({_text(one.values.get(key)) for one in tried}) > 1]
    if len(tried) < 2 or not keys:
        return None
    columns: list[list[Any]] = [[one.values.get(key) for one in tried] for key in keys]
    columns.append([round(100 * _accuracy(one), 2) for one in tried])
    axes = [_Axis(values) for values in columns]
    plot = Plot(9.6, 3.8)
    best = max(columns[-1])
    chosen = set(search.chosen.values())
    for index in sorted(range(len(tried)), key=lambda i: columns[-1][i]):
        one, heights = tried[index], [axis.at(values[index]) for axis, values in zip(axes, columns, strict=True)]
        first = one.name in chosen or (not chosen and columns[-1][index] == best)
        style: dict[str, Any] = {"color": ACCENT, "linewidth": 2.4} if first else {"color": SOFT, "linewidth": 0.9}
        alpha = 1.0 if first else 0.15 + 0.6 * heights[-1]
        (drawn,) = plot.axes.plot(range(len(axes)), heights, alpha=alpha, **style)
        said = ", ".join(f"{key} = {_text(one.values.get(key))}" for key in keys)
        state = ", stopped early" * bool(one.stopped)
        plot.hint(drawn, f"{one.name}: {said}; validation {columns[-1][index]:.1f} %{state}", one.name)
    for place, axis in enumerate(axes):
        plot.axes.axvline(place, color=INK, linewidth=0.8)
        for height, text in axis.labels():
            plot.axes.annotate(
                shorten(text, 22),
                (place, height),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color=INK,
                path_effects=HALO,
            )
    heads = [*(shorten(key, 24) for key in keys), "validation (%)"]
    plot.axes.set_xticks(range(len(axes)), heads)
    plot.axes.set(xlim=(-0.1, len(axes) - 1 + 0.35), ylim=(-0.04, 1.04), yticks=[])
    plot.axes.grid(visible=False)
    plot.axes.spines[:].set_visible(False)
    marked = "the choice" if chosen else "the best"
    detail = f"a line for each point, the darker the better on validation; coloured: {marked}"
    return plot.finish("search", "What the search tried", detail)


def _accuracy(one: Tried) -> float:
    return 0.0 if one.score is None else one.score.accuracy


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)
