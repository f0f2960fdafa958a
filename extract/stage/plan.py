"""What an experiment requests of a store, and which shards are to be computed for it: found once, then handed on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ...cache.feature_store import ArraySpec, BoundaryRequest, BoundarySpec, BoundaryWriter, FeatureStore, Item
from ...cache.format.dataset_files import DatasetFiles
from ...cache.format.layout import TARGET_SHARD_BYTES, TARGET_SHARD_SECONDS
from ...errors import MissingMediaError, StoreError
from ..datasets.load import load_manifest
from ..datasets.types import Manifest
from ..encoders.encoder import Encoder
from ..encoders.imported_features import open_features_encoder
from ..media.decode import iter_media
from ..media.frame_folder import MediaSource
from .in_hand import in_hand
from .items import FILE_MISSING, ClipDigests, clip_items, text_items, trainable
from .missing_streams import held_keys, is_older, item_keys
from .prefix import (
    PrefixMeasurement,
    clip_identity,
    cut_boundaries,
    follow_store,
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
        imports: code of one's own that workers import.
        boundaries: specification, items and provenance of every boundary.
        sampling: of clips; None for texts.
        media: the file, or folder of frames, of each clip by the digest of its content; clips whose files are not here
            have none, and two clips of one content one.
        contents: digest of the content of each item that has another key (see `missing_streams`).
        missing: clips without a file of which the store knows no content.
        unreadable: clips whose file cannot be read.
        files: what the store is to remember of the files.
    """

    kind: Literal["clips", "texts"]
    encoders: dict[str, Encoder]
    settings: dict[str, EncoderSettings]
    provenance: dict[str, dict[str, Any]]
    base: Path
    boundaries: tuple[BoundaryRequest, ...]
    sampling: Sampling | None = None
    media: Mapping[str, MediaSource] = field(default_factory=dict)
    contents: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[FailedClip, ...] = ()
    unreadable: tuple[FailedClip, ...] = ()
    files: DatasetFiles | None = None
    imports: tuple[str, ...] = ()

    def content(self, item: Item) -> str:
        """Return the digest of an item's content."""
        return self.contents.get(item.key, item.key)

    def without(self, keys: Collection[str]) -> StateRequest:
        """Return the request without the items of these contents."""
        if not keys:
            return self
        boundaries = []
        for one in self.boundaries:
            left = [number for number, item in enumerate(one.items) if self.content(item) not in keys]
            lengths = None if one.lengths is None else [one.lengths[number] for number in left]
            boundaries.append(replace(one, items=[one.items[number] for number in left], lengths=lengths))
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
    clips = _request_clips(settings, manifest, store, options)
    gone = {clip.source for clip in clips.missing} if clips is not None else set(manifest.missing)
    texts = _request_texts(settings, trainable(manifest, settings, gone), options)
    return [request for request in (clips, texts) if request is not None]


def requested_boundaries(
    settings: ExtractSettings, store: FeatureStore, options: RunOptions
) -> tuple[list[BoundaryRequest], list[str]]:
    """Return what `extract` would write into `store`, were it empty, and the paths of imported features that it reads.

    Raises:
        SettingsError, ManifestError, MissingMediaError, EncoderError: as `extract` does.
        MissingItemError, StoreMismatchError: imported features that are not in the store, or are others.
    """
    manifest = load_manifest(settings.lenient_manifest_settings, base=settings.base)
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
    if request.sampling is None or not keys:
        return []
    named = {request.content(item): item for item in request.boundaries[0].items}
    items = {key: item for key, item in named.items() if key in keys and key in request.media}
    decoding = request.sampling.media_settings(set(request.encoders), request.encoders)
    media = [request.media[key] for key in items]
    outcomes = iter_media(media, decoding, each_frame=lambda _place, _pixels: None)
    return [
        FailedClip(source=item.source, key=key, reason=str(outcome.error))
        for (key, item), outcome in zip(items.items(), outcomes, strict=True)
        if outcome.error is not None
    ]


