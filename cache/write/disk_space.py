"""The bytes that a write will need, known before the first of them, and the refusal of a write that cannot fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import StoreFullError
from .. import atomic_io as durable
from ..format import catalog as catalog_
from ..format.catalog import Catalog
from ..format.layout import Grid
from ..format.sharding import file_bytes
from ..format.spec import BoundarySpec, Item
from .row_allocation import missing_shards, plan_rows

_SPARE_BYTES = 1_000_000  # for the small arrays and metadata of a boundary


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one boundary is to hold: the arguments of `FeatureStore.writer`.

    Args:
        spec: what is stored.
        items: all of them, in the order in which rows are given.
        lengths: tokens of each, for a ragged boundary.
    """

    spec: BoundarySpec
    items: tuple[Item, ...]
    lengths: tuple[int, ...] | None = None


def bytes_missing(store: Path, asked: Asked, *, max_seconds_per_item: float | None = None) -> int:
    """Return the bytes of the data files that a writer of `asked` would still write; nothing is written.

    Raises:
        StoreFormatError, CorruptItemError: a damaged boundary.
        StoreMismatchError: lengths that differ from those stored.
    """
    longest = max(asked.lengths or (), default=1)
    grid = Grid.choose(
        asked.spec, num_items=len(asked.items), longest=longest, max_seconds_per_item=max_seconds_per_item
    )
    before = catalog_.load(store, asked.spec) or catalog_.new(store, asked.spec, grid)
    after, _ = plan_rows(before, asked.items, asked.lengths, before.provenance[-1] if before.provenance else {})
    return sum(shard_bytes(after, shard) for shard in missing_shards(after, asked.items))


def shard_bytes(catalog: Catalog, shard: int) -> int:
    """Return the bytes of a shard's data files."""
    rows = catalog.rows_of_shard(shard)
    units = len(rows)
    if catalog.layout.spec.ragged:
        units = int(catalog.offsets[rows[-1] + 1]) - shard * catalog.layout.grid.tokens_per_shard
    return sum(file_bytes(array, units) for array in catalog.layout.data)


def refuse_if_full(store: Path, num_bytes: int, *, where: str, what: str, num_boundaries: int = 1) -> None:
    """Refuse what the disk has no room for.

    Args:
        store: its path.
        num_bytes: of data to be written; 0 always fits.
        where, what: how the message names the place and the work.
        num_boundaries: that each take some space of their own.

    Raises:
        StoreFullError: it does not fit; nothing was written.
    """
    free = durable.free_bytes(store)
    if num_bytes and num_bytes + num_boundaries * _SPARE_BYTES > free:
        raise StoreFullError(
            f"{where}: {what} to write need {num_bytes / 1e6:.1f} MB, the disk has {free / 1e6:.1f} MB free; make "
            "room, choose another [store] path, or a smaller dtype"
        )
