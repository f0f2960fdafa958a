"""What an experiment requests of a store, and which shards are to be computed for it: found once, then handed on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ...cache.feature_store import ArraySpec, BoundaryRequest, BoundarySpec, BoundaryWriter, FeatureStore, Item
from ...cache.format.layout import TARGET_SHARD_BYTES, TARGET_SHARD_SECONDS
from ..datasets.load import load_manifest
from ..datasets.types import Manifest
from ..encoders.encoder import Encoder
from ..encoders.imported_features import open_features_encoder
from ..media.decode import iter_media
from ..media.frame_folder import FrameFolder
from .items import clip_items, text_items
from .prefix import (
    PrefixMeasurement,
    clip_identity,
    cut_boundaries,
    measure_prefix,
    open_encoder,
    planned_provenance,
    text_identity,
)
from .run_records import FailedClip
from .sampling import Sampling, sampling_of
from .settings import EncoderSettings, ExtractSettings, RunOptions
from .shard_worker import ShardUnit

SECONDS_PER_TEXT = 0.05  # bounds a shard; far above what a text takes
TEXTS_PER_COUNT = 1024


@dataclass(frozen=True, kw_only=True)
class StateRequest:
    """The states that an experiment names of its clips, or of its texts.

    Attributes:
        kind: "clips" or "texts".
        encoders: open, by modality.
        settings: of each encoder.
        provenance: of each encoder's states, as every worker has to have it.
        base: the experiment's folder, absolute.
        boundaries: specification, items and provenance of every boundary.
        sampling: of clips; None for texts.
        media: the file, or folder of frames, of each clip by item key; two clips of one content have one key.
    """

    kind: Literal["clips", "texts"]
    encoders: dict[str, Encoder]
    settings: dict[str, EncoderSettings]
    provenance: dict[str, dict[str, Any]]
    base: Path
    boundaries: tuple[BoundaryRequest, ...]
    sampling: Sampling | None = None
    media: Mapping[str, Path | FrameFolder] = field(default_factory=dict)

    def without(self, keys: Collection[str]) -> StateRequest:
        """Return the request without the items of these keys."""
        if not keys:
            return self
        boundaries = [replace(b, items=[item for item in b.items if item.key not in keys]) for b in self.boundaries]
        return replace(self, boundaries=tuple(boundaries))


def request_states(
    settings: ExtractSettings, manifest: Manifest, store: FeatureStore, options: RunOptions
) -> list[StateRequest]:
    """Open an experiment's encoders and find every boundary and item that it names, of clips and then of texts.

    Args:
        settings: of the experiment; its own store's path does not matter.
        manifest: the data set.
        store: its items' digests are taken over where a file has their size and time, unless `options.deep`.
        options: of the run.

    Raises:
        SettingsError, EncoderError, TrunkError: an encoder that cannot be opened or cut so.
    """
    requests = [_request_clips(settings, manifest, store, options), _request_texts(settings, manifest, options)]
    return [request for request in requests if request is not None]


def requested_boundaries(
    settings: ExtractSettings, store: FeatureStore, options: RunOptions
) -> tuple[list[BoundaryRequest], list[str]]:
    """Return what `extract` would write into `store`, were it empty, and the paths of imported features that it reads.

    Raises:
        SettingsError, ManifestError, MissingMediaError, EncoderError: as `extract` does.
        MissingItemError, StoreMismatchError: imported features that are not in the store, or are others.
    """
    manifest = load_manifest(settings.manifest_settings, base=settings.base)
    requests = request_states(settings, manifest, store, options)
    segments = settings.data.segments
    imported = [
        open_features_encoder(chosen.model, store, modality=modality, num_segments=segments).stored.path
        for modality, chosen in settings.encoders.items()
        if chosen.is_imported
    ]
    return [boundary for request in requests for boundary in request.boundaries], imported


def undecodable(request: StateRequest, keys: Collection[str]) -> list[FailedClip]:
    """Decode the clips of these keys and return those that cannot be decoded.

    Args:
        request: of clips.
        keys: of clips that an earlier run could not decode; those that the request does not name are passed over.
    """
    if request.sampling is None:
        return []
    items = {item.key: item for item in request.boundaries[0].items if item.key in keys}
    decoding = request.sampling.media_settings(set(request.encoders), request.encoders)
    media = [request.media[key] for key in items]
    outcomes = iter_media(media, decoding, each_frame=lambda _place, _pixels: None)
    return [
        FailedClip(source=item.source, key=item.key, reason=str(outcome.error))
        for item, outcome in zip(items.values(), outcomes, strict=True)
        if outcome.error is not None
    ]


def plan_shards(request: StateRequest, writers: Sequence[BoundaryWriter]) -> list[ShardUnit]:
    """Return the shards that are to be computed: one unit for each set of items, with every boundary that misses it.

    Args:
        request: of clips or texts.
        writers: open ones of the store, at least of every boundary requested.
    """
    paths = {boundary.spec.path for boundary in request.boundaries}
    units: dict[tuple[str, ...], ShardUnit] = {}
    for writer in (writer for writer in writers if writer.spec.path in paths):
        for shard in writer.missing():
            unit = units.setdefault(tuple(item.key for item in shard.items), ShardUnit(items=shard.items))
            unit.targets.append((writer, shard))
    return list(units.values())


def _request_clips(
    settings: ExtractSettings, manifest: Manifest, store: FeatureStore, options: RunOptions
) -> StateRequest | None:
    chosen = {m: s for m, s in settings.encoders.live() if m != "text"}
    if not chosen or not manifest.clips:
        return None
    known = () if options.deep else _known_items(store, chosen)
    found = clip_items(manifest, known, progress=options.progress)
    if not found:
        return None
    segments, device = settings.data.segments, _planning_device(settings, options)
    encoders: dict[str, Encoder] = {
        m: open_encoder(s, modality=m, device=device, num_segments=segments, base=settings.base, store=store)
        for m, s in chosen.items()
    }
    sampling = sampling_of(settings, encoders)
    specs, seconds = [], 0.0
    for modality, encoder in encoders.items():
        cuts = cut_boundaries(encoder, chosen[modality])
        measured = measure_prefix(encoder, sampling.blank(encoder), cuts)
        seconds += measured.seconds * (1 + chosen[modality].views)
        plain = [_clip_spec(encoder, cut, sampling, measured, settings.store.dtype) for cut in cuts]
        specs += [view for spec in plain for view in (spec, *_views(spec, chosen[modality]))]
    provenance = _provenance(encoders, settings, options)
    count = settings.store.shard_items or _clips_per_shard(specs, seconds)
    items = [item for item, _ in found.values()]
    boundaries = [
        BoundaryRequest(
            spec=spec,
            items=items,
            provenance=provenance[spec.modality],
            max_seconds_per_item=TARGET_SHARD_SECONDS / (count + 0.5),  # the half keeps rounding from taking a row away
        )
        for spec in specs
    ]
    return StateRequest(
        kind="clips",
        encoders=encoders,
        settings=chosen,
        provenance=provenance,
        base=settings.base.resolve(),
        boundaries=tuple(boundaries),
        sampling=sampling,
        media={item.key: media for item, media in found.values()},
    )


def _request_texts(settings: ExtractSettings, manifest: Manifest, options: RunOptions) -> StateRequest | None:
    chosen = settings.encoders.text
    items = text_items(_trainable(settings, manifest))
    if chosen is None or not items:
        return None
    device = _planning_device(settings, options)
    encoder = open_encoder(chosen, modality="text", device=device, base=settings.base)
    cuts = cut_boundaries(encoder, chosen)
    measured = measure_prefix(encoder, ["a"], cuts)
    provenance = _provenance({"text": encoder}, settings, options)
    lengths = list(_num_tokens(encoder, [item.source for item in items]))
    boundaries = [
        BoundaryRequest(
            spec=_text_spec(encoder, cut, measured, settings.store.dtype),
            items=items,
            lengths=lengths,
            provenance=provenance["text"],
            max_seconds_per_item=SECONDS_PER_TEXT,
        )
        for cut in cuts
    ]
    return StateRequest(
        kind="texts",
        encoders={"text": encoder},
        settings={"text": chosen},
        provenance=provenance,
        base=settings.base.resolve(),
        boundaries=tuple(boundaries),
    )


def _planning_device(settings: ExtractSettings, options: RunOptions) -> str:
    """Return the device that this process opens encoders on; a cluster's front node may have no GPU."""
    return options.device if settings.engine.is_local or torch.cuda.is_available() else "cpu"


