"""Count operations of encoders and variants where weights, clips and annotations may be absent: sizes as published."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ...errors import ManifestError, MissingMediaError, SettingsError
from ...extract.datasets.load import load_manifest
from ...extract.datasets.types import Clip, Manifest, Question
from ...extract.encoders.encoder import Encoder
from ...extract.media.decode import ClipMedia
from ...extract.presets.datasets import DATA, DataPart
from ...extract.stage.prefix import boundary_states
from ...extract.stage.random_weights import with_random_weights
from ...extract.stage.sampling import Sampling
from ..config.experiment import Experiment
from ..model.flops import operations
from ..model.joint_model import JointModel, forward
from ..training.experiment_context import ExperimentContext
from .measure import stored_numbers, timed
from .workload import SampleStates


class PublishedSizesContext(ExperimentContext):
    """Encoders with random weights and a manifest of published sizes, where the experiment's own are absent.

    Args:
        experiment: the experiment.
        folder: an existing one, for configurations of encoders.
        device: where the encoders run.
    """

    def __init__(self, experiment: Experiment, folder: Path, *, device: str = "cpu") -> None:
        encoders = experiment.extraction.encoders
        for modality, chosen in encoders.items():
            if chosen.is_imported:
                raise SettingsError(f"encoders.{modality}: {chosen.model} are imported; nothing of them is computed")
        opened = {m: with_random_weights(chosen, folder) for m, chosen in encoders.items()}
        extraction = dataclasses.replace(experiment.extraction, encoders=dataclasses.replace(encoders, **opened))
        super().__init__(dataclasses.replace(experiment, extraction=extraction), device=device)

    @cached_property
    def manifest(self) -> Manifest:
        """Annotations of the data set, whether or not its clips exist; else questions in its published numbers."""
        settings = self.experiment.extraction
        facts = DATA[settings.data.dataset]
        try:
            return load_manifest(dataclasses.replace(settings.data, allow_missing=True), base=settings.base)
        except (ManifestError, MissingMediaError, SettingsError):
            if not facts.splits:
                raise
        return _published(settings.data.dataset, facts)

    @cached_property
    def texts(self) -> list[str]:
        """Distinct texts of the questions."""
        return list(dict.fromkeys(q.text for q in self.manifest.questions if q.text))

    def blank(self) -> ClipMedia:
        """Make a black, silent clip, decoded."""
        segments = self.experiment.extraction.data.segments
        parts = {m: self.sampling.blank(e) for m, e in self.encoders.items() if m != "text"}
        return ClipMedia(
            frames=parts.get("visual"),
            waveforms=parts.get("audio"),
            instants_seconds=np.zeros(segments),
            duration_seconds=float(segments),
        )


def _published(name: str, facts: DataPart) -> Manifest:
    """Assign questions to clips in turn; each text has as many letters as the usual one has tokens."""
    clips = {str(i): Clip(id=str(i), path=None) for i in range(facts.num_clips)}
    answers = tuple(str(i) for i in range(facts.num_answers))
    splits = [split for split, count in facts.splits.items() for _ in range(count)]
    questions = tuple(
        Question(
            id=str(i),
            clip_id=str(i % facts.num_clips),
            text=_letters(i % facts.num_texts, facts.num_words + 2),  # 2: what a tokenizer puts at the ends
            answer=answers[i % facts.num_answers],
            type="all",
            template="",
            split=split,
        )
        for i, split in enumerate(splits)
    )
    return Manifest(
        name=name,
        root=Path(),
        clips=clips,
        questions=questions,
        answers=answers,
        notes=("sizes as published; found neither annotations nor clips",),
    )


def _letters(number: int, length: int) -> str:
    found = ""
    for _ in range(length):
        number, digit = divmod(number, 26)
        found += string.ascii_lowercase[digit]
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderCounts:
    """Operations of one encoder on one clip or text.

    Args:
        embed, finish: operations before the first and after the last unit.
        forward: operations of each unit.
        numbers: stored at each boundary, one more than units.
        seconds: of all units forward, on the device that it was counted on.
    """

    embed: int
    forward: tuple[int, ...]
    finish: int
    numbers: tuple[int, ...]
    seconds: float

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EncoderCounts:
        """Restore counts from plain values."""
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**plain)

    @property
    def rate(self) -> float:
        """Operations a second of the units forward, on the device that counted them."""
        return sum(self.forward) / self.seconds


def count_encoder(encoder: Encoder, sampling: Sampling, media: ClipMedia, texts: Sequence[str]) -> dict[str, Any]:
    """Count one encoder on one clip, or on texts as one batch, and time a second run of its units.

    Returns:
        The fields of `EncoderCounts`, as plain values.
    """
    is_text = encoder.modality == "text"
    count = len(texts) if is_text else 1
    inputs = encoder.preprocess(list(texts)) if is_text else sampling.inputs(encoder, [media])
    units = range(encoder.num_units)
    with torch.no_grad():
        embed = operations(lambda: encoder.embed(inputs))
        states = list(boundary_states(encoder, inputs, range(encoder.num_units + 1)))
        forward_counts = [operations(lambda k=k: encoder.run(states[k], k, k + 1)) for k in units]  # type: ignore[misc]
        finish = operations(lambda: encoder.finish(states[-1]))
        seconds = timed(lambda: encoder.run(states[0], 0, encoder.num_units), str(encoder.device))
    counts = EncoderCounts(
        embed=embed // count,
        forward=tuple(n // count for n in forward_counts),
        finish=finish // count,
        numbers=tuple(stored_numbers(s) // count for s in states),
        seconds=seconds / count,
    )
    return dataclasses.asdict(counts)


def count_variant(model: JointModel, states: SampleStates, questions: Sequence[Question]) -> tuple[int, int]:
    """Count operations per question of a training step and of answering, above the model's starts."""
    batch = states.batch(model.starts(), questions)

    def step() -> None:
        logits = forward(model, batch, amp="off")
        labels = torch.zeros(logits.shape[:-1], dtype=torch.long, device=logits.device)
        torch.autograd.backward(F.cross_entropy(logits.flatten(0, -2), labels.flatten()))

    def answer() -> None:
        with torch.no_grad():
            forward(model, batch, amp="off")

    model.train()
    trained = operations(step)
    model.eval()
    return trained // len(questions), operations(answer) // len(questions)
