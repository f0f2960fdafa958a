"""Plans a write: which items get new rows, which rows are given up, and which shards are missing.

Letters: K distinct keys of the requested items.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import SettingsError, StoreMismatchError
from ..format.catalog import Catalog
from ..format.int8 import MEASURED
from ..format.records import Records
from ..format.spec import BoundarySpec, Item, differences

_log = logging.getLogger(__name__)


def plan_rows(
    before: Catalog, items: Sequence[Item], lengths: Sequence[int] | None, provenance: dict[str, Any]
) -> tuple[Catalog, int]:
    """Plan a row for each of `items`; nothing is written.

    The provenance is added to the catalog only if a shard is missing that it may describe.

    Args:
        before: the catalog as stored.
        items: all requested items; the same key twice is one row.
        lengths: number of tokens of each item, for a ragged boundary; None for a dense one.
        provenance: plain JSON that describes what computes the missing shards.

    Returns:
        The catalog with every item in it, and the index of `provenance` among its provenances.

    Raises:
        StoreMismatchError: lengths that differ from the stored ones, or an item longer than a shard.
    """
    after = with_rows(before, items, lengths)
    if num_given_up := int((after.records.row[len(before.records) :] < 0).sum()):
        _log.info("%s: gives up the rows of %d items without data", before.layout.where, num_given_up)
    if not missing_shards(after, items):
        return after, 0
    provenance, *known = ({k: v for k, v in p.items() if k != MEASURED} for p in (provenance, *after.provenance))
    if provenance in known:
        return after, known.index(provenance)
    if known:
        found = differences(provenance, known[-1])
        fields = ", ".join(difference.field for difference in found)
        values = "; ".join(f"{d.field} {d.requested!r}, stored {d.stored!r}" for d in found)
        said = "%s: continued under another provenance (%s); its shards are marked: now %s"
        _log.warning(said, after.layout.where, fields, values)
    return replace(after, provenance=(*after.provenance, provenance)), len(after.provenance)


def with_rows(before: Catalog, items: Sequence[Item], lengths: Sequence[int] | None) -> Catalog:
    """Return the catalog with a row for each of `items`, those of others in shards not stored yet given up.

    Args:
        before: the catalog as stored.
        items: all requested items; the same key twice is one row.
        lengths: number of tokens of each item, for a ragged boundary; None for a dense one.

    Raises:
        StoreMismatchError: lengths that differ from the stored ones, or an item longer than a shard.
    """
    after = _give_up_rows(before, items)
    firsts = _first_of_each_key(items)
    rows = after.table.index.find([items[i].key for i in firsts])
    if lengths is not None:
        _check_stored_lengths(after, items, firsts, rows, lengths)
    new = firsts[rows < 0]
    if len(new):
        new_lengths = [lengths[i] for i in new] if lengths is not None else []
        after = allocate_rows(after, [items[i] for i in new], new_lengths)
    is_new = np.zeros(len(items), bool)
    is_new[new] = True  # their records are in the catalog
    return _record_sources(after, [items[i] for i in np.flatnonzero(~is_new).tolist()])


def missing_shards(catalog: Catalog, items: Sequence[Item]) -> list[int]:
    """Return the shards that hold one of `items` and have no receipt, ascending."""
    rows = catalog.table.index.find([item.key for item in items])
    shards = np.unique(rows[rows >= 0] // catalog.layout.grid.rows_per_shard)
    missing: list[int] = shards[catalog.receipts[shards, 0] == 0].tolist()
    return missing


def check_lengths(spec: BoundarySpec, items: Sequence[Item], lengths: Sequence[int] | None) -> None:
    """Check that a ragged boundary has one length from 0 on for each item, and a dense one none.

    Raises:
        SettingsError: it is not so.
    """
    if spec.ragged != (lengths is not None):
        what = "needs the number of tokens of each item" if spec.ragged else "takes no lengths"
        raise SettingsError(f"{spec.path}: a {'ragged' if spec.ragged else 'dense'} boundary {what}")
    if lengths is not None and (len(lengths) != len(items) or min(lengths, default=0) < 0):
        raise SettingsError(f"{spec.path}: {len(lengths)} lengths for {len(items)} items; expected one from 0 on each")


def _first_of_each_key(items: Sequence[Item]) -> NDArray[np.int64]:
    """Return the index of the first item of each key (K,), ascending."""
    seen: set[str] = set()
    is_first = np.zeros(len(items), bool)
    for number, item in enumerate(items):
        if item.key not in seen:
            seen.add(item.key)
            is_first[number] = True
    return np.flatnonzero(is_first)


def _give_up_rows(catalog: Catalog, items: Sequence[Item]) -> Catalog:
    """Give up the rows of other items in shards that are still to be written (a clip left out as broken)."""
    shards = missing_shards(catalog, items)
    waiting = np.concatenate([np.zeros(0, np.int64), *(catalog.rows_of_shard(shard) for shard in shards)])
    unwanted = np.setdiff1d(waiting, catalog.table.index.find([item.key for item in items]))
    gone = [(row, catalog.table.item(row)) for row in unwanted.tolist()]
    if not gone:
        return catalog
    records = Records.of([item for _, item in gone], [~row for row, _ in gone])
    return replace(catalog, records=catalog.records.extended(records))


def _record_sources(catalog: Catalog, items: Sequence[Item]) -> Catalog:
    """Record each source that is new to its row; data sets may name files alike, so one may name several rows."""
    if not items:
        return catalog
    records = catalog.records
    rows = catalog.table.index.find([item.key for item in items])
    new = {(item.source, row): number for number, (item, row) in enumerate(zip(items, rows.tolist(), strict=True))}
    for named in zip(records.sources(), records.row.tolist(), strict=True):
        new.pop(named, None)
    numbers = list(new.values())
    if not numbers:
        return catalog
    return replace(catalog, records=records.extended(Records.of([items[i] for i in numbers], rows[numbers])))


def _check_stored_lengths(
    catalog: Catalog,
    items: Sequence[Item],
    firsts: NDArray[np.int64],
    rows: NDArray[np.int64],
    lengths: Sequence[int],
) -> None:
    for number, row in zip(firsts, rows, strict=True):
        if row < 0:
            continue
        found = int(catalog.offsets[row + 1] - catalog.offsets[row])
        if found != lengths[number]:
            raise StoreMismatchError(
                f"{catalog.layout.where}: item {items[number].source!r} is stored with {found} tokens, now said to "
                f"have {lengths[number]}; is the tokenizer missing from the identity? extract into a new store"
            )


def allocate_rows(catalog: Catalog, items: Sequence[Item], lengths: Sequence[int]) -> Catalog:
    """Give `items`, none of which has a row, the rows of a new generation; nothing is written.

    Args:
        catalog: as stored, or planned.
        items: in the order of their rows.
        lengths: number of tokens of each item, for a ragged boundary; [] for a dense one.

    Returns:
        The catalog with the new rows and records.

    Raises:
        StoreMismatchError: an item longer than a shard of this boundary.
    """
    grid, spec = catalog.layout.grid, catalog.layout.spec
    first = -(-catalog.num_rows // grid.rows_per_shard) * grid.rows_per_shard
    if spec.ragged:
        rows, offsets = _allocate_ragged(catalog, first, items, lengths)
    else:
        rows, offsets = np.arange(first, first + len(items)), catalog.offsets
    generations = (*catalog.generations, (first, int(rows[-1]) + 1 - first))
    records = catalog.records.extended(Records.of(items, rows))
    return replace(catalog, offsets=offsets, generations=generations, records=records)


def _allocate_ragged(
    catalog: Catalog, first: int, items: Sequence[Item], lengths: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows (items,) from `first` on, and the offsets (rows + 1,) of the boundary with them."""
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
