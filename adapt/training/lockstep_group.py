"""Variants trained in lockstep on the same batches: one read, one frozen prefix for all.

A batch is read once, from the lowest boundary that a variant of the group reads and the higher ones that others read.
The frozen units from there to where each variant starts run once, without a graph; so does what lies above a start
before anything trained has entered (the unit that an adapter stands beside, a text that nothing is added to). All else
is each variant's own, with its own random stream, so that its numbers are those of its solo run, whoever is trained
beside it, in whatever order, and whoever has left: to the bit where they go one after the other (on a CPU), and within
rounding where the units that several need run on all their states at once (see `stacked_forward`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch

from ...extract.datasets.types import Question
from ...extract.trunk.state import State
from ...progress import progress_bar
from ..data.batch import Batch, FrozenOutputs
from ..data.cached_source import CachedSource
from ..model.frozen_units import states_at
from ..model.joint_model import JointModel
from ..scoring.predictions import Prediction
from .experiment_context import ExperimentContext
from .failures import record_failure
from .solo_run import train_alone
from .stack_size import Member, Stacking
from .stop_signals import GOES_ON, StopRequested, StopSignals
from .trainer import Trainer


def group_key(training: Trainer) -> tuple[Any, ...]:
    """Return what must be equal for trainers to share their batches and the frozen units below their adapters."""
    questions = tuple(
        tuple(q.id for q in found) for found in (training.data.training_order, training.data.questions["val"])
    )
    settings, cached = training.settings, isinstance(training.source, CachedSource)
    return (training.seed, cached, settings.data_order, training.model.precision, *questions)


@dataclass
class Outcome:
    """What became of a group: the reason of each training that failed, by its label."""

    failures: dict[str, str] = field(default_factory=dict)


def train_together(trainings: Sequence[Trainer], *, progress: bool = True, stop: StopSignals | None = None) -> Outcome:
    """Train a group of one data order to the end; each leaves when it has ended, pauses or fails, and the rest go on.

    Args:
        trainings: of one context, equal in `group_key`; those that were interrupted go on from their checkpoints.
        progress: show a tqdm bar with the group's batches.
        stop: signals that end the process between two batches, when the checkpoints of all are written.

    Raises:
        Exception: that of a trainer that is alone, or of what a group shares.
        KeyboardInterrupt, SystemExit: a signal has come (see `StopSignals.leave`).
    """
    if len(trainings) == 1:
        train_alone(trainings[0], progress=progress, stop=stop)
        return Outcome()
    return _Group(trainings, progress=progress, stop=stop or StopSignals()).run()


class SharedBatches:
    """The states that several models start from, batch by batch.

    Args:
        context: of the experiment.
        trainings: whose models are served, in order.
    """

    def __init__(self, context: ExperimentContext, trainings: Sequence[Trainer]) -> None:
        self._models = [t.model for t in trainings]
        precision = trainings[0].model.precision
        self._encoders = context.held(precision)
        cached = [t.source.boundaries for t in trainings if isinstance(t.source, CachedSource)]
        starts = [m.starts() for m in self._models]
        modalities = list(dict.fromkeys(m for given in starts for m in given))
        lowest = {m: min(s[m] for s in starts if m in s) for m in modalities}
        reads: dict[str, set[int]] = {m: set() for m in modalities}
        for given in cached:  # what one of them has in the store spares the others units
            for modality, boundary in given.items():
                reads[modality].add(boundary)
        for model in self._models:
            for modality, several in model.reads().items():
                reads[modality].update(several)
        self._wanted = {
            m: sorted({s[m] for s in starts if m in s}.union(*(model.reads().get(m, ()) for model in self._models)))
            for m in modalities
        }
        self.source = context.shared(
            lowest, {m: sorted(ks) for m, ks in reads.items()}, precision=precision, live=not cached
        )

    def batches(
        self, questions: Iterable[Sequence[Question]], *, view_seed: int | None = None, by_clip: bool = False
    ) -> Iterator[list[Batch]]:
        """Yield, for each list of questions, every model's batch, in the order of the trainings."""
        for batch in self.source.batches(questions, view_seed=view_seed, by_clip=by_clip):
            known = {
                m: states_at(self._encoders[m], [state, *batch.above.get(m, ())], self._wanted[m])
                for m, state in batch.states.items()
            }
            memo = FrozenOutputs(state for states in known.values() for state in states.values())
            yield [self._for(model, batch, known, memo) for model in self._models]

    @staticmethod
    def _for(model: JointModel, batch: Batch, known: Mapping[str, Mapping[int, State]], memo: FrozenOutputs) -> Batch:
        starts, reads = model.starts(), model.reads()
        above = {m: tuple(known[m][k] for k in sorted(ks) if k > starts[m]) for m, ks in reads.items()}
        return replace(batch, states={m: known[m][k] for m, k in starts.items()}, above=above, memo=memo)


