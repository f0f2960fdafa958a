"""Reads all of a store and says what in it is not as it was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import StoreError
from ..feature_store import FeatureStore, LocalFiles
from ..format import catalog as catalog_
from ..format.catalog import Catalog
from ..format.layout import RECEIPT_FIELDS, DataArray
from ..format.spec import BoundarySpec
from ..format.zarr_metadata import METADATA_NAME, read_document
from ..read.mmap_shards import MappedShard


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
        shard = "" if self.shard is None else f", shard {self.shard}"
        item = "" if self.item is None else f", item {self.item!r}"
        return f"{self.boundary or 'the store'}{shard}{item}: {self.what}"


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
        found = list(_caught(_root(files.folder), boundary=""))
        for folder in sorted(p for p in files.folder.glob("*/b*-*") if p.is_dir()):
            name = folder.relative_to(files.folder).as_posix()
            found += _caught(_boundary(files, folder, name), boundary=name)
        if str(files.folder) == store.where:
            return found
        return [replace(f, what=f.what.replace(str(files.folder), store.where)) for f in found]


def _caught(findings: Iterator[Finding], *, boundary: str, shard: int | None = None) -> Iterator[Finding]:
    """Yield findings, and as the last one the error that ended the search for them."""
    try:
        yield from findings
    except StoreError as error:
        yield Finding(boundary=boundary, shard=shard, what=str(error))


def _root(folder: Path) -> Iterator[Finding]:
    read_document(folder)
    yield from ()


def _boundary(files: LocalFiles, folder: Path, name: str) -> Iterator[Finding]:
    if not (folder / METADATA_NAME).is_file():
        if any(folder.glob("receipts/c.*")):
            yield Finding(boundary=name, what=f"{folder / METADATA_NAME} is missing")
        return  # else its creation was killed, and the next one begins again
    spec = BoundarySpec.from_json(catalog_.read_attributes(folder))
    catalog = catalog_.load(files.folder, spec)
    assert catalog is not None
    if folder.name != spec.name:
        yield Finding(boundary=name, what=f"the folder's name is not {spec.name}, which its identity gives")
        return
    for place, expected in catalog_.documents(catalog).items():
        yield from _caught(_document(place, expected, name), boundary=name)
    for shard in range(catalog.num_shards):
        with files.shard(catalog, shard):
            yield from _caught(_shard(catalog, shard), boundary=name, shard=shard)


def _document(folder: Path, expected: dict[str, Any], name: str) -> Iterator[Finding]:
    """Compare a metadata file with what the boundary's own says; a longer shape is an unfinished extension."""
    found = read_document(folder)
    changed = {k for k in {*found, *expected} - {"attributes", "shape"} if found.get(k) != expected.get(k)}
    if found.get("shape", [0]) < expected.get("shape", [0]):
        changed.add("shape")
    if changed:
        yield Finding(boundary=name, what=f"{folder / METADATA_NAME}: another {', '.join(sorted(changed))}")


def _shard(catalog: Catalog, shard: int) -> Iterator[Finding]:
    layout = catalog.layout
    found = partial(Finding, boundary=layout.spec.path, shard=shard)
    receipt = catalog_.read_receipt(layout, shard)
    rows = catalog.rows_of_shard(shard)
    if not receipt[0] or not len(rows):  # not there yet, or given up
        return
    if int(receipt[1]) != len(rows):
        yield found(what=f"its receipt has {receipt[1]} items, the table {len(rows)}")
    mapped: list[tuple[DataArray, MappedShard]] = []
    for array, size in zip(layout.data, receipt[RECEIPT_FIELDS:].tolist(), strict=True):
        path = array.shard_path(shard)
        bytes_here = catalog_.size_of(path)
        if bytes_here != size:
            yield found(what=f"{path}: {bytes_here if bytes_here > 0 else 'no'} bytes, expected {size}")
            continue
        try:
            mapped.append((array, MappedShard(array, shard, layout.where)))
        except StoreError as error:
            yield found(what=str(error))
    if layout.spec.ragged:
        yield from _tokens(catalog, shard, mapped, rows, found)
    else:
        yield from _items(catalog, mapped, rows, found)


def _items(
    catalog: Catalog,
    mapped: list[tuple[DataArray, MappedShard]],
    rows: NDArray[np.int64],
    found: partial[Finding],
) -> Iterator[Finding]:
    """Check each row's chunk in a dense shard, and that nothing else is there."""
    for array, file in mapped:
        buffer = np.empty(array.unit_bytes, np.uint8)
        for row in rows.tolist():
            if not file.copy_item(row % array.units_per_shard, buffer, check=True):
                yield found(item=catalog.table.item(row).source, what=f"row {row} of {array.name} fails its CRC32C")
        unused = len(file.content) - array.index_bytes - len(rows) * array.stored_chunk_bytes
        if unused:
            yield found(what=f"{unused} bytes of {array.name} belong to no item", data=False)


def _tokens(
    catalog: Catalog,
    shard: int,
    mapped: list[tuple[DataArray, MappedShard]],
    rows: NDArray[np.int64],
    found: partial[Finding],
) -> Iterator[Finding]:
    """Check the checksum of each row in a ragged shard, and that all between the rows is zeros."""
    layout = catalog.layout
    base = shard * layout.grid.tokens_per_shard
    begins, ends = catalog.offsets[rows] - base, catalog.offsets[rows + 1] - base
    crcs = [0] * len(rows)
    for array, file in mapped:
        last = -(-int(ends[-1]) // array.units_per_chunk) * array.units_per_chunk
        for first, end in zip([0, *ends.tolist()], [*begins.tolist(), last], strict=True):
            values = np.empty((end - first) * array.unit_bytes, np.uint8)
            file.copy_tokens(first, values, check=False)
            if values.any():
                what = f"unused padding of {array.name} (tokens {first} to {end}) is not zeros; no item is affected"
                yield found(what=what, data=False)
        for i, (first, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
            values = np.empty((end - first) * array.unit_bytes, np.uint8)
            crcs[i] = file.copy_tokens(first, values, check=True, crc=crcs[i])
    if len(mapped) == len(layout.data):
        expected = layout.crc.read_chunk(shard)[rows % layout.grid.rows_per_shard].tolist()
        for row, crc, stored in zip(rows.tolist(), crcs, expected, strict=True):
            if crc != stored:
                item = catalog.table.item(row).source
                yield found(item=item, what=f"row {row} fails its CRC32C in hidden or inputs")
