"""`talik runs`: the runs below a folder with state, epoch, last validation and time left; runs stopped and extended."""

from __future__ import annotations

import json
import os
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...cache.atomic_io import make_folder
from ...cache.file_locks import LocksUnsupportedError, open_locked, owner
from ...errors import RunError, counted
from ...formats import readable_seconds
from ..config.experiment import load_experiment
from ..scoring.metrics import validation_of
from ..training.adapt import RunResult, adapt
from ..training.run_folder import RunFolder, writing
from ..training.stopped_runs import Stopped, read_stopped, request_stop, stop_is_requested, write_stopped

RunState = Literal["not started", "running", "waiting", "finished", "stopped", "failed", "interrupted"]
_SWEPT, _RUNNING = "sweep.json", ".sweep.lock"


@dataclass(frozen=True, kw_only=True)
class RunLine:
    """One run as its folder shows it.

    Attributes:
        path: of the folder.
        run: experiment, variant and seed: "exp/trimodal/seed0".
        state: "waiting" is a run of a sweep that is trained now, at a rung or before its turn.
        epoch: done. epochs: at most; None where the folder does not say.
        val_accuracy: of the last epoch, 0 to 1; of multi-label answers their mAP. best_accuracy: of the best.
        seconds_left: until its last epoch, as the epochs so far took, those of the group that it trains with added;
            of a run that is trained now.
        note: who trains it, or why it ended.
    """

    path: Path
    run: str
    state: RunState
    epoch: int = 0
    epochs: int | None = None
    val_accuracy: float | None = None
    best_accuracy: float | None = None
    seconds_left: float | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "path": str(self.path)}


def list_runs(where: Path | str = ".") -> tuple[RunLine, ...]:
    """Return the runs at and below a folder, and those that a sweep there has still to begin.

    Args:
        where: runs/, an experiment's or a variant's folder in it, a run's, or the folder around runs/; or an
            experiment's file, whose variants and seeds are listed whether they were begun or not.

    Raises:
        RunError: no such folder, or no run in it.
        SettingsError: a malformed experiment.

    Example:
        >>> from talik.adapt.sweep.run_list import list_runs
        >>> sorted({line.state for line in list_runs("runs")})
        ['finished', 'interrupted']
    """
    where = Path(where)
    if where.is_file():
        experiment = load_experiment(where)
        folders = [experiment.runs / v.name / f"seed{k}" for k in experiment.sweep.seeds for v in experiment.variants]
        found = {path: _look(path) for path in dict.fromkeys(folders)}
    else:
        found = {path: _look(path) for path in _run_folders(where)}
    if not found:
        raise RunError(f"{where}: no run in it; train a variant first, or name the experiment's file")
    return tuple(_with_time_left(found))


