"""Who may write a shard: one process at a time, and only as the boundary's items stand now.

A worker that writes a shard holds two flocks, which the kernel drops when it dies:
    <boundary>/.workers                shared; whoever is about to take rows away wants it alone, so that nobody is
                                       writing a shard by a plan that is about to change
    <boundary>/receipts/.c.N.0.partial alone; the shard's claim, which in the end becomes its receipt
Neither needs the store's own lock: workers of an owner that died may go on, a shard is never written by two at once,
and what was planned anew is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from .durable import disk_errors, open_alone, replace_with, temporary_beside
from .errors import StoreLockedError
from .layout import Layout
from .lock import holder, sign
from .metadata import METADATA_NAME

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
