"""Sum the measured cost of the reported runs beside the plan's prediction and the cost without the cache.

Seconds of runs come from their own records, those of stage 1 from the record beside the store. A cost without a
measurement is None, and `CostTable.notes` gives the reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...config import from_mapping
from ...errors import counted
from ...extract.stage.run_records import read_costs
from ...extract.stage.settings import StoreSettings, plan_path, store_folder
from ...formats import readable_seconds
from .runs import Run


class RunCosts(NamedTuple):
    """Seconds of one variant's reported runs, all seeds together.

    Attributes:
        name: the variant's.
        actual: measured.
        predicted: by the plan, from the cache, for the epochs that were trained, alone or in lockstep as they were.
        without_cache: by the plan, decoding and encoding every batch anew, for the same epochs.
    """

    name: str
    actual: float | None
    predicted: float | None = None
    without_cache: float | None = None


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Seconds of the whole sweep.

    Attributes:
        variants: in the order of the report's rows.
        extraction: of filling these runs' stores, for other experiments too; None if not recorded.
        predicted_extraction: by the plan.
        notes: limits of these numbers, one sentence each.
    """

    variants: tuple[RunCosts, ...]
    extraction: float | None = None
    predicted_extraction: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def training(self) -> float:
        """Seconds of all runs."""
        return sum(cost.actual or 0.0 for cost in self.variants)

    @property
    def predicted_training(self) -> float | None:
        """Predicted seconds of all runs; None unless the plan covers every variant."""
        return _total(cost.predicted for cost in self.variants)

    @property
    def predicted(self) -> float | None:
        """Predicted seconds of extraction and all runs."""
        return _total([self.predicted_extraction, self.predicted_training])

    @property
    def without_cache(self) -> float | None:
        """Predicted seconds of all runs without a store; None unless the plan covers every variant."""
        return _total(cost.without_cache for cost in self.variants)

    @property
    def saved_ratio(self) -> float | None:
        """Cost without the cache over the measured cost, extraction included."""
        if self.without_cache is None or self.extraction is None:
            return None
        return self.without_cache / (self.training + self.extraction)

    def rows(self) -> list[RunCosts]:
        """List the costs of extraction, of each variant, and their sum."""
        total = _total([self.extraction, self.training])
        return [
            RunCosts("extraction", self.extraction, self.predicted_extraction),
            *self.variants,
            RunCosts("in all", total, self.predicted, self.without_cache),
        ]

    def lines(self) -> list[str]:
        """Summarise the costs in one line, followed by the notes."""
        parts = [] if self.extraction is None else [f"extraction {readable_seconds(self.extraction)}"]
        parts.append(f"training {readable_seconds(self.training)}")
        if self.predicted is not None:
            parts.append(f"predicted {readable_seconds(self.predicted)} in all")
        if self.without_cache is not None:
            ratio = "" if self.saved_ratio is None else f" ({self.saved_ratio:.1f} times as long)"
            parts.append(f"without the cache {readable_seconds(self.without_cache)}{ratio}")
        return [f"What this cost: {'; '.join(parts)}. Energy was not measured.", *self.notes]