def run_lines(lines: Sequence[RunLine]) -> list[str]:
    """Say what `list_runs` found in a table of text, and the counts of each state."""
    rows = [("run", "state", "epoch", "val", "best", "time left", "")]
    for line in lines:
        epoch = f"{line.epoch}/{'?' if line.epochs is None else line.epochs}"
        left = "" if line.seconds_left is None else readable_seconds(line.seconds_left)
        rows.append(
            (line.run, line.state, epoch, _percent(line.val_accuracy), _percent(line.best_accuracy), left, line.note)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    counts: dict[str, int] = defaultdict(int)
    for line in lines:
        counts[line.state] += 1
    return [*text, f"{counted(len(lines), 'run')}: " + ", ".join(f"{count} {state}" for state, count in counts.items())]


def stop_run(run: Path | str) -> str:
    """End a run early, from any process: at once if nobody trains it, else after the epoch in hand.

    Its checkpoint is kept: `talik adapt` of its variant goes on from there. A sweep leaves it stopped.

    Args:
        run: its folder; of a run that a sweep has still to begin, the folder that it will have.

    Returns:
        A line that says what happens.

    Raises:
        RunError: the run has ended, or was stopped before.
    """
    folder = RunFolder(run).retrained
    if folder.done:
        raise RunError(f"{folder.path}: has ended; there is nothing to stop")
    if (stopped := read_stopped(folder)) is not None:
        raise RunError(f"{folder.path}: {stopped.line}")
    if not folder.path.is_dir() and not (folder.path.parent.parent / _SWEPT).is_file():
        raise RunError(
            f"{folder.path}: no such run; expected runs/<experiment>/<variant>/seed<k> (talik runs lists them)"
        )
    request_stop(folder)
    who = _owner(RunFolder(run).path)
    if who is not None:
        return f"{folder.path}: {who} ends it after the epoch in hand"
    epoch = folder.num_epochs
    write_stopped(folder, Stopped(by="request", epoch=epoch, reason="talik runs stop, while nobody trained it"))
    return f"{folder.path}: stopped after epoch {epoch}; nobody was training it"


def extend_run(
    run: Path | str, *, epochs: int, device: str = "auto", progress: bool = True, places: Path | str | None = None
) -> RunResult:
    """Train a finished run for more epochs: a new run beside it, with a schedule of its own, from its best weights.

    The learning rates of the finished run have come to zero, so that its schedule cannot go on; the new run warms up
    and decays anew over `epochs`. The old one stays as it is. Called again, an unfinished extension goes on.

    Args:
        run: the finished run's folder.
        epochs: how many more.
        device: where it runs; "auto" is a GPU where there is one.
        progress: show tqdm bars.
        places: an experiment's file that says where data set, encoders and store lie now.

    Raises:
        RunError: the run has not ended; talik adapt goes on with it.
    """
    folder = RunFolder(run)
    folder.check_done()
    seed = int(folder.config()["seed"])
    experiment, variant = folder.experiment(places=places)
    longer = replace(
        variant,
        name=f"{variant.name}+{epochs}-more",
        start_from=variant.name,
        train={**variant.train, "epochs": epochs},
    )
    experiment = replace(experiment, variants=(variant, longer))
    return adapt(experiment, variant=longer.name, seed=seed, resume=True, device=device, progress=progress)


@contextmanager
def recorded_sweep(runs: Path, pairs: Iterable[tuple[str, int]]) -> Iterator[None]:
    """Write down which runs a sweep is to train, for `list_runs` to know those not begun, and that it runs meanwhile.

    Args:
        runs: the experiment's folder of runs.
        pairs: (variant, seed) of each.

    Raises:
        RunError: the disk refuses it.
    """
    with writing(runs):
        make_folder(runs)
    RunFolder(runs).write_json(_SWEPT, {"runs": [f"{name}/seed{seed}" for name, seed in pairs]})
    descriptor = None
    with suppress(LocksUnsupportedError):  # the runs' own locks say so
        descriptor = open_locked(
            runs / _RUNNING, wait=True, shared=True
        )  # several sweeps may have variants of their own
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _run_folders(where: Path) -> list[Path]:
    if not where.is_dir():
        raise RunError(f"{where}: no such folder; expected runs/, or an experiment's, a variant's or a run's in it")
    if (where / "config.toml").is_file() or (where / "stop.json").is_file():
        return [where]
    root = where / "runs" if (where / "runs").is_dir() else where
    found: dict[Path, None] = {}
    for swept in sorted(root.rglob(_SWEPT)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            found |= {swept.parent / name: None for name in json.loads(swept.read_text(encoding="utf-8"))["runs"]}
    begun = {path.parent for path in root.rglob("config.toml")}
    found |= dict.fromkeys(sorted(f for f in begun if begun.isdisjoint(f.parents)))
    return list(found)


def _look(path: Path) -> RunLine:
    """Return what a folder says of its run, without the time left."""
    main = RunFolder(path)
    folder = main.retrained
    again = "trained anew; " if folder is not main else ""
    history = folder.epochs()
    line = RunLine(
        path=path,
        run="/".join(path.resolve().parts[-3:]),
        state="not started",
        epoch=int(history[-1]["epoch"]) if history else 0,
        epochs=_epochs(folder.path),
        val_accuracy=validation_of(history[-1]) if history else None,
        best_accuracy=max((validation_of(e) or 0.0 for e in history), default=None),
    )
    if folder.done:
        return replace(line, state="finished")
    who = _owner(path)
    stopped = read_stopped(folder)
    if who is not None:
        asked = "; to be stopped" if stop_is_requested(folder) else ""
        return replace(line, state="running", note=f"{again}{who}{asked}")
    if stopped is not None:
        return replace(line, state="stopped", note=f"{again}by {stopped.by}: {stopped.reason}")
    if folder.error_file.is_file():
        with suppress(OSError):
            (first, *_) = folder.error_file.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
            return replace(line, state="failed", note=f"{again}{first}")
    in_sweep = _sweep_is_running(path.parent.parent)
    if folder.status == "unfinished" or (folder.path / "config.toml").is_file():
        return replace(line, state="waiting" if in_sweep else "interrupted", note=again)
    return replace(line, state="waiting" if in_sweep else "not started")


def _with_time_left(found: Mapping[Path, RunLine]) -> Iterable[RunLine]:
    """Add the time left: runs of one process and seed advance in lockstep, so that an epoch takes what all take."""
    running: dict[tuple[str, str], float] = defaultdict(float)
    means: dict[Path, float] = {}
    for path, line in found.items():
        seconds = [float(e.get("seconds", 0)) for e in RunFolder(path).retrained.epochs()]
        if line.state == "running" and seconds:
            means[path] = sum(seconds) / len(seconds)
            running[line.note, path.name] += means[path]
    for path, line in found.items():
        if path in means and line.epochs is not None:
            line = replace(line, seconds_left=(line.epochs - line.epoch) * running[line.note, path.name])
        yield line


def _epochs(folder: Path) -> int | None:
    try:
        return int(tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))["train"]["epochs"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _owner(run: Path) -> str | None:
    """Return the process that holds a run's lock, in words; None where nobody does."""
    lock = run / ".lock"
    return owner(lock) if _is_held(lock, shared=True) else None


def _sweep_is_running(runs: Path) -> bool:
    return _is_held(runs / _RUNNING, shared=False)


def _is_held(path: Path, *, shared: bool) -> bool:
    """Return whether a shared, or an exclusive, lock of a file would have to wait."""
    if not path.is_file():
        return False
    try:
        os.close(open_locked(path, wait=False, shared=shared))
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
