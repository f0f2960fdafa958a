"""The work of a sweep: the runs of one seed, opened, grouped by the batches that they see, and trained in lockstep."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..config.experiment import Experiment
from ..training.adapt import RunResult, open_trainer
from ..training.experiment_context import ExperimentContext
from ..training.lockstep_group import group_key, reason_of, train_together
from ..training.run_folder import RunFolder
from ..training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Runs of one seed, by their variants' names."""

    seed: int
    names: tuple[str, ...]


@dataclass(kw_only=True)
class SweepWork:
    """What trains runs, in this process or, pickled, in others; encoders and store are opened once in each.

    Args:
        experiment: the whole experiment.
        live: without the store.
        device: where it runs.
        progress: show each group's bar.
    """

    experiment: Experiment
    live: bool
    device: str
    progress: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("experiment", "live", "device", "progress")}

    @cached_property
    def context(self) -> ExperimentContext:
        """What the runs share."""
        return ExperimentContext(self.experiment, device=self.device)

    def run(self, runs: Runs) -> dict[str, Any]:
        """Train what is not done yet.

        Returns:
            `skipped`, the names of the runs that were done before; `failures`, reasons by name.

        Raises:
            RunLockedError: another process is training one of them.
        """
        with ExitStack() as stack:
            for name in runs.names:
                stack.enter_context(RunFolder(self.experiment.runs / name / f"seed{runs.seed}").locked())
            return self._trained(runs)

    def _trained(self, runs: Runs) -> dict[str, Any]:
        skipped: list[str] = []
        failures: dict[str, str] = {}
        groups: dict[object, list[Trainer]] = {}
        for name in runs.names:
            try:
                opened = open_trainer(self.context, name, runs.seed, resume=True, live=self.live)
            except Exception as error:
                failures[name] = reason_of(error)
                continue
            if isinstance(opened, RunResult):
                skipped.append(name)
            else:
                groups.setdefault(group_key(opened), []).append(opened)
        for group in groups.values():
            failures.update(self._train(group))
        return {"skipped": skipped, "failures": failures}

    def _train(self, group: Sequence[Trainer]) -> dict[str, str]:
        try:
            found = train_together(group, progress=self.progress).failures
        except Exception as error:  # of all: the store's, or of a group of one
            found = dict.fromkeys((training.label for training in group), reason_of(error))
        return {t.variant.name: found[t.label] for t in group if t.label in found and not t.folder.done}
