"""Reads batches of one boundary by item key, one after the other or ahead of their consumer.

How the bytes are reached is a `RowSource`: `local_rows.LocalRows` on this machine, `zarr_store.ZarrRows` elsewhere.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import MissingItemError, SettingsError, unknown_name
from ..format.catalog import Catalog
from ..format.int8 import SCALE, restored
from ..format.layout import RECEIPT_FIELDS
from ..format.spec import Item
from .batch import Allocate, Batch, BatchMemory, BufferPool
from .local_rows import RowSource

Verify = Literal["first", "always", "never"]
K = TypeVar("K")
V = TypeVar("V")


class BoundaryReader:
    """Reads the items of one boundary; made by `FeatureStore.reader`, used as a context manager.

    Any number of threads may read at once.

    Attributes:
        spec: specification of the stored boundary.
        catalog: its items and receipts as they were when it was opened.
        rows: reads the values of its rows.
    """

    def __init__(
        self, catalog: Catalog, rows: RowSource, *, verify: Verify = "first", allocate: Allocate | None = None
    ) -> None:
        """Use `FeatureStore.reader`.

        Args:
            catalog: of the boundary.
            rows: reads the values of its rows.
            verify: when an item's checksum is compared: on its first read by this reader, on every one, or never.
            allocate: returns memory for batches; see `BufferPool`.
        """
        if verify not in ("first", "always", "never"):
            raise SettingsError(unknown_name("verify", verify, ("first", "always", "never")))
        self.spec = catalog.layout.spec
        self.catalog = catalog
        self.rows = rows
        self._verify = verify
        self._pool = BufferPool(allocate=allocate)
        self._checked = np.zeros(catalog.num_rows, bool)
        self._stored = catalog.receipts[:, 0] != 0  # (shards,)
        self._awaited: dict[int, Callable[[Catalog, int], None]] = {}
        self._guard = threading.Lock()

    def await_shards(self, shards: Iterable[int], wait: Callable[[Catalog, int], None]) -> None:
        """Count shards that another process is writing as stored; called before anything is asked or read.

        Args:
            shards: those that are stored already are passed over.
            wait: called with the catalog and a shard before the first read of it; returns when it is stored.
        """
        for shard in shards:
            if not self._stored[shard]:
                self._awaited[shard] = wait
                self._stored[shard] = True

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """The items that can be read, in the order of their rows."""
        table = self.catalog.table
        rows = np.flatnonzero(table.record_of_row >= 0)
        rows = rows[self._stored[rows // self.catalog.layout.grid.rows_per_shard]] if len(rows) else rows
        return tuple(table.item(int(row)) for row in rows)

    @cached_property
    def row_by_source(self) -> dict[str, int]:
        """The row of each source name, names of moved and of equal files included."""
        return self.catalog.table.row_by_source()

    def rows_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Return the row (keys,) of each item key.

        Raises:
            MissingItemError: a key that the store has not, or has not extracted yet.
        """
        try:
            rows = self.catalog.table.index.find(keys)
        except ValueError:
            bad = next(key for key in keys if len(key) != 64 or not _is_hex(key))
            raise MissingItemError(f"{self._where}: {bad!r} is no item key; expected 64 hex digits") from None
        if not self._readable(rows).all():
            self._raise_missing(keys, rows)
        return rows

    def lengths_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Return the number of tokens (keys,) of each item of a ragged boundary.

        Raises:
            MissingItemError: a key that cannot be read.
            SettingsError: a dense boundary.
        """
        if not self.spec.ragged:
            raise SettingsError(f"{self._where}: is dense; its items have the shape {self.spec.shape}, no lengths")
        return self.catalog.lengths(self.rows_of(keys))

    @property
    def provenance(self) -> tuple[dict[str, Any], ...]:
        """The environments that computed the states, plain JSON each."""
        return self.catalog.provenance

    def provenance_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Return the index in `provenance` (keys,) of each item."""
        shards = self.rows_of(keys) // self.catalog.layout.grid.rows_per_shard
        indices: NDArray[np.int64] = self.catalog.receipts[shards, 2].astype(np.int64)
        return indices

    @property
    def size_bytes(self) -> int:
        """Bytes of the data files."""
        return int(self.catalog.receipts[:, RECEIPT_FIELDS:].sum())

    def read(self, keys: Sequence[str]) -> Batch:
        """Read the items of `keys`, in any order and any number of times, into a batch that owns its memory.

        Args:
            keys: item keys, 64 hex digits each.

        Returns:
            The batch; nothing changes its arrays unless it is released.

        Raises:
            MissingItemError: a key that the store has not, or has not extracted yet.
            CorruptItemError: stored bytes that fail their checksum; names store, boundary, item and shard.
        """
        memory = BatchMemory(self._pool)
        stored = self._read(keys, memory)
        if stored.dtype != "int8":
            return stored
        out = memory.allocate(stored.hidden.shape, np.dtype(np.float32))
        inputs = {name: values for name, values in stored.inputs.items() if name != SCALE}
        hidden = restored(stored.hidden, stored.inputs[SCALE], out)
        return Batch(hidden=hidden, lengths=stored.lengths, inputs=inputs, memory=memory)

    def read_stored(self, keys: Sequence[str]) -> Batch:
        """Read the items of `keys` as `read` does, but int8 as it is stored, with its scales among the inputs."""
        return self._read(keys, BatchMemory(self._pool))

    def _read(self, keys: Sequence[str], memory: BatchMemory) -> Batch:
        rows = self.rows_of(keys)
        if self._awaited:
            self._wait_for(rows)
        with self._guard:
            values = self.rows.read(rows, self._to_check(rows), memory.allocate)
            self._checked[rows] = True
        lengths = self.catalog.lengths(rows) if self.spec.ragged else None
        inputs = dict(zip(self.spec.inputs, values[1:], strict=True))
        return Batch(hidden=values[0], lengths=lengths, inputs=inputs, dtype=self.spec.dtype, memory=memory)

    def _wait_for(self, rows: NDArray[np.int64]) -> None:
        for shard in np.unique(rows // self.catalog.layout.grid.rows_per_shard).tolist():
            if (wait := self._awaited.get(shard)) is not None:
                wait(self.catalog, shard)
                self._awaited.pop(shard, None)

    def prefetch(self, batches_of_keys: Iterable[Sequence[str]], depth: int = 2) -> Iterator[Batch]:
        """Yield `read(keys)` for each of `batches_of_keys`, up to `depth` batches read ahead by one thread.

        A consumer that releases each batch (`with batch: …`) has the next ones read into the same memory. Leaving the
        loop early ends the thread.

        Args:
            batches_of_keys: item keys of each batch; iterated in the thread.
            depth: most batches read ahead.

        Raises:
            MissingItemError, CorruptItemError: as `read` does, in the place of the batch.
        """
        return prefetched(self.read, batches_of_keys, depth)

    def close(self) -> None:
        """Close memory maps and files, and end the threads that read; batches keep their values."""
        with self._guard:  # a thread that reads ahead may be copying out of a map
            self.rows.close()

    def __enter__(self) -> BoundaryReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _where(self) -> str:
        return self.catalog.layout.where

    def _to_check(self, rows: NDArray[np.int64]) -> list[bool]:
        if self._verify == "first":
            to_check: list[bool] = (~self._checked[rows]).tolist()
            return to_check
        return [self._verify == "always"] * len(rows)

    def _readable(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        if not len(self._stored):
            return np.zeros(len(rows), bool)
        readable: NDArray[np.bool_] = self._stored[np.maximum(rows, 0) // self.catalog.layout.grid.rows_per_shard]
        return readable & (rows >= 0)

    def _raise_missing(self, keys: Sequence[str], rows: NDArray[np.int64]) -> None:
        bad = np.flatnonzero(~self._readable(rows))
        first = int(bad[0])
        many = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        if rows[first] < 0:
            raise MissingItemError(
                f"{self._where}: no item with key {keys[first][:12]}…{many} among {len(self.catalog.table.index)}; "
                "run `talik extract` with its data set"
            )
        source = self.catalog.table.item(int(rows[first])).source
        raise MissingItemError(
            f"{self._where}: item {source!r} (key {keys[first][:12]}…){many} has a row and no data yet; run "
            "`talik extract` again, it continues"
        )


def _is_hex(text: str) -> bool:
    return all(c in "0123456789abcdefABCDEF" for c in text)


def prefetched(
    read: Callable[[K], V], wanted: Iterable[K], depth: int, *, patience_seconds: float | None = None
) -> Generator[V, None, None]:
    """Yield `read(w)` for each `w` of `wanted`, up to `depth` results ahead of the consumer, read by one thread.

    Args:
        read: called in the thread.
        wanted: iterated in the thread. An error of it or of `read` is raised here, after the results before it.
        depth: most results read ahead, at least 1.
        patience_seconds: how long to wait for the thread at the end; None for as long as it takes.

    Closing the generator, or dropping it, ends the thread and waits for it.
    """
    done: queue.Queue[tuple[V | None, BaseException | None, bool]] = queue.Queue(max(1, depth))
    stop = threading.Event()

    def put(value: V | None, error: BaseException | None, last: bool) -> bool:
        while not stop.is_set():
            try:
                done.put((value, error, last), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for one in wanted:
                if stop.is_set() or not put(read(one), None, False):
                    return
            put(None, None, True)
        except BaseException as error:  # passed on, whatever it is: the consumer must not wait for ever
            put(None, error, True)

    thread = threading.Thread(target=work, name="talik-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            value, error, last = done.get()
            if error is not None:
                raise error
            if last:
                return
            yield value  # type: ignore[misc]
            del value
    finally:
        stop.set()
        while not done.empty():
            done.get_nowait()
        thread.join(patience_seconds)
