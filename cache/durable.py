"""Files that are either wholly there or not at all, whatever kills the process.

Written beside their place under a name that begins with a dot, fsynced, renamed, the directory fsynced.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import StoreError, StoreFullError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk refuses inside the block into a StoreError of one line.

    Raises:
        StoreFullError: no space, or no quota, left.
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
        if error.errno in _READ_ONLY:
            raise StoreError(f"{path}: cannot be written ({error.strerror}); check its permissions") from None
        raise


def temporary_beside(path: Path) -> Path:
    """Return the name under which this process writes `path` before the rename."""
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


def remove_leftovers(folder: Path) -> None:
    """Delete what writers left in `folder` that were killed; only the owner of the store's lock may call this."""
    for path in folder.glob(".*.partial-*"):
        if not _is_alive(path.name.rpartition("-")[2]):
            with suppress(FileNotFoundError):
                path.unlink()


def write_file(path: Path, content: bytes) -> None:
    """Write a small file whole and durably, replacing what stood there."""
    temporary = temporary_beside(path)
    with disk_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def make_folder(path: Path) -> None:
    """Make a folder with its parents, durably."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with disk_errors(path):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make renames inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(path: Path) -> int:
    """Return the bytes that this user may still write on the file system of `path` (or of its nearest parent)."""
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def _is_alive(pid: str) -> bool:
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
