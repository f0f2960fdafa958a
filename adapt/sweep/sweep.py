"""`sweep`: variants times seeds, one run folder each; what is done stays, what fails is recorded, the rest goes on.

Variants of one seed that see the same batches are trained in lockstep (`fused`), which changes their cost and not their
numbers. The groups are given to an engine: this process, several of this machine, or a cluster's workers. Where there
are fewer groups than workers, groups are divided.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ...errors import RunError, TalikError
from ...extract.executors.open import open_executor
from ...extract.executors.settings import EngineSettings
from ...extract.executors.tasks import Receipt, ReceiptFile, Task
from ...extract.stage.settings import plan_path
from ..config.experiment import Experiment, load_experiment
from ..training.adapt import RunResult, result_of
from ..training.run_folder import RunFolder
from .worker import Runs, SweepWork


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """The finished runs in the order of seeds, then variants; the others' names with their reasons; what was retried.

    Args:
        runs: finished, now or before.
        failures: (name, reason).
        retried: (group, reason): begun more than once, since workers were lost or others were at it.
    """

    runs: tuple[RunResult, ...]
    failures: tuple[tuple[str, str], ...]
    retried: tuple[tuple[str, str], ...] = ()


def sweep(
    experiment: Experiment | Path | str,
    *,
    variants: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    fuse: bool = True,
    live: bool = False,
    device: str = "cpu",
    progress: bool = True,
    engine: EngineSettings | None = None,
) -> SweepResult:
    """Train every variant with every seed; unfinished runs go on, finished ones are left alone.

    Args:
        experiment: an experiment's TOML, or the experiment itself.
        variants: names, in the order to train; all of the experiment's by default.
        seeds: the experiment's by default.
        fuse: train variants that see the same batches in lockstep; otherwise one after another.
        live: decode and encode the media files for every batch, without a store.
        device: where it runs.
        progress: show tqdm bars.
        engine: in place of the experiment's: who trains.

    Raises:
        SettingsError: an unknown variant.
        RunError: every run failed; a single failure is recorded in the result and the rest goes on.
        BackendError: the engine cannot run.

    Example:
        >>> import talik
        >>> result = talik.sweep("exp.toml", variants=["probe", "trimodal"], seeds=[0], progress=False)
        >>> [run.folder.parent.name for run in result.runs]
        ['probe', 'trimodal']
    """
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment)
    names = [v.name for v in experiment.variants] if variants is None else list(variants)
    pairs = [
        (experiment.variant(n).name, s) for s in (experiment.sweep.seeds if seeds is None else seeds) for n in names
    ]
    return _Sweep(experiment, engine or experiment.extraction.engine, live=live, device=device).all(
        pairs, fuse=fuse, progress=progress
    )


class _Sweep:
    def __init__(self, experiment: Experiment, engine: EngineSettings, *, live: bool, device: str) -> None:
        self.experiment, self.engine, self.live, self.device = experiment, engine, live, device
        self.results: dict[tuple[str, int], RunResult] = {}
        self.failures: dict[tuple[str, int], str] = {}
        self.retried: list[Receipt] = []

    def all(self, pairs: Sequence[tuple[str, int]], *, fuse: bool, progress: bool) -> SweepResult:
        inside = self.engine.in_process
        work = SweepWork(experiment=self.experiment, live=self.live, device=self.device, progress=progress and inside)
        kept = None if inside else ReceiptFile(receipts_path(self.experiment), run="sweep")
        with (
            tqdm(total=len(pairs), desc="runs", unit="run", disable=not progress) as bar,
            open_executor(self.engine, device=self.device, base=self.experiment.base) as workers,
        ):
            groups = run_groups(self.experiment, pairs, fuse=fuse, num_workers=workers.num_workers())
            peaks = {} if inside else _planned_peaks(self.experiment, self.device)
            tasks = {}
            for number, group in enumerate(groups):
                need = sum(peaks.get(name, 0) for name in group.names) if peaks.keys() >= set(group.names) else 0
                task = Task(name=f"seed {group.seed}, group {number}", given=group, memory_bytes=need)
                tasks[task.name] = task
            for receipt in workers.run(work, list(tasks.values())):
                if kept is not None:
                    kept.add(receipt)
                self._take(tasks[receipt.task].given, receipt)
                bar.update(len(tasks[receipt.task].given.names))
        failed = [p for p in pairs if p in self.failures]
        if failed and not self.results:
            first = f"{failed[0][0]}/seed{failed[0][1]}: {self.failures[failed[0]]}"
            raise RunError(f"all {len(failed)} runs failed; the first: {first}")
        return SweepResult(
            runs=tuple(self.results[p] for p in pairs if p in self.results),
            failures=tuple((f"{p[0]}/seed{p[1]}", self.failures[p]) for p in failed),
            retried=tuple((receipt.task, "; ".join(receipt.lost)) for receipt in self.retried),
        )

    def _take(self, group: Runs, receipt: Receipt) -> None:
        """Take in what became of a group: whatever a worker says, a run is done where its folder says so."""
        if receipt.attempts > 1:
            self.retried.append(receipt)
        reasons = receipt.result.get("failures", {})
        for name in group.names:
            folder = RunFolder(self.experiment.runs / name / f"seed{group.seed}")
            reason = reasons.get(name) or receipt.error
            if reason and not folder.done:
                self.failures[name, group.seed] = reason
                continue
            try:
                self.results[name, group.seed] = result_of(folder, skipped=name in receipt.result.get("skipped", ()))
            except TalikError as error:
                self.failures[name, group.seed] = str(error)


def receipts_path(experiment: Experiment) -> Path:
    """Where the receipts of an experiment's groups lie, those that other processes have trained."""
    return experiment.runs / "units.jsonl"


def run_groups(experiment: Experiment, pairs: Sequence[tuple[str, int]], *, fuse: bool, num_workers: int) -> list[Runs]:
    """The runs by seed and data order; divided, the largest first, until every worker has something to do."""
    found: dict[tuple[int, str], list[str]] = {}
    for name, seed in pairs:
        order = experiment.train_settings(experiment.variant(name)).data_order if fuse else name
        found.setdefault((seed, order), []).append(name)
    groups = [Runs(seed=seed, names=tuple(dict.fromkeys(names))) for (seed, _), names in found.items()]
    while len(groups) < num_workers and any(len(group.names) > 1 for group in groups):
        at = max(range(len(groups)), key=lambda i: len(groups[i].names))
        names, half = groups[at].names, (len(groups[at].names) + 1) // 2
        parts = [dataclasses.replace(groups[at], names=part) for part in (names[:half], names[half:])]
        groups[at : at + 1] = parts
    return groups


def _planned_peaks(experiment: Experiment, device: str) -> dict[str, int]:
    """The memory of each variant's training as the plan has it, which is this machine's on a CPU; {} without a plan."""
    try:
        planned = json.loads(plan_path(experiment.base, experiment.name).read_text(encoding="utf-8"))
        return {v["name"]: int(v["peak_bytes"]) for v in planned["variants"]} if device == "cpu" else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
