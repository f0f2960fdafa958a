"""Gives items their rows, and tokens their places, before anything of them is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .catalog import Catalog
from .errors import StoreMismatchError
from .items import Records
from .spec import Item

Array = np.ndarray[Any, Any]


def allot(catalog: Catalog, items: Sequence[Item], lengths: Sequence[int]) -> Catalog:
    """Give `items` (none of them there yet) the rows of a new generation; nothing is written.

    Args:
        catalog: as it is.
        items: in the order in which rows are given.
        lengths: tokens of each, for a ragged boundary.

    Returns:
        The catalog with the rows and the new records.

    Raises:
        StoreMismatchError: an item longer than a shard of this boundary.
    """
    grid, spec = catalog.layout.grid, catalog.layout.spec
    first = -(-catalog.num_rows // grid.rows_per_shard) * grid.rows_per_shard
    if spec.ragged:
        rows, offsets = _allot_ragged(catalog, first, items, lengths)
    else:
        rows, offsets = np.arange(first, first + len(items)), catalog.offsets
    generations = (*catalog.generations, (first, int(rows[-1]) + 1 - first))
    records = catalog.records.extended(Records.of(items, rows))
    return replace(catalog, offsets=offsets, generations=generations, records=records)


def _allot_ragged(catalog: Catalog, first: int, items: Sequence[Item], lengths: Sequence[int]) -> tuple[Array, Array]:
    grid = catalog.layout.grid
    rows: list[int] = []
    starts = catalog.offsets.tolist()  # starts[-1] is where the next row begins, unless a shard begins there
    row, token = first, first // grid.rows_per_shard * grid.tokens_per_shard
    limit = token + grid.tokens_per_shard
    for item, length in zip(items, lengths, strict=True):
        if length > grid.tokens_per_shard:
            raise StoreMismatchError(
                f"{catalog.layout.where}: item {item.source!r} has {length} tokens, a shard of this boundary holds "
                f"{grid.tokens_per_shard} (chosen at the first write); extract into a new store"
            )
        full = row % grid.rows_per_shard == grid.rows_per_shard - 1  # the last row is the one without an item
        if full or token + length > limit:
            row = (row // grid.rows_per_shard + 1) * grid.rows_per_shard
            token, limit = limit, limit + grid.tokens_per_shard
        if row + 1 > len(starts):  # rows without an item lie between; the last of them reaches up to this shard
            starts += [starts[-1]] * (row - len(starts))
            starts.append(token)
        rows.append(row)
        row, token = row + 1, token + length
        starts.append(token)
    return np.array(rows, np.int64), np.array(starts, np.int64)
