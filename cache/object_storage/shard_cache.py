"""Shards of stores in object storage on this machine's disk, within a bound: who holds which, and which go.

A shard is got whole, under a temporary name, and renamed: a part of one is never seen. Readers of any number of
processes share them. What a reader has open it holds by a lock on one byte of `.held` (one byte a shard, by the digest
of its path), which the kernel drops when the process dies; to make room, the longest unused of those that nobody holds
go, and then, of the reader that needs the room, its own longest unused, which it closes first. What other readers hold
is never taken from them: if that alone exceeds the bound, the bound is exceeded, and said to be.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..atomic_io import temporary_beside
from ..file_locks import open_locked
from .client import Stored
from .mirror import Mirror, is_data

_LEFT_OVER_SECONDS = 600.0
_log = logging.getLogger(__name__)


class ShardCache:
    """The shards under one folder, and what of them one reader holds."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        """Hold nothing yet.

        Args:
            root: of all that the bound counts.
            limit_bytes: the bound.
        """
        self._root = root
        self.limit_bytes = limit_bytes
        self._descriptor = -1
        self._held: dict[Path, set[str]] = {}
        self._guard = threading.Lock()
        self._told = False

    def __del__(self) -> None:
        """Let go of all."""
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def hold(self, path: Path, by: str) -> None:
        """Keep a shard's file, there or not, from being taken away."""
        with self._guard:
            if self._descriptor < 0:
                self._descriptor = self._open()
            if path not in self._held:
                _lock_byte(self._descriptor, fcntl.F_RDLCK, path, wait=True)
            self._held.setdefault(path, set()).add(by)

    def let_go(self, path: Path, by: str) -> None:
        """Hold a file no longer."""
        with self._guard:
            holders = self._held.get(path, set())
            holders.discard(by)
            if not holders and self._held.pop(path, None) is not None:
                _lock_byte(self._descriptor, fcntl.F_UNLCK, path)

    def make_room(self, path: Path, num_bytes: int, close_one: Callable[[], bool]) -> None:
        """Take shards away until one more is within the bound, or all that is left is held; its place is then taken.

        Args:
            path: of the shard to come.
            num_bytes: of it.
            close_one: has this reader let go of its longest unused; False if it holds none.
        """
        with self._alone():
            found, coming = self._found()
            over = sum(size for _, size, _ in found) + coming + num_bytes - self.limit_bytes
            while over > 0:
                for one in sorted(found):
                    if over > 0 and self._removed(one[2]):
                        found.remove(one)
                        over -= one[1]
                if over > 0 and not close_one():
                    break
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError), open(temporary_beside(path), "xb") as file:
                file.truncate(num_bytes)
        if over > 0 and not self._told:
            self._told = True
            _log.warning(
                "%s: readers hold %.2f GB more than cache_gb = %g; shards will be got again and again: raise it",
                *(self._root, over / 1e9, self.limit_bytes / 1e9),
            )

    def room(self) -> int:
        """Return the bytes that are left of the bound."""
        found, coming = self._found()
        return self.limit_bytes - coming - sum(size for _, size, _ in found)

    def _found(self) -> tuple[list[tuple[int, int, Path]], int]:
        """Return time of last opening, bytes and path of every shard here, and the bytes of those that are coming."""
        here = [(s.st_mtime_ns, s.st_size, p) for p in self._root.rglob("c.*") if (s := _stat(p)) and self._counts(p)]
        partial = [(p, s) for p in self._root.glob("*/read/**/.c.*") if (s := _stat(p))]
        return here, sum(state.st_size for path, state in partial if not _is_left_over(path, state))

    def _counts(self, path: Path) -> bool:
        """Return whether a file is a shard that was read through: no receipt, and none of a writer's."""
        parts = path.relative_to(self._root).parts
        return len(parts) > 3 and parts[1] == "read" and is_data("/".join(parts[3:]))

    def _removed(self, path: Path) -> bool:
        descriptor = self._open()  # of its own: a lock of this reader's other descriptor counts as another's
        try:
            if not _lock_byte(descriptor, fcntl.F_WRLCK, path):
                return False
            path.unlink(missing_ok=True)
            return True
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        self._root.mkdir(parents=True, exist_ok=True)
        return os.open(self._root / ".held", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._root.mkdir(parents=True, exist_ok=True)
        descriptor = open_locked(self._root / ".making-room", wait=True)
        try:
            yield
        finally:
            os.close(descriptor)


def get_shard(mirror: Mirror, path: Path, stored: Stored) -> None:
    """Get a shard's file whole, unless another process has by now; one process at a time gets it.

    Raises:
        StoreFullError: no room on the disk.
        ObjectChangedError: it is no longer what was listed.
        StoreError: no answer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    descriptor = open_locked(temporary, wait=True)
    try:
        if path.exists():
            temporary.unlink(missing_ok=True)
            return
        os.ftruncate(descriptor, stored.size_bytes)
        mirror.objects.get_file(mirror.key(path), stored, descriptor, path)
        os.replace(temporary, path)
        mirror.note(mirror.key(path), stored.etag)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    finally:
        os.close(descriptor)


def adopt_shard(path: Path, mirror: Mirror, key: str, etag: str, cache: ShardCache) -> None:
    """Move a shard's file that was put to where readers would get it, if the bound has room for it without others."""
    target, size = mirror.folder / key, path.stat().st_size
    if target.exists() or cache.room() < size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)
    mirror.note(key, etag)


def _stat(path: Path) -> os.stat_result | None:
    with suppress(OSError):
        return path.stat()
    return None


def _is_left_over(path: Path, state: os.stat_result) -> bool:
    """Return whether a killed process left a part of a shard; it is taken away."""
    if time.time() - state.st_mtime < _LEFT_OVER_SECONDS:
        return False
    with suppress(OSError):
        descriptor = open_locked(path, wait=False)
        path.unlink(missing_ok=True)
        os.close(descriptor)
        return True
    return False


def _lock_byte(descriptor: int, kind: int, path: Path, *, wait: bool = False) -> bool:
    """Lock, or unlock, the byte of a file's path; False: others hold it (only where `wait` is False)."""
    byte = int.from_bytes(hashlib.sha256(os.fsencode(path)).digest()[:7], "little")
    command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    try:
        fcntl.fcntl(descriptor, command, struct.pack("hhqqi", kind, os.SEEK_SET, byte, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True