class _Group:
    def __init__(self, trainings: Sequence[Trainer], *, progress: bool, stop: StopSignals) -> None:
        self.stop = stop
        self.members = list(trainings)
        self.size = len(self.members)
        self.progress = progress
        self.outcome = Outcome()
        self._shared: tuple[tuple[Trainer, ...], SharedBatches] | None = None
        self._stacking = Stacking(self.members[0].context, self.size)
        known_flops: dict[Hashable, dict[str, int]] = {}
        for training in self.members:
            training.share_flops(known_flops)

    def run(self) -> Outcome:
        """Epoch after epoch; after each, those that have ended are evaluated and leave."""
        lead = self.members[0]
        label = f"{self.size} variants, seed {lead.seed}"
        each = lead.data.questions_per_epoch
        total = each * max(min(t.settings.epochs, t.pause_after or t.settings.epochs) for t in self.members)
        first = min(t.questions_done for t in self.members)
        with progress_bar(total=total, initial=first, desc=label, unit=" questions", disable=not self.progress) as bar:
            bar.set_postfix_str(lead.last_validation, refresh=False)  # of a run that goes on
            self._finish([t for t in self.members if t.ended])
            self.members = [t for t in self.members if not t.paused]
            while self.members:
                epoch = min(t.progress.epoch for t in self.members)  # after a kill, some may be behind
                self._epoch([t for t in self.members if t.progress.epoch == epoch], epoch, bar)
                self._finish([t for t in self.members if t.ended])
                self.members = [t for t in self.members if not t.paused]
        return self.outcome

    def _shared_by(self, active: Sequence[Trainer]) -> SharedBatches:
        if self._shared is None or self._shared[0] != tuple(active):
            self._shared = (tuple(active), SharedBatches(active[0].context, active))
        return self._shared[1]

    def _epoch(self, active: list[Trainer], epoch: int, bar: Any) -> None:
        started, lead = time.perf_counter(), active[0]
        for training in active:
            with self._failing_alone(training):
                training.begin_epoch()
        active = [t for t in active if t in self.members]
        if not active:
            return
        by_clip, view_seed = lead.settings.group_by_clip, lead.data.view_seed(epoch)
        first = min(t.progress.batch for t in active)
        order = islice(lead.data.train_batches(epoch), first, None)
        batches = self._shared_by(active).batches(order, view_seed=view_seed, by_clip=by_clip)
        try:
            for index, own in enumerate(batches, first):
                left = [(t, batch) for t, batch in zip(active, own, strict=True) if t in self.members]
                if not left:
                    return
                self._step([(t, batch) for t, batch in left if t.progress.batch <= index])  # the others are ahead
                bar.update(lead.data.batch_size(index))
                if self.stop.signum or any(t.save_is_due for t, _ in left):
                    self._save_positions(active, started)
                    self._leave()
        except StopRequested:  # while a batch was waited for
            self._save_positions(active, started)
            self._leave()
            return
        for training in active:
            if training in self.members:
                with self._failing_alone(training):
                    training.check_losses()
        active = [t for t in active if t in self.members]
        predictions = self._answers(active, "val", save=lambda: self._save_positions(active, started))
        shared = self._share(list(predictions), started)
        for training, found in predictions.items():
            with self._failing_alone(training):
                training.end_epoch(found, seconds=training.own_seconds + shared)
                bar.set_postfix_str(f"{training.variant.name}: {training.last_validation}")

    def _save_positions(self, active: Sequence[Trainer], started: float) -> None:
        """Save a checkpoint of each in the middle of an epoch."""
        saved = [t for t in active if t in self.members]
        shared = self._share(saved, started)
        for training in saved:
            with self._failing_alone(training):
                training.save_position(seconds=training.own_seconds + shared)

    def _leave(self) -> None:
        """Let a signal take effect that has come."""
        if self.members:
            last = min(self.members, key=lambda t: t.questions_done)
            runs = f"{last.folder.path} and {len(self.members) - 1} more" if len(self.members) > 1 else last.folder.path
            self.stop.leave(f"{runs}: stopped by {self.stop.name} {last.position}; {GOES_ON}")
        self.stop.leave()

    def _step(self, members: Sequence[Member]) -> None:
        for some in self._stacking.measured_parts(members):
            for training, error in self._stacking.step(some).items():
                self._fail(training, error)

    def _fail(self, training: Trainer, error: Exception) -> None:
        """Let a training leave with its reason."""
        self.outcome.failures[training.label] = record_failure(training.folder, error)
        self.members.remove(training)

    @contextmanager
    def _failing_alone(self, training: Trainer) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._fail(training, error)

    def _answers(
        self, trainings: Sequence[Trainer], split: str, save: Callable[[], None] = lambda: None
    ) -> dict[Trainer, list[Prediction]]:
        """Answer a split with each; those that fail leave.

        A signal ends that at the next batch; `save` then writes checkpoints that go on before it.
        """
        while True:
            before = {training: training.random_position for training in trainings}
            try:
                return self._answered([t for t in trainings if t in self.members], split)
            except StopRequested:
                for training, position in before.items():
                    training.random_position = position
                save()
                self._leave()

    @torch.no_grad()
    def _answered(self, trainings: Sequence[Trainer], split: str) -> dict[Trainer, list[Prediction]]:
        if not trainings:
            return {}
        found: dict[Trainer, list[list[Prediction]]] = {training: [] for training in trainings}  # by batch
        data = trainings[0].data
        with ExitStack() as averaged:
            for training in trainings:
                averaged.enter_context(training.averaged())
            for own in self._shared_by(trainings).batches(data.eval_batches(split), by_clip=True):
                members = [(t, batch) for t, batch in zip(trainings, own, strict=True) if t in found]
                for some in self._stacking.parts(members):
                    for training, answers in self._stacking.answers(some).items():
                        if isinstance(answers, Exception):
                            del found[training]
                            self._fail(training, answers)
                        else:
                            found[training].append(answers)
                if self.stop.signum:
                    raise StopRequested
        return {t: data.in_question_order(split, own) for t, own in found.items()}

    def _finish(self, ended: list[Trainer]) -> None:
        if not ended:
            return
        started = time.perf_counter()
        for training in ended:
            with self._failing_alone(training):
                training.load_best_weights()
        ended = [t for t in ended if t in self.members]
        if not ended:
            return
        predictions = self._answers(ended, ended[0].data.final_split)
        shared = self._share(list(predictions), started)
        for training, found in predictions.items():
            with self._failing_alone(training):
                seconds = training.own_seconds + shared
                training.finish(found, seconds=seconds, together=self.size, stacked=self._stacking.size > 1)
                self.members.remove(training)

    @staticmethod
    def _share(trainings: Sequence[Trainer], started: float) -> float:
        """Each one's share of the time since `started` that was nobody's own."""
        own = sum(t.own_seconds for t in trainings)
        return max(0.0, time.perf_counter() - started - own) / max(1, len(trainings))
