"""What a write of one boundary would store: items and bytes, found from its catalog alone; nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..format import catalog as catalog_
from ..format.catalog import Catalog
from ..format.layout import Grid
from ..format.spec import BoundarySpec
from .boundary_writer import BoundaryRequest
from .disk_space import shard_bytes
from .row_allocation import check_lengths, missing_shards, with_rows


@dataclass(frozen=True, kw_only=True)
class BoundaryOutline:
    """What is asked of one boundary, and what of it is stored.

    Attributes:
        spec: the specification of the boundary.
        num_items: distinct items that are asked for.
        missing: keys of those whose states are not stored.
        num_rows: rows of the boundary when they are.
        num_shards: shards that are to be written.
        hidden_bytes: of the missing hidden states in the storage type.
        size_bytes: of the files to be written: with small inputs, checksums and indexes.
    """

    spec: BoundarySpec
    num_items: int
    missing: frozenset[str]
    num_rows: int
    num_shards: int
    hidden_bytes: int
    size_bytes: int

    @property
    def num_stored(self) -> int:
        """Items that are asked for and stored."""
        return self.num_items - len(self.missing)


def outline_boundary(store: Path, stored: Catalog | None, request: BoundaryRequest) -> BoundaryOutline:
    """Return what `FeatureStore.writer` would have to store for a request.

    Args:
        store: the folder of the store.
        stored: the boundary as the store has it; None where it does not.
        request: the boundary and all items that it is to hold.

    Raises:
        StoreMismatchError: lengths that differ from the stored ones, or an item longer than a shard.
        SettingsError: lengths missing, or given for a dense boundary.
    """
    check_lengths(request.spec, request.items, request.lengths)
    keys = list(dict.fromkeys(item.key for item in request.items))
    grid = Grid.choose(
        request.spec,
        num_items=len(keys),
        longest=max(request.lengths or (), default=1),
        max_seconds_per_item=request.max_seconds_per_item,
    )
    before = stored or catalog_.new(store, request.spec, grid)
    planned = with_rows(before, request.items, request.lengths)
    shards = missing_shards(planned, request.items)
    rows = planned.table.index.find(keys)
    is_missing = np.isin(rows // planned.layout.grid.rows_per_shard, shards)
    units = int(planned.lengths(rows[is_missing]).sum()) if request.spec.ragged else int(is_missing.sum())
    return BoundaryOutline(
        spec=request.spec,
        num_items=len(keys),
        missing=frozenset(key for key, missing in zip(keys, is_missing.tolist(), strict=True) if missing),
        num_rows=planned.num_rows,
        num_shards=len(shards),
        hidden_bytes=units * planned.layout.data[0].unit_bytes,
        size_bytes=sum(shard_bytes(planned, shard) for shard in shards),
    )
