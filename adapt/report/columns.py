"""Columns of the accuracy table: the usual ones, or those that were asked for, of numbers and of settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass

from ...errors import SettingsError, unknown_name
from ...formats import readable_count
from .formats import format_hours
from .table import AVERAGE, Row, Table

_DEVICES = {"cpu": "CPU", "cuda": "GPU"}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the accuracy table.

    Attributes:
        name: as `--columns` takes it.
        short, latex, long: its head in text of fixed width, in LaTeX, and in Markdown and on the page.
        cell: formats a row's cell; None of a column of accuracies, whose cells have marks and intervals.
    """

    name: str
    short: str
    latex: str
    long: str
    cell: Callable[[Row], str] | None = None

    @property
    def accuracy(self) -> bool:
        """Whether its cells are accuracies of a question type, a group of types or all questions."""
        return self.cell is None


def table_columns(table: Table, *, grouped: bool = False) -> list[Column]:
    """List the columns of a table: those asked for, or types, average, and what was recorded of the costs.

    Args:
        table: of the rows.
        grouped: of the usual ones, follow the types of each group by the group's average.

    Raises:
        SettingsError: a column that there is not; the message lists the known ones.
    """
    if table.columns:
        known = known_columns(table)
        return [_column(table, name, known) for name in table.columns]
    with_averages = [c for name, members in table.groups().items() for c in (*members, *([name] if name else []))]
    usual = [*(with_averages if grouped else table.types), AVERAGE]
    usual += ["val"] * any(row.validation is not None for row in table.rows) + ["params"]
    usual += ["flops"] * any(row.flops is not None for row in table.rows) + ["hours"]
    return [_column(table, name, known_columns(table)) for name in usual]


def known_columns(table: Table) -> tuple[str, ...]:
    """Name every column that a table can have: question types, groups, Avg, numbers of its runs, settings."""
    settings = {name for row in table.trained for name in row.settings}
    groups = [name for name in table.groups() if name]
    return (*table.types, *groups, AVERAGE, *_numbers(table), *sorted(settings))


def _numbers(table: Table) -> dict[str, Column]:
    hours = f"{common_device(table)} hours".strip()
    short = f"{common_device(table)} h".strip()

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{value:.1f}"

    def f1(kind: str, value: Callable[[Row], float | None]) -> Column:
        name, latex = f"{kind} F1", f"{kind.capitalize()} F1"
        return Column(name=f"{kind}-f1", short=name, latex=latex, long=name, cell=lambda row: percent(value(row)))

    def timed(row: Row) -> str:
        device = "" if common_device(table) else _DEVICES.get(row.device or "", "")
        return f"{format_hours(row.seconds)} {device}".strip()

    found = (
        Column(name="val", short="val", latex="val", long="val", cell=lambda row: percent(row.validation)),
        Column(
            name="params",
            short="params",
            latex="Params",
            long="trainable parameters",
            cell=lambda row: readable_count(row.trainable_params),
        ),
        Column(
            name="flops",
            short="FLOPs",
            latex="FLOPs",
            long="FLOPs a question",
            cell=lambda row: readable_count(row.flops),
        ),
        Column(
            name="trained-flops",
            short="trained FLOPs",
            latex="Trained FLOPs",
            long="trained FLOPs a question",
            cell=lambda row: readable_count(row.flops_trained),
        ),
        Column(name="hours", short=short, latex=hours[:1].upper() + hours[1:], long=hours, cell=timed),
        Column(name="seeds", short="seeds", latex="Seeds", long="seeds", cell=lambda row: str(row.num_seeds)),
        f1("macro", lambda row: row.macro_f1),
        f1("micro", lambda row: row.micro_f1),
    )
    return {column.name: column for column in found}


def common_device(table: Table) -> str:
    """Name the device that all runs had, "CPU" or "GPU"; "" where they differ or do not say."""
    devices = {row.device for row in table.trained}
    return _DEVICES.get(devices.pop() or "", "") if len(devices) == 1 else ""


def _column(table: Table, name: str, known: Collection[str]) -> Column:
    if name not in known:
        raise SettingsError(unknown_name("column", name, known))
    numbers = _numbers(table)
    if name in (*table.types, *table.groups(), AVERAGE):
        return Column(name=name, short=name, latex=name, long=name)
    return numbers[name] if name in numbers else _setting(name)


def _setting(name: str) -> Column:
    def cell(row: Row) -> str:
        value = row.settings.get(name, "–")
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

    return Column(name=name, short=name, latex=name, long=name, cell=cell)
