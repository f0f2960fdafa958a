"""Progress bars: on a terminal and in a notebook tqdm's own, elsewhere (a log file) a plain line now and then."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import IO, Any

from tqdm import tqdm
from tqdm.auto import tqdm as auto_tqdm

_SECONDS_BETWEEN_LINES = 30.0
_LINE = "{desc}: {n_fmt} of {total_fmt}{unit}, {elapsed} passed, {remaining} left{postfix}"


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """Return a tqdm bar that suits where standard error goes.

    Args:
        iterable: that it counts, if any.
        options: tqdm's own: total, initial, desc, unit, disable.

    Example:
        >>> with progress_bar(total=2, desc="clips", unit=" clips", disable=True) as bar:
        ...     _ = bar.update(2)
    """
    if auto_tqdm.__module__ != "tqdm.notebook" and not sys.stderr.isatty() and not options.get("disable"):
        every = {"mininterval": _SECONDS_BETWEEN_LINES, "maxinterval": _SECONDS_BETWEEN_LINES}
        unit = options.get("unit", "it")
        options = {"bar_format": _LINE.replace("{unit}", f" {unit.strip()}"), **every, **options}
        return tqdm(iterable, file=_Lines(sys.stderr), **options)
    return auto_tqdm(iterable, **options)


class _Lines(io.TextIOBase):
    """Writes what tqdm draws in place, each time it changes, as a line of its own."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._last = file, ""

    def write(self, text: str) -> int:
        line = text.strip("\r\n ")
        if line and line != self._last:
            self._last = line
            self._file.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        self._file.flush()
