"""What a worker of a sweep does: train the runs of one seed, in lockstep where they see the same batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...errors import RunDiffersError, RunError, RunLockedError
from ...extract.executors.threads import torch_threads
from ...extract.trunk.exact_float32 import exact_float32
from ..config.experiment import Experiment
from ..training.adapt import RunResult, open_trainer
from ..training.experiment_context import ExperimentContext
from ..training.failures import reason_of, record_failure
from ..training.filling import Filling
from ..training.lockstep_group import group_key, train_together
from ..training.run_folder import RunFolder, RunOutcome
from ..training.stop_signals import StopSignals
from ..training.stopped_runs import Stopped, stop_is_requested, write_stopped
from ..training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class RunGroup:
    """Runs of one seed that one worker trains.

    Args:
        seed: of all of them.
        names: of their variants.
        until: epochs after which they wait for a later call; None for to the end.
    """

    seed: int
    names: tuple[str, ...]
    until: int | None = None


@dataclass(kw_only=True)
class SweepJob:
    """Trains groups of runs; it pickles, and each process opens the encoders and the store once.

    Args:
        experiment: the whole experiment.
        live: decode and encode the media files, without a store.
        device: the torch device.
        progress: show a tqdm bar for each group.
        skip_locked: count a run that another process has as failed and train the others; otherwise none is trained.
        retrain: train anew the runs whose folders hold runs of other settings or data.
        filling: the extraction that fills the store meanwhile, of this process alone.
    """

    experiment: Experiment
    live: bool
    device: str
    progress: bool = False
    skip_locked: bool = False
    retrain: bool = False
    filling: Filling | None = None

    def __getstate__(self) -> dict[str, Any]:
        names = ("experiment", "live", "device", "progress", "skip_locked", "retrain")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def _contexts(self) -> list[ExperimentContext]:
        return []

    def context(self, name: str) -> ExperimentContext:
        """The manifest, the encoders and the store of a variant, shared by all runs that have the same."""
        experiment = self.experiment.for_variant(name)
        for opened in self._contexts:
            if opened.experiment.extraction == experiment.extraction:
                return opened
        context = ExperimentContext(experiment, device=self.device)
        if self.filling is not None:
            self.filling.give_store(context)
        self._contexts.append(context)
        return context

    def run(self, given: RunGroup) -> dict[str, Any]:
        """Train the runs of a group that are not finished.

        Returns:
            `how`, what was done for each run by its variant's name; `notes`, what could not be compared of those that
            were finished before; `failures`, the reason of each that failed; `locked`, those that another process has.

        Raises:
            RunLockedError: another process is training one of them, and they are not skipped.
        """
        failures: dict[str, str] = {}
        locked: list[str] = []
        with ExitStack() as stack:
            stack.enter_context(torch_threads())
            stack.enter_context(exact_float32())
            for name in given.names:
                try:
                    stack.enter_context(RunFolder(self.experiment.runs / name / f"seed{given.seed}").locked())
                except RunError as error:
                    if isinstance(error, RunLockedError) and not self.skip_locked:
                        raise
                    failures[name] = str(error)
                    locked += [name] * isinstance(error, RunLockedError)
            return {**self._train(given, failures), "locked": locked}

    def _train(self, group: RunGroup, failures: dict[str, str]) -> dict[str, Any]:
        how: dict[str, RunOutcome] = {}
        notes: dict[str, list[str]] = {}
        lockstep: dict[object, list[Trainer]] = {}
        for name in group.names:
            if name in failures or self._stop_asked(name, group.seed):
                continue
            try:
                opened = self._open(name, group.seed)
            except Exception as error:
                failures[name] = reason_of(error)
                continue
            how[name] = opened.how
            if isinstance(opened, RunResult):
                notes[name] = list(opened.notes)
            else:
                opened.pause_after = group.until
                lockstep.setdefault(group_key(opened), []).append(opened)
        for trainers in lockstep.values():
            failures.update(self._train_together(trainers))
        return {"how": how, "notes": notes, "failures": failures}

    def _stop_asked(self, name: str, seed: int) -> bool:
        """Whether somebody asked for the end of a run before its turn came; then that is written down."""
        folder = RunFolder(self.experiment.runs / name / f"seed{seed}").retrained
        if folder.done or not stop_is_requested(folder):
            return False
        write_stopped(folder, Stopped(by="request", epoch=folder.num_epochs, reason="talik runs stop, before its turn"))
        return True

    def _open(self, name: str, seed: int) -> Trainer | RunResult:
        try:
            return open_trainer(self.context(name), name, seed, resume=True, live=self.live)
        except RunDiffersError:
            if not self.retrain:
                raise
            return open_trainer(self.context(name), name, seed, resume=True, retrain=True, live=self.live)

    def _train_together(self, trainers: Sequence[Trainer]) -> dict[str, str]:
        stop = StopSignals()
        if self.filling is not None:
            self.filling.stop = stop
        try:
            with stop.caught():
                found = train_together(trainers, progress=self.progress, stop=stop).failures
        except Exception as error:  # of all: the store's, or of a group of one
            found = {t.label: record_failure(t.folder, error) for t in trainers if not t.folder.done}
        return {t.variant.name: found[t.label] for t in trainers if t.label in found and not t.folder.done}
