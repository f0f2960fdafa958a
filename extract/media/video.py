"""Frames at given instants: seeks to the keyframe before each, decodes up to it, and makes it what a player shows.

T: instants, H: height, W: width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from ...errors import MediaError
from .clip_media import Decoder
from .colours import hdr_note
from .container import MediaFile, Track, demux, reopened
from .deinterlace import NOTE as WOVEN
from .deinterlace import Deinterlace, deinterlaced, with_neighbours
from .geometry import Pixels, stream_geometry
from .still import is_tiled, tiled_pixels
from .torchcodec_frames import torchcodec_frames

T = TypeVar("T")

#: Codecs whose decoder can leave out frames that no other refers to without changing the rest.
_SKIPS_EXACTLY = frozenset({"h264", "hevc"})

#: More than 8K video has, twice over: what damaged headers claim is not allocated.
_MAX_PIXELS = 1 << 26

#: An instant this close before a frame's time counts as at it, in seconds: times are sums of binary fractions.
_EPSILON_SECONDS = 1e-6


class _OvershotError(MediaError):
    """A seek that led beyond the frame that was to be reached."""


def frame_times(file: MediaFile) -> npt.NDArray[np.float64]:
    """Return when each frame comes on, (N,) seconds on the file's own clock, sorted.

    Where packets have no times of their own, the frames are decoded once for theirs.
    """
    assert file.picture is not None
    if file.picture.timed:
        return file.picture.times.astype(np.float64) * file.picture.unit_seconds
    return _decoded_times(file, file.picture)


def shown_at(times: npt.NDArray[np.float64], instants: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Return which frame is on display at each instant, (T,): the last that has come on, or the first of all."""
    return np.maximum(np.searchsorted(times, instants + _EPSILON_SECONDS, side="right") - 1, 0)


def read_frames(
    file: MediaFile,
    ordinals: npt.NDArray[np.intp],
    each: Callable[[Pixels], T],
    *,
    decoder: Decoder = "pyav",
    deinterlace: Deinterlace = "off",
    notes: list[str] | None = None,
) -> list[T]:
    """Return some frames of a file as a player shows them, in RGB; of the whole frames one at a time is kept.

    Args:
        file: open, with a picture.
        ordinals: which frames in order of display, (T,), sorted; one may be listed several times.
        each: called once with each frame, (H, W, 3) uint8; what it returns takes the frame's place. H and W are the
            first frame's, to which others of another size are scaled.
        decoder: what decodes them; where another cannot show a frame as a player does, PyAV takes its place.
        deinterlace: what makes interlaced frames whole.
        notes: a line is added for each way in which the frames are not what a screen would show.

    Returns:
        T results, the same one where a frame is listed several times.

    Raises:
        MediaError: the stream ends, or is damaged, before a wanted frame.
    """
    assert file.picture is not None
    assert file.video is not None
    if is_tiled(file.path, file.container):
        return [each(tiled_pixels(file.path))] * len(ordinals)
    wanted = sorted({int(o) for o in ordinals})
    source = _frames_by_time if file.picture.exact else _frames_by_count
    geometry = stream_geometry(file.path, file.container, file.video)
    said = set[str]() if (hdr := hdr_note(file.video)) is None else {hdr}
    made: dict[int, T] = {}
    if decoder != "pyav":
        for ordinal, pixels in torchcodec_frames(file, file.picture, wanted, geometry, decoder):
            made[ordinal] = each(pixels)
    left = [ordinal for ordinal in wanted if ordinal not in made]
    if deinterlace == "off" or not left:
        frames = source(file, file.picture, left) if left else iter(())
    else:
        around = with_neighbours(np.array(left), len(file.picture.times)).tolist()
        frames = deinterlaced(source(file, file.picture, around), left, deinterlace)
    size: tuple[int, int] | None = None
    for ordinal, frame in frames:
        if frame.interlaced_frame and deinterlace == "off":
            said.add(WOVEN)
        if frame.is_corrupt:
            raise file.error(f"damaged: frame {ordinal} cannot be decoded whole")
        shown = geometry.size(frame.width, frame.height)
        if max(frame.width * frame.height, shown[0] * shown[1]) > _MAX_PIXELS:
            raise file.error(f"a picture of {shown[0]} x {shown[1]} pixels, more than any real one")
        size = size or shown
        made[ordinal] = each(geometry.upright(frame, size))
    if len(made) < len(wanted):
        raise file.error(f"damaged or cut off: {len(wanted) - len(made)} of {len(wanted)} frames are not there")
    if notes is not None:
        notes += sorted(said)
    return [made[int(o)] for o in ordinals]


