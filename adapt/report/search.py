"""What a grid, a random search or early stopping tried: counted, chosen from on validation, listed without test scores.

The test split takes no part in the choice: of the points of one search the one with the best validation is shown on
test, beside the variants that no search made. The others are listed with their validation alone.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import RunError, counted
from ...formats import readable_seconds
from ..sweep.halving import Score, best_until, mean_score, rank
from ..training.run_folder import RunFolder
from ..training.stopped_runs import Stopped, read_stopped
from .runs import Run
from .tables_text import Cells

_CURSE = (
    "The best of several trials is partly luck (the winner's curse): its validation accuracy is above what it would "
    "reach again, the more so the more were tried."
)


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One variant that a search tried, or that was stopped early.

    Attributes:
        name: of the variant.
        values: by key, what the search set; {} of one that no search made.
        score: best validation up to its last epoch, means over seeds; None where nothing is known of it.
        stopped: by seed, why it was ended early; {} of a finished one.
        shown: whether it is among the rows of the table.
    """

    name: str
    values: Mapping[str, Any]
    score: Score | None
    stopped: Mapping[int, Stopped]
    shown: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "variant": self.name,
            "values": dict(self.values),
            "validation": None if self.score is None else {"accuracy": self.score.accuracy, "loss": self.score.loss},
            "stopped": {f"seed{seed}": {**vars(found)} for seed, found in self.stopped.items()},
            "shown": self.shown,
        }


@dataclass(frozen=True, kw_only=True)
class SearchSummary:
    """All that was tried beside the rows of a table, or to choose them.

    Attributes:
        tried: in the order of the runs.
        chosen: by search (experiment and the variant that it starts from), its best point on validation.
        all_shown: all points of all searches are rows of the table.
        seconds: of training, of all variants that are no row of the table.
        left_out: stopped runs of variants of which other seeds have ended.
    """

    tried: tuple[Tried, ...] = ()
    chosen: Mapping[tuple[str, str], str] = field(default_factory=dict)
    all_shown: bool = False
    seconds: float = 0.0
    left_out: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """Say how many variants and values were tried, what was chosen and how, and what that is worth."""
        searched = [one for one in self.tried if one.values]
        stopped = [one for one in self.tried if one.stopped]
        found = []
        if searched:
            values: dict[str, set[str]] = {}
            for one in searched:
                for key, value in one.values.items():
                    values.setdefault(key, set()).add(json.dumps(value, sort_keys=True))
            keys = ", ".join(f"{len(several)} of {key}" for key, several in values.items())
            were = "was" if len(searched) == 1 else "were"
            found.append(f"Searched: {counted(len(searched), 'variant')} {were} tried, with values: {keys}.")
        if stopped:
            by = Counter(next(iter(one.stopped.values())).by for one in stopped)
            who = ", ".join(f"{count} by {name}" for name, count in by.items())
            found.append(f"Stopped early, and without a result: {counted(len(stopped), 'variant')} ({who}).")
        if self.all_shown and searched:
            found.append(
                f"All points of the search are shown on test: choose by validation, not by this table. {_CURSE}"
            )
        elif self.chosen:
            names = ", ".join(self.chosen.values())
            found.append(
                f"Chosen on validation: {names}. Of a search, its choice alone is shown on test; the test answers "
                f"had no part in it. {_CURSE}"
            )
        elif stopped:
            found.append(f"What went on was chosen on validation. {_CURSE}")
        if self.left_out:
            found.append(f"Left out, since stopped early: {', '.join(self.left_out)}.")
        return found

    def cells(self) -> Cells | None:
        """Return the table of what was tried; None where nothing was."""
        if not self.tried:
            return None
        body = []
        for one in self.tried:
            epochs = sorted({found.epoch for found in one.stopped.values()})
            by = next(iter(one.stopped.values())).by if one.stopped else ""
            state = f"stopped by {by} after epoch {', '.join(map(str, epochs))}" if one.stopped else "finished"
            values = ", ".join(f"{key} = {json.dumps(value)}" for key, value in one.values.items())
            accuracy = "–" if one.score is None else f"{100 * one.score.accuracy:.1f}"
            body.append([one.name, values, accuracy, state, "yes" if one.shown else "no"])
        note = "Validation: best epoch so far, mean over seeds. Stopped runs have no result."
        note += f" Training what the table does not show took {readable_seconds(self.seconds)}." * bool(self.seconds)
        return Cells(["Tried", "Values", "Validation", "State", "In the table"], body, num_left=2, note=note)


