"""Bounded cache of shards in this machine's `cache_dir`, shared by the readers of all processes.

A shard is got whole under a temporary name and renamed. What a reader has open it holds by a lock on a byte of `.held`
(one byte a shard, by the digest of its path), which the kernel drops when the process dies. To make room, the longest
unused shards that nobody holds are removed, then the reader that needs room closes its own longest unused ones. What
other readers hold stays: if that alone exceeds the bound, the bound is exceeded, with a warning.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..atomic_io import temporary_beside
from ..file_locks import open_locked
from .client import Stored
from .mirror import Mirror, is_data

_LEFT_OVER_SECONDS = 600.0
_log = logging.getLogger(__name__)


class ShardCache:
    """The shards under `root`, of all stores, and what of them one reader holds.

    Args:
        root: the folder that the bound counts.
        limit_bytes: the bound.
    """

    def __init__(self, root: Path, limit_bytes: int) -> None:
        self._root = root
        self.limit_bytes = limit_bytes
        self._descriptor = -1
        self._held: Counter[Path] = Counter()
        self._guard = threading.Lock()
        self._told = False

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def hold(self, path: Path) -> None:
        """Keep a shard's file, there or not, from being removed until it is let go as often as it was held."""
        with self._guard:
            if self._descriptor < 0:
                self._descriptor = self._open_held()
            if not self._held[path]:
                _lock_byte(self._descriptor, fcntl.F_RDLCK, path, wait=True)
            self._held[path] += 1

    def let_go(self, path: Path) -> None:
        """Hold a file once less."""
        with self._guard:
            self._held[path] -= 1
            if not self._held[path]:
                _lock_byte(self._descriptor, fcntl.F_UNLCK, path)

    def make_room(self, path: Path, num_bytes: int, close_one: Callable[[], bool]) -> None:
        """Remove shards until one more is within the bound, or all that is left is held; then take its place.

        Args:
            path: of the shard to come.
            num_bytes: its size.
            close_one: lets this reader's longest unused shard go; False if it holds none.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        alone = open_locked(self._root / ".making-room", wait=True)
        try:
            found, room = self._shards()
            over = num_bytes - room
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
        finally:
            os.close(alone)
        if over > 0 and not self._told:
            self._told = True
            _log.warning(
                "%s: readers hold %.2f GB more than cache_gb = %g; shards will be got again and again: raise it",
                *(self._root, over / 1e9, self.limit_bytes / 1e9),
            )

    def adopt(self, path: Path, mirror: Mirror, key: str, etag: str) -> None:
        """Move a shard's file that was put to where a mirror's readers look, if there is room; else remove it."""
        target = mirror.folder / key
        if target.exists() or self._shards()[1] < path.stat().st_size:
            path.unlink()
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        mirror.note({key: etag})  # first: a pull removes shards that it knows nothing of
        os.replace(path, target)

    def _shards(self) -> tuple[list[tuple[int, int, Path]], int]:
        """Return time of last opening, bytes and path of every shard here, and the bytes left of the bound."""
        found, room = [], self.limit_bytes
        for path in self._root.glob("*/read/**/*c.*"):
            parts = path.relative_to(self._root).parts  # STORE, read, NAME and the key
            with suppress(OSError):
                state = path.stat()
                if is_data("/".join(parts[3:])):
                    found.append((state.st_mtime_ns, state.st_size, path))
                    room -= state.st_size
                elif path.name.startswith(".c.") and not _is_left_over(path, state):
                    room -= state.st_size
        return found, room

    def _removed(self, path: Path) -> bool:
        descriptor = self._open_held()  # of its own: a lock of this reader's other descriptor counts as another's
        try:
            if not _lock_byte(descriptor, fcntl.F_WRLCK, path):
                return False
            path.unlink(missing_ok=True)
            return True
        finally:
            os.close(descriptor)

    def _open_held(self) -> int:
        self._root.mkdir(parents=True, exist_ok=True)
        return os.open(self._root / ".held", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


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
        mirror.note({mirror.key(path): stored.etag})  # first: a pull removes shards that it knows nothing of
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    finally:
        os.close(descriptor)


def _is_left_over(path: Path, state: os.stat_result) -> bool:
    """Return whether a killed process left a part of a shard; it is then removed."""
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
