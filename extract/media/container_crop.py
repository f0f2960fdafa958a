"""Margins of a picture that its container says are not to be shown: Matroska's PixelCrop elements, MP4's `clap` box.

FFmpeg's programs and players cut them off; its libraries hand them on beside the frames, where PyAV does not see them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO

from av.video.stream import VideoStream

from .tar_member import FilePath
from .wholeness import ebml_head

Crop = tuple[int, int, int, int]
"""Pixels at the top, bottom, left and right."""

NO_CROP: Crop = (0, 0, 0, 0)

# RFC 9559, section 5.1.4: Segment, Tracks, TrackEntry, TrackType, Video, and of Video the crop at each side
_SEGMENT, _TRACKS, _ENTRY, _TYPE, _VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0x83, 0xE0
_SIDES = (0x54BB, 0x54AA, 0x54CC, 0x54DD)
_CLUSTER = 0x1F43B675

#: Bytes of a picture's sample entry before its boxes (ISO/IEC 14496-12, section 12.1.3).
_SAMPLE_ENTRY_BYTES = 78


def container_crop(path: FilePath, format_name: str, stream: VideoStream, *, number: int) -> Crop:
    """Return the pixels of a coded frame that are not shown.

    Args:
        path: the file.
        format_name: FFmpeg's name of its container; others than Matroska's and MP4's crop nothing.
        stream: the picture.
        number: how many streams of pictures are before it.
    """
    with path.open("rb") as file:
        if format_name.startswith("matroska"):
            return _matroska_crop(file, number)
        if format_name.startswith("mov"):
            return _clean_aperture(file, stream)
    return NO_CROP


def _matroska_crop(file: BinaryIO, number: int) -> Crop:
    size = file.seek(0, os.SEEK_END)
    for segment, begin, end in _elements(file, 0, size):
        for tracks, inner, inner_end in _elements(file, begin, end) if segment == _SEGMENT else ():
            if tracks == _CLUSTER:
                return NO_CROP
            if tracks == _TRACKS:
                entries = [e for e in _elements(file, inner, inner_end) if e[0] == _ENTRY]
                pictures = [e for e in (dict(_numbers(file, b, e)) for _, b, e in entries) if e.get(_TYPE) == 1]
                found = pictures[number] if number < len(pictures) else {}
                return (
                    found.get(_SIDES[0], 0),
                    found.get(_SIDES[1], 0),
                    found.get(_SIDES[2], 0),
                    found.get(_SIDES[3], 0),
                )
    return NO_CROP


def _elements(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the id of each element in a part of a file, and where its content begins and ends."""
    while begin < end:
        file.seek(begin)
        number, length = ebml_head(file)
        if not number:
            return
        begin, last = file.tell(), end if length is None else file.tell() + length
        yield number, begin, last
        begin = last


def _numbers(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the type of a track and the numbers that describe its picture, by their ids."""
    for number, inner, last in _elements(file, begin, end):
        if number == _VIDEO:
            yield from _numbers(file, inner, last)
        elif number in (_TYPE, *_SIDES):
            file.seek(inner)
            yield number, int.from_bytes(file.read(min(last - inner, 8)), "big")


def _clean_aperture(file: BinaryIO, stream: VideoStream) -> Crop:
    size = file.seek(0, os.SEEK_END)
    for track in _boxes(file, (0, size), (b"moov", b"trak")):
        ids = [_read(file, begin + 12, ">I") for begin, _ in _boxes(file, track, (b"tkhd",))]
        if ids != [(stream.id,)]:
            continue
        for begin, end in _boxes(file, track, (b"mdia", b"minf", b"stbl", b"stsd")):
            entry = begin + 8  # a version, and the number of entries
            for place, _ in _boxes(file, (entry + 8 + _SAMPLE_ENTRY_BYTES, end), (b"clap",)):
                values = _read(file, place, ">8i")
                return _aperture_crop(values, stream.codec_context.width, stream.codec_context.height)
    return NO_CROP


def _aperture_crop(values: tuple[int, ...], width: int, height: int) -> Crop:
    """Return the crop of a clean aperture: width, height, and the centre's offsets, as fractions (section 12.1.4)."""
    if len(values) < 8 or not all(values[1::2]):
        return NO_CROP
    wide, high, right, down = (Fraction(n, d) for n, d in zip(values[::2], values[1::2], strict=True))
    left, top = (width - wide) / 2 + right, (height - high) / 2 + down
    sides = (top, height - high - top, left, width - wide - left)
    if min(sides) < 0 or any(side.denominator != 1 for side in sides):
        return NO_CROP
    return int(sides[0]), int(sides[1]), int(sides[2]), int(sides[3])


def _boxes(file: BinaryIO, within: tuple[int, int], names: tuple[bytes, ...]) -> Iterator[tuple[int, int]]:
    """Yield where the content of each box of a path of names begins and ends."""
    position, end = within
    while position + 8 <= end:
        file.seek(position)
        length, name, large = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        head = 16 if length == 1 else 8
        length = {0: end - position, 1: large}.get(length, length)
        if length < head:
            return
        if name == names[0]:
            inner = (position + head, min(position + length, end))
            yield from _boxes(file, inner, names[1:]) if len(names) > 1 else (inner,)
        position += length


def _read(file: BinaryIO, position: int, kind: str) -> tuple[int, ...]:
    """Return the numbers at a place of the file; () where it ends before them."""
    file.seek(position)
    data = file.read(struct.calcsize(kind))
    return struct.unpack(kind, data) if len(data) == struct.calcsize(kind) else ()
