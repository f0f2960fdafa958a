"""Films without sound or without picture: what is set for them is part of their own items, not of a boundary.

The states of a film that has both depend on nothing that is set for films that have not. So one boundary holds both
kinds, and the item of a film whose missing stream is replaced has a key of its own, made of the film's digest and of
what stands in. Stores written before had it in the boundary's identity; such a boundary is used as it is while it holds
more of the clips than the one without.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ...cache.feature_store import BoundarySpec, FeatureStore
from ...cache.format.digests import digest_json
from ..media.decode import missing_streams
from ..media.frame_folder import MediaSource
from .sampling import Sampling

_STREAMS = {"audio": "sound", "visual": "picture"}
_THREADS = 4


def replaced_key(key: str, sampling: Sampling, modality: str) -> str:
    """Return the key of the item of a film whose stream of that modality is missing and replaced.

    Args:
        key: the digest of the film.
        sampling: says what stands in.
        modality: "audio" or "visual".
    """
    return digest_json({"content": key, **sampling.stand_ins(modality)})


def held_keys(store: FeatureStore, spec: BoundarySpec, keys: Sequence[str]) -> set[str]:
    """Return those of `keys` whose states a boundary of the store holds; none where there is no such boundary.

    Raises:
        StoreFormatError, CorruptItemError: damage.
    """
    catalog = store.catalog(spec)
    if catalog is None or not keys:
        return set()
    rows = catalog.table.index.find(list(keys))
    stored = np.zeros(len(rows), bool)
    there = rows >= 0
    stored[there] = catalog.receipts[rows[there] // catalog.layout.grid.rows_per_shard, 0] != 0
    return {key for key, held in zip(keys, stored.tolist(), strict=True) if held}


def is_older(store: FeatureStore, plain: BoundarySpec, older: BoundarySpec, keys: Sequence[str]) -> bool:
    """Return whether the boundary that has the stand-in in its identity is to be used.

    Args:
        store: that may hold either.
        plain: the boundary without it.
        older: the same with it.
        keys: of the data set's clips.
    """
    found = len(held_keys(store, older, keys))
    return found > 0 and found > len(held_keys(store, plain, keys))


def item_keys(
    store: FeatureStore,
    specs: Sequence[BoundarySpec],
    sampling: Sampling,
    media: Mapping[str, MediaSource],
    keys: Collection[str],
) -> dict[str, str]:
    """Return the key of the item of each film that lacks the stream of a modality, by the film's digest.

    Films whose states are stored are not opened.

    Args:
        store: what it holds.
        specs: of boundaries of one modality, without the stand-in in their identity.
        sampling: says what stands in.
        media: files by digest; films that are not here are taken for whole.
        keys: digests of all films.
    """
    if not specs or not sampling.stand_ins(specs[0].modality):
        return {}
    modality = specs[0].modality
    replaced = {key: replaced_key(key, sampling, modality) for key in keys}
    whole = set[str]().union(*(held_keys(store, spec, list(keys)) for spec in specs))
    known = set[str]().union(*(held_keys(store, spec, list(replaced.values())) for spec in specs))
    lacking = {key for key, item in replaced.items() if item in known}
    unknown = [key for key in keys if key not in whole and key not in lacking and key in media]
    lacking |= set(_lacking(_STREAMS[modality], {key: media[key] for key in unknown}))
    return {key: item for key, item in replaced.items() if key in lacking}


def _lacking(stream: str, media: Mapping[str, MediaSource]) -> Iterable[str]:
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="talik-streams") as pool:
        found = pool.map(missing_streams, media.values())
        return [key for key, missing in zip(media, found, strict=True) if stream in missing]
