"""Reads all of a store and says what in it is not as it was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import StoreError
from ..feature_store import FeatureStore, LocalFiles
from ..format import catalog as catalog_
from ..format.catalog import Catalog
from ..format.layout import RECEIPT_FIELDS, DataArray
from ..format.spec import BoundarySpec
from ..format.zarr_metadata import METADATA_NAME, read_document
from ..read.mmap_shards import MappedShard

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Args:
        boundary: its path in the store, such as `visual/b09-1f2e3d4c5b6a`; "" for the store itself.
        what: in words, with the file's name.
        shard: which, or None for metadata and small arrays.
        item: source of the item, or None for what belongs to no single item.
        data: False if no value that anybody reads is affected (padding).
    """

    boundary: str
    what: str
    shard: int | None = None
    item: str | None = None
    data: bool = True

    def __str__(self) -> str:
        """Return one line."""
        places = [self.boundary or "the store"]
        if self.shard is not None:
            places.append(f"shard {self.shard}")
        if self.item is not None:
            places.append(f"item {self.item!r}")
        return f"{', '.join(places)}: {self.what}"


def verify(store: FeatureStore) -> list[Finding]:
    """Check every metadata file, small array, shard, item and padding byte of a store.

    Shards that were never finished are no finding: extraction continues with them.

    Args:
        store: open in any mode; a damaged one is opened by `open_store(where, check=False)`.

    Returns:
        What is wrong, in order of boundary and shard; [] for a sound store.

    Raises:
        SettingsError: a store that zarr-python reads; each item of it is checked when it is read.
    """
    with store.local_files() as files:
        found = list(_findings(files))
        if str(files.folder) == store.where:
            return found
        return [replace(f, what=f.what.replace(str(files.folder), store.where)) for f in found]


def _findings(files: LocalFiles) -> Iterator[Finding]:
    try:
        read_document(files.folder)
    except StoreError as error:
        yield Finding(boundary="", what=str(error))
    for folder in sorted(p for p in files.folder.glob("*/b*-*") if p.is_dir()):
        yield from _boundary(files, folder)


def _boundary(files: LocalFiles, folder: Path) -> Iterator[Finding]:
    name = "/".join(folder.relative_to(files.folder).parts)
    if not (folder / METADATA_NAME).is_file():
        if any(folder.glob("receipts/c.*")):
            yield Finding(boundary=name, what=f"{folder / METADATA_NAME} is missing")
        return  # else its creation was killed, and the next one begins again
    try:
        spec = BoundarySpec.from_json(catalog_.read_attributes(folder))
        catalog = catalog_.load(files.folder, spec)
        assert catalog is not None
        if folder.name != spec.name:
            yield Finding(boundary=name, what=f"the folder's name is not {spec.name}, which its identity gives")
            return
    except StoreError as error:
        yield Finding(boundary=name, what=str(error))
        return
    yield from _arrays(catalog)
    for shard in range(catalog.num_shards):
        with files.shard(catalog, shard):
            yield from _shard(catalog, shard)


def _arrays(catalog: Catalog) -> Iterator[Finding]:
    """Compare the other metadata files with what the boundary's own says; a longer shape is an unfinished extension."""
    name = catalog.layout.spec.path
    for folder, expected in catalog_.documents(catalog).items():
        try:
            found = read_document(folder)
        except StoreError as error:
            yield Finding(boundary=name, what=str(error))
            continue
        changed = {k for k in {*found, *expected} - {"attributes", "shape"} if found.get(k) != expected.get(k)}
        if found.get("shape", [0]) < expected.get("shape", [0]):
            changed.add("shape")
        if changed:
            yield Finding(boundary=name, what=f"{folder / METADATA_NAME}: another {', '.join(sorted(changed))}")


