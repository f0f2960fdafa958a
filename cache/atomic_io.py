"""Files that are either wholly there or not at all, whatever kills the process.

Written beside their place under a name that begins with a dot, fsynced, renamed, the directory fsynced. The name is
always the same, so that what a killed writer left is written over by the next one and nobody has to clean up.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import StoreError, StoreFullError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PARTIAL = ".partial"
_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk refuses inside the block into a StoreError of one line.

    Raises:
        StoreFullError: no space, or no quota, left, or a file larger than this user may write.
        StoreError: no permission, or a read-only file system.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        if error.errno in _FULL:
            raise StoreFullError(
                f"{path}: the disk is full ({free_bytes(path) / 1e6:.0f} MB left); what was finished is kept: "
                "make room and run again"
            ) from None
        if error.errno == errno.EFBIG:
            raise StoreFullError(
                f"{path}: larger than a file may be here (`ulimit -f`, or the file system); what was finished is kept: "
                "raise that limit, or choose smaller shards"
            ) from None
        if error.errno in _READ_ONLY:
            raise StoreError(f"{path}: cannot be written ({error.strerror}); check its permissions") from None
        raise


def temporary_beside(path: Path) -> Path:
    """Return the name under which `path` is written before the rename."""
    return path.with_name(f".{path.name}{_PARTIAL}")


def is_temporary(name: str) -> bool:
    """Return whether a file of this name is what `temporary_beside` gives: unfinished, and nobody's data."""
    return name.startswith(".") and name.endswith(_PARTIAL)


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a small file whole and durably, replacing what stood there."""
    temporary = temporary_beside(path)
    with disk_errors(path):
        descriptor = open_alone(temporary, wait=True)
        try:
            replace_with(descriptor, temporary, path, content)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        finally:
            os.close(descriptor)


def replace_with(descriptor: int, temporary: Path, path: Path, content: bytes | memoryview) -> None:
    """Make `content` all that the open file `temporary` holds, and durably put it in the place of `path`."""
    os.ftruncate(descriptor, 0)
    at = 0
    while at < len(content):
        at += os.pwrite(descriptor, content[at:], at)
    os.fsync(descriptor)
    os.replace(temporary, path)
    sync_folder(path.parent)


def open_alone(path: Path, *, wait: bool, shared: bool = False) -> int:
    """Open a file, made if need be, under an flock of its own; the kernel drops it when its owner dies.

    Args:
        path: of the file; its owner may rename or remove it, which is why the name is looked at again.
        wait: for whoever holds it.
        shared: together with others who say so.

    Raises:
        BlockingIOError: somebody holds it, and `wait` is False.
    """
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, kind)
        except BaseException:
            os.close(descriptor)
            raise
        if is_at(descriptor, path):  # else its owner took it away between our open and our lock
            return descriptor
        os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file still stands at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def make_folder(path: Path) -> None:
    """Make a folder with its parents, durably."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with disk_errors(path):
        try:
            path.mkdir(exist_ok=True)
        except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
            raise StoreError(f"{path}: cannot be made a folder ({error.strerror}); name another place") from None
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make renames inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def start_writeback(descriptor: int, begin: int, size: int) -> None:
    """Have the kernel begin to write a part of a file to the disk, so that the fsync at its end has less to wait for.

    A hint: where the system has no sync_file_range (https://man7.org/linux/man-pages/man2/sync_file_range.2.html),
    or the file system does not know it, nothing happens.
    """
    if _sync_file_range is not None:
        _sync_file_range(descriptor, begin, size, _SYNC_FILE_RANGE_WRITE)


def free_bytes(path: Path) -> int:
    """Return the bytes that this user may still write on the file system of `path` (or of its nearest parent)."""
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
