"""A feature store behind a URL, or copied with other codecs: opened by zarr-python, for reading only."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr import Array as ZarrArray
from zarr import Group
from zarr.core.sync import sync
from zarr.errors import GroupNotFoundError, NodeTypeValidationError

from ..errors import CorruptItemError, SettingsError, StoreFormatError, StoreMismatchError, name_item
from .feature_store import FeatureStore
from .format.bfloat16 import register
from .format.catalog import Catalog
from .format.crc32c import extend_crc32c
from .format.dataset_files import GROUP, DatasetFiles, parse
from .format.layout import RECEIPT_FIELDS, Grid, Layout
from .format.records import Records
from .format.spec import FORMAT_VERSION, STORE_KIND, BoundarySpec
from .format.store_root import sorted_boundaries
from .format.zarr_metadata import group_document
from .read.batch import Allocate, AllocateArray
from .read.boundary_reader import BoundaryReader, Verify
from .read.local_rows import ReadPath, RowSource, corrupt_item


class ZarrStore(FeatureStore):
    """A store that zarr-python reads; the same readers, slower.

    Metadata is held to the digest in its attributes, wherever it lies.
    """

    def __init__(self, where: Any, storage_options: dict[str, Any] | None = None) -> None:
        """Open the store.

        Args:
            where: a URL of fsspec (`s3://…`, `https://…`, `file://…`, `memory://…`), or a store of zarr-python's
                (`zarr.storage.ObjectStore` over obstore, say).
            storage_options: for fsspec.

        Raises:
            StoreFormatError: no store there, another format, or damaged metadata.
            SettingsError: a URL whose package is not installed.
        """
        super().__init__(Path(str(where)), str(where), "r")
        register()
        try:
            self._root = zarr.open_group(where, mode="r", zarr_format=3, storage_options=storage_options)
        except (GroupNotFoundError, NodeTypeValidationError, FileNotFoundError):
            raise StoreFormatError(
                f"{where}: there is no store; expected a copy of one that `talik extract` made"
            ) from None
        except (ImportError, ValueError) as error:
            raise SettingsError(f"{where}: cannot be opened ({' '.join(str(error).split())})") from None
        ours = _attributes(self._root, self.where)
        if ours.get("kind") != STORE_KIND or ours.get("format") != FORMAT_VERSION:
            raise StoreFormatError(f"{where}: no {STORE_KIND} of format {FORMAT_VERSION}; found {ours}")

    def dataset_files(self) -> tuple[DatasetFiles, ...]:
        """Return what the store knows of data sets' files; see `FeatureStore.dataset_files`."""
        group = self._root.get(GROUP)
        where = f"{self.where}/{GROUP}"
        return parse(_attributes(group, where), where) if isinstance(group, zarr.Group) else ()

    def boundaries(self) -> tuple[BoundarySpec, ...]:
        """Return what the store holds; see `FeatureStore.boundaries`."""
        found = []
        for _, modality in sorted(self._root.groups()):
            for name, group in sorted(modality.groups()):
                found.append(BoundarySpec.from_json(_attributes(group, f"{self.where}/{modality.basename}/{name}")))
        return sorted_boundaries(found)

    def open_reader(
        self, spec: BoundarySpec, *, verify: Verify, path: ReadPath, allocate: Allocate | None
    ) -> BoundaryReader:
        """Return the reader of a boundary; `path` can be `auto` alone."""
        if path != "auto":
            raise SettingsError(
                f"{self.where}: is read through zarr-python alone; found path {path!r}, expected 'auto'"
            )
        catalog, group = self.catalog(spec), self._root.get(spec.path)
        if catalog is None or not isinstance(group, zarr.Group):
            raise StoreMismatchError(f"{self.where}: has no {spec.path}")
        return BoundaryReader(catalog, ZarrRows(catalog, group), verify=verify, allocate=allocate)

    def catalog(self, spec: BoundarySpec) -> Catalog | None:
        """Return the small arrays of a boundary; see `FeatureStore.catalog`."""
        group = self._root.get(spec.path)
        if not isinstance(group, zarr.Group):
            return None
        ours = _attributes(group, f"{self.where}/{spec.path}")
        if BoundarySpec.from_json(ours) != spec:
            raise StoreMismatchError(f"{self.where}: {spec.path} holds another identity under the same key")
        try:
            return _read_catalog(group, ours, Layout(store=self.path, spec=spec, grid=Grid(**ours["grid"])))
        except (ValueError, RuntimeError, KeyError, IndexError, TypeError) as error:
            what = " ".join(str(error).split())
            raise CorruptItemError(f"{self.where}: {spec.path}: a small array cannot be read ({what})") from None


