"""`sweep`: train variants times seeds, one run folder each; finished runs stay, failures are recorded.

Variants of one seed that see the same batches are trained in lockstep (`fuse`), which changes their cost and not their
numbers. An executor distributes the groups: over this process, several of this machine, or a cluster's workers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import RunError, RunLockedError, SettingsError, TalikError
from ...extract.executors.base import Executor
from ...extract.executors.device import chosen_device, say_device
from ...extract.executors.open import open_executor
from ...extract.executors.settings import EngineSettings
from ...extract.executors.tasks import Receipt, ReceiptFile, Task
from ...extract.stage.experiment_file import ExperimentSource
from ...extract.stage.settings import plan_path
from ...progress import progress_bar
from ..config.experiment import Experiment, load_experiment
from ..config.run_config import run_config
from ..training.adapt import RunResult, result_of
from ..training.filling import OnMissing, begin_filling
from ..training.run_folder import RunFolder
from ..training.stop_signals import ended_by_signals
from ..training.stopped_runs import Stopped, read_stopped
from .halving import Halving, trained_folder
from .run_list import recorded_sweep
from .worker import RunGroup, SweepJob

if TYPE_CHECKING:
    import pandas

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, repr=False)
class SweepResult:
    """Outcome of a sweep.

    Args:
        runs: the finished runs, of now or before, by seed, then by variant.
        failures: ("VARIANT/seedN", reason) of each run that failed.
        retried: (group, reasons) of each group that was begun more than once: a worker was lost, or a run was locked.
        stopped: the runs that were ended early, by halving or by request, with what their folders say of it.
    """

    runs: tuple[RunResult, ...]
    failures: tuple[tuple[str, str], ...]
    retried: tuple[tuple[str, str], ...] = ()
    stopped: tuple[tuple[Path, Stopped], ...] = ()

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table of the finished runs: variant, seed, accuracy (or mAP), and that of each question type."""
        import pandas

        rows = [
            {
                "variant": run.variant,
                "seed": run.seed,
                run.scores.metric.name: run.scores.overall.accuracy,
                **{name: tally.accuracy for name, tally in run.scores.by_type.items()},
            }
            for run in self.runs
        ]
        return pandas.DataFrame(rows)

    def __repr__(self) -> str:
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"SweepResult({len(self.runs)} run{'s' * (len(self.runs) != 1)}{failed})"

    def _repr_html_(self) -> str:
        return str(self.to_pandas().to_html(index=False, float_format="{:.4f}".format))


def sweep(
    experiment: Experiment | ExperimentSource,
    *,
    variants: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    fuse: bool = True,
    live: bool = False,
    on_missing: OnMissing = "error",
    device: str = "auto",
    progress: bool = True,
    engine: EngineSettings | None = None,
    retrain: bool = False,
) -> SweepResult:
    """Train every variant with every seed; unfinished runs resume, finished ones are kept.

    With `[sweep] early_stop` variants whose validation is behind are stopped at rungs of the training (`halving`), and
    stay so in later calls; the others end as they would without it.

    Ctrl-C, SIGTERM and SIGUSR1 have a checkpoint of each run in hand written before they end the process, here and in
    worker processes. A run that was made with other settings, labels, clips, states or weights fails with what differs,
    as in `adapt`.

    Args:
        experiment: an experiment's TOML, its tables as a dict, or the experiment itself.
        variants: names, in the order to train; all of the experiment's by default.
        seeds: the experiment's by default.
        fuse: train variants that see the same batches in lockstep; otherwise one after another.
        live: decode and encode the media files for every batch, without a store.
        on_missing: what states that the store lacks are: an "error", or to "compute" as `extract` does, while the first
            epoch trains where that is possible (`talik.adapt.training.filling`).
        device: the torch device, for instance "cpu" or "cuda"; "auto" is a GPU where there is one.
        progress: show tqdm bars.
        engine: which workers train, in place of the experiment's `[engine]`.
        retrain: train those anew whose folders hold runs of other settings or data; the old ones stay until then.

    Returns:
        The finished runs; the failed ones with their reasons.

    Raises:
        SettingsError: an unknown variant, or none.
        RunError: every run failed; a single failure is recorded in the result, and the others go on.
        BackendError: the engine cannot run.

    Example:
        >>> import talik
        >>> result = talik.sweep("exp.toml", variants=["probe", "trimodal"], seeds=[0], progress=False)
        >>> [(run.variant, run.seed) for run in result.runs]
        [('probe', 0), ('trimodal', 0)]
        >>> list(result.to_pandas().columns)[:3]
        ['variant', 'seed', 'accuracy']
    """
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment)
    pairs = chosen_pairs(experiment, variants, seeds)
    chosen = engine or experiment.extraction.engine
    device = chosen_device(device, engine=chosen)
    if progress:
        say_device(device, chosen)
    for note in experiment.notes:
        _log.info(note)
    filling = None
    if not live:
        first = "" if chosen.in_process else "other processes train"
        names, seed = [name for name, _ in pairs], pairs[0][1]
        filling = begin_filling(experiment, names, seed, on_missing, device=device, progress=progress, first=first)
    job = SweepJob(experiment=experiment, live=live, device=device, retrain=retrain, filling=filling)
    with filling or nullcontext(), recorded_sweep(experiment.runs, pairs):
        return _Sweep(job, chosen).run(pairs, fuse=fuse, progress=progress)


