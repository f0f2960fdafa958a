"""Media files inside uncompressed tar files (WebDataset's shards), read where they lie; nothing is unpacked."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from ...errors import MediaError, MissingMediaError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: The ending of tar files.
TAR_SUFFIX = ".tar"

#: Tar files whose lists of members are kept.
_TARS_LISTED = 4096

_BLOCK_BYTES = 512

#: What compressed files begin with.
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}


class TarStat(NamedTuple):
    """Of a member, in the words of `os.stat_result`.

    Attributes:
        st_size: its own bytes.
        st_mtime_ns: when its tar file was changed.
        st_ino: of its tar file and of its place in it.
    """

    st_size: int
    st_mtime_ns: int
    st_ino: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TarMember:
    """A file inside a tar file, with as much of a `Path` as reading it takes.

    Attributes:
        tar: the tar file.
        member: the file's name in it, with forward slashes.
        offset: where its content begins.
        size_bytes: of its content.
    """

    tar: Path
    member: str
    offset: int
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.tar}/{self.member}"

    @property
    def name(self) -> str:
        """The last part of its name."""
        return PurePosixPath(self.member).name

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        return PurePosixPath(self.member).suffix

    @property
    def url(self) -> str:
        """What FFmpeg opens: its protocol `subfile` reads a part of a file (https://ffmpeg.org/ffmpeg-protocols.html)."""
        return f"subfile,,start,{self.offset},end,{self.offset + self.size_bytes},,:file:{self.tar}"

    def as_posix(self) -> str:
        """Return its name with that of the tar file before it."""
        return f"{self.tar.as_posix()}/{self.member}"

    def is_file(self) -> bool:
        """Return whether its tar file is there."""
        return self.tar.is_file()

    def exists(self) -> bool:
        """Return whether its tar file is there."""
        return self.tar.is_file()

    def stat(self) -> TarStat:
        """Look at its tar file.

        Raises:
            OSError: it cannot be looked at.
        """
        found = self.tar.stat()
        return TarStat(self.size_bytes, found.st_mtime_ns, (found.st_ino * 1_000_003 + self.offset) & _SIGNED)

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Open it for reading.

        Raises:
            OSError: the tar file cannot be opened.
        """
        if mode != "rb":
            raise ValueError(f"mode: found {mode!r}, expected 'rb'")
        return io.BufferedReader(_Part(self.tar, self.offset, self.size_bytes))

    def read_bytes(self) -> bytes:
        """Return its content."""
        with self.open() as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return its content as text."""
        return self.read_bytes().decode(encoding)


FilePath = Path | TarMember
"""A media file: by itself, or inside a tar file."""

#: The protocols of FFmpeg with which such files are read.
PROTOCOLS = "file,subfile"

_SIGNED = (1 << 63) - 1


def media_url(path: FilePath) -> str:
    """Return what FFmpeg opens for a media file.

    >>> media_url(Path("film.mp4"))
    'file:film.mp4'
    """
    return path.url if isinstance(path, TarMember) else f"file:{path}"


class _Part(io.RawIOBase):
    """A part of a file, as a file of its own."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._offset, self._size, self._at = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if begin + offset < 0:
            raise OSError(f"seek to {begin + offset}, before the beginning")
        self._at = begin + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        view = view[: max(self._size - self._at, 0)]
        self._file.seek(self._offset + self._at)
        count = self._file.readinto(view) or 0
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def media_file(path: str | Path) -> FilePath:
    """Return the file at a path, which may go on inside a tar file: "shards/000000.tar/key.mp4".

    Raises:
        MissingMediaError: the tar file holds no file of that name.
        MediaError: it cannot be read.
    """
    path = Path(path)
    for above in path.parents:
        if above.suffix.lower() == TAR_SUFFIX and above.is_file():
            name = path.relative_to(above).as_posix()
            found = tar_members(above).get(name)
            if found is None:
                raise MissingMediaError(f"{above}: holds no file {name!r}")
            return found
    return path


def tar_members(path: Path) -> dict[str, TarMember]:
    """Return the files in a tar file by name, in their order; its headers are read, and once only.

    Directories and links in it are passed over.

    Raises:
        MissingMediaError: no such file.
        MediaError: it is compressed, damaged or cut off, or holds one name twice.
    """
    if not path.is_file():
        raise MissingMediaError(f"{path}: no such file")
    found = path.stat()
    return _listed(path, (found.st_size, found.st_mtime_ns, found.st_ino))


@lru_cache(maxsize=_TARS_LISTED)
def _listed(path: Path, stat: tuple[int, int, int]) -> dict[str, TarMember]:
    try:
        with path.open("rb") as file:
            _check_plain(path, file.read(_BLOCK_BYTES))
        with tarfile.open(path, "r:") as tar:
            return _members(path, tar, stat[0])
    except MediaError:
        raise
    except (OSError, tarfile.TarError) as error:
        raise MediaError(f"{path}: not a tar file, or damaged ({' '.join(str(error).split())[:120]})") from None


def _check_plain(path: Path, head: bytes) -> None:
    for mark, name in _COMPRESSED.items():
        if head.startswith(mark):
            raise MediaError(
                f"{path}: a tar file compressed with {name}, in which no film can be read where it lies; decompress "
                "it (films do not get smaller), or unpack it into a folder"
            )


def _members(path: Path, tar: tarfile.TarFile, size: int) -> dict[str, TarMember]:
    found: dict[str, TarMember] = {}
    end = 0
    for info in tar:
        name = str(PurePosixPath(info.name))
        end = info.offset_data + (info.size if info.isreg() else 0)
        if end > size:
            raise MediaError(f"{path}: cut off: it has {size} bytes, its member {name!r} ends at byte {end}")
        if not info.isreg() or info.sparse is not None:
            continue
        if name in found:
            raise MediaError(f"{path}: holds {name!r} twice: one name for two files; write it anew, with one of them")
        found[name] = TarMember(tar=path, member=name, offset=info.offset_data, size_bytes=info.size)
    _check_end(path, end + -end % _BLOCK_BYTES, size)
    return found


def _check_end(path: Path, end: int, size: int) -> None:
    """Raise unless the last member is followed by a block of zeros, which ends a tar file (POSIX.1, `ustar`)."""
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(_BLOCK_BYTES)
    if len(block) < _BLOCK_BYTES:
        raise MediaError(f"{path}: cut off: it has {size} bytes, and no mark of its end after byte {end}")
    if any(block):
        raise MediaError(f"{path}: damaged: no header of a member at byte {end} of {size}")