def make_cost_table(variants: Mapping[str, Sequence[Run]]) -> CostTable:
    """Sum the records of runs and of their stores, and the plans beside their experiments."""
    every = [run for runs in variants.values() for run in runs]
    found = {(run.base, run.experiment): _read_plan(run.base, run.experiment) for run in every}
    plans = {place: plan for place, plan in found.items() if isinstance(plan, _Plan)}
    notes = [note for plan in found.values() for note in ([plan] if isinstance(plan, str) else plan.notes())]
    cached = [run for run in every if not run.live]
    if len(cached) < len(every):
        notes.append(f"Trained live, without the cache: {len(every) - len(cached)} of {counted(len(every), 'run')}.")
    stores = dict.fromkeys(path for run in cached if (path := _store_path(run)) is not None)
    records = {store: read_costs(store) for store in stores}
    missing = [store.name for store, runs in records.items() if not runs]
    if missing:
        notes.append(f"What extraction took is not recorded beside {', '.join(missing)}.")
    recorded = sum(run.seconds for runs in records.values() for run in runs)
    costs = []
    for name, runs in variants.items():
        own = [(plans.get((run.base, run.experiment)), run) for run in runs]
        predicted = _total(None if plan is None else plan.predicted(run) for plan, run in own)
        without_cache = _total(None if plan is None else plan.without_cache(run) for plan, run in own)
        costs.append(RunCosts(name, sum(run.train_seconds for run in runs), predicted, without_cache))
    return CostTable(
        variants=tuple(costs),
        extraction=recorded if records and not missing else (None if cached else 0.0),
        predicted_extraction=_total(plan.extraction for plan in plans.values()) if plans else None,
        notes=tuple(notes),
    )


class _Plan:
    """Predicted seconds of single runs, from the values of <experiment>.plan.json."""

    def __init__(self, values: Mapping[str, Any], *, path: Path) -> None:
        self.path, self.machine, self.extraction = path, str(values["machine"]), float(values["extraction"])
        self.cached = bool(values["cuts"])
        self.epochs = {v["name"]: int(v["epochs"]) for v in values["variants"]}
        seconds = {v["name"]: float(v["seconds"]) for v in values["variants"]}
        self.alone = {v["name"]: float(v["seconds"]) / int(v["num_seeds"]) for v in values["variants"]}
        self.live = {v["name"]: float(v["seconds_live"]) / int(v["num_seeds"]) for v in values["variants"]}
        self.group: dict[str, tuple[int, float]] = {}  # variants in lockstep, and their seconds over those apart
        for names, together in zip(values["groups"], values["group_seconds"], strict=self.cached):
            apart = sum(seconds[name] for name in names)
            self.group |= {name: (len(names), float(together) / apart if apart else 1.0) for name in names}

    def notes(self) -> list[str]:
        """Say how the predictions were made."""
        note = f"Predictions, and the cost without the cache, from parts measured on a few clips on {self.machine}."
        return [note] if self.cached else [note, f"{self.path.name} advises not to cache; it predicts live runs only."]

    def predicted(self, run: Run) -> float | None:
        """Predict the seconds of one run as it was trained: alone or in its whole group, from the cache or live."""
        if run.live:
            return self.without_cache(run)
        if not self.cached or run.variant not in self.alone:
            return None
        size, factor = self.group.get(run.variant, (1, 1.0))
        return self.alone[run.variant] * self._trained_share(run) * (factor if run.together == size else 1.0)

    def without_cache(self, run: Run) -> float | None:
        """Predict the seconds of one run with every batch decoded and encoded anew."""
        return self.live[run.variant] * self._trained_share(run) if run.variant in self.live else None

    def _trained_share(self, run: Run) -> float:
        """Divide the trained by the planned epochs: less than 1 after an early stop."""
        return len(run.epochs) / self.epochs[run.variant] if run.epochs else 1.0


def _read_plan(base: Path, name: str) -> _Plan | str:
    """Read an experiment's plan, or say in a sentence why it has none."""
    path = plan_path(base, name)
    if not path.is_file():
        return f"What it would have cost without the cache was not measured: talik plan {name}.toml measures it."
    try:
        return _Plan(json.loads(path.read_text(encoding="utf-8")), path=path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return f"{path.name} is damaged or an older version's: run talik plan {name}.toml again."


def _store_path(run: Run) -> Path | None:
    table = run.config.get("store")
    if not isinstance(table, Mapping) or not isinstance(table.get("path"), str):
        return None
    return store_folder(from_mapping(StoreSettings, table, where="store"), run.base)


def _total(values: Iterable[float | None]) -> float | None:
    """Sum the values; None if one of them is None."""
    found = list(values)
    return None if None in found else sum(value or 0.0 for value in found)