def chosen_pairs(
    experiment: Experiment, variants: Sequence[str] | None, seeds: Sequence[int] | None
) -> list[tuple[str, int]]:
    """Return (variant, seed) of each run of a sweep, seed by seed.

    Raises:
        SettingsError: an unknown variant, or none, or no seed.
    """
    names = [v.name for v in experiment.variants] if variants is None else list(variants)
    seeds = experiment.sweep.seeds if seeds is None else seeds
    if not names or not seeds:
        raise SettingsError(f"{experiment.name}: no {'seed' if names else '[[variants]]'}; expected at least one")
    return [(experiment.variant(name).name, seed) for seed in seeds for name in names]


class _Sweep:
    def __init__(self, job: SweepJob, engine: EngineSettings) -> None:
        self.experiment, self.job, self.engine = job.experiment, job, engine
        self.results: dict[tuple[str, int], RunResult] = {}
        self.failures: dict[tuple[str, int], str] = {}
        self.retried: list[tuple[str, str]] = []
        self.stopped: dict[tuple[str, int], Stopped] = {}
        self.locked: set[tuple[str, int]] = set()  # failed, since another process trains them

    def run(self, pairs: Sequence[tuple[str, int]], *, fuse: bool, progress: bool) -> SweepResult:
        names, seeds = (list(dict.fromkeys(found)) for found in zip(*pairs, strict=True))
        settings = self.experiment.sweep.halving
        halving = None if settings is None else Halving(self.experiment, names, seeds, settings)
        in_process = self.engine.in_process
        # other engines begin a group again a little later, where a run of it is locked
        job = replace(self.job, progress=progress and in_process, skip_locked=in_process)
        with (
            nullcontext() if in_process else ended_by_signals(),  # then the workers save what they train
            progress_bar(total=len(pairs), desc="runs", unit="run", disable=not progress) as bar,
            open_executor(self.engine, device=self.job.device, base=self.experiment.base) as workers,
        ):
            for until in (*(() if halving is None else halving.rungs), None):
                alive = self._alive(pairs, halving)
                bar.update(max(0, len(pairs) - len(alive) - bar.n))
                if all(pair in self.results or pair in self.failures for pair in alive):
                    break
                self._train(workers, job, alive, until=until, fuse=fuse, bar=bar)
                if halving is not None and until is not None:
                    self._halve(halving, until)
            bar.update(max(0, len(pairs) - bar.n))
        self._alive(pairs, halving)
        failures = [
            (f"{name}/seed{seed}", self.failures[name, seed]) for name, seed in pairs if (name, seed) in self.failures
        ]
        if failures and not self.results and not self.stopped:
            raise RunError(f"all {len(failures)} runs failed; the first: {': '.join(failures[0])}")
        return SweepResult(
            runs=tuple(self.results[pair] for pair in pairs if pair in self.results),
            failures=tuple(failures),
            retried=tuple(self.retried),
            stopped=tuple((self._folder(*pair).path, self.stopped[pair]) for pair in pairs if pair in self.stopped),
        )

    def _folder(self, name: str, seed: int) -> RunFolder:
        return trained_folder(self.experiment, name, seed)

    def _alive(self, pairs: Sequence[tuple[str, int]], halving: Halving | None) -> list[tuple[str, int]]:
        """Return the runs that are not stopped, by these rules or by a person, and note the others."""
        found = []
        for name, seed in pairs:
            stopped = read_stopped(self._folder(name, seed))
            if stopped is None or (stopped.by == "halving" and (halving is None or name not in halving.stopped)):
                found.append((name, seed))
            else:
                self.stopped[name, seed] = stopped
        return found

    def _halve(self, halving: Halving, rung: int) -> None:
        busy = [f"{n}/seed{s}" for (n, s), reason in self.failures.items() if (n, s) in self.locked]
        if busy:
            raise RunLockedError(
                f"epoch {rung} cannot be decided: another process is training {', '.join(busy)}; run the sweep again "
                "when it has ended"
            )
        out = halving.decide(rung, failed=set(self.failures))
        if out:
            _log.info("epoch %d: %d variants go on; stopped: %s", rung, len(halving.alive), ", ".join(out))

    def _train(
        self,
        workers: Executor,
        job: SweepJob,
        pairs: Sequence[tuple[str, int]],
        *,
        until: int | None,
        fuse: bool,
        bar: Any,
    ) -> None:
        """Train runs to an epoch, or to their end."""
        in_process = self.engine.in_process
        receipts = None if in_process else ReceiptFile(receipts_path(self.experiment), run="sweep")
        left = [pair for pair in pairs if pair not in self.results and pair not in self.failures]
        groups = run_groups(self.experiment, left, fuse=fuse, num_workers=workers.num_workers())
        peaks = {} if in_process else _planned_peaks(self.experiment, self.job.device)
        tasks = {}
        for number, group in enumerate(groups):
            known = peaks.keys() >= set(group.names)
            peak = sum(peaks[name] for name in group.names) if known else 0
            rung = "" if until is None else f", to epoch {until}"
            task = Task(
                name=f"seed {group.seed}, group {number}{rung}", given=replace(group, until=until), memory_bytes=peak
            )
            tasks[task.name] = task
        for receipt in workers.run(job, list(tasks.values())):
            if receipts is not None:
                receipts.add(receipt)
            group = tasks[receipt.task].given
            self._record(group, receipt)
            ended = [(name, group.seed) for name in group.names]
            bar.update(sum(pair in self.results or pair in self.failures for pair in ended))

    def _record(self, group: RunGroup, receipt: Receipt) -> None:
        """Record each run of a group as finished or failed: a run is finished if its folder says so."""
        if receipt.attempts > 1:
            self.retried.append((receipt.task, "; ".join(receipt.lost)))
        reasons = receipt.result.get("failures", {})
        for name in group.names:
            folder = RunFolder(self.experiment.runs / name / f"seed{group.seed}")
            trained = self._is_trained(folder, name, group.seed)
            reason = reasons.get(name) or ("" if trained else receipt.error)
            if reason:
                self.failures[name, group.seed] = reason
                if name in receipt.result.get("locked", ()) or receipt.kind == RunLockedError.__name__:
                    self.locked.add((name, group.seed))
                continue
            trains = self._folder(name, group.seed)
            if not trained and not trains.done and (group.until is not None or read_stopped(trains)):
                continue
            try:
                how, notes = receipt.result.get("how", {}), receipt.result.get("notes", {})
                self.results[name, group.seed] = result_of(
                    folder, how=how.get(name, "trained"), notes=notes.get(name, ())
                )
            except TalikError as error:
                self.failures[name, group.seed] = str(error)

    def _is_trained(self, folder: RunFolder, name: str, seed: int) -> bool:
        """Whether a folder holds a finished run of these settings, also where its worker was lost after that."""
        if not folder.done or folder.retraining.path.exists():
            return False
        variant = self.experiment.variant(name)
        settings = self.experiment.train_settings(variant)
        return not folder.differences(run_config(self.experiment, variant, settings, seed))


