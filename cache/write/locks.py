"""One process at a time writes a store: an flock on `.lock` that says who holds it.

The file is there only while somebody writes, so that a finished store is nothing but Zarr. The kernel drops the lock
when its owner dies, however it dies. Inside one process several boundaries may be written at once, each by one writer.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import StoreLockedError
from ..atomic_io import disk_errors, open_alone, replace_with, temporary_beside
from ..format.layout import Layout
from ..format.zarr_metadata import METADATA_NAME

LOCK_NAME = ".lock"


@dataclass
class _Held:
    descriptor: int
    pid: int
    names: set[str] = field(default_factory=set)


_held: dict[str, _Held] = {}


def acquire(store: Path, name: str) -> None:
    """Take the store's lock for writing the boundary `name`.

    Raises:
        StoreLockedError: another process writes the store, or this one already writes that boundary.
    """
    place = os.path.realpath(store)
    held = _held.get(place)
    if held is not None and held.pid != os.getpid():  # inherited over a fork: the lock is the parent's
        os.close(held.descriptor)
        del _held[place]
        held = None
    if held is None:
        held = _held[place] = _Held(_lock(store / LOCK_NAME), os.getpid())
    if name in held.names:
        raise StoreLockedError(f"{store}: this process already has a writer of {name}; close that one first")
    held.names.add(name)


def release(store: Path, name: str) -> None:
    """Give the boundary `name` back, and the store's lock with the last of them."""
    place = os.path.realpath(store)
    held = _held.get(place)
    if held is None or held.pid != os.getpid():
        return
    held.names.discard(name)
    if not held.names:
        del _held[place]
        with suppress(OSError):
            (store / LOCK_NAME).unlink()
        os.close(held.descriptor)


def _lock(path: Path) -> int:
    with disk_errors(path.parent):
        return take(
            path,
            lambda who: StoreLockedError(
                f"{path.parent}: {who} is writing this store; wait for it to end, or stop it, and run again"
            ),
        )


def take(path: Path, refusal: Callable[[str], Exception]) -> int:
    """Open a lock file alone and sign it; closing the descriptor gives the lock back, and so does the process's end.

    Args:
        path: of the file.
        refusal: the error to raise where somebody has it, from who that is in words.
    """
    try:
        descriptor = open_alone(path, wait=False)
    except BlockingIOError:
        raise refusal(holder(path)) from None
    sign(descriptor)
    return descriptor


def sign(descriptor: int) -> None:
    """Write into an open lock file who holds it."""
    with suppress(OSError):  # on a full disk the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)


def holder(path: Path) -> str:
    """Return who signed a lock file, in words."""
    for _ in range(20):
        with suppress(ValueError, KeyError, TypeError, OSError):
            said = json.loads(path.read_bytes())
            return f"process {said['pid']} on {said['host']}"
        time.sleep(0.01)  # it has the lock and has not yet said who it is
    return "another process"


WORKERS_NAME = ".workers"


class ShardClaim:
    """The right to write one shard; `record` writes the receipt and so ends it."""

    def __init__(self, layout: Layout, shard: int) -> None:
        """Take the claim.

        Raises:
            StoreLockedError: somebody else is writing this shard.
        """
        self._array = layout.receipts
        self._path = layout.receipts.chunk_path(shard)
        self._temporary = temporary_beside(self._path)
        try:
            with disk_errors(self._path):
                self._descriptor = open_alone(self._temporary, wait=False)
        except BlockingIOError:
            raise StoreLockedError(
                f"{layout.where}: {holder(self._temporary)} is writing shard {shard}; wait for it to end, run again"
            ) from None
        sign(self._descriptor)

    def record(self, receipt: np.ndarray[Any, Any]) -> None:
        """Write the receipt (fields,) uint64 durably: from now on the shard is there."""
        with disk_errors(self._path):
            replace_with(self._descriptor, self._temporary, self._path, self._array.encode(receipt[None]))

    def release(self) -> None:
        """Give the claim back; without a receipt nothing is left of it."""
        with suppress(OSError):
            if self._temporary.exists() and os.path.samestat(os.fstat(self._descriptor), self._temporary.stat()):
                self._temporary.unlink()
        os.close(self._descriptor)


@contextmanager
def working(layout: Layout) -> Iterator[None]:
    """Be one of those who write shards of a boundary; waits while its rows are planned anew."""
    path = layout.folder / WORKERS_NAME
    with disk_errors(path):
        descriptor = open_alone(path, wait=True, shared=True)
    try:
        yield
    finally:
        _leave(descriptor, path)


@contextmanager
def nobody_working(folder: Path) -> Iterator[None]:
    """Keep everybody from writing shards of the boundary at `folder`.

    Raises:
        StoreLockedError: somebody is: a worker of an owner that died.
    """
    path = folder / WORKERS_NAME
    if not (folder / METADATA_NAME).is_file():
        yield
        return
    try:
        with disk_errors(path):
            descriptor = open_alone(path, wait=False)
    except BlockingIOError:
        raise StoreLockedError(
            f"{folder}: workers of an earlier run are still writing it; wait for them to end, run again"
        ) from None
    try:
        yield
    finally:
        _leave(descriptor, path)


def remove_if_unused(layout: Layout) -> None:
    """Take the workers' lock file away if nobody holds it (one who was killed left it)."""
    path = layout.folder / WORKERS_NAME
    if path.exists():
        _remove_if_unused(path)


def _leave(descriptor: int, path: Path) -> None:
    """Give the lock back; the last one takes the file away, so that a finished boundary is nothing but Zarr."""
    os.close(descriptor)
    _remove_if_unused(path)


def _remove_if_unused(path: Path) -> None:
    with suppress(OSError):  # BlockingIOError: others are still there
        last = open_alone(path, wait=False)
        with suppress(OSError):
            path.unlink()
        os.close(last)
