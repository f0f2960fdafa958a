"""Files that exist whole or not at all, whatever kills the process.

A file is written beside its place under a name that begins with a dot, fsynced and renamed, and its directory is
fsynced. The temporary name is always the same, so that a later writer replaces what a killed one left.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import SettingsError, StoreError, StoreFullError
from .file_locks import LocksUnsupportedError, open_locked

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PARTIAL = ".partial"
_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an operating system error of the block into a StoreError of one line.

    Raises:
        StoreFullError: no space or quota left, or a file larger than this user may write.
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
    """Return the name under which `path` is written before the rename.

    >>> temporary_beside(Path("runs/result.json")).as_posix()
    'runs/.result.json.partial'
    """
    return path.with_name(f".{path.name}{_PARTIAL}")


def is_temporary(name: str) -> bool:
    """Return whether a file name is one of `temporary_beside`: an unfinished file without value."""
    return name.startswith(".") and name.endswith(_PARTIAL)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to write into, which is at `path` when the block has ended well, and is gone if it has not.

    Raises:
        SettingsError: something is at `path` already.
        StoreError: the disk refuses it; see `disk_errors`.
    """
    if path.exists():
        raise SettingsError(f"{path}: is there already; name a folder that is not, or remove it")
    partial = temporary_beside(path)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with disk_errors(path):
            partial.mkdir(parents=True)
            yield partial
            partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_file(path: Path, content: bytes | memoryview, *, durable: bool = True) -> None:
    """Write a small file whole in place of what is at `path`; two processes may write it at once.

    Args:
        path: of the file; its folder exists.
        content: the whole content.
        durable: flush it to the disk before the rename; False for files that can be fetched or computed again.

    Raises:
        StoreError: the disk refuses it; see `disk_errors`.
    """
    temporary = temporary_beside(path)
    with disk_errors(path):
        try:
            descriptor = open_locked(temporary, wait=True)
        except LocksUnsupportedError:  # a name of its own keeps another writer's bytes out as well
            temporary = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            replace_with(descriptor, temporary, path, content, durable=durable)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        finally:
            os.close(descriptor)


def replace_with(
    descriptor: int, temporary: Path, path: Path, content: bytes | memoryview, *, durable: bool = True
) -> None:
    """Make `content` the whole content of the open file `temporary`, and rename that to `path`; see `write_file`."""
    os.ftruncate(descriptor, 0)
    at = 0
    while at < len(content):
        at += os.pwrite(descriptor, content[at:], at)
    if durable:
        os.fsync(descriptor)
    os.replace(temporary, path)
    if durable:
        sync_folder(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file to by name; after the block it durably takes the place of `path`.

    After an error the temporary file is removed, and `path` is as it was. One process at a time may replace a path.

    Raises:
        StoreError: the disk refuses it; see `disk_errors`.
    """
    temporary = temporary_beside(path)
    with disk_errors(path):
        try:
            yield temporary
            sync_file(temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def make_folder(path: Path) -> None:
    """Create a folder and its parents durably; one that exists is left alone.

    Raises:
        StoreError: it cannot be created.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    with disk_errors(path):
        try:
            path.mkdir(exist_ok=True)
        except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
            raise StoreError(f"{path}: cannot be made a folder ({error.strerror}); name another place") from None
        sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Flush the content of a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


sync_folder = sync_file


def start_writeback(descriptor: int, begin: int, size: int) -> None:
    """Ask the kernel to start writing `size` bytes of a file from `begin` on, so that a later fsync waits less.

    A hint: without sync_file_range (https://man7.org/linux/man-pages/man2/sync_file_range.2.html), or on a file system
    that does not know it, nothing happens.
    """
    if _sync_file_range is not None:
        _sync_file_range(descriptor, begin, size, _SYNC_FILE_RANGE_WRITE)


def free_bytes(path: Path) -> int:
    """Return the bytes that this user may still write on the file system of `path`, or of its nearest parent."""
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