def receipts_path(experiment: Experiment) -> Path:
    """Return the path of the receipts of an experiment's groups, written where other processes train them."""
    return experiment.runs / "units.jsonl"


def run_groups(
    experiment: Experiment, pairs: Sequence[tuple[str, int]], *, fuse: bool, num_workers: int
) -> list[RunGroup]:
    """Group runs by seed and data order; halve the largest group while there are fewer groups than workers.

    Args:
        experiment: the whole experiment.
        pairs: (variant, seed) of each run.
        fuse: group variants of one data order; otherwise each run is a group.
        num_workers: how many groups can be trained at once.
    """
    found: dict[tuple[int, str, int], list[str]] = {}
    extractions = experiment.extractions(name for name, _ in pairs)
    for name, seed in pairs:
        order = experiment.train_settings(experiment.variant(name)).data_order if fuse else name
        found.setdefault((seed, order, extractions.index(experiment.extraction_of(name))), []).append(name)
    groups = [RunGroup(seed=seed, names=tuple(dict.fromkeys(names))) for (seed, *_), names in found.items()]
    while len(groups) < num_workers and any(len(group.names) > 1 for group in groups):
        largest = max(range(len(groups)), key=lambda i: len(groups[i].names))
        seed, names = groups[largest].seed, groups[largest].names
        half = (len(names) + 1) // 2
        groups[largest : largest + 1] = [RunGroup(seed=seed, names=part) for part in (names[:half], names[half:])]
    return groups


def _planned_peaks(experiment: Experiment, device: str) -> dict[str, int]:
    """Return the planned peak memory, in bytes, of training each variant; {} without a plan, or not on a CPU."""
    try:
        planned = json.loads(plan_path(experiment.base, experiment.name).read_text(encoding="utf-8"))
        return {v["name"]: int(v["peak_bytes"]) for v in planned["variants"]} if device == "cpu" else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
