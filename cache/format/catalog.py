"""What a boundary says of itself: attributes, items, offsets and receipts, read and extended in an order that a kill
at any instant leaves readable.

The boundary's own `zarr.json` is written last and is what counts: rows and records beyond the numbers it gives are
those of an extension that did not finish, and the next one writes over them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CorruptItemError, StoreFormatError, StoreMismatchError
from ..atomic_io import disk_errors, make_folder, sync_folder
from . import records as items_
from .layout import RECEIPT_FIELDS, Grid, Layout
from .records import ItemTable, Records
from .spec import FORMAT_VERSION, BoundarySpec
from .zarr_metadata import METADATA_NAME, group_document, read_document, write_document

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Catalog:
    """The small arrays of one boundary in memory.

    Args:
        layout: where everything stands.
        records: of the items.
        offsets: ragged: (rows + 1,) int64; dense: empty.
        generations: first row and number of rows of each first write or extension.
        provenance: what computed the shards; a shard's receipt names its number here.
        stored: False until the first write.
    """

    layout: Layout
    records: Records
    offsets: Array
    generations: tuple[tuple[int, int], ...] = ()
    provenance: tuple[dict[str, Any], ...] = ()
    stored: bool = True

    @property
    def num_rows(self) -> int:
        """Rows allotted, those without an item included."""
        return sum(self.generations[-1]) if self.generations else 0

    @property
    def num_shards(self) -> int:
        """Shards that the rows make."""
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
    def receipts(self) -> Array:
        """(shards, fields) uint64 as they stood when first asked for; a row of zeros is a shard not yet there."""
        values = np.zeros((self.num_shards, *self.layout.receipts.row_shape), np.uint64)
        for shard in range(self.num_shards):
            values[shard] = read_receipt(self.layout, shard)
        return values

    def shard_of(self, row: int) -> int:
        """Return the shard that holds a row."""
        return row // self.layout.grid.rows_per_shard

    def rows_of_shard(self, shard: int) -> Array:
        """Return the rows of a shard that have an item, ascending."""
        first = shard * self.layout.grid.rows_per_shard
        return first + np.flatnonzero(self.table.record_of_row[first : first + self.layout.grid.rows_per_shard] >= 0)

    def lengths(self, rows: Array) -> Array:
        """Return the tokens of each row (ragged)."""
        return self.offsets[rows + 1] - self.offsets[rows]


def read_receipt(layout: Layout, shard: int) -> Array:
    """Return a shard's receipt (fields,) uint64, zeros if it has none.

    Raises:
        CorruptItemError: a damaged one.
    """
    array = layout.receipts
    if not array.chunk_path(shard).exists():
        return np.zeros(array.row_shape, np.uint64)
    return array.read_chunk(shard)[0]


def read_attributes(folder: Path) -> dict[str, Any]:
    """Return what a boundary's `zarr.json` says under `talik`.

    Raises:
        StoreFormatError: damaged, or of another format version.
    """
    ours = read_document(folder)["attributes"]["talik"]
    if ours.get("format") != FORMAT_VERSION:
        raise StoreFormatError(
            f"{folder}: format version {ours.get('format')}, this talik reads {FORMAT_VERSION}; "
            "use the talik that wrote it, or extract into a new store"
        )
    return ours


def load(store: Path, spec: BoundarySpec) -> Catalog | None:
    """Return the catalog of a boundary, or None if the store has it not.

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
    """Return the catalog of a boundary that is not there yet; nothing is written.

    Raises:
        StoreFormatError: shards are there and the document that says what they are is gone.
    """
    layout = Layout(store=store, spec=spec, grid=grid)
    if any(layout.receipts.folder.glob("c.*")):
        raise StoreFormatError(
            f"{layout.folder}: has shards and no {METADATA_NAME}; restore that file, or remove the folder"
        )
    offsets = np.zeros(1 if spec.ragged else 0, np.int64)
    return Catalog(layout=layout, records=Records.empty(), offsets=offsets, stored=False)


def commit(before: Catalog, after: Catalog) -> Catalog:
    """Write what `after` has beyond `before`: chunks, then the arrays' lengths, then the boundary's own document."""
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
    """Take away the receipts of shards beyond the boundary's rows, which `gc` wrote before it was killed.

    Their rows were never given, so no reader has seen them; only the owner of the store's lock may call this.
    """
    folder = catalog.layout.receipts.folder
    beyond = [path for path in folder.glob("c.*") if int(path.name.split(".")[1]) >= catalog.num_shards]
    with disk_errors(folder):
        for path in beyond if catalog.stored else []:
            path.unlink()
        if beyond:
            sync_folder(folder)


def documents(catalog: Catalog) -> dict[Path, dict[str, Any]]:
    """Return every metadata file of a boundary but its own, by folder: the groups above and in it, and the arrays."""
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
        found[small.folder] = small.document(items_.length(name, catalog.records))
    return found


def attributes(catalog: Catalog) -> dict[str, Any]:
    """Return what the boundary's document says under `talik`, without the digest."""
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
    """Return the bytes of a file, -1 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def check_sizes(catalog: Catalog, size_of: Callable[[Path], int] = size_of) -> None:
    """Compare each committed shard's files with the sizes in its receipt.

    Args:
        catalog: of the boundary.
        size_of: gives the bytes of a file, -1 if there is none.

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
