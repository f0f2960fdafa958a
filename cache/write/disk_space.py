"""The bytes that a write will need, known before the first of them, and the refusal of a write that cannot fit."""

from __future__ import annotations

from pathlib import Path

from ...errors import StoreFullError
from .. import atomic_io as durable
from ..format.catalog import Catalog
from ..format.sharding import file_bytes

_SPARE_BYTES = 1_000_000  # for the small arrays and metadata of a boundary


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
        where: name of the place, for the message.
        what: name of the work, for the message.
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
