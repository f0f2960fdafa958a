"""Variants trained in lockstep on the same batches: one read, one frozen prefix for all; a group of one is a solo run.

A batch is read once, from the lowest boundary that a variant of the group reads and the higher ones that others read.
The frozen units from there to where each variant starts run once, without a graph. Above its start everything is each
variant's own, one after the other, with its own random stream, so that its numbers are those of its solo run, whoever
is trained beside it, in whatever order, and whoever has left.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from ..cache.errors import TalikError
from ..extract.manifest.types import Question
from ..extract.state import State
from .answering import Prediction
from .rungs import States, climb, states_above
from .sources import CachedSource
from .training import Training
from .workbench import Workbench, derived_seed


def data_order(training: Training) -> tuple[Any, ...]:
    """What is equal for trainings that can share their batches."""
    settings = training.settings
    sizes = (settings.batch_size, settings.eval_batch_size, settings.drop_last, settings.num_threads)
    asked = tuple(tuple(q.id for q in training.questions[s]) for s in ("train", "val"))
    return (training.seed, isinstance(training.source, CachedSource), *sizes, *asked)


@dataclass
class Outcome:
    """What became of a group: the reason of each training that failed, by its label."""

    failures: dict[str, str] = field(default_factory=dict)


def train_together(trainings: Sequence[Training], *, progress: bool = True) -> Outcome:
    """Train a group of one data order to the end; each leaves when it has ended, or fails, and the rest go on.

    Args:
        trainings: of one workbench, equal in `data_order`; those that were interrupted go on from their checkpoints.
        progress: show a tqdm bar with the group's batches.
    """
    return _Group(trainings, progress=progress).run()


class SharedBatches:
    """The states that several models start from, batch by batch.

    Args:
        bench: of the experiment.
        trainings: whose models are served, in order.
    """

    def __init__(self, bench: Workbench, trainings: Sequence[Training]) -> None:
        self._models = [t.model for t in trainings]
        self._encoders = bench.encoders
        cached = [t.source.boundaries for t in trainings if isinstance(t.source, CachedSource)]
        starts = [m.starts() for m in self._models]
        # Cached, a trunk begins where the store has it; live, at the lowest start.
        begins = cached or starts
        modalities = list(dict.fromkeys(m for given in begins for m in given))
        lowest = {m: min(g[m] for g in begins if m in g) for m in modalities}
        higher: dict[str, set[int]] = {m: set() for m in modalities}
        for given in cached:
            for modality, boundary in given.items():
                higher[modality].add(boundary)
        for model in self._models:
            for modality, several in model.reads().items():
                higher[modality].update(several)
        self._wanted = {
            m: sorted({s[m] for s in starts if m in s}.union(*(model.reads().get(m, ()) for model in self._models)))
            for m in modalities
        }
        reads = {m: sorted(higher[m] - {lowest[m]}) for m in modalities}
        self._source = bench.shared(lowest, reads, live=not cached)

    def batches(
        self, questions: Iterable[Sequence[Question]], *, view_seed: int | None = None
    ) -> Iterator[tuple[Sequence[Question], list[States]]]:
        """Yield each batch's questions and every model's states, in the order of the trainings."""
        for batch in self._source.batches(questions, view_seed=view_seed):
            climbed = {
                m: climb(self._encoders[m], [state, *states_above(batch.states, m)], self._wanted[m])
                for m, state in batch.states.items()
            }
            yield batch.questions, [self._for(model, climbed) for model in self._models]

    def _for(self, model: Any, climbed: Mapping[str, Mapping[int, State]]) -> States:
        starts, reads = model.starts(), model.reads()
        above = {m: [climbed[m][k] for k in sorted(ks) if k > starts[m]] for m, ks in reads.items()}
        return States({m: climbed[m][k] for m, k in starts.items()}, above)


class _Group:
    def __init__(self, trainings: Sequence[Training], *, progress: bool) -> None:
        self.members = list(trainings)
        self.size = len(self.members)
        self.progress = progress
        self.outcome = Outcome()
        self._shared: tuple[tuple[Training, ...], SharedBatches] | None = None

    def run(self) -> Outcome:
        """Epoch after epoch; after each, those that have ended are evaluated and leave."""
        lead = self.members[0]
        label = lead.label if self.size == 1 else f"{self.size} variants, seed {lead.seed}"
        steps = lead.steps_per_epoch
        total = steps * max(t.settings.epochs for t in self.members)
        first = steps * min(t.at.epoch for t in self.members)
        with tqdm(total=total, initial=first, desc=label, unit="batch", disable=not self.progress) as bar:
            self._finish([t for t in self.members if t.ended])
            while self.members:
                epoch = min(t.at.epoch for t in self.members)  # after a kill, some may be an epoch behind
                self._epoch([t for t in self.members if t.at.epoch == epoch], epoch, bar)
                self._finish([t for t in self.members if t.ended])
        return self.outcome

    def _shared_by(self, active: Sequence[Training]) -> SharedBatches:
        if self._shared is None or self._shared[0] != tuple(active):
            self._shared = (tuple(active), SharedBatches(active[0].bench, active))
        return self._shared[1]

    def _epoch(self, active: list[Training], epoch: int, bar: Any) -> None:
        started, lead = time.perf_counter(), active[0]
        for training in active:
            training.begin_epoch()
        view_seed = derived_seed(lead.seed, f"view/{epoch}")
        batches = self._shared_by(active).batches(lead.order(epoch), view_seed=view_seed)
        for questions, states in batches:
            for training, own in zip(active, states, strict=True):
                if training in self.members:
                    self._attempt(training, questions, own)
            bar.update(1)
        left = [t for t in active if t in self.members]
        if not left:
            return
        predictions = self._answers(left, "val")
        shared = self._share(left, started)
        for training, found in zip(left, predictions, strict=True):
            line = training.end_epoch(found, shared_seconds=shared)
            bar.set_postfix_str(line if self.size == 1 else f"{training.variant.name}: {line}")

    def _attempt(self, training: Training, questions: Sequence[Question], states: States) -> None:
        try:
            with training.turn():
                training.step(questions, states)
        except TalikError as error:
            if self.size == 1:
                raise
            self.outcome.failures[training.label] = str(error)
            self.members.remove(training)

    @torch.no_grad()
    def _answers(self, trainings: Sequence[Training], split: str) -> list[list[Prediction]]:
        found: list[list[Prediction]] = [[] for _ in trainings]
        for questions, states in self._shared_by(trainings).batches(trainings[0].in_order(split)):
            for training, own, so_far in zip(trainings, states, found, strict=True):
                with training.turn():
                    so_far += training.answers(questions, own)
        return found

    def _finish(self, ended: list[Training]) -> None:
        if not ended:
            return
        started = time.perf_counter()
        for training in ended:
            training.use_best()
        predictions = self._answers(ended, ended[0].final_split)
        shared = self._share(ended, started)
        for training, found in zip(ended, predictions, strict=True):
            training.finish(found, shared_seconds=shared, together=self.size)
            self.members.remove(training)

    @staticmethod
    def _share(trainings: Sequence[Training], started: float) -> float:
        """Each one's share of the time since `started` that was nobody's own."""
        own = sum(t.own_seconds for t in trainings)
        return max(0.0, time.perf_counter() - started - own) / len(trainings)
