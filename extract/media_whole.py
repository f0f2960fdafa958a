"""Whether a file is as long as its container says, by the outermost sizes written in MP4, Matroska and RIFF files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from ..cache.errors import MediaError

_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067  # element ids, RFC 8794 section 11.2.1 and RFC 9559 section 5.1


def check_whole(path: Path, format_name: str) -> None:
    """Raise where the file ends before one of its outermost parts does.

    Args:
        path: the file.
        format_name: FFmpeg's name of its container; others than those above are not looked at.

    Raises:
        MediaError: the file is cut off.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if format_name.startswith("mov"):
            part, end = _boxes_end(file, size)
        elif format_name.startswith("matroska"):
            part, end = _segment_end(file)
        elif format_name in ("avi", "wav"):
            part, end = _riff_end(file)
        else:
            return
    if end > size:
        raise MediaError(f"{path}: cut off: it has {size} bytes, its {part} ends at byte {end}")


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


def _segment_end(file: BinaryIO) -> tuple[str, int]:
    """Return where a Matroska file's first segment ends; 0 where its size was left open."""
    for wanted in (_EBML, _SEGMENT):
        if int.from_bytes(file.read(4), "big") != wanted:
            return "", 0
        first = file.read(1)
        length = 9 - first[0].bit_length() if first and first[0] else 0
        rest = file.read(length - 1) if length else b""
        if not length or len(rest) < length - 1:
            return "", 0
        size = int.from_bytes(bytes([first[0] & (0xFF >> length)]) + rest, "big")
        if wanted == _SEGMENT:
            return ("", 0) if size == (1 << (7 * length)) - 1 else ("segment", file.tell() + size)
        file.seek(size, 1)
    return "", 0


def _riff_end(file: BinaryIO) -> tuple[str, int]:
    """Return where the first RIFF chunk of an AVI or WAV file ends; 0 where its size was never filled in."""
    head = file.read(8)
    if len(head) < 8 or head[:4] != b"RIFF":
        return "", 0
    size = int.from_bytes(head[4:], "little")
    return ("", 0) if size in (0, 0xFFFFFFFF) else ("RIFF chunk", 8 + size)
