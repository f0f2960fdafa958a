"""Open an experiment's architectures where weights, clips and annotations may be absent: sizes as published."""

from __future__ import annotations

import string
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ...errors import ManifestError, MissingMediaError, SettingsError
from ...extract.datasets.load import load_manifest
from ...extract.datasets.types import Clip, Manifest, Question
from ...extract.media.clip_media import ClipMedia
from ...extract.presets.datasets import DATA, DataPart
from ...extract.stage.random_weights import with_random_weights
from ..config.experiment import Experiment
from ..training.experiment_context import ExperimentContext


class PublishedSizesContext(ExperimentContext):
    """Encoders with random weights and a manifest of published sizes, where the experiment's own are absent.

    Args:
        experiment: the experiment; its encoders are computed, not imported features.
        folder: an existing one, for configurations of encoders.
        device: where the encoders run.
    """

    def __init__(self, experiment: Experiment, folder: Path, *, device: str = "auto") -> None:
        encoders = experiment.extraction.encoders
        opened = {m: with_random_weights(chosen, folder) for m, chosen in encoders.items()}
        extraction = replace(experiment.extraction, encoders=replace(encoders, **opened))
        super().__init__(replace(experiment, extraction=extraction), device=device)

    @cached_property
    def manifest(self) -> Manifest:
        """Annotations of the data set, whether or not its clips exist; else questions in its published numbers."""
        settings = self.experiment.extraction
        facts = DATA[settings.data.dataset]
        try:
            return load_manifest(replace(settings.data, allow_missing=True), base=settings.base)
        except (ManifestError, MissingMediaError, SettingsError):
            if not facts.splits:
                raise
        return _published(settings.data.dataset, facts)

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
        clips={str(i): Clip(id=str(i), path=None) for i in range(facts.num_clips)},
        questions=questions,
        answers=answers,
        notes=("sizes as published; found neither annotations nor clips",),
    )


def _letters(number: int, length: int) -> str:
    return "".join(string.ascii_lowercase[number // 26**i % 26] for i in range(length))