def summarise_search(
    variants: Mapping[str, Sequence[Run]],
    stopped: Iterable[Path],
    *,
    named: Collection[str],
    every_point: bool,
) -> tuple[dict[str, Sequence[Run]], SearchSummary]:
    """Choose from each search on validation, and return the variants to show, with all that was tried.

    Args:
        variants: finished runs by variant.
        stopped: folders of runs that were ended early.
        named: variants that are to be shown whatever validation says.
        every_point: show all points.

    Raises:
        RunError: a malformed file.
    """
    folders: dict[str, dict[int, Path]] = {name: {r.seed: r.path for r in runs} for name, runs in variants.items()}
    records: dict[str, dict[int, Stopped]] = {}
    left_out: list[str] = []
    experiments = {name: runs[0].experiment for name, runs in variants.items()}
    for folder in stopped:
        config = RunFolder(folder).config()
        name, seed = str(config.get("variant")), int(config.get("seed", 0))
        if name in variants:
            left_out.append(f"{name}/seed{seed}")
            continue
        experiments.setdefault(name, str(config.get("experiment")))
        folders.setdefault(name, {})[seed] = folder
        record = read_stopped(RunFolder(folder))
        if record is not None:
            records.setdefault(name, {})[seed] = record
    points = {name: _point(next(iter(by_seed.values()))) for name, by_seed in folders.items()}
    scores = {name: _score(by_seed) for name, by_seed in folders.items()}
    searches: dict[tuple[str, str], list[str]] = {}
    for name, point in points.items():
        if point is not None:
            searches.setdefault((experiments[name], str(point.get("base"))), []).append(name)
    chosen, hidden = {}, set()
    for search, names in searches.items():
        finished = {name: scores[name] for name in names if name in variants}
        if finished:
            chosen[search] = rank(finished)[0]
            hidden |= {name for name in finished if name not in (*named, chosen[search])}
    shown = {name: runs for name, runs in variants.items() if every_point or name not in hidden}
    tried = tuple(
        Tried(
            name=name,
            values={} if points[name] is None else dict((points[name] or {}).get("values", {})),
            score=scores[name],
            stopped=records.get(name, {}),
            shown=name in shown,
        )
        for name in folders
        if points[name] is not None or name in records
    )
    seconds = math.fsum(_seconds(p) for one in tried if not one.shown for p in folders[one.name].values())
    summary = SearchSummary(
        tried=tried,
        chosen=chosen,
        all_shown=bool(hidden) and hidden <= shown.keys(),
        seconds=seconds,
        left_out=tuple(left_out),
    )
    return shown, summary


def _point(folder: Path) -> dict[str, Any] | None:
    """Return what a run's folder says of its place in a search; None of a run that no search made."""
    return RunFolder(folder).read_json("search.json") if (folder / "search.json").is_file() else None


def _score(folders: Mapping[int, Path]) -> Score | None:
    return mean_score({seed: best for seed, path in folders.items() if (best := _best(path)) is not None})


def _best(folder: Path) -> tuple[float, float] | None:
    """Return a run's best validation; None of one that has none (`val_accuracy` may be missing in older runs)."""
    try:
        epochs = _epochs(folder)
        return best_until(RunFolder(folder), max(epochs)) if epochs else None
    except RunError:
        return None


def _epochs(folder: Path) -> dict[int, float]:
    """Return the seconds of each epoch of a run."""
    try:
        return {int(e["epoch"]): float(e.get("seconds", 0.0)) for e in RunFolder(folder).epochs()}
    except (ValueError, KeyError, TypeError):
        return {}


def _seconds(folder: Path) -> float:
    return math.fsum(_epochs(folder).values())