def _shard(catalog: Catalog, shard: int) -> Iterator[Finding]:
    layout = catalog.layout
    name = layout.spec.path
    try:
        receipt = catalog_.read_receipt(layout, shard)
    except StoreError as error:
        yield Finding(boundary=name, shard=shard, what=str(error))
        return
    rows = catalog.rows_of_shard(shard)
    if not receipt[0] or not len(rows):  # not there yet, or given up
        return
    if int(receipt[1]) != len(rows):
        yield Finding(boundary=name, shard=shard, what=f"its receipt has {receipt[1]} items, the table {len(rows)}")
    crcs = [0] * len(rows)
    whole = True
    for array, size in zip(layout.data, receipt[RECEIPT_FIELDS:].tolist(), strict=True):
        path = array.shard_path(shard)
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            whole = False
            yield Finding(boundary=name, shard=shard, what=f"{path}: {found or 'no'} bytes, expected {size}")
            continue
        try:
            mapped = MappedShard(array, shard, layout.where)
        except StoreError as error:
            whole = False
            yield Finding(boundary=name, shard=shard, what=str(error))
            continue
        if layout.spec.ragged:
            yield from _tokens(catalog, shard, array, mapped, rows, crcs)
        else:
            yield from _items(catalog, shard, array, mapped, rows)
    if layout.spec.ragged and whole:
        yield from _checksums(catalog, shard, rows, crcs)


def _items(catalog: Catalog, shard: int, array: DataArray, mapped: MappedShard, rows: Array) -> Iterator[Finding]:
    """Check a dense shard: each row's chunk, and that nothing else is there."""
    name = catalog.layout.spec.path
    buffer = np.empty(array.unit_bytes, np.uint8)
    used = array.index_bytes
    for row in rows.tolist():
        if not mapped.copy_item(row % array.units_per_shard, buffer, check=True):
            item = catalog.table.item(row).source
            yield Finding(boundary=name, shard=shard, item=item, what=f"row {row} of {array.name} fails its CRC32C")
        used += array.stored_chunk_bytes
    if used != len(mapped.content):
        what = f"{len(mapped.content) - used} bytes of {array.name} belong to no item"
        yield Finding(boundary=name, shard=shard, what=what, data=False)


def _tokens(
    catalog: Catalog, shard: int, array: DataArray, mapped: MappedShard, rows: Array, crcs: list[int]
) -> Iterator[Finding]:
    """Extend the checksums of a ragged shard's rows by this array, and check that all between the rows is zeros."""
    name = catalog.layout.spec.path
    base = shard * array.units_per_shard
    at = 0
    for i, row in enumerate(rows.tolist()):
        first, end = int(catalog.offsets[row]) - base, int(catalog.offsets[row + 1]) - base
        try:
            yield from _padding(name, shard, array, mapped, at, first)
            values = np.empty((end - first) * array.unit_bytes, np.uint8)
            crcs[i] = mapped.copy_tokens(first, values, check=True, crc=crcs[i])
        except StoreError as error:
            yield Finding(boundary=name, shard=shard, item=catalog.table.item(row).source, what=str(error))
        at = end
    yield from _padding(name, shard, array, mapped, at, -(-at // array.units_per_chunk) * array.units_per_chunk)


def _padding(name: str, shard: int, array: DataArray, mapped: MappedShard, first: int, end: int) -> Iterator[Finding]:
    values = np.empty((end - first) * array.unit_bytes, np.uint8)
    mapped.copy_tokens(first, values, check=False)
    if values.any():
        what = f"unused padding of {array.name} (tokens {first} to {end}) is not zeros; no item is affected"
        yield Finding(boundary=name, shard=shard, what=what, data=False)


def _checksums(catalog: Catalog, shard: int, rows: Array, crcs: list[int]) -> Iterator[Finding]:
    layout = catalog.layout
    try:
        expected = layout.crc.read_chunk(shard)
    except StoreError as error:
        yield Finding(boundary=layout.spec.path, shard=shard, what=str(error))
        return
    for row, crc in zip(rows.tolist(), crcs, strict=True):
        if crc != int(expected[row % layout.grid.rows_per_shard]):
            item = catalog.table.item(row).source
            yield Finding(
                boundary=layout.spec.path,
                shard=shard,
                item=item,
                what=f"row {row} fails its CRC32C in hidden or inputs",
            )
