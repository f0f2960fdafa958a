"""A media file opened, its packets listed without decoding, and what is wrong with it said in one line."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from ...errors import MediaError, MissingMediaError

#: Containers whose seeks land where their index says; in others a file is read from its beginning.
_SEEKABLE = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})

#: Containers that number the packets in decoding order: as many frames come out, but in another order.
_DECODING_ORDER = frozenset({"avi"})

#: How much shorter than its header says a file may be before it counts as cut off, in seconds and in frames.
_SHORT_SECONDS, _SHORT_FRAMES = 0.25, 3


@dataclass(frozen=True, kw_only=True)
class Track:
    """The packets of one stream, as its container lists them.

    Attributes:
        times: presentation times of the packets that are shown, sorted, (N,) int64 in units of `unit_seconds`; in
            decoding order and meaningless where `timed` is false.
        keys: times of the keyframes among them, sorted, (K,) int64.
        seeks: for each of `keys`, the timestamp to seek to, (K,) int64.
        end: the time at which the last packet's duration is over.
        unit_seconds: seconds in one unit.
        timed: whether every packet has a time of its own.
        exact: whether a frame has the time of the packet that it came in; if not, only their number is the same.
    """

    times: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]
    seeks: npt.NDArray[np.int64]
    end: int
    unit_seconds: float
    timed: bool
    exact: bool

    @property
    def start_seconds(self) -> float:
        """When the first packet is shown, on the file's own clock."""
        return float(self.times[0]) * self.unit_seconds

    @property
    def end_seconds(self) -> float:
        """When the last packet is over, on the file's own clock."""
        return self.end * self.unit_seconds


@dataclass(frozen=True, kw_only=True)
class MediaFile:
    """An open file: its container, the streams to be read, and their tracks (None where there is no such stream)."""

    path: Path
    container: InputContainer
    video: VideoStream | None
    audio: AudioStream | None
    picture: Track | None
    sound: Track | None

    @property
    def seekable(self) -> bool:
        """Whether a seek lands where the index says."""
        return self.container.format.name in _SEEKABLE

    def error(self, message: str) -> MediaError:
        """Return the error whose one line begins with the file's path."""
        return MediaError(f"{self.path}: {message}")


@contextlib.contextmanager
def open_media(path: Path) -> Iterator[MediaFile]:
    """Open a file and list its packets; errors of the decoder inside the `with` become MediaErrors that name the file.

    Raises:
        MissingMediaError: no such file.
        MediaError: it cannot be opened, is cut off, or (inside the `with`) cannot be decoded.
    """
    if not path.is_file():
        raise MissingMediaError(f"{path}: no such file")
    with named_errors(path), _open(path) as container:
        check_whole(path, container.format.name)
        video, audio = _streams(path, container)
        picture, sound = _list_packets(path, container, video, audio)
        file = MediaFile(path=path, container=container, video=video, audio=audio, picture=picture, sound=sound)
        _check_ends(file)
        yield file


@contextlib.contextmanager
def reopened(file: MediaFile) -> Iterator[MediaFile]:
    """Open the same file anew, at its beginning, without listing its packets again."""
    with _open(file.path) as container:
        video, audio = _streams(file.path, container)
        yield MediaFile(
            path=file.path, container=container, video=video, audio=audio, picture=file.picture, sound=file.sound
        )


