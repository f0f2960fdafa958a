"""Files that end before one of their own parts does, found by the sizes that containers write; no decoder is needed.

A size that could not be known when it was written, as of sound that went through a pipe, says nothing.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ...errors import MediaError
from .tar_member import FilePath

_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067  # element ids, RFC 8794 section 11.2.1 and RFC 9559 section 5.1
_MAX_PARTS = 100_000

#: Some programs count a file's head into the size of what follows it; so many bytes may be missing at its end.
_HEAD_BYTES = 128


@dataclass(frozen=True, kw_only=True)
class _Chunks:
    """How a format cuts its file into chunks, each with a name and a size before it.

    Attributes:
        head: of a chunk: its name, its size.
        begin: of the first chunk.
        data: the name of the chunk that holds the media.
        whole: whether a chunk's size counts its head.
        align: what chunks begin at a multiple of.
    """

    head: struct.Struct
    begin: int
    data: bytes
    whole: bool = False
    align: int = 1


_CHUNKS = {
    "wav": _Chunks(head=struct.Struct("<4sI"), begin=12, data=b"data", align=2),
    "aiff": _Chunks(head=struct.Struct(">4sI"), begin=12, data=b"SSND", align=2),
    "caf": _Chunks(head=struct.Struct(">4sq"), begin=8, data=b"data"),
    "w64": _Chunks(
        head=struct.Struct("<16sQ"),
        begin=40,
        data=bytes.fromhex("64617461f3acd3118cd100c04f8edb8a"),
        whole=True,
        align=8,
    ),
    "asf": _Chunks(
        head=struct.Struct("<16sQ"), begin=0, data=bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c"), whole=True
    ),
}

#: Formats of uncompressed sound, whose last packet may be shorter than the others.
RAW_SOUND = frozenset({"wav", "aiff", "caf", "w64", "au"})


def check_whole(path: FilePath, format_name: str) -> None:
    """Raise where the file ends before one of its outermost parts does.

    Args:
        path: the file.
        format_name: FFmpeg's name of its container; those that write no sizes are not looked at.

    Raises:
        MediaError: the file is cut off, or has a hole.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if format_name.startswith("mov"):
            part, end = _boxes_end(file, size)
        elif format_name.startswith("matroska"):
            part, end = _segment_end(path, file, size)
        elif format_name == "avi":
            part, end = _riff_end(file, size)
        elif format_name == "au":
            part, end = _au_end(file)
        elif format_name == "flv":
            part, end = _tags_end(file, size)
        elif format_name == "ogg":
            part, end = _pages_end(file, size)
        elif format_name in _CHUNKS:
            part, end = _chunk_end(file, _CHUNKS[format_name])
        else:
            return
    if end > size:
        raise MediaError(f"{path}: cut off: it has {size} bytes, its {part} ends at byte {end}")


def _is_unknown(size: int) -> bool:
    """Return whether a size is what programs write that do not know it: 0, or near the most that 31 or 32 bits hold.

    SoX writes 0x7F000000 into AIFF, 0x7FFFF000 into WAV files.
    """
    return size <= 0 or 0x7EFF_0000 <= size <= 0x8000_FFFF or 0xFFFF_0000 <= size <= 0xFFFF_FFFF or size >= 1 << 62


def _boxes_end(file: BinaryIO, size: int) -> tuple[str, int]:
    """Return the first of an MP4's boxes that ends beyond the file, and where (ISO/IEC 14496-12, section 4.2)."""
    position = 0
    while position + 16 <= size:
        file.seek(position)
        length, kind, large = struct.unpack(">I4sQ", file.read(16))
        length = {0: size - position, 1: large}.get(length, length)
        if length < 8:
            break
        position += length
        if position > size and kind in (b"moov", b"mdat", b"moof"):  # others may be what some tool left at the end
            return f"box {kind.decode()!r}", position
    return "", 0


def _segment_end(path: FilePath, file: BinaryIO, size: int) -> tuple[str, int]:
    """Return where a Matroska file's first segment ends; 0 where its size was left open.

    Raises:
        MediaError: zeros where one of its elements should begin.
    """
    for wanted in (_EBML, _SEGMENT):
        number, length = ebml_head(file)
        if number != wanted:
            return "", 0
        if wanted == _EBML:
            file.seek(length or 0, os.SEEK_CUR)
    if length is None:
        return "", 0
    end = file.tell() + length
    for _ in range(_MAX_PARTS):
        begin = file.tell()
        if begin >= min(end, size):
            break
        number, length = ebml_head(file)
        if number == 0:
            raise MediaError(f"{path}: damaged: nothing is there from byte {begin} of {size} on")
        if number is None or length is None:
            break
        file.seek(length, os.SEEK_CUR)
    return "segment", end


