"""What the variants of one experiment share: the manifest, the frozen encoders, the store; and models built on them."""

from __future__ import annotations

import hashlib
from functools import cached_property

import torch
from torch import nn

from ..cache.errors import ManifestError, SettingsError
from ..cache.store import FeatureStore
from ..extract.encoders import Encoder
from ..extract.manifest.load import load_manifest
from ..extract.manifest.types import Manifest, Question
from ..extract.sampling import Sampling, sampling_of
from ..extract.work import boundary_states, open_encoder
from .adapters.registry import adapter_kind, adapter_settings
from .experiment import Experiment, VariantSettings
from .insertion import ResolvedInsertions, resolve_insertions
from .joint import JointModel
from .sources import CachedSource, LiveSource
from .task import AnswerHead


class Workbench:
    """The shared parts of an experiment, each opened when first needed.

    Args:
        experiment: the whole experiment.
        device: where everything runs.
    """

    def __init__(self, experiment: Experiment, *, device: str = "cpu") -> None:
        self.experiment = experiment
        self.device = device

    @cached_property
    def manifest(self) -> Manifest:
        """The data set's clips and questions."""
        settings = self.experiment.extraction
        manifest = load_manifest(settings.data, base=settings.base)
        if not manifest.answers:
            raise ManifestError(f"{manifest.root}: no answers in the data set; expected at least one question with one")
        return manifest

    @cached_property
    def encoders(self) -> dict[str, Encoder]:
        """The frozen encoders by modality."""
        chosen = self.experiment.extraction.encoders.items()
        return {m: open_encoder(s, modality=m, device=self.device) for m, s in chosen}

    @cached_property
    def sampling(self) -> Sampling:
        """How clips are sampled."""
        return sampling_of(self.experiment.extraction, self.encoders)

    @cached_property
    def store(self) -> FeatureStore:
        """The feature store, open for reading."""
        return FeatureStore.open(self.experiment.extraction.store_path, mode="r")

    @cached_property
    def channels(self) -> dict[str, list[int]]:
        """Channels of the tokens at every boundary of every encoder, and last those of its features."""
        return {m: self._channels(e) for m, e in self.encoders.items()}

    @torch.no_grad()
    def _channels(self, encoder: Encoder) -> list[int]:
        raw = ["a"] if encoder.modality == "text" else self.sampling.blank(encoder)
        inputs = {k: v.to(self.device) for k, v in encoder.preprocess(raw).items()}
        states = list(boundary_states(encoder, inputs, range(encoder.num_units + 1)))
        features = encoder.features(encoder.finish(states[-1]))
        return [s.tokens().shape[-1] for s in states] + [features.shape[-1]]

    def used(self, variant: VariantSettings) -> dict[str, Encoder]:
        """The encoders that a variant reads: all, unless its adapter names the modalities."""
        named = getattr(adapter_settings(variant.adapter), "modalities", None)
        if named is None:
            return self.encoders
        for modality in named:
            if modality not in self.encoders:
                raise SettingsError(
                    f"variant {variant.name!r}: its adapter reads {modality}, but there is no [encoders.{modality}]"
                )
        return {m: e for m, e in self.encoders.items() if m in named}

    def insertions(self, variant: VariantSettings) -> ResolvedInsertions:
        """Where the variant's adapters sit in the encoders at hand."""
        kind = adapter_kind(variant.adapter["kind"])
        if kind.module is None and variant.insertion is not None:
            raise SettingsError(f"variant {variant.name!r}: adapter kind {kind.name!r} has no insertion; remove it")
        if kind.module is not None and variant.insertion is None:
            raise SettingsError(f'variant {variant.name!r}: no insertion; expected for instance insertion = "last 1"')
        num_units = {m: e.num_units for m, e in self.used(variant).items()}
        try:
            return resolve_insertions(variant.insertion, num_units, placement=variant.placement)
        except SettingsError as error:
            raise SettingsError(f"variant {variant.name!r}: {error}") from None

    def build(self, variant: VariantSettings, *, seed: int) -> JointModel:
        """The variant's model, freshly initialised; the head's weights depend on the seed alone, not on the adapter."""
        encoders, insertions = self.used(variant), self.insertions(variant)
        dims = [{m: self.channels[m][k] for m, k in i.boundaries.items()} for i in insertions.insertions]
        adapter: nn.Module | None = None
        module = adapter_kind(variant.adapter["kind"]).module
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "adapter"))
            if module is not None:
                adapter = module(adapter_settings(variant.adapter), dims)
            torch.manual_seed(derived_seed(seed, "head"))
            ends = {m: self.channels[m][-1] for m in encoders}
            head = AnswerHead(ends, len(self.manifest.answers), self.experiment.task)
        model = JointModel(encoders, insertions, adapter, head, placement=variant.placement)
        return model.to(self.device)

    def cached(self, model: JointModel) -> CachedSource:
        """Batches for this model out of the store."""
        settings = self.experiment.extraction.store
        return CachedSource(
            self.store,
            self.manifest,
            model.encoders,
            model.starts(),
            self.sampling,
            dtype=settings.dtype,
            verify=settings.verify,
            device=self.device,
        )

    def live(self, model: JointModel) -> LiveSource:
        """Batches for this model computed from the media files."""
        return LiveSource(self.manifest, model.encoders, model.starts(), self.sampling, device=self.device)

    def questions(self, split: str) -> tuple[Question, ...]:
        """The questions of a split, or a ManifestError if there is none."""
        questions = self.manifest.split(split)
        if not questions:
            known = sorted({q.split for q in self.manifest.questions})
            raise ManifestError(f"split {split!r} has no questions (splits of this data set: {', '.join(known)})")
        return questions


def derived_seed(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose, so that what one part draws never moves another's numbers."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