def _provenance(
    encoders: Mapping[str, Encoder], settings: ExtractSettings, options: RunOptions
) -> dict[str, dict[str, Any]]:
    device = options.worker_device(settings.engine)
    return {m: planned_provenance(encoder, settings.engine, device) for m, encoder in encoders.items()}


def _known_items(store: FeatureStore, modalities: Collection[str]) -> Iterator[Item]:
    for spec in store.boundaries():
        if spec.modality in modalities and "imported" not in spec.identity:
            yield from store.sources(spec)


def _trainable(settings: ExtractSettings, manifest: Manifest) -> Manifest:
    """Return the part of the data set whose questions can be trained on: imported features need no files."""
    imported = any(encoder.is_imported for _, encoder in settings.encoders.items())
    return manifest if imported else manifest.present()


def _clip_spec(encoder: Encoder, cut: int, sampling: Sampling, measured: PrefixMeasurement, dtype: str) -> BoundarySpec:
    rows = encoder.rows_per_clip(sampling.num_segments)
    return BoundarySpec(
        modality=encoder.modality,
        boundary=cut,
        identity=clip_identity(encoder, cut, sampling),
        dtype=dtype,
        shape=(rows, *measured.shapes[cut][1:]),
        inputs={n: ArraySpec(dtype=a.dtype, shape=(rows, *a.shape[1:])) for n, a in measured.inputs.items()},
    )


