"""The ways of a sweep, each taking the same batches: decoding anew, .npy files, the store alone and in lockstep.

Decoding anew and .npy files are a question at a time, as data set classes of today's kind are: what two questions of a
batch share of a clip is decoded once, but encoded, or read, for each. The store's ways are what `talik sweep` does:
with `group_by_clip`, and in answering, a clip's rows run once for its questions. Beside them the parts of which a bound
is made: the extraction's own work, and training steps on states in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from sweep_sample import NOTHING, Taken, taken

from talik.adapt.data.batch import Batch
from talik.adapt.training.experiment_context import ExperimentContext
from talik.adapt.training.lockstep_group import SharedBatches
from talik.adapt.training.run_folder import RunFolder
from talik.adapt.training.trainer import Trainer
from talik.extract.datasets.types import Question
from talik.extract.media.decode import iter_media
from talik.extract.stage.prefix import boundary_states
from talik.extract.trunk.state import State

WAYS = ("naive", "npy", "solo", "fused", "bound")
Do = Callable[[Trainer, Batch], object]


class Variants(Protocol):
    """The part of a grid that is measured: one variant a depth and batch size."""

    @property
    def depths(self) -> tuple[int, ...]: ...
    @property
    def batch_sizes(self) -> tuple[int, ...]: ...
    @property
    def rates(self) -> tuple[float, ...]: ...
    def name(self, depth: int, size: int, rate: int) -> str: ...


@dataclass
class Round:
    """One round's samples, each for one question; `end` for one epoch."""

    train: dict[tuple[str, int, int], Taken] = field(default_factory=dict)
    answer: dict[tuple[str, int], Taken] = field(default_factory=dict)
    end: dict[int, Taken] = field(default_factory=dict)
    shared_train: dict[int, Taken] = field(default_factory=dict)
    shared_answer: Taken = NOTHING

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values: [wall, cpu] seconds."""
        named = {
            "train": {f"{way} b{size} last{depth}": t for (way, size, depth), t in self.train.items()},
            "answer": {f"{way} last{depth}": t for (way, depth), t in self.answer.items()},
            "end of epoch": {f"last{depth}": t for depth, t in self.end.items()},
            "shared training": {f"b{size}": t for size, t in self.shared_train.items()},
            "shared answering": {"": self.shared_answer},
        }
        return {name: {k: [t.wall, t.cpu] for k, t in found.items()} for name, found in named.items()}


@dataclass(frozen=True)
class ExtractionParts:
    """What extracting the whole data set takes: decoding and prefixes; and writing .npy files of the states."""

    computed: Taken
    saved: Taken


class Ways:
    """The grid's measured variants, opened from the store and from the media files.

    Args:
        context: of the experiment, its store filled.
        grid: what is measured.
        work: a folder for .npy files and checkpoints.
    """

    def __init__(self, context: ExperimentContext, grid: Variants, *, work: Path) -> None:
        self.context, self.grid = context, grid
        self._npy, self._runs = work / "npy", work / "runs"
        self.cached = {(s, k): self._training(s, k, live=False) for s in grid.batch_sizes for k in grid.depths}
        self.live = {(s, k): self._training(s, k, live=True) for s in grid.batch_sizes for k in grid.depths}
        self._alone = {id(t): SharedBatches(context, [t]) for t in [*self.cached.values(), *self.live.values()]}
        self._together = {s: SharedBatches(context, [self.cached[s, k] for k in grid.depths]) for s in grid.batch_sizes}

    def _training(self, size: int, depth: int, *, live: bool) -> Trainer:
        variant = self.context.experiment.variant(self.grid.name(depth, size, 0))
        settings = self.context.experiment.train_settings(variant)
        folder = RunFolder(self._runs / f"{variant.name}-{live}")
        folder.path.mkdir(parents=True)
        return Trainer(self.context, variant, settings, 0, folder, live=live)

    def round(self, index: int, answers: int) -> Round:
        """Train each way on the same batch of each size, and answer the same questions; the order rotates."""
        found = Round()
        for size in self.grid.batch_sizes:
            first = self.cached[size, self.grid.depths[0]]
            questions = list(first.data.train_batches(0))[index % first.data.batches_per_epoch]
            by_clip = first.settings.group_by_clip
            shared = self._each_way(found.train, questions, size, _step, index, prefix=(size,), by_clip=by_clip)
            found.shared_train[size] = shared
        size = self.grid.batch_sizes[0]
        first = self.cached[size, self.grid.depths[0]]
        batches = first.data.eval_batches(first.data.final_split)
        questions = batches[index % len(batches)][:answers]
        found.shared_answer = self._each_way(found.answer, questions, size, _answer, index, prefix=(), by_clip=True)
        for depth in self.grid.depths:
            training = self.cached[size, depth]
            predictions = training.answers(self.batch(training, questions, by_clip=True))
            found.end[depth] = taken(lambda t=training, p=predictions: t.end_epoch(p, seconds=0.0))  # type: ignore[misc]
        return found

    def _each_way(
        self,
        into: dict[Any, Taken],
        questions: Sequence[Question],
        size: int,
        do: Do,
        index: int,
        prefix: tuple[int, ...],
        by_clip: bool,
    ) -> Taken:
        """Time `do` each way for every depth; return what the lockstep way did once for all, a question."""
        shared = NOTHING
        ready = {k: self.batch(self.cached[size, k], questions, by_clip) for k in self.grid.depths}
        self.save(questions, size)
        part = 1 / len(questions)
        turn = index % len(WAYS)
        for way in (*WAYS[turn:], *WAYS[:turn]):
            if way == "fused":
                own, once = self._lockstep(questions, size, do, by_clip)
                shared = once.times(part)
                into.update({(way, *prefix, k): t.times(part) for k, t in own.items()})
                continue
            for depth in self.grid.depths:
                training = (self.live if way == "naive" else self.cached)[size, depth]
                given = self.given(way, training, questions, ready[depth], by_clip)
                call = lambda t=training, g=given: self._do(t, g, do)  # type: ignore[misc]  # noqa: E731
                into[way, *prefix, depth] = taken(call).times(part)
        return shared

    def given(
        self, way: str, training: Trainer, questions: Sequence[Question], ready: Batch, by_clip: bool
    ) -> Callable[[], Batch]:
        """How a way comes by the states of a batch."""
        if way == "bound":
            return lambda: ready
        if way == "npy":
            return lambda: self.load(training, questions)
        return lambda: self.batch(training, questions, by_clip and way != "naive")

    @staticmethod
    def _do(training: Trainer, given: Callable[[], Batch], do: Do) -> None:
        batch = given()
        with training.own_random_stream():
            do(training, batch)

    def batch(self, training: Trainer, questions: Sequence[Question], by_clip: bool = False) -> Batch:
        ((own,),) = self._alone[id(training)].batches([questions], by_clip=by_clip)
        return own

    def _lockstep(
        self, questions: Sequence[Question], size: int, do: Do, by_clip: bool
    ) -> tuple[dict[int, Taken], Taken]:
        own: dict[int, Taken] = {}

        def whole() -> None:
            for batches in self._together[size].batches([questions], by_clip=by_clip):
                for depth, one in zip(self.grid.depths, batches, strict=True):
                    training = self.cached[size, depth]
                    with training.own_random_stream():
                        own[depth] = taken(lambda t=training, b=one: do(t, b))  # type: ignore[misc]

        every = taken(whole)
        spent = sum(own.values(), NOTHING)
        return own, Taken(every.wall - spent.wall, every.cpu - spent.cpu)

    # .npy files, as a data set class of today's kind reads them: one item after the other, a file each

    def _path(self, modality: str, boundary: int, question: Question) -> Path:
        name = question.text if modality == "text" else question.clip_id
        return self._npy / modality / str(boundary) / hashlib.sha256(name.encode()).hexdigest()[:24]

    def save(self, questions: Iterable[Question], size: int) -> None:
        """Write what the depths read of these questions, as far as it is not there."""
        for question in questions:
            for depth in self.grid.depths:
                training = self.cached[size, depth]
                if all(self._path(m, k, question).exists() for m, k in training.model.starts().items()):
                    continue
                for modality, state in self.batch(training, [question]).states.items():
                    path = self._path(modality, state.boundary, question)
                    path.mkdir(parents=True, exist_ok=True)
                    length = None if state.lengths is None else int(state.lengths[0])
                    np.save(path / "hidden.npy", state.hidden.half().numpy()[:, :length])
                    for name, value in state.context.inputs.items() if modality == "text" else ():
                        np.save(path / f"{name}.npy", value.numpy()[:, :length])

    def load(self, training: Trainer, questions: Sequence[Question]) -> Batch:
        states = {}
        for modality, k in training.model.starts().items():
            encoder = self.context.encoders[modality]
            paths = [self._path(modality, k, q) for q in questions]
            read = [{f.stem: np.load(f) for f in sorted(path.iterdir())} for path in paths]
            lengths = torch.tensor([r["hidden"].shape[1] for r in read]) if modality == "text" else None
            batch = {name: _stacked([r[name] for r in read]) for name in read[0]}
            hidden = batch.pop("hidden").float()
            states[modality] = encoder.restore(hidden, k, batch, lengths=lengths)
        return Batch(questions=tuple(questions), states=states, num_segments=self.context.sampling.num_segments)

    # extraction

    @torch.no_grad()
    def extraction_parts(self, count: int, index: int) -> ExtractionParts:
        """Decode and encode a few clips and texts up to each modality's highest boundary, and save what is cached."""
        context = self.context
        starts = [t.model.starts() for t in self.cached.values()]
        wanted = {m: sorted({s[m] for s in starts}) for m in context.encoders}
        clips = list(context.manifest.clips.values())
        texts = list(dict.fromkeys(q.text for q in context.manifest.questions))
        some = [clips[(index * count + i) % len(clips)] for i in range(count)]
        words = [texts[(index * 64 + i) % len(texts)] for i in range(min(64, len(texts)))]
        kept: dict[str, list[State]] = {}

        def media() -> None:
            settings = context.sampling.media_settings({m for m in wanted if m != "text"}, context.encoders)
            decoded = [o.media for o in iter_media([c.path for c in some if c.path is not None], settings) if o.media]
            for modality in ("visual", "audio"):
                encoder = context.encoders[modality]
                inputs = context.sampling.inputs(encoder, decoded)
                kept[modality] = list(boundary_states(encoder, inputs, wanted[modality]))

        def question() -> None:
            encoder = context.encoders["text"]
            kept["text"] = list(boundary_states(encoder, encoder.preprocess(words), wanted["text"]))

        a_clip, a_text = taken(media).times(len(clips) / len(some)), taken(question).times(len(texts) / len(words))
        folder = self._npy.with_name(f"saved{index}")
        folder.mkdir()
        saved = NOTHING
        for modality, states in kept.items():
            items = len(words) if modality == "text" else len(some)
            every = len(texts) if modality == "text" else len(clips)
            call = lambda m=modality, s=states, n=items: _save_items(folder, m, s, n)  # type: ignore[misc]  # noqa: E731
            saved += taken(call).times(every / items)
        return ExtractionParts(a_clip + a_text, saved)


def _save_items(folder: Path, modality: str, states: Sequence[State], items: int) -> None:
    for state in states:
        for i, value in enumerate(state.hidden.half().numpy().reshape(items, -1, *state.hidden.shape[1:])):
            np.save(folder / f"{modality}-{state.boundary}-{i}.npy", value)


def _stacked(values: Sequence[np.ndarray[Any, Any]]) -> torch.Tensor:
    """Rows of all items one after the other, shorter ones filled with zeros."""
    longest = max(v.shape[1] for v in values) if values[0].ndim > 1 else 0
    if any(v.shape[1] < longest for v in values if v.ndim > 1):
        values = [np.pad(v, [(0, 0), (0, longest - v.shape[1]), *[(0, 0)] * (v.ndim - 2)]) for v in values]
    return torch.from_numpy(np.concatenate(values))


def _step(training: Trainer, batch: Batch) -> object:
    if not training.model.training:
        training.begin_epoch()
    return training.step(batch)


def _answer(training: Trainer, batch: Batch) -> object:
    return training.answers(batch)
