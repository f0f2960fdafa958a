"""What the variants of one experiment share: the manifest, the frozen encoders, the store; and models built on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from ...cache.feature_store import FeatureStore
from ...errors import ManifestError, SettingsError
from ...extract.datasets.describe import blind_baseline, blind_label_shares, fraction_correct, most_frequent_label
from ...extract.datasets.load import load_manifest
from ...extract.datasets.types import Manifest, Question
from ...extract.encoders.encoder import Encoder
from ...extract.encoders.imported_features import open_features_encoder
from ...extract.encoders.options import Compute
from ...extract.encoders.pretrained_encoder import PretrainedEncoder
from ...extract.encoders.unit_replacement import CompiledUnits
from ...extract.executors.device import chosen_device
from ...extract.stage.items import ClipDigests
from ...extract.stage.prefix import follow_store, open_encoder
from ...extract.stage.sampling import Sampling, sampling_of
from ...extract.stage.settings import EncoderSettings
from ...user_code import import_user_code
from ..adapters.base import Site
from ..adapters.registry import adapter_kind, adapter_settings, modalities_of
from ..config.check_experiment import check_placement
from ..config.experiment import Experiment, VariantSettings
from ..data.batch import Source
from ..data.cached_source import CachedSource
from ..data.live_source import LiveSource, Prefix
from ..model.insertion import Placement, ResolvedInsertions, check_reach, resolve_insertions
from ..model.joint_model import JointModel
from ..model.precision import Precision
from ..model.targets import check_task, make_head
from ..scoring.multi_label import label_scores, mean_average_precision
from .random_stream import derived_seed


class ExperimentContext:
    """The shared parts of an experiment, each opened when first needed.

    `manifest`, `encoders` and `store` may be set before they are used, for instance to opened ones of another context.

    Args:
        experiment: the whole experiment.
        device: where everything runs; "auto" is a GPU where there is one.
    """

    def __init__(self, experiment: Experiment, *, device: str = "auto") -> None:
        import_user_code(experiment.extraction.imports, experiment.base)  # in a process that did not read the file
        self.experiment = experiment
        self.device = chosen_device(device)
        self._sources: dict[Any, CachedSource] = {}
        self._units: CompiledUnits = {}
        self._prefix_encoders: dict[str, Encoder] = {}
        self._held: dict[Precision, dict[str, Encoder]] = {}

    @cached_property
    def manifest(self) -> Manifest:
        """The data set's clips and questions; clips whose files are not here have none."""
        settings = self.experiment.extraction
        manifest = load_manifest(settings.lenient_manifest_settings, base=settings.base)
        if not manifest.answers:
            raise ManifestError(f"{manifest.root}: no answers in the data set; expected at least one question with one")
        return manifest

    @cached_property
    def blind_validation(self) -> float | None:
        """What the blind baseline scores on validation by the task's metric, 0 to 1; None where it has none.

        Of clips whose segments are labelled, the share of segments that are of train's most frequent class.
        """
        manifest = self.manifest
        if not {"train", "val"} <= {*manifest.splits}:
            return None
        questions = manifest.split("val")
        if all(q.labels for q in manifest.questions):
            label = most_frequent_label(manifest)
            labels = [found for q in questions for found in q.labels]
            return labels.count(label) / len(labels)
        if self.experiment.task.kind == "multi-label":
            return self._blind_map(questions)
        blind = blind_baseline(manifest, "val")
        return fraction_correct(questions, blind, scoring=self.experiment.task.scoring)

    def _blind_map(self, questions: Sequence[Question]) -> float:
        shares, classes = blind_label_shares(self.manifest, questions[0].split), self.classes
        rows = [(q.right, (), [shares[q.id].get(name, 0.0) for name in classes]) for q in questions]
        return mean_average_precision(label_scores(rows, classes))

    @property
    def classes(self) -> tuple[str, ...]:
        """The answers in the order of a new run's classes.

        Where a data set only collects them in the order of its files' lines they are sorted, so that they do not depend
        on it. A run that exists has its own order, which its folder keeps.
        """
        data = self.experiment.extraction.data
        collected = data.dataset in ("manifest", "avqa") and not data.answers
        return tuple(sorted(self.manifest.answers)) if collected else self.manifest.answers

    @property
    def final_split(self) -> str:
        """The split that a finished run is scored on."""
        return "test" if "test" in self.manifest.splits else "val"

    @property
    def allow_missing(self) -> bool:
        """Whether questions about clips without states are left out, instead of refused."""
        return self.experiment.extraction.data.allow_missing

    @cached_property
    def encoders(self) -> dict[str, Encoder]:
        """The frozen encoders by modality."""
        chosen = self.experiment.extraction.encoders.items()
        return {m: self._open(m, s) for m, s in chosen}

    def _open(self, modality: str, settings: EncoderSettings) -> Encoder:
        extraction = self.experiment.extraction
        segments = extraction.data.segments
        if settings.is_imported:
            return open_features_encoder(
                settings.model, self.store, modality=modality, num_segments=segments, device=self.device
            )
        encoder = self.opened(modality, "float32").above(settings.compute)
        follow_store(encoder, lambda: self.store)
        return encoder

    def opened(self, modality: str, compute: Compute) -> PretrainedEncoder:
        """Open an encoder anew, computing everything in `compute`."""
        extraction = self.experiment.extraction
        return open_encoder(
            replace(dict(extraction.encoders.items())[modality], compute=compute),
            modality=modality,
            device=self.device,
            num_segments=extraction.data.segments,
            base=extraction.base,
        )

    def prefix_encoder(self, modality: str) -> Encoder:
        """Return what computes an encoder's states as stage 1 does, in its `compute`, opened when first needed."""
        settings = dict(self.experiment.extraction.encoders.items())[modality]
        if settings.compute == "float32":
            return self.encoders[modality]
        if modality not in self._prefix_encoders:
            self._prefix_encoders[modality] = self.opened(modality, settings.compute)
        return self._prefix_encoders[modality]

    def held(self, precision: Precision) -> dict[str, Encoder]:
        """The frozen encoders by modality, with units that run in a precision; made once, for all variants of it."""
        if precision not in self._held:
            same = precision == Precision()
            self._held[precision] = {m: e if same else e.held_in(precision.dtype) for m, e in self.encoders.items()}
        return self._held[precision]

    @cached_property
    def sampling(self) -> Sampling:
        """How clips are sampled."""
        return sampling_of(self.experiment.extraction, self.encoders)

    @cached_property
    def store(self) -> FeatureStore:
        """The feature store, open for reading."""
        return self.experiment.extraction.open_store()

    @cached_property
    def digests(self) -> ClipDigests:
        """Finds the content of the data set's clips."""
        return ClipDigests(self.store, self.manifest)

    @cached_property
    def channels(self) -> dict[str, Sequence[int]]:
        """Channels of the tokens at every boundary of every encoder, and last those of its features."""
        return {m: e.channels for m, e in self.encoders.items()}

    def used(self, variant: VariantSettings) -> dict[str, Encoder]:
        """The encoders that a variant reads: all, unless its adapter names the modalities."""
        named = modalities_of(adapter_settings(variant.adapter))
        if named is None:
            return self.encoders
        for modality in named:
            if modality not in self.encoders:
                raise SettingsError(
                    f"variant {variant.name!r}: its adapter reads {modality}, but there is no [encoders.{modality}]"
                )
        return {m: e for m, e in self.encoders.items() if m in named}

    def insertions(self, variant: VariantSettings) -> ResolvedInsertions:
        """Resolve where the variant's adapters sit in the encoders."""
        num_units = {m: e.num_units for m, e in self.used(variant).items()}
        try:
            check_placement(variant)
            return resolve_insertions(variant.insertion, num_units, placement=_placement(variant))
        except SettingsError as error:
            raise SettingsError(f"variant {variant.name!r}: {error}") from None

    def check_insertion(self, variant: VariantSettings) -> None:
        """Refuse a variant's insertion that its encoders do not have, before it is trained.

        Raises:
            SettingsError: what `insertions` raises; or "last K" where every encoder has fewer units.
        """
        self.insertions(variant)
        try:
            check_reach(variant.insertion, {m: e.num_units for m, e in self.used(variant).items()})
        except SettingsError as error:
            raise SettingsError(f"variant {variant.name!r}: {error}") from None

    def starts(self, variant: VariantSettings) -> dict[str, int]:
        """By modality, the highest boundary that the variant may start from (see `JointModel.starts`)."""
        insertions = self.insertions(variant)
        return {m: insertions.first(m, e.num_units) for m, e in self.used(variant).items()}

    def build(
        self,
        variant: VariantSettings,
        *,
        seed: int,
        num_classes: int | None = None,
        precision: Precision | None = None,
    ) -> JointModel:
        """The variant's model, freshly initialised; the head's weights depend on the seed alone, not on the adapter.

        Args:
            variant: one of the experiment's.
            seed: of the weights.
            num_classes: of the head; as many as the data set has answers by default.
            precision: that it runs in; what the variant's training settings mean on the device by default.
        """
        if precision is None:
            precision = Precision.of(self.experiment.train_settings(variant).precision, self.device)
        num_classes = len(self.manifest.answers) if num_classes is None else num_classes
        held, insertions = self.held(precision), self.insertions(variant)
        encoders = {m: held[m] for m in self.used(variant)}
        check_task(self.manifest, self.experiment.task, list(encoders))
        site = Site(
            dims=[{m: self.channels[m][k] for m, k in i.boundaries.items()} for i in insertions.insertions],
            ends={m: self.channels[m][-1] for m in encoders},
            encoders=encoders,
            units={m: insertions.of(m) for m in encoders if insertions.of(m)},
        )
        module = adapter_kind(variant.adapter["kind"]).module
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "adapter"))
            adapter = None if module is None else module.for_site(adapter_settings(variant.adapter), site)
            torch.manual_seed(derived_seed(seed, "head"))
            head = make_head(site.ends, num_classes, self.experiment.task)
        placement = _placement(variant)
        model = JointModel(encoders, insertions, adapter, head, placement=placement, precision=precision)
        return model.to(self.device)

    def compiled(self, encoders: Mapping[str, Encoder]) -> dict[str, Encoder]:
        """These encoders with their units under torch.compile; a unit that several models share is compiled once.

        Raises:
            SettingsError: not on a CUDA device.
        """
        if torch.device(self.device).type != "cuda":
            raise SettingsError(f"compile: is for CUDA, found device {self.device}; remove it, or add --device cuda")
        return {m: e.compiled(self._units) for m, e in encoders.items()}

    def cached(self, model: JointModel) -> CachedSource:
        """Batches for this model out of the store."""
        return self._cached(model.starts(), model.reads(), model.precision)

    def _cached(
        self, starts: Mapping[str, int], reads: Mapping[str, Sequence[int]], precision: Precision
    ) -> CachedSource:
        """The source of these boundaries, opened once: what a model trains its own copies of lies above its start."""
        above = {m: tuple(sorted(k for k in set(reads.get(m, ())) if k > start)) for m, start in starts.items()}
        key = (tuple(sorted(starts.items())), tuple(sorted(above.items())), precision)
        if key not in self._sources:
            settings, held = self.experiment.extraction.store, self.held(precision)
            self._sources[key] = CachedSource(
                self.store,
                self.manifest,
                {m: held[m] for m in starts},
                starts,
                self.sampling,
                dtype=settings.dtype,
                verify=settings.verify,
                read_path=settings.read_path,
                device=self.device,
                reads={m: ks for m, ks in above.items() if ks},
                views=dict(self.experiment.extraction.encoders.items()),
                digests=self.digests,
            )
        return self._sources[key]

    def check_files(self) -> None:
        """Raise a MissingMediaError that names the clips without a file, unless the settings allow such clips."""
        extraction = self.experiment.extraction
        if self.manifest.missing and not self.allow_missing:
            load_manifest(extraction.manifest_settings, base=extraction.base)

    def live(self, model: JointModel) -> LiveSource:
        """Batches for this model computed from the media files."""
        return self._live({m: self.encoders[m] for m in model.encoders}, model.starts(), model.reads())

    def _live(
        self, encoders: Mapping[str, Encoder], starts: Mapping[str, int], reads: Mapping[str, Sequence[int]]
    ) -> LiveSource:
        for encoder in encoders.values():
            if encoder.stored is not None:
                raise SettingsError(f"{encoder.spec}: imported features cannot be computed live; leave out --live")
        self.check_files()
        prefixes = {m: self._prefix(m, start, reads.get(m, ())) for m, start in starts.items()}
        narrow = {m: prefix for m, prefix in prefixes.items() if prefix.encoder is not self.encoders[m]}
        return LiveSource(self.manifest, encoders, starts, self.sampling, device=self.device, prefixes=narrow)

    def _prefix(self, modality: str, start: int, reads: Sequence[int]) -> Prefix:
        """The prefix up to where stage 1 computes it: to the cut that states would be read from, and those above."""
        encoder, settings = self.encoders[modality], dict(self.experiment.extraction.encoders.items())[modality]
        cuts = () if settings.cut == "auto" else {encoder.boundary(k) for k in settings.cuts}
        first = max((k for k in cuts if k <= start), default=start)
        above = sorted(k for k in set(reads) if k > start and k in cuts)
        return Prefix(encoder=self.prefix_encoder(modality), boundaries=(first, *above))

    def shared(
        self,
        starts: Mapping[str, int],
        reads: Mapping[str, Sequence[int]],
        *,
        precision: Precision | None = None,
        live: bool,
    ) -> CachedSource | LiveSource:
        """Batches for several models trained together: states at `starts`, and at what is stored of `reads`."""
        if not live:
            return self._cached(starts, reads, precision or Precision())
        if any(settings.views for _, settings in self.experiment.extraction.encoders.items()):
            raise SettingsError("views: augmented views come from the store; leave out --live, or the views")
        return self._live({m: self.encoders[m] for m in starts}, starts, reads)

    def stored_paths(self, source: Source | None) -> list[str]:
        """Return the paths of all boundaries of the store that a source reads; [] of one that reads none."""
        return [spec.path for spec in self.store.boundaries()] if isinstance(source, CachedSource) else []

    def questions(self, split: str) -> tuple[Question, ...]:
        """The questions of a split, or a ManifestError if there is none."""
        questions = self.manifest.split(split)
        if not questions:
            known = sorted({q.split for q in self.manifest.questions})
            raise ManifestError(f"split {split!r} has no questions (splits of this data set: {', '.join(known)})")
        return questions


def _placement(variant: VariantSettings) -> Placement:
    """Return where the variant's adapter stands: what it says, or inside the units that it trains."""
    module = adapter_kind(variant.adapter["kind"]).module
    return "inside" if module is not None and module.tunes_units else variant.placement
