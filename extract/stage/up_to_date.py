"""Finds that a store holds all that an experiment names, without opening a model.

The answer is "yes, and this is the report", or "not known", whatever the reason: then models are opened, and extraction
finds out what is missing and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...cache.feature_store import BoundarySpec, FeatureStore
from ...cache.format.catalog import Catalog
from ...cache.format.dataset_files import with_table
from ...cache.format.digests import digest_json
from ..datasets.types import Manifest
from .extract_report import ExtractReport
from .items import ClipDigests, failed_clip_record, text_items, trainable
from .known_boundaries import KnownBoundary, known_boundaries
from .run_records import FailedClip
from .settings import ExtractSettings
from .version_notes import version_notes


def up_to_date(settings: ExtractSettings, manifest: Manifest, store: FeatureStore) -> ExtractReport | None:
    """Return the report of a run that has nothing to do; None where there may be something.

    Args:
        settings: of the experiment.
        manifest: the data set.
        store: open; it is only read.

    Raises:
        StoreError: a damaged store.
    """
    known = known_boundaries(settings)
    if known is None:
        return None
    boundaries: list[KnownBoundary] = []
    missing: list[FailedClip] = []
    notes: list[str] = []
    gone = set(manifest.missing)
    if any(modality != "text" for modality, _ in settings.encoders.live()) and manifest.clips:
        digests = ClipDigests(store, manifest)
        missing = digests.unknown()
        gone = {clip.source for clip in missing}
        keys = None if missing and not settings.data.allow_missing else _clip_keys(manifest, digests, store)
        if not keys or not _hold_all(store, known.get("clips", ()), keys, notes):
            return None
        boundaries += known["clips"]
    texts = text_items(trainable(manifest, settings, gone))
    if settings.encoders.text is not None and texts:
        if not _hold_all(store, known.get("texts", ()), [item.key for item in texts], notes):
            return None
        boundaries += known["texts"]
    if not failed_clip_record(store, manifest).says(missing, {one.spec.path for one in boundaries}):
        return None
    return ExtractReport(
        items={},
        bytes_written=0,
        seconds=0.0,
        up_to_date=True,
        boundaries=tuple(one.spec for one in boundaries),
        skipped=tuple((clip.source, clip.reason) for clip in missing),
        notes=tuple(dict.fromkeys(notes)),
    )


def _clip_keys(manifest: Manifest, digests: ClipDigests, store: FeatureStore) -> list[str] | None:
    """Return the digests of all clips that have any; None where one is to be taken, or noted, anew."""
    keys = []
    for clip in manifest.clips.values():
        try:
            file = digests.remembered(clip.id)
        except OSError:
            return None
        if file is not None:
            keys.append(file.key)
        elif clip.media is not None:
            return None
    files, before = digests.table(), store.dataset_files()
    return keys if files is None or with_table(before, files) == before else None


def _hold_all(store: FeatureStore, boundaries: Sequence[KnownBoundary], keys: Sequence[str], notes: list[str]) -> bool:
    """Return whether the store holds the state of each item at each boundary: its own, or that of its stand-in.

    Args:
        store: that is asked.
        boundaries: of clips, or of texts; without any the answer is no.
        keys: digests of the items' content.
        notes: what is to be said of versions is added.
    """
    without: dict[str, list[int]] = {}  # by modality, the numbers of the films that lack its stream
    for one in boundaries:
        catalog = store.catalog(one.spec)
        if catalog is None:
            return False
        held = _stored(catalog, keys)
        if one.stand_ins:
            lacking = np.flatnonzero(~held).tolist()
            held[lacking] = _stored(catalog, [digest_json({"content": keys[n], **one.stand_ins}) for n in lacking])
            older = store.catalog(_older(one)) is not None  # which of the two is used is another question
            if older or without.setdefault(one.spec.modality, lacking) != lacking:
                return False
        if not held.all():
            return False
        notes += version_notes(one.spec.modality, one.provenance, catalog.provenance)
    return bool(boundaries)


def _older(one: KnownBoundary) -> BoundarySpec:
    """Return the specification that older stores have where a stand-in is set."""
    sampling = {**one.spec.identity["sampling"], **one.stand_ins}
    return replace(one.spec, identity={**one.spec.identity, "sampling": sampling})


def _stored(catalog: Catalog, keys: Sequence[str]) -> NDArray[np.bool_]:
    """Return of each key (K,) whether its item has a row in a shard that is stored."""
    rows = catalog.table.index.find(keys) if keys else np.zeros(0, np.int64)
    held = rows >= 0
    held[held] = catalog.receipts[rows[held] // catalog.layout.grid.rows_per_shard, 0] != 0
    return held