def unstorable(request: StateRequest, earlier: Iterable[FailedClip]) -> list[FailedClip]:
    """Return what an earlier run could not store at a boundary of the request: its state would be the same again."""
    paths = {boundary.spec.path for boundary in request.boundaries}
    earlier = [entry for entry in earlier if entry.boundary in paths]
    if not earlier:
        return []
    asked = {request.content(item): item for boundary in request.boundaries for item in boundary.items}
    failed = {entry.key: entry for entry in earlier if entry.key in asked}
    return [replace(entry, source=asked[key].source) for key, entry in failed.items()]


def absent(request: StateRequest, store: FeatureStore, *, allowed: bool) -> list[Item]:
    """Return the items of clips whose files are not here, and of which a boundary lacks the states.

    Raises:
        MissingMediaError: there are some, and it is not `allowed`.
    """
    found: dict[str, Item] = {}
    for boundary in request.boundaries if request.sampling is not None else ():
        items = [item for item in boundary.items if request.content(item) not in request.media]
        held = held_keys(store, boundary.spec, [item.key for item in items])
        found |= {request.content(item): item for item in items if item.key not in held}
    gone = list(found.values())
    if gone and not allowed:
        shown = ", ".join(repr(item.source) for item in gone[:10]) + (", …" if len(gone) > 10 else "")
        raise MissingMediaError(
            f"{len(gone)} clips lack states that the experiment names, and their files are not here: {shown}; bring "
            "the files, or extract where they are"
        )
    return gone


def without_stateless(
    request: StateRequest, store: FeatureStore, earlier: Sequence[FailedClip], *, allowed: bool, deep: bool
) -> tuple[StateRequest, list[FailedClip], list[Item]]:
    """Take out of a request what is known to have no states: what failed earlier and still does, files not here.

    Args:
        request: of clips or texts.
        store: that may hold the states of clips whose files are not here.
        earlier: what failed in runs before.
        allowed: whether files may be missing.
        deep: try again what could not be stored.

    Returns:
        What is left of the request, what failed, and the items whose files are not here.

    Raises:
        MissingMediaError: states of clips are to be computed whose files are not here, and that is not `allowed`.
    """
    failed = [] if deep else unstorable(request, earlier)
    request = request.without({clip.key for clip in failed})
    undecoded = undecodable(request, {entry.key for entry in earlier if entry.key and not entry.boundary})
    request = request.without({clip.key for clip in undecoded})
    gone = absent(request, store, allowed=allowed)
    return request.without({request.content(item) for item in gone}), [*failed, *undecoded], gone


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
            items = tuple(_of_content(item, request.contents) for item in shard.items)
            unit = units.setdefault(
                tuple(item.key for item in items), ShardUnit(items=items, contents=request.contents)
            )
            unit.targets.append((writer, shard))
    return list(units.values())


def _of_content(item: Item, contents: Mapping[str, str]) -> Item:
    """Return the item under the digest of its content."""
    return replace(item, key=contents[item.key]) if item.key in contents else item


