"""An experiment context to count on, where weights, clips and annotations may be absent: sizes are as published."""

from __future__ import annotations

import dataclasses
import string
from functools import cached_property
from pathlib import Path

import numpy as np

from ...errors import ManifestError, MissingMediaError, SettingsError
from ...extract.datasets.load import load_manifest
from ...extract.datasets.types import Clip, Manifest, Question
from ...extract.media.decode import ClipMedia
from ...extract.presets.datasets import DATA, DataPart
from ...extract.stage.random_weights import with_random_weights
from ..config.experiment import Experiment
from ..training.experiment_context import ExperimentContext


class PlaceholderContext(ExperimentContext):
    """The shared parts of an experiment whose weights, clips and annotations may all be absent.

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
        """The data set's own annotations, with clips missing or not; else a set of its published sizes."""
        settings = self.experiment.extraction
        facts = DATA[settings.data.dataset]
        try:
            return load_manifest(dataclasses.replace(settings.data, allow_missing=True), base=settings.base)
        except (ManifestError, MissingMediaError, SettingsError):
            if not facts.splits:
                raise
        return _published(settings.data.dataset, facts)

    def blank(self) -> ClipMedia:
        """A black, silent clip, decoded."""
        segments = self.experiment.extraction.data.segments
        parts = {m: self.sampling.blank(e) for m, e in self.encoders.items() if m != "text"}
        return ClipMedia(
            frames=parts.get("visual"),
            waveforms=parts.get("audio"),
            instants_seconds=np.zeros(segments),
            duration_seconds=float(segments),
        )


def _published(name: str, facts: DataPart) -> Manifest:
    """Questions dealt to clips in turn; each text as many letters as the usual one has tokens, read byte by byte."""
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
        notes=("sizes as published; neither annotations nor clips are here",),
    )


def _letters(number: int, length: int) -> str:
    found = ""
    for _ in range(length):
        number, digit = divmod(number, 26)
        found += string.ascii_lowercase[digit]
    return found
