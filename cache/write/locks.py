"""Locks of a feature store: one process writes it, one writer has each boundary, one process writes each shard.

`.lock` in the store's folder exists only while somebody writes, so that a finished store is nothing but Zarr. Several
boundaries may be written by one process at once; other processes may write single shards for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import StoreLockedError
from .. import file_locks
from ..atomic_io import disk_errors, replace_with, temporary_beside
from ..file_locks import open_locked
from ..format.layout import Layout
from ..format.zarr_metadata import METADATA_NAME

LOCK_NAME = ".lock"
WORKERS_NAME = ".workers"


@dataclass
class _Held:
    descriptor: int
    pid: int
    names: set[str] = field(default_factory=set)


_held: dict[str, _Held] = {}  # the locks of this process by the store's real path


def acquire(store: Path, name: str) -> None:
    """Take the right to write the boundary `name`, and the store's lock if this process has it not.

    A forked child does not inherit it: the lock stays its parent's.

    Raises:
        StoreLockedError: another process writes the store, or this one already writes that boundary.
        LocksUnsupportedError: the file system has no locks.
    """
    place = os.path.realpath(store)
    held = _held.get(place)
    if held is not None and held.pid != os.getpid():
        os.close(held.descriptor)
        del _held[place]
        held = None
    if held is None:
        with disk_errors(store):
            descriptor = file_locks.acquire(
                store / LOCK_NAME,
                lambda who: StoreLockedError(
                    f"{store}: {who} is writing this store; wait for it to end, or stop it, and run again"
                ),
            )
        held = _held[place] = _Held(descriptor, os.getpid())
    if name in held.names:
        raise StoreLockedError(f"{store}: this process already has a writer of {name}; close that one first")
    held.names.add(name)


def release(store: Path, name: str) -> None:
    """Give up the right to write the boundary `name`, and the store's lock with the last boundary."""
    place = os.path.realpath(store)
    held = _held.get(place)
    if held is None or held.pid != os.getpid():
        return
    held.names.discard(name)
    if not held.names:
        del _held[place]
        file_locks.release(store / LOCK_NAME, held.descriptor)


class ShardLock:
    """The right to write one shard: a lock on the temporary file of its receipt, which `record` renames in place."""

    def __init__(self, layout: Layout, shard: int) -> None:
        """Take the lock.

        Raises:
            StoreLockedError: somebody else is writing this shard.
        """
        self._array = layout.receipts
        self._path = layout.receipts.chunk_path(shard)
        self._temporary = temporary_beside(self._path)
        with disk_errors(self._path):
            self._descriptor = file_locks.acquire(
                self._temporary,
                lambda who: StoreLockedError(
                    f"{layout.where}: {who} is writing shard {shard}; wait for it to end, run again"
                ),
            )

    def record(self, receipt: NDArray[np.uint64]) -> None:
        """Write the receipt (fields,) durably: from now on the shard counts as stored."""
        with disk_errors(self._path):
            replace_with(self._descriptor, self._temporary, self._path, self._array.encode(receipt[None]))

    def release(self) -> None:
        """Give the lock up; without a receipt its file is removed."""
        file_locks.release(self._temporary, self._descriptor)


@contextmanager
def shards_being_written(layout: Layout) -> Iterator[None]:
    """Keep a boundary's rows from being given to other items while shards are written; waits while they are."""
    path = layout.folder / WORKERS_NAME
    with disk_errors(path):
        descriptor = open_locked(path, wait=True, shared=True)
    try:
        yield
    finally:
        os.close(descriptor)
        _remove_if_unused(path)


@contextmanager
def no_shards_being_written(folder: Path) -> Iterator[None]:
    """Keep every process from writing shards of the boundary at `folder`.

    Raises:
        StoreLockedError: a worker of an owner that died is writing one.
    """
    path = folder / WORKERS_NAME
    if not (folder / METADATA_NAME).is_file():
        yield
        return
    try:
        with disk_errors(path):
            descriptor = open_locked(path, wait=False)
    except BlockingIOError:
        raise StoreLockedError(
            f"{folder}: workers of an earlier run are still writing it; wait for them to end, run again"
        ) from None
    try:
        yield
    finally:
        file_locks.release(path, descriptor)


def remove_workers_lock(layout: Layout) -> None:
    """Remove the lock file of workers unless one of them still has it (a killed worker leaves it)."""
    path = layout.folder / WORKERS_NAME
    if path.exists():
        _remove_if_unused(path)


def _remove_if_unused(path: Path) -> None:
    """Remove a shared lock file when its last owner is gone, so that a finished boundary is nothing but Zarr."""
    with suppress(OSError):  # BlockingIOError: others hold it
        file_locks.release(path, open_locked(path, wait=False))
