"""Reads rows of a boundary through zarr-python: remote stores, and copies that another tool compressed. Slower.

Of a dense boundary, an item's checksum is whatever the array's codecs hold, compared at every read; of a ragged one it
is the boundary's own `crc`. zarr-python gives the fill value for what is not there, so that is looked for here.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
THREADS = 16  # a remote store answers late, and many at once
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
        self._pool: ThreadPoolExecutor | None = None

    def read(self, rows: Array, check: Sequence[bool], take: Take) -> list[Array]:
        """Return the values of rows; see `rows.RowSource.read`."""
        spec, layout = self._catalog.layout.spec, self._catalog.layout
        begins, ends = rows, rows + 1
        lead: tuple[int, ...] = (len(rows),)
        if spec.ragged:
            begins, ends = self._catalog.offsets[rows], self._catalog.offsets[rows + 1]
            lead = (len(rows), int((ends - begins).max(initial=0)))
        values = [take((*lead, *data.unit_shape), data.numpy_dtype) for data in layout.data]
        crcs = self._stored_crc() if spec.ragged and any(check) else None

        def one(i: int) -> None:
            row, begin, end, crc = int(rows[i]), int(begins[i]), int(ends[i]), 0
            for number, out in enumerate(values):
                found = self._slice(number, row, begin, end)
                if not spec.ragged:
                    out[i] = found[0]
                    continue
                out[i, : end - begin], out[i, end - begin :] = found, 0
                crc = google_crc32c.extend(crc, found.reshape(-1).view(np.uint8)) if found.size else crc
            if crcs is not None and check[i] and crc != crcs[row]:
                raise corrupt(self._catalog, row, "fails its CRC32C in hidden or inputs")

        waiting = [self._threads().submit(one, i) for i in range(len(rows))]
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
            raise corrupt(self._catalog, row, f"cannot be read in {data.name} ({_one_line(error)})") from None
        return np.ascontiguousarray(values).view(data.numpy_dtype)

    def _require(self, number: int, row: int, begin: int, end: int) -> None:
        """Refuse files that are not there: their fill value would be read as data."""
        array = self._arrays[number]
        per_file = (array.shards or array.chunks)[0]
        for file in set(range(begin // per_file, (end - 1) // per_file + 1)) - self._seen[number]:
            key = array.metadata.encode_chunk_key((file, *(0 for _ in array.shape[1:])))
            if not sync((array.store_path / key).exists()):
                raise corrupt(
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
