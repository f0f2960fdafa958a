"""A media file opened, its packets listed without decoding, and what is wrong with it said in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from ...errors import MediaError, MissingMediaError
from .still import is_animated_webp
from .streams import Stream, candidates, choose_film
from .tar_member import PROTOCOLS, FilePath, media_url
from .wholeness import RAW_SOUND, check_whole

#: Containers whose seeks land where their index says; in others a file is read from its beginning.
_SEEKABLE = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})

#: Containers that number the packets in decoding order: as many frames come out, but in another order.
_DECODING_ORDER = frozenset({"avi"})

#: Formats of sound whose header counts the samples; sound that went through a pipe has none there.
_COUNTED = frozenset({"flac", "tta", "ape", "wv"})

#: Films whose packets are kept listed, for further stretches of them.
_FILMS_LISTED = 4

#: How much shorter than its header counts a file may be before it counts as cut off, in seconds.
_SHORT_SECONDS = 0.1


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

    path: FilePath
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
def open_media(path: FilePath) -> Iterator[MediaFile]:
    """Open a file and list its packets; errors of the decoder inside the `with` become MediaErrors that name the file.

    Raises:
        MissingMediaError: no such file.
        MediaError: it cannot be opened, is cut off, or (inside the `with`) cannot be decoded.
    """
    if not path.is_file():
        raise MissingMediaError(f"{path}: no such file")
    with named_errors(path), open_container(path) as container:
        check_whole(path, container.format.name)
        if container.format.name == "webp_pipe" and is_animated_webp(path):
            raise MediaError(
                f"{path}: an animated WebP, of which the FFmpeg inside PyAV {av.__version__} decodes nothing; save it "
                "as GIF, APNG or MP4"
            )
        file = _list_packets(path, container)
        _check_ends(file)
        yield file


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """Of a file that may be closed: the numbers of the streams that are its film, and their tracks."""

    video: int | None
    audio: int | None
    picture: Track | None
    sound: Track | None

    @classmethod
    def of(cls, file: MediaFile) -> _Listing:
        return cls(
            video=None if file.video is None else file.video.index,
            audio=None if file.audio is None else file.audio.index,
            picture=file.picture,
            sound=file.sound,
        )

    @contextlib.contextmanager
    def opened(self, path: FilePath) -> Iterator[MediaFile]:
        with open_container(path) as container:
            streams = {s.index: s for s in (*container.streams.video, *container.streams.audio)}
            video = None if self.video is None else streams.get(self.video)
            audio = None if self.audio is None else streams.get(self.audio)
            assert video is None or isinstance(video, VideoStream)
            assert audio is None or isinstance(audio, AudioStream)
            yield MediaFile(
                path=path, container=container, video=video, audio=audio, picture=self.picture, sound=self.sound
            )


@contextlib.contextmanager
def reopened(file: MediaFile) -> Iterator[MediaFile]:
    """Open the same file anew, at its beginning, without listing its packets again."""
    with _Listing.of(file).opened(file.path) as fresh:
        yield fresh


@contextlib.contextmanager
def open_film(path: FilePath) -> Iterator[MediaFile]:
    """Open a file as `open_media` does; its packets are listed once for several stretches of it.

    Raises:
        MissingMediaError, MediaError: as `open_media` does.
    """
    if not path.is_file():
        raise MissingMediaError(f"{path}: no such file")
    found = path.stat()
    listing = _listing(path, (found.st_size, found.st_mtime_ns, found.st_ino))
    with named_errors(path), listing.opened(path) as file:
        yield file


@lru_cache(maxsize=_FILMS_LISTED)
def _listing(path: FilePath, _stat: tuple[int, int, int]) -> _Listing:
    with open_media(path) as file:
        return _Listing.of(file)


def open_container(path: FilePath) -> InputContainer:
    """Open a local file as media; a file that names others (a playlist) cannot reach beyond local files.

    The name of a picture is that of one file, also where it looks like a pattern (a%03d.png).
    """
    options = {"protocol_whitelist": PROTOCOLS, "pattern_type": "none"}
    return av.open(media_url(path), mode="r", options=options, metadata_errors="replace")


@contextlib.contextmanager
def named_errors(path: FilePath) -> Iterator[None]:
    """Turn errors of the decoder inside the `with` into MediaErrors of one line that name the file."""
    try:
        yield
    except MediaError:
        raise
    except (av.FFmpegError, OSError, ValueError, EOFError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MediaError(f"{path}: cannot be decoded: {' '.join(reason.split())}") from None


class _Packet(NamedTuple):
    """What is kept of a packet: times in units of its stream."""

    time: int | None
    dts: int | None
    duration: int
    is_keyframe: bool
    is_corrupt: bool


def _list_packets(path: FilePath, container: InputContainer) -> MediaFile:
    """Choose the film among the file's streams by what packets they have, and return it with its tracks."""
    streams = candidates(path, container)
    if not streams:
        raise MediaError(f"{path}: neither picture nor sound in it")
    packets: dict[int, list[_Packet]] = {s.index: [] for s in streams}
    exact = container.format.name not in _DECODING_ORDER
    for packet in demux(path, container, streams):
        if packet.size == 0 or packet.is_discard:
            continue
        time = packet.pts if exact else packet.dts
        kept = _Packet(time, packet.dts, packet.duration or 0, packet.is_keyframe, packet.is_corrupt)
        packets[packet.stream_index].append(kept)
    video, audio = choose_film(streams, {index: len(found) for index, found in packets.items()})
    for stream in (video, audio):
        _check_packets(path, container, stream, packets)
    return MediaFile(
        path=path,
        container=container,
        video=video,
        audio=audio,
        picture=_track(video, packets, exact=exact),
        sound=_track(audio, packets, exact=exact),
    )