def ebml_head(file: BinaryIO) -> tuple[int | None, int | None]:
    """Read an element's id, 0 where there are zeros, and its length; None for what is no number, or an open length."""
    first = file.read(1)
    if not first:
        return None, None
    if first[0] == 0:
        return 0, None
    rest = file.read(8 - first[0].bit_length())
    number = int.from_bytes(first + rest, "big")
    first = file.read(1)
    width = 9 - first[0].bit_length() if first and first[0] else 0
    rest = file.read(width - 1) if width else b""
    if not width or len(rest) < width - 1:
        return number, None
    length = int.from_bytes(bytes([first[0] & (0xFF >> width)]) + rest, "big")
    return number, None if length == (1 << (7 * width)) - 1 else length


def _riff_end(file: BinaryIO, size: int) -> tuple[str, int]:
    """Return where the last RIFF chunk of an AVI file ends; 0 where a size was never filled in."""
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(8)
        if len(head) < 8 or head[:4] != b"RIFF":
            break
        length = int.from_bytes(head[4:], "little")
        if _is_unknown(length):
            return "", 0
        end += 8 + length + length % 2
    return "RIFF chunk", end - 9  # some count the chunk's head too, some do not write the byte that makes it even


def _au_end(file: BinaryIO) -> tuple[str, int]:
    head = file.read(12)
    if len(head) < 12:
        return "", 0
    begin, length = struct.unpack(">II", head[4:])
    return ("", 0) if _is_unknown(length) else ("sound", begin + length - min(begin, _HEAD_BYTES))


def _tags_end(file: BinaryIO, size: int) -> tuple[str, int]:
    """Return where the last tag of an FLV file ends, and the number after it (Adobe's specification, annex E.3)."""
    head = file.read(9)
    if len(head) < 9 or head[:3] != b"FLV":
        return "", 0
    end = int.from_bytes(head[5:], "big") + 4
    while end < size:
        file.seek(end)
        head = file.read(11)
        if len(head) == 11 and head[0] & 0x1F not in (8, 9, 18):  # sound, picture, script: else what somebody added
            return "", 0
        end += 11 + int.from_bytes(head[1:4], "big") + 4
    return "last tag", end - 4


def _pages_end(file: BinaryIO, size: int) -> tuple[str, int]:
    """Return where the last page of an Ogg file ends (RFC 3533, section 6)."""
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(27)
        if head[:4] != b"OggS"[: len(head)]:
            return "", 0
        end += 27 + (head[26] + sum(file.read(head[26])) if len(head) == 27 else 0)
    return "last page", end


def _chunk_end(file: BinaryIO, chunks: _Chunks) -> tuple[str, int]:
    """Return where the chunk ends that holds the media."""
    large: int | None = None
    for name, begin, length in _walk(file, chunks):
        if name == b"ds64":  # of an RF64 file, EBU Tech 3306: the sizes that 32 bits do not hold
            file.seek(begin + 8)
            large = int.from_bytes(file.read(8), "little")
        if name == chunks.data:
            length = large if large is not None and length == 0xFFFF_FFFF else length
            spare = 0 if chunks.whole else min(begin, _HEAD_BYTES)
            return ("", 0) if _is_unknown(length) else (f"{_printable(name)} chunk", begin + length - spare)
    return "", 0


def _walk(file: BinaryIO, chunks: _Chunks) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk's name, where its content begins, and the content's length as it is written."""
    position = chunks.begin
    for _ in range(_MAX_PARTS):
        file.seek(position)
        head = file.read(chunks.head.size)
        if len(head) < chunks.head.size:
            return
        name, length = chunks.head.unpack(head)
        content = length - chunks.head.size if chunks.whole else length
        yield name, position + chunks.head.size, content
        if content < 0:
            return
        position += chunks.head.size + content
        position += -position % chunks.align


def _printable(name: bytes) -> str:
    return repr(name[:4].decode("ascii", errors="replace").strip()) if name[:4].isalpha() else "data"
