"""What is written of one unit while its states are computed: a shard of each boundary, each by a thread of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...cache.feature_store import BoundarySpec, Shard
from ...cache.format.int8 import Int8Error
from ...cache.write.shard_writer import ShardStream
from .shard_worker import ItemState, Place, ShardTask, place_of, written_record

_BATCHES_WAITING = 3  # of a boundary, computed and not yet written: what bounds memory


class WriterThreads:
    """A thread for each boundary, which writes its states in the order in which they were handed over."""

    def __init__(self) -> None:
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._waiting: dict[str, deque[Future[Any]]] = {}

    def submit(self, path: str, work: Callable[[], Any], *, bounded: bool = False) -> Future[Any]:
        """Have work done by a boundary's thread.

        Args:
            path: of the boundary.
            work: called with nothing.
            bounded: wait first until little of such work of this boundary is left to do.

        Raises:
            Exception: what earlier such work of the boundary has raised.
        """
        if path not in self._threads:
            self._threads[path] = ThreadPoolExecutor(1, thread_name_prefix="talik-writer")
        future = self._threads[path].submit(work)
        if bounded:
            waiting = self._waiting.setdefault(path, deque())
            waiting.append(future)
            while len(waiting) > _BATCHES_WAITING or (waiting and waiting[0].done()):
                waiting.popleft().result()
        return future

    def close(self) -> None:
        """Wait for the work that was handed over, and end the threads."""
        for thread in self._threads.values():
            thread.shutdown()
        self._threads, self._waiting = {}, {}


@dataclass
class UnitOutput:
    """The shards of a unit that are being written.

    Args:
        task: the unit.
        threads: that write.
    """

    task: ShardTask
    threads: WriterThreads
    _streams: dict[int, ShardStream] = field(default_factory=dict)  # by number of the target
    _errors: dict[int, Int8Error] = field(default_factory=dict)
    _stored: dict[int, NDArray[np.uint64]] = field(default_factory=dict)  # receipts of shards that others wrote
    _broken: dict[int, BaseException] = field(default_factory=dict)  # what writing a target's states has raised

    def open(self, *, owned: bool) -> dict[Place, BoundarySpec]:
        """Begin every shard that is not stored yet; return their places.

        Args:
            owned: this process plans the boundaries' rows too (see `ShardWriter.open`).

        Raises:
            StoreLockedError: another process is writing one.
        """
        try:
            for number, (writer, shard) in enumerate(self.task.targets):
                error = self._errors[number] = Int8Error()
                stream = writer.open(shard, error, owned=owned)
                if stream is None:
                    self._stored[number] = writer.receipt(shard)
                else:
                    self._streams[number] = stream
        except BaseException:
            self.close()
            raise
        return {place_of(spec): spec for number in self._streams for spec in [self._spec(number)]}

    def add(self, place: Place, states: Sequence[tuple[int, ItemState]]) -> None:
        """Hand states of one place to the thread that writes them; waits where too many are waiting already.

        Args:
            place: of the states.
            states: numbers of items in the unit, ascending, and their states.

        Raises:
            Exception: what writing earlier ones has raised.
        """
        for number in self._streams:
            if place_of(self._spec(number)) == place:
                self.threads.submit(self._spec(number).path, partial(self._add, number, states), bounded=True)

    def finish(
        self,
        shard_now: Callable[[int], Shard | None] | None = None,
        measured: Callable[[int, Int8Error], None] | None = None,
    ) -> UnitResult:
        """Have every shard finished, and return what comes of it.

        Args:
            shard_now: called in the boundary's thread with the number of each target; returns the shard as it is when
                the rows of items without states were given up, None where no item is left.
            measured: called there with the number of each target that was written, and the error of int8 in it.
        """
        numbers = range(len(self.task.targets))
        finish = [partial(self._finish, number, shard_now, measured) for number in numbers]
        return UnitResult([self.threads.submit(self._spec(number).path, finish[number]) for number in numbers])

    def give_up(self) -> None:
        """Give up all shards, after what was handed over for them is written."""
        for number in self._streams:
            self.threads.submit(self._spec(number).path, lambda: None).result()
        self.close()

    def close(self) -> None:
        """Give up what is not finished; the threads have to be idle, or never to come to it."""
        for stream in self._streams.values():
            stream.close()

    def _spec(self, number: int) -> BoundarySpec:
        return self.task.targets[number][0].layout.spec

    def _add(self, number: int, states: Sequence[tuple[int, ItemState]]) -> None:
        try:
            for item, (hidden, inputs) in states if number not in self._broken else ():
                self._streams[number].add(item, hidden, inputs)
        except BaseException as error:
            self._broken[number] = error
            raise

    def _finish(
        self,
        number: int,
        shard_now: Callable[[int], Shard | None] | None,
        measured: Callable[[int, Int8Error], None] | None,
    ) -> dict[str, Any] | None:
        if number in self._broken:
            raise self._broken[number]
        shard = self.task.targets[number][1] if shard_now is None else shard_now(number)
        stream = self._streams.get(number)
        try:
            if shard is None:
                return None
            receipt = self._stored[number] if stream is None else stream.finish(shard)
        finally:
            if stream is not None:
                stream.close()
        if stream is not None and measured is not None:
            measured(number, self._errors[number])
        return written_record(self._spec(number), shard, receipt, self._errors[number])


@dataclass(frozen=True)
class UnitResult:
    """The shards of a unit that are being finished."""

    futures: Sequence[Future[dict[str, Any] | None]]

    @property
    def is_done(self) -> bool:
        """Whether `written` would not wait."""
        return all(future.done() for future in self.futures)

    def written(self) -> list[dict[str, Any]]:
        """Wait for the shards, and return JSON of each: see `written_record`.

        Raises:
            Exception: what finishing one has raised.
        """
        found = [future.result() for future in self.futures]
        return [one for one in found if one is not None]
