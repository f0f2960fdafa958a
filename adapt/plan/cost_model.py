"""Costs that a plan adds up: of the machine, of an encoder and of a variant, in seconds and bytes.

An item is a clip or a text; a pass is one question answered or trained on once.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ...extract.datasets.types import Manifest, Question
from ..config.experiment import Experiment, VariantSettings


@dataclass(frozen=True, kw_only=True)
class MachineCosts:
    """Costs of the machine alone.

    Args:
        decode: seconds a clip, by what is decoded: "visual", "audio" or "visual+audio"; in the threads that decode.
        read: seconds a stored byte, checked and copied.
        write: seconds a stored byte, fsync included.
        to_device: seconds a byte from host to device; 0 on a CPU.
    """

    decode: Mapping[str, float]
    read: float
    write: float
    to_device: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EncoderCosts:
    """Costs of one encoder, for one item.

    Args:
        modality: "visual", "audio" or "text".
        num_items: clips or distinct texts of the experiment.
        embed: seconds of preprocessing and embedding.
        forward: seconds of each unit, no graph.
        forward_backward: seconds of each unit with its backward pass, for what trains below it.
        finish: seconds of what follows the last unit.
        state_bytes: stored bytes of the state at each boundary, one more than units.
    """

    modality: str
    num_items: int
    embed: float
    forward: tuple[float, ...]
    forward_backward: tuple[float, ...]
    finish: float
    state_bytes: tuple[int, ...]

    def slower(self, factor: float) -> EncoderCosts:
        """Scale the seconds by a factor."""
        return replace(
            self,
            embed=self.embed * factor,
            forward=tuple(t * factor for t in self.forward),
            forward_backward=tuple(t * factor for t in self.forward_backward),
            finish=self.finish * factor,
        )

    def run(self, start: int, stop: int) -> float:
        """Seconds from boundary `start` to `stop`, no graph."""
        return sum(self.forward[start:stop])


@dataclass(frozen=True, kw_only=True)
class VariantCosts:
    """Costs of one variant, for one question.

    Args:
        name: the variant's.
        group: what has to be equal for variants to train on the same batches, as a readable string.
        starts: by modality, the boundary that it needs; below it nothing is trained.
        num_seeds, epochs: how often it is trained.
        num_train, num_val, num_test: questions of the splits; validation is answered every epoch, test once.
        train: seconds of a training step, from the states at `starts`, divided by the batch size.
        answer: seconds of answering, likewise.
        distinct: by modality, distinct items a question in a training batch, at most 1: what is read and decoded.
        computed: by modality, items a question that units below the start run on: 1, but fewer where batches hold the
            questions of a clip together; `distinct` if None.
        peak_bytes: memory of one training step: states, saved activations, parameters with their optimiser.
    """

    name: str
    group: str
    starts: Mapping[str, int]
    num_seeds: int
    epochs: int
    num_train: int
    num_val: int
    num_test: int
    train: float
    answer: float
    distinct: Mapping[str, float]
    peak_bytes: int
    computed: Mapping[str, float] | None = None

    def runs(self, modality: str) -> float:
        """Items a question that frozen units run on below the start."""
        return (self.distinct if self.computed is None else self.computed)[modality]

    @property
    def passes(self) -> int:
        """Questions that one run trains on or answers, all epochs together."""
        return self.epochs * (self.num_train + self.num_val) + self.num_test

    @property
    def own_seconds(self) -> float:
        """Seconds of one run above `starts`: suffix, adapters, head and optimiser."""
        return self.epochs * (self.num_train * self.train + self.num_val * self.answer) + self.num_test * self.answer


def variant_costs(
    experiment: Experiment,
    variant: VariantSettings,
    manifest: Manifest,
    starts: Mapping[str, int],
    *,
    train: float,
    answer: float,
    peak_bytes: int = 0,
) -> VariantCosts:
    """Combine a variant's seconds per question with its settings and the sizes of the splits.

    Args:
        experiment, variant, manifest: the variant's.
        starts: by modality, the boundary that it needs.
        train, answer: seconds per question above `starts`.
        peak_bytes: memory of one training step.
    """
    settings = experiment.train_settings(variant)
    questions = {split: split_questions(manifest, split) for split in ("train", "val", "test")}
    per_question, _ = clips_per_question(experiment, variant, manifest)
    distinct = distinct_share(questions["train"], starts, settings.batch_size)
    return VariantCosts(
        name=variant.name,
        group=settings.data_order,
        starts=starts,
        num_seeds=len(experiment.sweep.seeds),
        epochs=settings.epochs,
        num_train=len(questions["train"]),
        num_val=len(questions["val"]),
        num_test=len(questions["test"]),
        train=train,
        answer=answer,
        distinct={m: share if m == "text" else min(share, per_question) for m, share in distinct.items()},
        peak_bytes=peak_bytes,
        computed={m: 1.0 if m == "text" else per_question for m in starts},
    )


def split_questions(manifest: Manifest, split: str) -> Sequence[Question]:
    """List a split's questions; none where the data set has no such split."""
    return manifest.split(split) if split in manifest.splits else ()


def clips_per_question(experiment: Experiment, variant: VariantSettings, manifest: Manifest) -> tuple[float, float]:
    """Estimate the clips per question in batches of training and of answering.

    Training takes them together only with `group_by_clip`, answering always.
    """
    settings = experiment.train_settings(variant)
    train, val, test = (split_questions(manifest, split) for split in ("train", "val", "test"))
    return (
        clip_share(train, settings.batch_size) if settings.group_by_clip else 1.0,
        clip_share(val or test, settings.eval_batch_size),
    )


def clip_share(questions: Sequence[Question], size: int) -> float:
    """Estimate the clips per question in batches of `size` that take the questions of one clip after another."""
    if not questions:
        return 1.0
    return min(1.0, len({q.clip_id for q in questions}) / len(questions) + 1 / size)


def distinct_share(questions: Sequence[Question], modalities: Iterable[str], size: int) -> dict[str, float]:
    """Estimate the distinct clips, and texts, per question of a random training batch: the mean of 16 drawn ones."""
    generator = torch.Generator().manual_seed(0)
    shares: dict[str, list[float]] = {m: [] for m in modalities}
    for _ in range(16):
        drawn = [questions[i] for i in torch.randperm(len(questions), generator=generator)[:size].tolist()]
        for modality, found in shares.items():
            names = {q.text if modality == "text" else q.clip_id for q in drawn}
            found.append(len(names) / len(drawn))
    return {m: statistics.mean(found) for m, found in shares.items()}