def _open(path: Path) -> InputContainer:
    """Open a local file as media; a file that names others (a playlist) cannot reach beyond local files."""
    return av.open(f"file:{path}", mode="r", options={"protocol_whitelist": "file"}, metadata_errors="replace")


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turn errors of the decoder inside the `with` into MediaErrors of one line that name the file."""
    try:
        yield
    except MediaError:
        raise
    except (av.FFmpegError, OSError, ValueError, EOFError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MediaError(f"{path}: cannot be decoded: {' '.join(reason.split())}") from None


def _streams(path: Path, container: InputContainer) -> tuple[VideoStream | None, AudioStream | None]:
    """Return the picture and the sound to read: the first of each that is not a cover image."""
    videos = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    audios = list(container.streams.audio)
    for stream in (*videos[:1], *audios[:1]):
        if stream.codec_context is None:
            raise MediaError(f"{path}: no decoder for its {stream.type}")
    return next(iter(videos), None), next(iter(audios), None)


def _list_packets(
    path: Path, container: InputContainer, video: VideoStream | None, audio: AudioStream | None
) -> tuple[Track | None, Track | None]:
    streams = [s for s in (video, audio) if s is not None]
    if not streams:
        raise MediaError(f"{path}: neither picture nor sound in it")
    rows: dict[int, list[tuple[int | None, int | None, int, bool]]] = {s.index: [] for s in streams}
    exact = container.format.name not in _DECODING_ORDER
    for packet in demux(path, container, streams):
        if packet.size == 0:
            continue
        if packet.is_corrupt:
            raise MediaError(f"{path}: damaged or cut off: a packet of {packet.stream.type} is not whole")
        if not packet.is_discard:
            time = packet.pts if exact else packet.dts
            rows[packet.stream_index].append((time, packet.dts, packet.duration or 0, packet.is_keyframe))
    return _track(video, rows, exact=exact), _track(audio, rows, exact=exact)


def demux(path: Path, container: InputContainer, streams: Sequence[VideoStream | AudioStream]) -> Iterator[Packet[Any]]:
    """Yield the packets of some streams from where the container stands, and at the end an empty one for each.

    Raises:
        MediaError: a stream begins that the file's head does not list.
    """
    packets = container.demux(list(streams))
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except IndexError:  # PyAV numbers the streams once, when it opens the file
            raise MediaError(f"{path}: damaged: a stream begins that its head does not list") from None
        yield packet


def _track(
    stream: VideoStream | AudioStream | None,
    rows: dict[int, list[tuple[int | None, int | None, int, bool]]],
    *,
    exact: bool,
) -> Track | None:
    """Return the track of one stream, None where it has no packets at all."""
    packets = rows[stream.index] if stream is not None else []
    if stream is None or not packets or stream.time_base is None:
        return None
    timed = [(pts, dts, duration, key) for pts, dts, duration, key in packets if pts is not None]
    times = np.array(sorted(p[0] for p in timed), dtype=np.int64)
    whole = len(timed) == len(packets) and bool(np.all(np.diff(times) > 0))
    keys = sorted((pts, pts if dts is None else min(pts, dts)) for pts, dts, _, key in timed if key)
    last = max(timed, default=None)
    return Track(
        times=times if whole else np.arange(len(packets), dtype=np.int64),
        keys=np.array([k[0] for k in keys], dtype=np.int64),
        seeks=np.array([k[1] for k in keys], dtype=np.int64),
        end=last[0] + (last[2] or _usual_step(times)) if last is not None else 0,
        unit_seconds=float(stream.time_base),
        timed=whole,
        exact=whole and exact,
    )


def _usual_step(times: npt.NDArray[np.int64]) -> int:
    """Return how long a packet without a duration lasts: as long as between most of the others, or one unit."""
    return int(np.median(np.diff(times))) if len(times) > 1 else 1


def _check_ends(file: MediaFile) -> None:
    """Raise where the file ends before its header says that it does."""
    tracks = [t for t in (file.picture, file.sound) if t is not None]
    if not tracks:
        raise file.error("damaged or cut off: its header is there, but no picture and no sound follow")
    stated = _stated_end(file)
    frame = _usual_step(file.picture.times) * file.picture.unit_seconds if file.picture and file.picture.timed else 0.0
    ends_at = max(t.end_seconds for t in tracks)
    if stated is not None and stated - ends_at > max(_SHORT_SECONDS, _SHORT_FRAMES * frame):
        raise file.error(f"damaged or cut off: ends at {ends_at:.2f} s, its header says {stated:.2f} s")


def _stated_end(file: MediaFile) -> float | None:
    """Return when the file ends at the earliest by its header, on its own clock.

    Some containers count the duration from their first packet, others from zero.
    """
    if file.container.duration is None:
        return None
    return (min(file.container.start_time or 0, 0) + file.container.duration) / av.time_base


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
