"""Shards reached by `preadv`: for data that is not in memory, does not fit, or lies on a network file system.

On a local disk these reads bypass the page cache (O_DIRECT), which takes a third of the processor time and leaves other
data in the cache; where a file system has no such reads, ordinary ones are made.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptItemError
from ..format.layout import DataArray
from ..format.sharding import shard_where
from .shard_reader import BLOCK_BYTES, ShardIndex, StoredShard, copy_block

_ALIGNED = 4096  # at least what any disk asks of offset, size and address
_BOUNCE_BYTES = 8 * BLOCK_BYTES  # of each thread; one read at once keeps a disk busier than several in turn
_NETWORKS = {  # statfs(2), f_type
    *(0x6969, 0x517B, 0xFE534D42, 0xFF534D42, 0x5346414F, 0x00C36400),  # NFS, SMB, SMB2, CIFS, AFS, Ceph
    *(0x65735546, 0x0BD00BD0, 0x47504653, 0x19830326, 0x01021997),  # FUSE (sshfs, gcsfuse …), Lustre, GPFS, BeeGFS, 9p
    *(0x7461636F, 0x73757245, 0xAAD7AAEA),  # OCFS2, Coda, PanFS
}
_bounce: list[NDArray[np.uint8]] = []  # a list's pop and append are safe between threads


def file_system_type(path: str | os.PathLike[str]) -> int:
    """Return the magic number of the file system of `path` (statfs(2), f_type); 0 if the call fails."""
    answer = (ctypes.c_long * 64)()  # struct statfs begins with f_type
    failed = ctypes.CDLL(None).statfs(os.fsencode(path), ctypes.byref(answer))
    return 0 if failed else answer[0] & 0xFFFFFFFF


def is_network(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` lies on a network (or FUSE) file system, where a map may raise SIGBUS at any time."""
    return file_system_type(path) in _NETWORKS


class DirectShard(StoredShard):
    """One shard's file, open for reading; any number of threads may read at once.

    Args:
        array, shard, index: the shard's array, number and parsed index.
        where: names store and boundary, for messages.
        direct: bypass the page cache.

    Raises:
        FileNotFoundError: no such file.
    """

    def __init__(self, array: DataArray, shard: int, where: str, index: ShardIndex, *, direct: bool) -> None:
        super().__init__(array, index)
        self._descriptor = -1
        self._where = shard_where(where, array, shard)
        self._descriptor = os.open(array.shard_path(shard), os.O_RDONLY | (os.O_DIRECT if direct else 0))
        if not direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead

    def __del__(self) -> None:  # when no thread reads any more
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def copy(self, begin: int, out: NDArray[np.uint8], crc: int | None) -> int | None:
        """Copy the file's bytes from `begin` on into `out` (bytes,); return `crc` extended by them, or None."""
        return self._read(begin, out, crc, 0)[0]

    def copy_checked(self, begin: int, out: NDArray[np.uint8]) -> bool:
        """Copy likewise; return whether the CRC32C that follows in the file is that of the bytes."""
        crc, seal = self._read(begin, out, 0, 4)
        return crc == int.from_bytes(seal, "little")

    def _read(self, begin: int, out: NDArray[np.uint8], crc: int | None, more: int) -> tuple[int | None, bytes]:
        """Read block by block into aligned memory, as O_DIRECT requires, and copy and sum from there.

        Returns:
            The checksum, and the `more` bytes that follow.
        """
        end = begin + len(out)
        at = begin // _ALIGNED * _ALIGNED
        seal = b""
        with _bounce_buffer() as buffer:
            while at < end + more:
                wanted = min(len(buffer), -(-(end + more - at) // _ALIGNED) * _ALIGNED)
                got = os.preadv(self._descriptor, [buffer[:wanted].data], at)
                low, high = max(begin, at), min(end, at + got)
                if got < min(wanted, end + more - at) and (got <= 0 or got % _ALIGNED):
                    raise CorruptItemError(f"{self._where}: ends before byte {end + more}; run `talik store repair`")
                if low < high:
                    crc = copy_block(buffer[low - at : high - at], out[low - begin : high - begin], crc)
                if more and at + got > end:
                    seal += buffer[max(end - at, 0) : min(end + more - at, got)].tobytes()
                at += got
        return crc, seal


class DirectOpener:
    """Opens shards of a boundary; finds out with the first one whether the page cache can be bypassed.

    Args:
        where: names store and boundary, for messages.
        direct: bypass the page cache, if the file system can.
    """

    def __init__(self, where: str, direct: bool) -> None:
        self._where = where
        self.direct: bool | None = None if direct else False

    def __call__(self, array: DataArray, shard: int, index: ShardIndex) -> DirectShard:
        """Open a shard's file."""
        if self.direct is None:
            self.direct = can_bypass_cache(array.shard_path(shard))
        return DirectShard(array, shard, self._where, index, direct=self.direct)


def can_bypass_cache(path: str | os.PathLike[str]) -> bool:
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
def _bounce_buffer() -> Iterator[NDArray[np.uint8]]:
    """Lend aligned memory (_BOUNCE_BYTES,) to one thread at a time; what was lent is kept for the next."""
    try:
        buffer = _bounce.pop()
    except IndexError:
        buffer = np.frombuffer(mmap.mmap(-1, _BOUNCE_BYTES), np.uint8)
    try:
        yield buffer
    finally:
        _bounce.append(buffer)