def _frames_by_time(file: MediaFile, track: Track, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the wanted frames of a stream whose packets have their times, by seeking where the container allows it."""
    if not file.seekable:
        with reopened(file) as fresh:
            yield from _run(fresh, track, wanted)
        return
    for seek, group in _by_keyframe(track, wanted):
        file.container.seek(seek, stream=file.video, backward=True, any_frame=False)
        try:
            yield from _run(file, track, group)
        except _OvershotError:  # the index is wrong here; the file itself need not be
            with reopened(file) as fresh:
                yield from _run(fresh, track, group)


def _by_keyframe(track: Track, wanted: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Return the wanted frames in groups, each with where to seek: a keyframe after the group before it."""
    groups: list[tuple[int, list[int]]] = []
    for ordinal in wanted:
        key = int(np.searchsorted(track.keys, track.times[ordinal], side="right")) - 1
        seek = int(track.seeks[key]) if key >= 0 else int(track.times[0])
        if groups and (key < 0 or track.keys[key] <= track.times[groups[-1][1][-1]]):
            groups[-1][1].append(ordinal)
        else:
            groups.append((seek, [ordinal]))
    return groups


def _run(file: MediaFile, track: Track, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
    """Decode onwards from where the container stands until the last of the wanted frames has come."""
    assert file.video is not None
    context = file.video.codec_context
    skips = context.name in _SKIPS_EXACTLY
    targets = {int(track.times[o]): o for o in wanted}
    left = list(wanted)
    before: VideoFrame | None = None
    for packet in demux(file.path, file.container, [file.video]):
        if skips:
            context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in targets else "NONREF"
        for frame in packet.decode():
            while left and frame.pts is not None and frame.pts >= track.times[left[0]]:
                if frame.pts == track.times[left[0]]:
                    yield left.pop(0), frame
                elif before is not None:  # a packet that shows nothing by itself leaves the frame before it on display
                    yield left.pop(0), before
                else:
                    raise _OvershotError(f"{file.path}: damaged: no frame at {left[0]}, the first after a keyframe")
            before = frame
            if not left:
                return


def _frames_by_count(file: MediaFile, _track: Track, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the wanted frames of a stream without usable times, counted from its beginning."""
    chosen = set(wanted)
    with reopened(file) as fresh:
        assert fresh.video is not None
        for ordinal, frame in enumerate(_decode_all(fresh)):
            if ordinal in chosen:
                yield ordinal, frame
            if ordinal >= wanted[-1]:
                return


def _decode_all(file: MediaFile) -> Iterator[VideoFrame]:
    assert file.video is not None
    for packet in demux(file.path, file.container, [file.video]):
        for frame in packet.decode():
            assert isinstance(frame, VideoFrame)
            yield frame


def _decoded_times(file: MediaFile, track: Track) -> npt.NDArray[np.float64]:
    """Return the times of decoded frames, (N,) seconds; one without a time, or out of order, follows its forerunner."""
    with reopened(file) as fresh:
        assert fresh.video is not None
        rate = fresh.video.average_rate or fresh.video.guessed_rate
        step = 1.0 / float(rate) if rate else 0.04
        times: list[float] = []
        for frame in _decode_all(fresh):
            time = None if frame.pts is None else frame.pts * track.unit_seconds
            if time is None or (times and time <= times[-1]):
                time = times[-1] + step if times else 0.0
            times.append(time)
    if not times:
        raise file.error("damaged or cut off: no frame can be decoded")
    return np.array(times)