def _read_catalog(group: zarr.Group, ours: dict[str, Any], layout: Layout) -> Catalog:
    def values(name: str, length: int) -> Any:
        array = group[name]
        assert isinstance(array, zarr.Array)
        if array.shape[0] < length:
            raise ValueError(f"{name} has {array.shape[0]} rows, expected {length}")
        return np.asarray(array[:length])

    count = ours["num_records"]
    at = values("items/source_offsets", count + 1)
    records = Records(
        **{name: values(f"items/{name}", count) for name in ("key", "row", "size_bytes", "mtime_ns")},
        source_offsets=at,
        source=values("items/source", int(at[-1])),
    )
    catalog = Catalog(
        layout=layout,
        records=records,
        offsets=np.zeros(0, np.int64),
        generations=tuple((first, rows) for first, rows in ours["generations"]),
        provenance=tuple(ours["provenance"]),
    )
    found = {"receipts": values("receipts", catalog.num_shards).reshape(-1, RECEIPT_FIELDS + len(layout.data))}
    if layout.spec.ragged:
        found["offsets"] = values("offsets", catalog.num_rows + 1)
    vars(catalog).update(found)  # in place of what the properties would read from files
    return catalog


def _attributes(group: zarr.Group, where: str) -> dict[str, Any]:
    """Return what a group says under `talik`, held to its digest.

    Raises:
        StoreFormatError: nothing there, or not what the digest says.
    """
    ours = group.attrs.asdict().get("talik")
    if not isinstance(ours, dict) or "digest" not in ours:
        raise StoreFormatError(f"{where}: has no attributes of talik's; expected a store, or a whole copy of one")
    plain = {name: value for name, value in ours.items() if name != "digest"}
    if group_document(plain)["attributes"]["talik"]["digest"] != ours["digest"]:
        raise StoreFormatError(f"{where}: its attributes are not what their digest says; copy the store again")
    return plain


Array = np.ndarray[Any, Any]
THREADS = 16  # a remote store answers late, and many at once
_DAMAGE = (ValueError, RuntimeError, KeyError, IndexError)  # what codecs raise; what a network does is an OSError


