"""Shards reached by `preadv`: for what is not in memory, cannot be, or lies behind a network and is never mapped.

On a local disk the kernel's page cache is passed by (O_DIRECT), which takes a third of the processor's time and leaves
to others what is in memory; where a file system has no such reads, ordinary ones are made.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...errors import CorruptItemError
from ..format.layout import DataArray
from ..format.sharding import shard_where
from .shard_index import ShardPlaces
from .shard_reader import BLOCK_BYTES, StoredShard, copy_block

Array = np.ndarray[Any, Any]
_ALIGNED = 4096  # at least what any disk asks of offset, size and address
_BOUNCE_BYTES = 8 * BLOCK_BYTES  # of each thread; one read at once keeps a disk busier than several in turn
_NETWORKS = {  # statfs(2), f_type
    *(0x6969, 0x517B, 0xFE534D42, 0xFF534D42, 0x5346414F, 0x00C36400),  # NFS, SMB, SMB2, CIFS, AFS, Ceph
    *(0x65735546, 0x0BD00BD0, 0x47504653, 0x19830326, 0x01021997),  # FUSE (sshfs, gcsfuse …), Lustre, GPFS, BeeGFS, 9p
    *(0x7461636F, 0x73757245, 0xAAD7AAEA),  # OCFS2, Coda, PanFS
}
_bounce: list[Array] = []  # a list's own pop and append are safe between threads


def file_system_type(path: str | os.PathLike[str]) -> int:
    """Return the file system's magic number, as statfs(2) gives it; 0 if it does not."""
    answer = (ctypes.c_long * 64)()  # struct statfs begins with f_type
    failed = ctypes.CDLL(None).statfs(os.fsencode(path), ctypes.byref(answer))
    return 0 if failed else answer[0] & 0xFFFFFFFF


def is_network(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` lies on a network (or FUSE) file system, where a map may raise SIGBUS at any time."""
    return file_system_type(path) in _NETWORKS


class DirectShard(StoredShard):
    """One shard's file, open for reading; any number of threads may read at once."""

    def __init__(self, array: DataArray, shard: int, where: str, places: ShardPlaces, *, direct: bool) -> None:
        """Open the file.

        Args:
            array: which the shard is of.
            shard: its number.
            where: names store and boundary, for messages.
            places: its parsed index.
            direct: pass the page cache by, if the file system can.

        Raises:
            CorruptItemError: no such file.
        """
        super().__init__(array, places)
        self._descriptor = -1
        self._where = shard_where(where, array, shard)
        path = array.shard_path(shard)
        try:
            self._descriptor = _open(path, direct)
        except FileNotFoundError:
            raise CorruptItemError(f"{self._where}: {path.name} is missing; run `talik store repair`") from None

    def __del__(self) -> None:
        """Close, when no thread reads any more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def copy(self, begin: int, out: Array, crc: int | None) -> int | None:
        """Copy the file's bytes from `begin` on into `out` (bytes,) uint8; return `crc` extended by them, or None."""
        return self._read(begin, out, crc, 0)[0]

    def copy_sealed(self, begin: int, out: Array) -> bool:
        """Copy likewise; return whether the CRC32C that follows in the file is that of the bytes."""
        crc, seal = self._read(begin, out, 0, 4)
        return crc == int.from_bytes(seal, "little")

    def _read(self, begin: int, out: Array, crc: int | None, more: int) -> tuple[int | None, bytes]:
        """Read block by block into memory that is aligned as the disk asks, and copy (and sum) from there.

        Returns:
            The checksum, and `more` bytes that follow.
        """
        with _bounce_buffer() as buffer:
            return self._read_through(buffer, begin, out, crc, more)

    def _read_through(
        self, buffer: Array, begin: int, out: Array, crc: int | None, more: int
    ) -> tuple[int | None, bytes]:
        end = begin + len(out)
        at = begin // _ALIGNED * _ALIGNED
        seal = b""
        while at < end + more:
            wanted = min(len(buffer), -(-(end + more - at) // _ALIGNED) * _ALIGNED)
            got = os.preadv(self._descriptor, [buffer[:wanted].data], at)
            low, high = max(begin, at), min(end, at + got)
            if got < min(wanted, end + more - at) and (got <= 0 or got % _ALIGNED):
                raise CorruptItemError(f"{self._where}: ends before byte {end + more}; run `talik store repair`")
            if low < high:
                block = out[low - begin : high - begin]
                crc = copy_block(buffer[low - at : high - at], block, crc)
            if more and at + got > end:
                seal += buffer[max(end - at, 0) : min(end + more - at, got)].tobytes()
            at += got
        return crc, seal


class DirectOpener:
    """Opens shards of a boundary; finds out with the first whether the page cache can be passed by."""

    def __init__(self, where: str, direct: bool) -> None:
        """Remember how.

        Args:
            where: names store and boundary, for messages.
            direct: pass the page cache by, if the file system can.
        """
        self._where = where
        self.direct: bool | None = None if direct else False

    def __call__(self, array: DataArray, shard: int, places: ShardPlaces) -> DirectShard:
        """Open a shard's file."""
        if self.direct is None:
            self.direct = can_pass_cache(array.shard_path(shard))
        return DirectShard(array, shard, self._where, places, direct=self.direct)


def _open(path: os.PathLike[str], direct: bool) -> int:
    if direct:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    descriptor = os.open(path, os.O_RDONLY)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no more than is asked for
    return descriptor


def can_pass_cache(path: str | os.PathLike[str]) -> bool:
    """Return whether the file at `path` can be read with O_DIRECT; tmpfs and some others cannot."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except (OSError, AttributeError):
        return False
    try:
        with _bounce_buffer() as buffer:
            os.preadv(descriptor, [buffer[:_ALIGNED].data], 0)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def _bounce_buffer() -> Iterator[Array]:
    """Lend aligned memory (_BOUNCE_BYTES,) uint8 that nobody else has; as much is kept as was lent at once."""
    try:
        buffer = _bounce.pop()
    except IndexError:
        buffer = np.frombuffer(mmap.mmap(-1, _BOUNCE_BYTES), np.uint8)
    try:
        yield buffer
    finally:
        _bounce.append(buffer)