def _request_clips(
    settings: ExtractSettings, manifest: Manifest, store: FeatureStore, options: RunOptions
) -> StateRequest | None:
    chosen = {m: s for m, s in settings.encoders.live() if m != "text"}
    if not chosen or not manifest.clips:
        return None
    digests = ClipDigests(store, manifest, deep=options.deep, unread=options.unread)
    missing = digests.unknown()
    if missing and not settings.data.allow_missing:
        _refuse_missing(settings, manifest, missing)
    with _digests_kept(store, digests):
        found = clip_items(manifest, digests, progress=options.progress)
    if not found.items and not found.unreadable:
        return None
    if options.order is not None:
        found = replace(found, items=options.order.of_clips(found.items))
    segments, device = settings.data.segments, _planning_device(settings, options)
    encoders: dict[str, Encoder] = {}
    for modality, one in chosen.items():
        opened = open_encoder(one, modality=modality, device=device, num_segments=segments, base=settings.base)
        follow_store(opened, lambda: store)
        encoders[modality] = opened
    sampling = sampling_of(settings, encoders)
    keys = [item.key for item in found.items.values()]
    specs, seconds = list[BoundarySpec](), 0.0
    names: dict[str, dict[str, str]] = {}  # by path of the boundary: keys of films whose missing stream is replaced
    for modality, encoder in encoders.items():
        cuts = cut_boundaries(encoder, chosen[modality])
        measured = measure_prefix(encoder, sampling.blank(encoder), cuts)
        seconds += measured.seconds * (1 + chosen[modality].views)
        of_films = list[BoundarySpec]()
        for cut in cuts:
            plain = _clip_spec(encoder, cut, sampling, measured, settings.store.dtype)
            older = _with_stand_ins(plain, sampling)
            use_older = older != plain and is_older(store, plain, older, keys)
            views = [older if use_older else plain, *_views(older if use_older else plain, chosen[modality])]
            specs += views
            of_films += [] if use_older else views
        replaced = item_keys(store, of_films, sampling, found.media, keys)
        names |= {spec.path: replaced for spec in of_films}
    provenance = _provenance(encoders, settings, options)
    count = settings.store.shard_items or _clips_per_shard(specs, seconds)
    if options.order is not None and settings.store.shard_items is None:
        count = options.order.clips_per_shard(count, len(keys))
    boundaries = [
        BoundaryRequest(
            spec=spec,
            items=_named(found.items.values(), names.get(spec.path, {})),
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
        imports=settings.imports,
        boundaries=tuple(boundaries),
        sampling=sampling,
        media=found.media,
        contents={item: content for replaced in names.values() for content, item in replaced.items()},
        missing=tuple(missing),
        unreadable=tuple(found.unreadable),
        files=found.files,
    )


@contextmanager
def _digests_kept(store: FeatureStore, digests: ClipDigests) -> Iterator[None]:
    """Write down what the block has digested where it is interrupted; a store that is only read stays as it is."""
    try:
        yield
    except BaseException:
        files = digests.table()
        if files is not None and store.mode == "a":
            with suppress(StoreError):
                store.record_files(files)
        raise


def _named(items: Iterable[Item], keys: Mapping[str, str]) -> list[Item]:
    """Return the items, those of films whose missing stream is replaced under keys of their own."""
    return [replace(item, key=keys[item.key]) if item.key in keys else item for item in items]


def _with_stand_ins(plain: BoundarySpec, sampling: Sampling) -> BoundarySpec:
    """Return the specification that older stores have where a stand-in for missing streams is set."""
    found = {**plain.identity["sampling"], **sampling.stand_ins(plain.modality)}
    return replace(plain, identity={**plain.identity, "sampling": found})


def _refuse_missing(settings: ExtractSettings, manifest: Manifest, missing: Sequence[FailedClip]) -> None:
    if all(clip.reason == FILE_MISSING for clip in missing):
        load_manifest(settings.manifest_settings, base=settings.base)  # says it in its own words
    first = "; ".join(f"clip {clip.source!r}: {clip.reason}" for clip in missing[:3])
    raise MissingMediaError(f"{len(missing)} of {len(manifest.clips)} clips have no file here: {first}")


def _request_texts(settings: ExtractSettings, manifest: Manifest, options: RunOptions) -> StateRequest | None:
    chosen = settings.encoders.text
    items = text_items(manifest)
    if chosen is None or not items:
        return None
    if options.order is not None:
        items = options.order.of_texts(items)
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
        imports=settings.imports,
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
        some = texts[start : start + TEXTS_PER_COUNT]

        def count(texts: Sequence[str]) -> list[int]:
            state = encoder.embed(encoder.preprocess(list(texts)))
            assert state.lengths is not None
            lengths: list[int] = state.lengths.tolist()
            return lengths

        def alone(number: int, some: Sequence[str] = some) -> None:
            count(some[number : number + 1])

        with in_hand([repr(text) for text in some], alone):
            lengths = count(some)
        yield from lengths
