"""One view a clip and epoch: batches put together from the plain states and those of the augmented views."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...cache.feature_store import FeatureStore
from ...cache.read.batch import Batch
from ...cache.read.boundary_reader import BoundaryReader
from ...errors import MissingItemError
from ...extract.media.augment_settings import drawn_view
from ...extract.stage.settings import EncoderSettings
from .device_transfer import ReadSettings


def view_readers(
    store: FeatureStore, plain: BoundaryReader, settings: EncoderSettings, *, how: ReadSettings | None = None
) -> tuple[BoundaryReader, ...]:
    """The readers of a boundary's views: the plain one, then view 1, 2, ….

    Raises:
        MissingItemError: a view that was never extracted.
    """
    how = how or ReadSettings(verify="first", path="auto", allocate=None)
    held = {spec.key for spec in store.boundaries()}
    readers = [plain]
    for view in range(1, settings.views + 1):
        assert settings.augment is not None
        spec = dataclasses.replace(plain.spec, identity=settings.augment.view_identity(plain.spec.identity, view))
        if spec.key not in held:
            raise MissingItemError(
                f"{store.path}: view {view} of {plain.spec.path} is not stored with these augment settings; run talik "
                "extract first"
            )
        readers.append(store.reader(spec.modality, spec.boundary, key=spec.key, **how))
    return tuple(readers)


def mixed_views(
    readers: Sequence[BoundaryReader], keys_by_batch: Iterable[Sequence[str]], *, view_seed: int
) -> Iterator[Batch]:
    """Yield a batch for each list of item keys, each item from the view drawn for it.

    The draw depends on the seed, the modality and the item's key alone, so a resumed epoch draws the same, and every
    boundary and question of a clip sees the same view in an epoch.

    Args:
        readers: of one dense boundary, by view number.
        keys_by_batch: lists of item keys, read ahead in a thread a view.
        view_seed: stands for the run's seed and the epoch.
    """
    modality, last = readers[0].spec.modality, len(readers) - 1
    orders = [list(keys) for keys in keys_by_batch]
    drawn = [[drawn_view(view_seed, modality, key, last) for key in keys] for keys in orders]
    streams = [reader.prefetch(_of_view(view, orders, drawn)) for view, reader in enumerate(readers)]
    for views in drawn:
        parts = {view: next(streams[view]) for view in sorted(set(views))}
        yield _joined(parts, np.array(views))


def _of_view(view: int, orders: Sequence[Sequence[str]], drawn: Sequence[Sequence[int]]) -> Iterator[list[str]]:
    """Yield the keys of one view for each batch that has any."""
    for keys, views in zip(orders, drawn, strict=True):
        chosen = [key for key, v in zip(keys, views, strict=True) if v == view]
        if chosen:
            yield chosen


def _joined(parts: Mapping[int, Batch], views: NDArray[np.int64]) -> Batch:
    """Return one batch with the items of each view's batch where `views` (items,) names it; releases the parts."""
    batches = list(parts.values())
    if len(batches) == 1:
        return batches[0]
    places = [np.flatnonzero(views == view) for view in parts]

    def joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        out = np.empty((len(views), *arrays[0].shape[1:]), arrays[0].dtype)
        for where, values in zip(places, arrays, strict=True):
            out[where] = values
        return out

    hidden = joined([batch.hidden for batch in batches])
    inputs = {name: joined([batch.inputs[name] for batch in batches]) for name in batches[0].inputs}
    for batch in batches:
        batch.release()
    return Batch(hidden=hidden, inputs=inputs, dtype=batches[0].dtype)