class ZarrRows(RowSource):
    """The rows of a boundary in a Zarr group."""

    def __init__(self, catalog: Catalog, group: Group) -> None:
        """Open the arrays.

        Args:
            catalog: of the boundary.
            group: the boundary's.

        Raises:
            CorruptItemError: an array that is not there, or of another shape or data type.
        """
        register()
        self._catalog = catalog
        self._group = group
        self._arrays = [self._array(data.name, data.unit_shape, data.dtype) for data in catalog.layout.data]
        self._seen: list[set[int]] = [set() for _ in self._arrays]
        self._crc: Array | None = None
        self._pool: ThreadPoolExecutor | None = None

    def read(self, rows: Array, check: Sequence[bool], allocate: AllocateArray) -> list[Array]:
        """Read rows; see `RowSource.read`."""
        spec, layout = self._catalog.layout.spec, self._catalog.layout
        begins, ends = rows, rows + 1
        lead: tuple[int, ...] = (len(rows),)
        if spec.ragged:
            begins, ends = self._catalog.offsets[rows], self._catalog.offsets[rows + 1]
            lead = (len(rows), int((ends - begins).max(initial=0)))
        values = [allocate((*lead, *data.unit_shape), data.numpy_dtype) for data in layout.data]
        crcs = self._stored_crc() if spec.ragged and any(check) else None

        def one(i: int) -> None:
            row, begin, end, crc = int(rows[i]), int(begins[i]), int(ends[i]), 0
            for number, out in enumerate(values):
                found = self._slice(number, row, begin, end)
                if not spec.ragged:
                    out[i] = found[0]
                    continue
                out[i, : end - begin], out[i, end - begin :] = found, 0
                crc = extend_crc32c(crc, found.reshape(-1).view(np.uint8)) if found.size else crc
            if crcs is not None and check[i] and crc != crcs[row]:
                raise corrupt_item(self._catalog, row, "fails its CRC32C in hidden or inputs")

        def named(i: int) -> None:
            try:
                one(i)
            except Exception as error:
                name_item(error, self._catalog.table.item(int(rows[i])).source)
                raise

        waiting = [self._threads().submit(named, i) for i in range(len(rows))]
        errors = [future.exception() for future in waiting]  # all are done with `values` from here on
        for error in errors:
            if error is not None:
                raise error
        return values

    def close(self) -> None:
        """End the threads; zarr-python holds no files."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _slice(self, number: int, row: int, begin: int, end: int) -> Array:
        """Return items, or tokens, `begin` … `end - 1` of an array, as bit patterns where the store has bfloat16."""
        array, data = self._arrays[number], self._catalog.layout.data[number]
        if begin == end:
            return np.zeros((0, *data.unit_shape), data.numpy_dtype)
        self._require(number, row, begin, end)
        try:
            values = np.asarray(array[begin:end])  # a list of rows at once (oindex) takes 80 times the processor time
        except _DAMAGE as error:
            raise corrupt_item(self._catalog, row, f"cannot be read in {data.name} ({_one_line(error)})") from None
        return np.ascontiguousarray(values).view(data.numpy_dtype)

    def _require(self, number: int, row: int, begin: int, end: int) -> None:
        """Refuse files that are not there: their fill value would be read as data."""
        array = self._arrays[number]
        per_file = (array.shards or array.chunks)[0]
        for file in set(range(begin // per_file, (end - 1) // per_file + 1)) - self._seen[number]:
            key = array.metadata.encode_chunk_key((file, *(0 for _ in array.shape[1:])))
            if not sync((array.store_path / key).exists()):
                raise corrupt_item(
                    self._catalog, row, f"lies in {self._catalog.layout.data[number].name}/{key}, which is missing"
                )
            self._seen[number].add(file)

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="talik-read")
        return self._pool

    def _stored_crc(self) -> Array:
        if self._crc is None:
            try:
                self._crc = np.asarray(self._member("crc")[:])
            except _DAMAGE as error:
                where = self._catalog.layout.where
                raise CorruptItemError(f"{where}: crc cannot be read ({_one_line(error)}); copy it again") from None
        return self._crc

    def _array(self, name: str, unit_shape: tuple[int, ...], dtype: str) -> ZarrArray[Any]:
        array = self._member(name)
        found, length = (array.shape[1:], array.metadata.to_dict().get("data_type")), self._catalog.num_units
        if found != (unit_shape, dtype) or array.shape[0] < length:
            raise CorruptItemError(
                f"{self._catalog.layout.where}: {name} is {array.shape} of {found[1]}, expected "
                f"{(length, *unit_shape)} of {dtype}; copy the store again"
            )
        return array

    def _member(self, name: str) -> ZarrArray[Any]:
        found = self._group.get(name)
        if not isinstance(found, ZarrArray):
            raise CorruptItemError(f"{self._catalog.layout.where}: has no array {name}; copy the store again")
        return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
