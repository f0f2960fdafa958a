"""What the reported runs cost, what the plan had predicted, and what they would have cost without the cache.

Seconds of runs are their own records', those of stage 1 the record's beside the store. What nothing measured is None,
and `Ledger.notes` says why.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config import from_mapping
from ...extract.stage.settings import StoreSettings, plan_path, store_folder
from ...extract.stage.time_log import Spent, read_spent
from .formats import format_time
from .runs import Run


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one variant's reported runs cost, all seeds together, in seconds.

    Args:
        name: the variant's.
        actual: what they took.
        predicted: by the plan, from the cache, for as many epochs and in such company as they were trained.
        without_cache: by the plan, decoding and encoding every batch anew, for as many epochs.
    """

    name: str
    actual: float
    predicted: float | None = None
    without_cache: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The whole sweep.

    Args:
        variants: in the order of the table.
        extraction: seconds that filling the stores of these runs took, for whatever experiments; None if not recorded.
        predicted_extraction: by the plan.
        notes: what the numbers do not cover, one sentence each.
    """

    variants: tuple[Cost, ...]
    extraction: float | None = None
    predicted_extraction: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def training(self) -> float:
        """Seconds of all runs."""
        return sum(cost.actual for cost in self.variants)

    @property
    def predicted_training(self) -> float | None:
        """What the plan said of them; None unless it speaks of every variant."""
        return _total(cost.predicted for cost in self.variants)

    @property
    def predicted(self) -> float | None:
        """What the plan said of extraction and all runs."""
        return _total([self.predicted_extraction, self.predicted_training])

    @property
    def without_cache(self) -> float | None:
        """Seconds of all runs without a store; None unless the plan speaks of every variant."""
        return _total(cost.without_cache for cost in self.variants)

    @property
    def saved_ratio(self) -> float | None:
        """What it would have cost without the cache over what it cost, extraction included."""
        if self.without_cache is None or self.extraction is None:
            return None
        return self.without_cache / (self.training + self.extraction)

    def rows(self) -> list[tuple[str, float | None, float | None, float | None]]:
        """Name, actual, predicted and without cache of extraction, of each variant, and of all."""
        rows: list[tuple[str, float | None, float | None, float | None]] = [
            ("extraction", self.extraction, self.predicted_extraction, None)
        ]
        rows += [(c.name, c.actual, c.predicted, c.without_cache) for c in self.variants]
        actual = _total([self.extraction, self.training])
        return [
            *rows,
            ("in all", actual, _total([self.predicted_extraction, self.predicted_training]), self.without_cache),
        ]

    def lines(self) -> list[str]:
        """The whole in one line, then the notes."""
        parts = [f"training {format_time(self.training)}"]
        if self.extraction is not None:
            parts.insert(0, f"extraction {format_time(self.extraction)}")
        if self.predicted is not None:
            parts.append(f"predicted {format_time(self.predicted)} in all")
        if self.without_cache is not None:
            ratio = "" if self.saved_ratio is None else f" ({self.saved_ratio:.1f} times as long)"
            parts.append(f"without the cache {format_time(self.without_cache)}{ratio}")
        return [f"What this cost: {'; '.join(parts)}. Energy was not measured.", *self.notes]


def make_ledger(variants: Mapping[str, Sequence[Run]]) -> Ledger:
    """Add up what the runs, the records of their stores and the plans beside their experiments say."""
    experiments = dict.fromkeys((run.base, run.experiment) for runs in variants.values() for run in runs)
    plans, notes = {}, []
    for base, name in experiments:
        found = _Plan.read(base, name)
        if isinstance(found, str):
            notes.append(found)
        else:
            plans[base, name] = found
            notes += found.notes()
    costs = tuple(_cost(name, runs, plans) for name, runs in variants.items())
    every = [run for runs in variants.values() for run in runs]
    cached = [run for run in every if not run.live]
    if len(cached) < len(every):
        notes.append(f"{len(every) - len(cached)} of {len(every)} runs were trained live, without the cache.")
    stores = dict.fromkeys(path for run in cached if (path := _store(run)) is not None)
    spent = {store: read_spent(store) for store in stores}
    missing = [store.name for store, runs in spent.items() if not runs]
    if missing:
        notes.append(f"What extraction took is not recorded beside {', '.join(missing)}.")
    complete = bool(spent) and not missing
    return Ledger(
        variants=costs,
        extraction=_seconds(spent.values()) if complete else (None if cached else 0.0),
        predicted_extraction=_total(plan.extraction for plan in plans.values()) if plans else None,
        notes=tuple(notes),
    )


class _Plan:
    """A plan as <experiment>.plan.json holds it, by run."""

    def __init__(self, values: Mapping[str, Any], *, where: Path) -> None:
        self.where = where
        self.machine, self.extraction = str(values["machine"]), float(values["extraction"])
        self.cached = bool(values["cuts"])
        self.epochs = {v["name"]: int(v["epochs"]) for v in values["variants"]}
        seeds = {v["name"]: int(v["num_seeds"]) for v in values["variants"]}
        self.alone = {v["name"]: float(v["seconds"]) / seeds[v["name"]] for v in values["variants"]}
        self.live = {v["name"]: float(v["seconds_live"]) / seeds[v["name"]] for v in values["variants"]}
        self.group: dict[str, tuple[int, float]] = {}  # how many train together, and what that makes of the seconds
        for names, seconds in zip(values["groups"], values["group_seconds"], strict=self.cached):
            apart = sum(self.alone[name] * seeds[name] for name in names)
            self.group |= {name: (len(names), float(seconds) / apart if apart else 1.0) for name in names}

    @classmethod
    def read(cls, base: Path, name: str) -> _Plan | str:
        """The plan of an experiment, or a sentence that says why there is none."""
        path = plan_path(base, name)
        if not path.is_file():
            return f"What it would have cost without the cache was not measured: talik plan {name}.toml measures it."
        try:
            return cls(json.loads(path.read_text(encoding="utf-8")), where=path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
            return f"{path.name} is damaged or an older version's: run talik plan {name}.toml again."

    def notes(self) -> list[str]:
        """What the prediction rests on."""
        note = f"Predictions, and the cost without the cache, from parts measured on a few clips on {self.machine}."
        return [note] if self.cached else [note, f"{self.where.name} advises not to cache; it predicts live runs only."]

    def predicted(self, run: Run) -> float | None:
        """Seconds of one run as it was trained: alone or in its whole group, from the cache or live."""
        if run.live or not self.cached:
            return self.without_cache(run) if run.live else None
        if run.variant not in self.alone:
            return None
        size, factor = self.group.get(run.variant, (1, 1.0))
        return self.alone[run.variant] * self._share(run) * (factor if run.together == size else 1.0)

    def without_cache(self, run: Run) -> float | None:
        """Seconds of one run with every batch decoded and encoded anew."""
        return self.live[run.variant] * self._share(run) if run.variant in self.live else None

    def _share(self, run: Run) -> float:
        """The epochs that were trained over those that were planned: fewer after an early stop."""
        return len(run.epochs) / self.epochs[run.variant] if run.epochs else 1.0


def _cost(name: str, runs: Sequence[Run], plans: Mapping[tuple[Path, str], _Plan]) -> Cost:
    own = [(run, plans.get((run.base, run.experiment))) for run in runs]
    return Cost(
        name=name,
        actual=sum(run.train_seconds for run in runs),
        predicted=_total(None if plan is None else plan.predicted(run) for run, plan in own),
        without_cache=_total(None if plan is None else plan.without_cache(run) for run, plan in own),
    )


def _store(run: Run) -> Path | None:
    table = run.config.get("store")
    path = table.get("path") if isinstance(table, Mapping) else None
    if not isinstance(path, str) or not isinstance(table, Mapping):
        return None
    return store_folder(from_mapping(StoreSettings, table, where="store"), run.base)


def _seconds(records: Iterable[Sequence[Spent]]) -> float:
    return sum(spent.seconds for runs in records for spent in runs)


def _total(values: Iterable[float | None]) -> float | None:
    """The sum, None if one of them is."""
    found = list(values)
    return None if any(value is None for value in found) else sum(value or 0.0 for value in found)
