"""The catalog of a boundary: its attributes, items, offsets and receipts, read and extended.

Whatever moment a process is killed at, the catalog stays readable: the boundary's own `zarr.json` is written last, and
rows and records beyond the numbers in it belong to an extension that did not finish, which the next one overwrites.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptItemError, StoreFormatError, StoreMismatchError
from ..atomic_io import disk_errors, make_folder, sync_folder
from . import records as items_
from .layout import RECEIPT_FIELDS, Grid, Layout
from .records import ItemTable, Records
from .spec import FORMAT_VERSION, BoundarySpec
from .zarr_metadata import METADATA_NAME, group_document, read_document, write_document


@dataclass(frozen=True)
class Catalog:
    """The small arrays and attributes of one boundary, in memory.

    Args:
        layout: places and sizes of its files.
        records: the table of its items.
        offsets: ragged: (rows + 1,) first token of each row; dense: empty.
        generations: first row and number of rows of the first write and of each extension.
        provenance: plain JSON of each environment that computed shards; a shard's receipt holds an index into it.
        stored: whether it was ever written.
    """

    layout: Layout
    records: Records
    offsets: NDArray[np.int64]
    generations: tuple[tuple[int, int], ...] = ()
    provenance: tuple[dict[str, Any], ...] = ()
    stored: bool = True

    @property
    def num_rows(self) -> int:
        """Number of allocated rows, those without an item included."""
        return sum(self.generations[-1]) if self.generations else 0

    @property
    def num_shards(self) -> int:
        """Number of shards that the rows fill, the last one perhaps in part."""
        return -(-self.num_rows // self.layout.grid.rows_per_shard)

    @property
    def num_units(self) -> int:
        """Length of the data arrays: rows, or tokens."""
        return int(self.offsets[-1]) if self.layout.spec.ragged else self.num_rows

    @cached_property
    def table(self) -> ItemTable:
        """The items by row and by key."""
        return ItemTable(self.records, self.num_rows)

    @cached_property
    def receipts(self) -> NDArray[np.uint64]:
        """Receipts (shards, fields) as they were at the first access; zeros for a shard that is not stored."""
        values = np.zeros((self.num_shards, *self.layout.receipts.row_shape), np.uint64)
        for shard in range(self.num_shards):
            values[shard] = read_receipt(self.layout, shard)
        return values

    def shard_of(self, row: int) -> int:
        """Return the shard that holds a row."""
        return row // self.layout.grid.rows_per_shard

    def rows_of_shard(self, shard: int) -> NDArray[np.int64]:
        """Return the rows of a shard that have an item, ascending."""
        first = shard * self.layout.grid.rows_per_shard
        return first + np.flatnonzero(self.table.record_of_row[first : first + self.layout.grid.rows_per_shard] >= 0)

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of tokens of each row, for a ragged boundary."""
        lengths: NDArray[np.int64] = self.offsets[rows + 1] - self.offsets[rows]
        return lengths


def read_receipt(layout: Layout, shard: int) -> NDArray[np.uint64]:
    """Return a shard's receipt (fields,), zeros if it has none.

    Raises:
        CorruptItemError: a damaged one.
    """
    array = layout.receipts
    if not array.chunk_path(shard).exists():
        return np.zeros(array.row_shape, np.uint64)
    receipt: NDArray[np.uint64] = array.read_chunk(shard)[0]
    return receipt


def read_attributes(folder: Path) -> dict[str, Any]:
    """Return the attributes under `talik` of the boundary in `folder`.

    Raises:
        StoreFormatError: damaged, or of another format version.
    """
    ours: dict[str, Any] = read_document(folder)["attributes"]["talik"]
    if ours.get("format") != FORMAT_VERSION:
        raise StoreFormatError(
            f"{folder}: format version {ours.get('format')}, this talik reads {FORMAT_VERSION}; "
            "use the talik that wrote it, or extract into a new store"
        )
    return ours


def load(store: Path, spec: BoundarySpec) -> Catalog | None:
    """Read the catalog of a boundary, or return None if the store does not have it.

    Raises:
        StoreFormatError: damaged metadata.
        CorruptItemError: a damaged small array.
        StoreMismatchError: the folder belongs to another identity.
    """
    folder = store / spec.path
    if not (folder / METADATA_NAME).is_file():
        return None
    ours = read_attributes(folder)
    if BoundarySpec.from_json(ours) != spec:
        raise StoreMismatchError(f"{folder}: holds another identity under the same key; extract into a new store")
    layout = Layout(store=store, spec=spec, grid=Grid(**ours["grid"]))
    generations = tuple((first, count) for first, count in ours["generations"])
    catalog = Catalog(
        layout=layout,
        records=items_.load(folder / "items", ours["num_records"], layout.grid.records_per_chunk),
        offsets=np.zeros(0, np.int64),
        generations=generations,
        provenance=tuple(ours["provenance"]),
    )
    if spec.ragged:
        catalog = replace(catalog, offsets=layout.offsets.read(catalog.num_rows + 1))
    return catalog


