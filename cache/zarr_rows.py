"""Reads rows of a boundary through zarr-python: remote stores, and copies that another tool compressed. Slower.

Of a dense boundary, an item's checksum is whatever the array's codecs hold, compared at every read; of a ragged one it
is the boundary's own `crc`. zarr-python gives the fill value for what is not there, so that is looked for here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import google_crc32c
import numpy as np
from zarr import Array as ZarrArray
from zarr import Group
from zarr.core.sync import sync

from .bfloat16 import register
from .catalog import Catalog
from .errors import CorruptItemError
from .rows import Take, corrupt

Array = np.ndarray[Any, Any]
_DAMAGE = (ValueError, RuntimeError, KeyError, IndexError)  # what codecs raise; what a network does is an OSError


class ZarrRows:
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

    def read(self, rows: Array, check: Sequence[bool], take: Take) -> list[Array]:
        """Return the values of rows; see `rows.RowSource.read`."""
        return self._ragged(rows, check, take) if self._catalog.layout.spec.ragged else self._dense(rows, take)

    def close(self) -> None:
        """Do nothing: zarr-python holds no files."""

    def _dense(self, rows: Array, take: Take) -> list[Array]:
        distinct, places = np.unique(rows, return_inverse=True)
        found = []
        for number, data in enumerate(self._catalog.layout.data):
            self._require(number, distinct, distinct)
            values = self._select(number, distinct, lambda row: np.array([row]))
            out = take((len(rows), *data.unit_shape), data.numpy_dtype)
            np.take(values, places, axis=0, out=out)
            found.append(out)
        return found

    def _ragged(self, rows: Array, check: Sequence[bool], take: Take) -> list[Array]:
        offsets = self._catalog.offsets
        distinct, places = np.unique(rows, return_inverse=True)
        lengths = self._catalog.lengths(distinct)
        ends = np.cumsum(lengths)
        longest = int(lengths.max(initial=0))

        def tokens(row: int) -> Array:
            return np.arange(offsets[row], offsets[row + 1])

        crcs = np.zeros(len(distinct), np.uint32)
        found = []
        for number, data in enumerate(self._catalog.layout.data):
            self._require(number, np.concatenate([np.zeros(0, np.int64), *map(tokens, distinct)]), distinct)
            values = self._select(number, distinct, tokens)
            out = take((len(rows), longest, *data.unit_shape), data.numpy_dtype)
            out[:] = 0
            for i, place in enumerate(places.tolist()):
                out[i, : lengths[place]] = values[ends[place] - lengths[place] : ends[place]]
            for place, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
                part = np.ascontiguousarray(values[end - length : end])
                crcs[place] = google_crc32c.extend(int(crcs[place]), part.view(np.uint8)) if part.size else crcs[place]
            found.append(out)
        for place in {int(p) for p, wanted in zip(places, check, strict=True) if wanted}:
            if crcs[place] != self._stored_crc()[distinct[place]]:
                raise corrupt(self._catalog, int(distinct[place]), "fails its CRC32C in hidden or inputs")
        return found

    def _select(self, number: int, rows: Array, units_of: Callable[[int], Array]) -> Array:
        """Return the items or tokens of `rows` one after the other, as bit patterns where the store has bfloat16."""
        array, data = self._arrays[number], self._catalog.layout.data[number]
        units = np.concatenate([np.zeros(0, np.int64), *(units_of(row) for row in rows.tolist())])
        if not len(units):
            return np.zeros((0, *data.unit_shape), data.numpy_dtype)
        try:
            values = np.asarray(array.oindex[units])
        except _DAMAGE as error:
            raise self._named(number, rows, units_of, error) from None
        return np.ascontiguousarray(values).view(data.numpy_dtype)

    def _named(self, number: int, rows: Array, units_of: Callable[[int], Array], error: Exception) -> CorruptItemError:
        """Return the error that names the item which cannot be read, found by reading one after the other."""
        name = self._catalog.layout.data[number].name
        for row in rows.tolist():
            try:
                if len(units := units_of(row)):
                    self._arrays[number].oindex[units]
            except _DAMAGE as its:
                return corrupt(self._catalog, row, f"cannot be read in {name} ({_one_line(its)})")
        return corrupt(self._catalog, int(rows[0]), f"could not be read in {name} ({_one_line(error)})")

    def _require(self, number: int, units: Array, rows: Array) -> None:
        """Refuse files that are not there: their fill value would be read as data."""
        array = self._arrays[number]
        per_file = (array.shards or array.chunks)[0]
        for file in set((units // per_file).tolist()) - self._seen[number]:
            key = array.metadata.encode_chunk_key((file, *(0 for _ in array.shape[1:])))
            if not sync((array.store_path / key).exists()):
                data = self._catalog.layout.data[number]
                row = int(rows[0]) if self._catalog.layout.spec.ragged else int(units[units // per_file == file][0])
                raise corrupt(self._catalog, row, f"is of a batch of which {data.name}/{key} is missing")
            self._seen[number].add(file)

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
