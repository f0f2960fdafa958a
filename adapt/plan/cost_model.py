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
        read, write: seconds a stored byte: checked and copied; fsync included.
        to_device: seconds a byte from host to device; 0 on a CPU.
    """

    decode: Mapping[str, float]
    read: float
    write: float
    to_device: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EncoderCosts:
    """Costs of one encoder for one item, in seconds or, where they are counted, in floating-point operations.

    Args:
        modality: "visual", "audio" or "text".
        num_items: clips or distinct texts of the experiment.
        embed: preprocessing and embedding.
        forward: each unit, no graph.
        forward_backward: each unit with its backward pass; () where operations are counted.
        finish: all after the last unit.
        state_bytes: stored bytes of the state at each boundary, one more than units.
    """

    modality: str
    num_items: int
    embed: float
    forward: tuple[float, ...]
    forward_backward: tuple[float, ...]
    finish: float
    state_bytes: tuple[int, ...]

    def scaled(self, factor: float) -> EncoderCosts:
        """Multiply all costs but the bytes."""
        return replace(
            self,
            embed=self.embed * factor,
            forward=tuple(t * factor for t in self.forward),
            forward_backward=tuple(t * factor for t in self.forward_backward),
            finish=self.finish * factor,
        )

    def run(self, start: int, stop: int) -> float:
        """Add up the units from boundary `start` to `stop`, no graph."""
        return sum(self.forward[start:stop])


@dataclass(frozen=True, kw_only=True)
class VariantCosts:
    """Costs of one variant, for one question.

    Args:
        name: the variant's.
        group: `TrainSettings.data_order`, equal for variants that train on the same batches.
        starts: by modality, the boundary that it needs; below it nothing is trained.
        num_seeds, epochs: how often it is trained.
        num_train, num_val, num_test: questions of the splits; validation is answered every epoch, test once.
        train, answer: seconds of a training step and of answering, from the states at `starts`, over the batch size.
        distinct: by modality, distinct items a question in a training batch, at most 1; each is read and decoded.
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
        """Look up the items a question that frozen units run on below the start."""
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
    """Combine a variant's seconds per question above `starts` with its settings and the sizes of the splits."""
    settings = experiment.train_settings(variant)
    num_train, num_val, num_test = (len(_questions(manifest, split)) for split in ("train", "val", "test"))
    per_question, _ = clips_per_question(experiment, variant, manifest)
    distinct = _distinct_share(_questions(manifest, "train"), starts, settings.batch_size)
    return VariantCosts(
        name=variant.name,
        group=settings.data_order,
        starts=starts,
        num_seeds=len(experiment.sweep.seeds),
        epochs=settings.epochs,
        num_train=num_train,
        num_val=num_val,
        num_test=num_test,
        train=train,
        answer=answer,
        distinct={m: share if m == "text" else min(share, per_question) for m, share in distinct.items()},
        peak_bytes=peak_bytes,
        computed={m: 1.0 if m == "text" else per_question for m in starts},
    )


def distinct_texts(manifest: Manifest) -> list[str]:
    """List the distinct texts of the questions."""
    return list(dict.fromkeys(q.text for q in manifest.questions if q.text))


def clips_per_question(experiment: Experiment, variant: VariantSettings, manifest: Manifest) -> tuple[float, float]:
    """Estimate the clips per question in batches of training and of answering.

    Training takes them together only with `group_by_clip`, answering always.
    """
    settings = experiment.train_settings(variant)
    answered = _questions(manifest, "val") or _questions(manifest, "test")
    train = clip_share(_questions(manifest, "train"), settings.batch_size) if settings.group_by_clip else 1.0
    return train, clip_share(answered, settings.eval_batch_size)


def clip_share(questions: Sequence[Question], size: int) -> float:
    """Estimate the clips per question in batches of `size` that take the questions of one clip after another."""
    if not questions:
        return 1.0
    return min(1.0, len({q.clip_id for q in questions}) / len(questions) + 1 / size)


def _questions(manifest: Manifest, split: str) -> Sequence[Question]:
    return manifest.split(split) if split in manifest.splits else ()


def _distinct_share(questions: Sequence[Question], modalities: Iterable[str], size: int) -> dict[str, float]:
    """Estimate the distinct clips, and texts, per question of a random training batch: the mean of 16 drawn ones."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(questions), generator=generator)[:size].tolist() for _ in range(16)]

    def share(modality: str, order: Sequence[int]) -> float:
        return len({questions[i].text if modality == "text" else questions[i].clip_id for i in order}) / len(order)

    return {m: statistics.mean(share(m, order) for order in orders) for m in modalities}