def new(store: Path, spec: BoundarySpec, grid: Grid) -> Catalog:
    """Return the empty catalog of a boundary that is not stored yet; nothing is written.

    Raises:
        StoreFormatError: the folder holds shards and no document that describes them.
    """
    layout = Layout(store=store, spec=spec, grid=grid)
    if any(layout.receipts.folder.glob("c.*")):
        raise StoreFormatError(
            f"{layout.folder}: has shards and no {METADATA_NAME}; restore that file, or remove the folder"
        )
    offsets = np.zeros(1 if spec.ragged else 0, np.int64)
    return Catalog(layout=layout, records=Records.empty(), offsets=offsets, stored=False)


def commit(before: Catalog, after: Catalog) -> Catalog:
    """Write the part of `after` beyond `before`: chunks, then the arrays' lengths, then the boundary's own document."""
    layout, grid = after.layout, after.layout.grid
    for folder in (layout.folder, layout.folder / "items", *(a.folder for a in layout.data)):
        make_folder(folder)
    if len(after.records) > len(before.records) or not before.stored:
        items_.append(layout.folder / "items", before.records, after.records, grid.records_per_chunk)
    if layout.spec.ragged:
        stored = before.offsets if before.stored else before.offsets[:0]
        layout.offsets.append(stored, after.offsets[len(stored) :])
    for folder, document in documents(after).items():
        make_folder(folder)
        write_document(folder, document)
    write_document(layout.folder, group_document(attributes(after)))
    return replace(after, stored=True)


def forget_beyond(catalog: Catalog) -> None:
    """Remove the receipts of shards beyond the boundary's rows, which a killed `gc` left.

    No reader has seen them, since their rows were never committed; only the owner of the store's lock may call this.
    """
    folder = catalog.layout.receipts.folder
    beyond = [path for path in folder.glob("c.*") if int(path.name.split(".")[1]) >= catalog.num_shards]
    with disk_errors(folder):
        for path in beyond if catalog.stored else []:
            path.unlink()
        if beyond:
            sync_folder(folder)


def documents(catalog: Catalog) -> dict[Path, dict[str, Any]]:
    """Return the metadata of the groups and arrays above and in a boundary, by folder, without the boundary's own."""
    layout, chunk = catalog.layout, catalog.layout.grid.records_per_chunk
    found = {layout.folder.parent: group_document(), layout.folder / "items": group_document()}
    if layout.spec.inputs:
        found[layout.folder / "inputs"] = group_document()
    for array in layout.data:
        found[array.folder] = array.document(catalog.num_units)
    found[layout.receipts.folder] = layout.receipts.document(catalog.num_shards)
    if layout.spec.ragged:
        found[layout.crc.folder] = layout.crc.document(catalog.num_rows)
        found[layout.offsets.folder] = layout.offsets.document(catalog.num_rows + 1)
    for name, small in items_.arrays(layout.folder / "items", chunk).items():
        found[small.folder] = small.document(len(getattr(catalog.records, name)))
    return found


def attributes(catalog: Catalog) -> dict[str, Any]:
    """Return the attributes of a boundary's document under `talik`, without the digest."""
    return {
        "format": FORMAT_VERSION,
        **catalog.layout.spec.to_json(),
        "key": catalog.layout.spec.key,
        "grid": catalog.layout.grid.to_json(),
        "generations": [list(g) for g in catalog.generations],
        "num_records": len(catalog.records),
        "provenance": list(catalog.provenance),
    }


def size_of(path: Path) -> int:
    """Return the size of a file, -1 if it does not exist."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def check_sizes(catalog: Catalog, size_of: Callable[[Path], int] = size_of) -> None:
    """Compare the files of each stored shard with the sizes in its receipt.

    Args:
        catalog: of the boundary.
        size_of: returns the size of a file, -1 if it does not exist.

    Raises:
        CorruptItemError: a file that is missing or of another size (a short file under mmap would kill the process).
    """
    for shard in np.flatnonzero(catalog.receipts[:, 0]):
        for array, size in zip(catalog.layout.data, catalog.receipts[shard, RECEIPT_FIELDS:], strict=True):
            path = array.shard_path(int(shard))
            found = size_of(path)
            if found != size and len(catalog.rows_of_shard(int(shard))):  # else its rows were given up
                state = "is missing" if found < 0 else f"has {found} bytes"
                first = catalog.table.item(int(catalog.rows_of_shard(int(shard))[0])).source
                raise CorruptItemError(
                    f"{catalog.layout.where}: the file of shard {shard} ({path.name} of {array.name}, item {first!r} "
                    f"and on) {state}, expected {size} bytes; run `talik store repair`"
                )