def _views(plain: BoundarySpec, settings: EncoderSettings) -> Iterator[BoundarySpec]:
    for view in range(1, settings.views + 1):
        assert settings.augment is not None
        yield replace(plain, identity=settings.augment.view_identity(plain.identity, view))


def _text_spec(encoder: Encoder, cut: int, measured: PrefixMeasurement, dtype: str) -> BoundarySpec:
    return BoundarySpec(
        modality="text",
        boundary=cut,
        identity=text_identity(encoder, cut),
        dtype=dtype,
        shape=(measured.shapes[cut][-1],),
        ragged=True,
        inputs={n: ArraySpec(dtype=a.dtype, shape=a.shape[2:]) for n, a in measured.inputs.items()},
    )


def _clips_per_shard(specs: Sequence[BoundarySpec], seconds: float) -> int:
    """Return how many clips a shard of every boundary holds: the same for all, so that a clip is decoded and run once.

    Args:
        specs: of all boundaries.
        seconds: that all prefixes take for one clip, with all its views.
    """
    by_time = TARGET_SHARD_SECONDS / seconds
    by_size = min(TARGET_SHARD_BYTES // (spec.unit_bytes + 4) for spec in specs)  # 4: each item's checksum
    return max(1, min(int(by_time), by_size))


@torch.no_grad()
def _num_tokens(encoder: Encoder, texts: Sequence[str]) -> Iterator[int]:
    for start in range(0, len(texts), TEXTS_PER_COUNT):
        state = encoder.embed(encoder.preprocess(list(texts[start : start + TEXTS_PER_COUNT])))
        assert state.lengths is not None
        yield from state.lengths.tolist()