def _check_packets(
    path: FilePath, container: InputContainer, stream: Stream | None, packets: dict[int, list[_Packet]]
) -> None:
    """Raise where a packet is not whole; the last one of raw sound ends where its file does."""
    found = packets[stream.index] if stream is not None else []
    last = 1 if container.format.name in RAW_SOUND else 0
    if stream is not None and any(p.is_corrupt for p in found[: len(found) - last]):
        raise MediaError(f"{path}: damaged or cut off: a packet of {stream.type} is not whole")


def demux(path: FilePath, container: InputContainer, streams: Sequence[Stream]) -> Iterator[Packet[Any]]:
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


def _track(stream: Stream | None, rows: dict[int, list[_Packet]], *, exact: bool) -> Track | None:
    """Return the track of one stream, None where it has no packets at all."""
    packets = rows[stream.index] if stream is not None else []
    if stream is None or not packets or stream.time_base is None:
        return None
    timed = [(p.time, p.dts, p.duration, p.is_keyframe) for p in packets if p.time is not None]
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
    """Raise where nothing follows the file's head, or less than was counted when it was written.

    Durations that containers state are not looked at: those of other streams and of chapters are among them, estimates,
    and what a recorder could not know.
    """
    tracks = [t for t in (file.picture, file.sound) if t is not None]
    if not tracks:
        raise file.error("damaged or cut off: its header is there, but no picture and no sound follow")
    if file.sound is None:
        return
    name, stated, sound = file.container.format.name, file.container.duration, file.sound
    if name in _COUNTED and stated is not None:
        lasts = sound.end_seconds - sound.start_seconds
        if stated / av.time_base - lasts > _SHORT_SECONDS:
            said = f"its sound lasts {lasts:.2f} s, its header counts {stated / av.time_base:.2f} s"
            raise file.error(f"damaged or cut off: {said}")
    counted = _counted_frames(file.path) if name == "mp3" else 0
    if counted > len(sound.times) + 1:  # some count the frame that holds the number
        raise file.error(f"damaged or cut off: it has {len(sound.times)} frames, its header counts {counted}")


def _counted_frames(path: FilePath) -> int:
    """Return the number of frames that an MP3 file's first frame states (Xing's or Fraunhofer's header), 0 without."""
    with path.open("rb") as file:
        head = file.read(10)
        tag = head[:3] == b"ID3"
        file.seek(10 + sum((b & 0x7F) << 7 * (3 - i) for i, b in enumerate(head[6:10])) if tag else 0)
        first = file.read(4096)
    xing = max(first.find(b"Xing"), first.find(b"Info"))
    if xing >= 0:
        flags = int.from_bytes(first[xing + 4 : xing + 8], "big")
        return int.from_bytes(first[xing + 8 : xing + 12], "big") if flags & 1 else 0
    place = first.find(b"VBRI")
    return int.from_bytes(first[place + 14 : place + 18], "big") if place >= 0 else 0
