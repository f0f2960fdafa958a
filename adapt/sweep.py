"""`sweep`: variants times seeds, one run folder each; what is done stays, what fails is recorded, the rest goes on.

Variants of one seed that see the same batches are trained in lockstep (`fused`), which changes their cost and not their
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ..cache.errors import RunError, TalikError
from .experiment import Experiment, load_experiment
from .fused import data_order, train_together
from .runfolder import RunFolder
from .train import RunResult, result_of, run_config
from .training import Training
from .workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """The finished runs in the order of seeds, then variants; and the others' names with their reasons."""

    runs: tuple[RunResult, ...]
    failures: tuple[tuple[str, str], ...]


def sweep(
    experiment: Experiment | Path | str,
    *,
    variants: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    fuse: bool = True,
    live: bool = False,
    device: str = "cpu",
    progress: bool = True,
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

    Raises:
        SettingsError: an unknown variant.
        RunError: every run failed; a single failure is recorded in the result and the rest goes on.
    """
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment)
    names = [v.name for v in experiment.variants] if variants is None else list(variants)
    pairs = [
        (experiment.variant(n).name, s) for s in (experiment.sweep.seeds if seeds is None else seeds) for n in names
    ]
    run = _Sweep(experiment, fuse=fuse, live=live, device=device, progress=progress)
    return run.all(pairs)


class _Sweep:
    def __init__(self, experiment: Experiment, *, fuse: bool, live: bool, device: str, progress: bool) -> None:
        self.experiment, self.fuse, self.live, self.progress = experiment, fuse, live, progress
        self.bench = Workbench(experiment, device=device)
        self.results: dict[tuple[str, int], RunResult] = {}
        self.failures: dict[tuple[str, int], str] = {}

    def all(self, pairs: Sequence[tuple[str, int]]) -> SweepResult:
        with tqdm(total=len(pairs), desc="runs", unit="run", disable=not self.progress) as bar:
            for seed in dict.fromkeys(s for _, s in pairs):
                self._seed([n for n, s in pairs if s == seed], seed, bar)
        failed = [p for p in pairs if p in self.failures]
        if failed and not self.results:
            first = f"{failed[0][0]}/seed{failed[0][1]}: {self.failures[failed[0]]}"
            raise RunError(f"all {len(failed)} runs failed; the first: {first}")
        return SweepResult(
            runs=tuple(self.results[p] for p in pairs if p in self.results),
            failures=tuple((f"{p[0]}/seed{p[1]}", self.failures[p]) for p in failed),
        )

    def _seed(self, names: Sequence[str], seed: int, bar: tqdm[None]) -> None:
        waiting: list[Training] = []
        for name in names:
            try:
                training = self._opened(name, seed)
            except TalikError as error:
                self.failures[name, seed] = str(error)
                training = None
            if training is None:
                bar.update(1)
            elif self.fuse:
                waiting.append(training)
            else:
                self._train([training], bar)
        groups: dict[object, list[Training]] = {}
        for training in waiting:
            groups.setdefault(data_order(training), []).append(training)
        for group in groups.values():
            self._train(group, bar)

    def _opened(self, name: str, seed: int) -> Training | None:
        """A run's training, brought to where it was interrupted; None where the run is done."""
        variant = self.experiment.variant(name)
        settings = self.experiment.train_settings(variant)
        folder = RunFolder(self.experiment.runs / name / f"seed{seed}")
        folder.begin(run_config(self.experiment, variant, settings, seed), resume=True)
        if folder.done:
            self.results[name, seed] = result_of(folder, skipped=True)
            return None
        if settings.num_threads and self.bench.device == "cpu":
            torch.set_num_threads(settings.num_threads)
        return Training(self.bench, variant, settings, seed, folder, live=self.live)

    def _train(self, group: Sequence[Training], bar: tqdm[None]) -> None:
        place = {t.label: (t.variant.name, t.seed) for t in group}
        try:
            failures = train_together(group, progress=self.progress).failures
        except TalikError as error:  # of all: the store's, or of a group of one
            failures = {label: str(error) for label in place}
        for training in group:
            where = place[training.label]
            if training.label in failures and not training.folder.done:
                self.failures[where] = failures[training.label]
            else:
                self.results[where] = result_of(training.folder)
            bar.update(1)
