"""Advisory locks on files (flock): one owner among all processes of all machines that share a file system.

The kernel drops a lock when its owner ends, however it ends. A forked child inherits the descriptor: its parent's lock
lasts until both have closed it, and a child that closes it takes nothing from its parent.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import StoreError
from .mounts import tell_of_local_locks

_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class LocksUnsupportedError(StoreError):
    """A file system that was mounted without locks."""


def open_locked(path: Path, *, wait: bool, shared: bool = False) -> int:
    """Open a file for reading and writing, created if absent, and lock it.

    Args:
        path: the file. Its owner may rename or remove it, so a lock counts only if the file is still at `path`.
        wait: wait for the present owner.
        shared: allow other shared locks.

    Returns:
        A descriptor; closing it releases the lock.

    Raises:
        BlockingIOError: another descriptor holds the lock, and `wait` is False.
        LocksUnsupportedError: the file system has no locks.
        OSError: the file cannot be opened.
    """
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, operation)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _UNSUPPORTED:
                raise
            raise LocksUnsupportedError(
                f"{path}: this file system has no file locks (flock: {error.strerror}), which keep two processes from "
                "writing the same files; mount it with locks (Lustre: -o flock; NFS: with its lock service), or choose "
                "a folder on another disk"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        if is_same_file(descriptor, path):  # else its owner removed it between the open and the lock
            return descriptor
        os.close(descriptor)


def is_same_file(descriptor: int, path: Path) -> bool:
    """Return whether an open file is the one that stands at `path` now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def acquire(path: Path, refused: Callable[[str], Exception]) -> int:
    """Lock a file without waiting, and write into it which process owns it.

    Where the file system's locks hold on this machine only, a warning is logged.

    Args:
        path: the lock file, created if absent.
        refused: returns the error to raise from the owner in words ("process 12 on host").

    Returns:
        A descriptor, for `release`.
    """
    try:
        descriptor = open_locked(path, wait=False)
    except BlockingIOError:
        raise refused(owner(path)) from None
    tell_of_local_locks(path.parent)
    sign(descriptor)
    return descriptor


def release(path: Path, descriptor: int) -> None:
    """Remove a lock file that this process owns, and release its lock; a file that was renamed away stays."""
    with suppress(OSError):
        if is_same_file(descriptor, path):
            path.unlink()
    os.close(descriptor)


@contextmanager
def locked(path: Path, refused: Callable[[str], Exception]) -> Iterator[None]:
    """Own a lock file for the time of a block; see `acquire`."""
    descriptor = acquire(path, refused)
    try:
        yield
    finally:
        release(path, descriptor)


@contextmanager
def waiting_for(path: Path) -> Iterator[None]:
    """Own a lock file, which stays, for the time of a block; wait for the present owner.

    Raises:
        LocksUnsupportedError: the file system has no locks.
    """
    descriptor = open_locked(path, wait=True)
    try:
        yield
    finally:
        os.close(descriptor)


def sign(descriptor: int) -> None:
    """Write this process and its machine into an open lock file."""
    with suppress(OSError):  # on a full disk the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)


def owner(path: Path) -> str:
    """Return the process that signed a lock file, in words."""
    for _ in range(20):
        with suppress(ValueError, KeyError, TypeError, OSError):
            signed = json.loads(path.read_bytes())
            return f"process {signed['pid']} on {signed['host']}"
        time.sleep(0.01)  # it may own the lock and not have signed yet
    return "another process"
