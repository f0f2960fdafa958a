"""Clips decoded into what the encoders take: one frame and one window of sound for each of T segments.

An encoder that takes whole clips gets F frames instead, one at the centre of each of F equal parts.

Time is in seconds from the clip's first frame (or first sample of sound where it has no picture). The clip lasts until
its last frame is over, or its sound where that goes on for more than 0.25 s; it is cut into T equal segments, and the
centre of each is the instant of both its frame (the one on display then) and its window of sound. With a stride,
segments have that length instead, counted from the beginning. As in a player the last frame stays on display when the
picture has ended before the sound, or the clip before its segments, and what has no sound is silent.

A stretch of a film is a clip of its own: time counts from its beginning, and nothing outside of it is seen or heard.

T: segments, F: frames, H: height, W: width, S: samples of a window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from ...errors import MediaError, SettingsError, name_item
from .audio import read_sound
from .clip_media import Channels, ClipMedia, Instants, SegmentSettings
from .container import MediaFile, open_film, open_media
from .deinterlace import Deinterlace
from .extent import TAIL_SECONDS, Extent, film_extent, folder_extent, sound_begin
from .frame_folder import FrameFolder, MediaSource, frame_files, read_frame_files
from .geometry import Pixels
from .instants import folder_instants, frame_instants, window_centres
from .stretch import Stretch, stretch_of
from .tar_member import FilePath, media_file
from .video import frame_times, read_frames, shown_at

T = TypeVar("T")

FrameFunction = Callable[[Pixels], Any]
"""Makes of a frame (H, W, 3) uint8 RGB what is kept of it."""

#: A frame that comes on less than this before a stretch's end is the one after it, in seconds.
_AT_END_SECONDS = 2e-6

#: Height and width of the black frames that stand for a picture that is not there.
_BLACK_SIZE = (224, 224)

#: The field of a ClipMedia without pictures.
_NONE: dict[str, Any] = {"frames": None}


@dataclass(frozen=True, kw_only=True)
class MediaOutcome:
    """What came of one file: either `media` or `error` is there."""

    path: FilePath
    media: ClipMedia | None
    error: MediaError | None


def decode_clip(
    path: str | Path | FrameFolder,
    *,
    num_segments: int,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    num_frames: int | None = None,
    window_seconds: float | None = None,
    sample_rate_hz: int | None = None,
    frames: bool = True,
    sound: bool = True,
    missing_sound: Literal["error", "silence"] = "error",
    missing_picture: Literal["error", "black"] = "error",
    stride_seconds: float | None = None,
    deinterlace: Deinterlace = "off",
    channels: Channels = "mean",
    instants: Instants = "centres",
    instants_fps: float | None = None,
) -> ClipMedia:
    """Decode F frames and T windows of sound of one file.

    The instants do not depend on whether frames, sound or both are decoded. Never holds more than one decoded frame
    beside the result.

    Args:
        path: the video or sound file, also inside a tar file ("shard.tar/key.mp4"), or a folder of extracted frames.
        num_segments: T, equal segments of the clip; each gives a frame and a window of sound at its centre.
        start_seconds, end_seconds: of the file, only the part between them is the clip; all that is said of a clip is
            then said of that part. By default the file's beginning and end.
        num_frames: F, frames at the centres of as many equal parts of the clip; None for one a segment.
        window_seconds: length of a window of sound; required with `sound`.
        sample_rate_hz: of the sound; required with `sound`.
        frames: whether to decode pictures.
        sound: whether to decode sound.
        missing_sound: whether a file without sound is an error, or silence.
        missing_picture: whether a file without picture is an error, or black.
        stride_seconds: length of a segment; None where the T segments fill the clip.
        deinterlace: FFmpeg's filter that makes interlaced frames whole, "yadif" or "bwdif"; "off" leaves them with both
            fields in each, as FFmpeg's command does.
        channels: of the sound: their "mean", or the "first" alone.
        instants: "centres" of the segments; or "first-to-last" of the frames that FFmpeg's filter `fps` takes out at
            `instants_fps` (of a folder, of all frames), with windows of sound from the first sample to 0.1 s before the
            last, as LAVISH's loader does.
        instants_fps: see there.

    Returns:
        frames (F, H, W, 3) uint8 RGB or None, waveforms (T, S) float32 mono in [-1, 1] or None with S =
        round(window_seconds * sample_rate_hz), the segments' instants (T,), the duration in seconds, and notes on what
        of the file is not looked at, or not as a screen would show it.

    Raises:
        MissingMediaError: no such file.
        MediaError: it cannot be decoded, is cut off, or lacks the picture or sound; or it ends before that part.
        SettingsError: arguments out of range, or sound without window and rate.

    Example:
        >>> import pathlib, tempfile, wave
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "silence.wav"
        >>> with wave.open(str(path), "wb") as file:
        ...     file.setparams((1, 2, 8000, 0, "NONE", ""))
        ...     file.writeframes(bytes(2 * 16000))
        >>> clip = decode_clip(path, num_segments=4, window_seconds=0.5, sample_rate_hz=4000, frames=False)
        >>> clip.waveforms.shape, clip.instants_seconds.tolist(), clip.duration_seconds
        ((4, 2000), [0.25, 0.75, 1.25, 1.75], 2.0)
    """
    settings = SegmentSettings(
        num_segments=num_segments,
        num_frames=num_frames,
        window_seconds=window_seconds,
        sample_rate_hz=sample_rate_hz,
        frames=frames,
        sound=sound,
        missing_sound=missing_sound,
        missing_picture=missing_picture,
        stride_seconds=stride_seconds,
        deinterlace=deinterlace,
        channels=channels,
        instants=instants,
        instants_fps=instants_fps,
    )
    film = path if isinstance(path, FrameFolder) else media_file(path)
    return decode_segments(stretch_of(film, start_seconds, end_seconds), settings)


def decode_segments(
    source: MediaSource, settings: SegmentSettings, each_frame: FrameFunction | None = None
) -> ClipMedia:
    """Decode one file, or one folder of frames, or a part of either, as `settings` say; as decode_clip.

    Args:
        source: the file, the folder, or the part.
        settings: what is taken of it.
        each_frame: called with each frame as it comes; `prepared` of the result then holds what it returned, and no
            frame is kept. Without it `frames` holds them whole.
    """
    stretch, media = (source, source.media) if isinstance(source, Stretch) else (None, source)
    if isinstance(media, FrameFolder):
        return _decode_folder(media, stretch, settings, each_frame)
    with (open_media if stretch is None else open_film)(media) as file:
        _check_streams(file, settings)
        times = frame_times(file) if file.picture is not None else None
        film = film_extent(file, times)
        extent = film if stretch is None else stretch.within(film)
        instants = partial(frame_instants, settings, extent.seconds, extent.picture_seconds)
        centres, shown = instants(parts=settings.num_segments), instants(parts=settings.frames_wanted)  # (T,), (F,)
        notes = list(_notes(settings, extent))
        seen = extent.begin + shown if stretch is None else _before_end(extent.begin + shown, extent.end)
        frames = _frames(file, times, seen, settings, each_frame, notes) if settings.frames else _NONE
        heard = (extent.begin, None if stretch is None else extent.end)
        return ClipMedia(
            **frames,
            waveforms=_waveforms(file, centres, heard, settings) if settings.sound else None,
            instants_seconds=centres,
            duration_seconds=extent.seconds,
            notes=tuple(notes),
        )


def _before_end(instants: npt.NDArray[np.float64], end: float) -> npt.NDArray[np.float64]:
    """Return the instants, those at or after a stretch's end as of its last frame, which stays on display."""
    return np.minimum(instants, end - _AT_END_SECONDS)


def _decode_folder(
    folder: FrameFolder, stretch: Stretch | None, settings: SegmentSettings, each_frame: FrameFunction | None
) -> ClipMedia:
    files = frame_files(folder.path)
    film = folder_extent(folder, len(files))
    extent = film if stretch is None else stretch.within(film)
    count = len(files) if stretch is None else max(round(extent.picture_seconds * folder.fps), 1)
    instants = partial(folder_instants, settings, extent.seconds, count=count, fps=folder.fps)
    centres, shown = instants(parts=settings.num_segments), instants(parts=settings.frames_wanted)  # (T,), (F,)
    waveforms: npt.NDArray[np.float32] | None = None
    if settings.sound and folder.sound is not None:
        with open_media(folder.sound) as file:
            if file.sound is None:
                raise file.error("no sound in it, though it stands for the sound of a folder of frames")
            first = sound_begin(file)
            heard = (first + extent.begin, None if stretch is None else first + extent.end)
            waveforms = _waveforms(file, centres, heard, settings)
    elif settings.sound:
        if settings.missing_sound == "error":
            advice = 'add one, or set missing_sound = "silence" in [data]'
            raise MediaError(f"{folder.path}: no sound file beside it; {advice}")
        waveforms = _silence(settings)
    seen = shown if stretch is None else _before_end(extent.begin + shown, extent.end)
    ordinals = shown_at(np.arange(len(files)) / folder.fps, seen)
    return ClipMedia(
        **_kept(partial(read_frame_files, files, ordinals), each_frame) if settings.frames else _NONE,
        waveforms=waveforms,
        instants_seconds=centres,
        duration_seconds=extent.seconds,
        notes=tuple(_notes(settings, extent)),
    )


def _notes(settings: SegmentSettings, extent: Extent) -> Iterator[str]:
    """Yield a line on each part of a clip that no segment is about."""
    if extent.sound_before:
        yield "sound before the first frame is not looked at"
    if settings.stride_seconds is not None:
        end = settings.stride_seconds * settings.num_segments
        if extent.seconds - end > max(TAIL_SECONDS, settings.stride_seconds / 2):
            yield f"only the first {end:g} s are looked at"


def iter_media(
    paths: Iterable[str | MediaSource],
    settings: SegmentSettings,
    workers: int = 2,
    *,
    each_frame: Callable[[int, Pixels], Any] | None = None,
) -> Iterator[MediaOutcome]:
    """Decode many files ahead of the caller, in threads; outcomes come in the order of `paths`.

    At most 2 * workers decoded clips wait at any time. A file that cannot be decoded is an outcome with its error, and
    the rest go on. The results do not depend on the number of workers.

    Args:
        paths: the files, folders of frames, or parts of them; read as far ahead as decoding goes.
        settings: what is taken of each.
        workers: threads; 0 decodes in the caller's thread.
        each_frame: called in those threads with the place of a file in `paths` and each of its frames, as the one of
            `decode_segments`; whole frames are then never kept.
    """
    if workers < 0:
        raise SettingsError(f"workers: found {workers}, expected 0 or more")

    def of_file(place: int) -> FrameFunction | None:
        return None if each_frame is None else partial(each_frame, place)

    if workers == 0:
        for place, path in enumerate(paths):
            yield media_outcome(path, settings, of_file(place))
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="talik-media")
    jobs = ((path, partial(media_outcome, path, settings, of_file(place))) for place, path in enumerate(paths))
    try:
        for _, outcome in done_ahead(pool, jobs, most=2 * workers):
            yield outcome
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def done_ahead(
    pool: ThreadPoolExecutor, jobs: Iterable[tuple[T, Callable[[], MediaOutcome]]], *, most: int
) -> Iterator[tuple[T, MediaOutcome]]:
    """Have jobs done by a pool ahead of the caller, and yield what comes of each in their order.

    Args:
        pool: that does them; closed early, those that it has not begun are not done.
        jobs: each with what its outcome is to come back with.
        most: how many may be under way or wait.
    """
    waiting: deque[tuple[T, Future[MediaOutcome]]] = deque()
    try:
        for given, job in jobs:
            waiting.append((given, pool.submit(job)))
            if len(waiting) >= most:
                first, outcome = waiting.popleft()
                yield first, outcome.result()
        while waiting:
            first, outcome = waiting.popleft()
            yield first, outcome.result()
    finally:
        for _, outcome in waiting:
            outcome.cancel()


def media_outcome(
    source: str | MediaSource, settings: SegmentSettings, each_frame: FrameFunction | None
) -> MediaOutcome:
    """Decode one file as `decode_segments` does; a file that cannot be decoded is an outcome with its error."""
    source = media_file(source) if isinstance(source, str) else source
    path = film_path(source)
    try:
        return MediaOutcome(path=path, media=decode_segments(source, settings, each_frame), error=None)
    except MediaError as error:
        return MediaOutcome(path=path, media=None, error=error)
    except Exception as error:
        name_item(error, str(source if isinstance(source, Stretch) else path))
        raise


def film_path(source: MediaSource) -> FilePath:
    """Return the file, or the folder of frames, that a clip is decoded from."""
    media = source.media if isinstance(source, Stretch) else source
    return media.path if isinstance(media, FrameFolder) else media


def missing_streams(source: MediaSource) -> frozenset[str]:
    """Return which of "picture" and "sound" a file does not have; neither of one that cannot be opened.

    >>> sorted(missing_streams(FrameFolder(path=Path("frames/0001"), fps=8.0)))
    ['sound']
    """
    stretch, media = (source, source.media) if isinstance(source, Stretch) else (None, source)
    if isinstance(media, FrameFolder):
        return frozenset({"sound"} if media.sound is None else ())
    try:
        with (open_media if stretch is None else open_film)(media) as file:
            found = {"picture": file.picture, "sound": file.sound}
    except MediaError:  # decoding it says what is wrong
        return frozenset()
    return frozenset(name for name, track in found.items() if track is None)


def _check_streams(file: MediaFile, settings: SegmentSettings) -> None:
    if settings.frames and file.picture is None and settings.missing_picture == "error":
        raise file.error('no picture in it; leave the file out, or set missing_picture = "black" in [data]')
    if settings.sound and file.sound is None and settings.missing_sound == "error":
        raise file.error('no sound in it; leave the file out, or set missing_sound = "silence" in [data]')


def _frames(
    file: MediaFile,
    times: npt.NDArray[np.float64] | None,
    instants: npt.NDArray[np.float64],
    settings: SegmentSettings,
    each_frame: FrameFunction | None,
    notes: list[str],
) -> dict[str, Any]:
    if times is None:
        return _kept(partial(_black_frames, len(instants)), each_frame)
    ordinals = shown_at(times, instants)
    read = partial(read_frames, file, ordinals, decoder=settings.decoder, deinterlace=settings.deinterlace, notes=notes)
    return _kept(read, each_frame)


def _black_frames(count: int, each: FrameFunction) -> list[Any]:
    return [each(np.zeros((*_BLACK_SIZE, 3), np.uint8))] * count


def _kept(read: Callable[[FrameFunction], list[Any]], each_frame: FrameFunction | None) -> dict[str, Any]:
    """Return the fields of a ClipMedia that come of its frames: the frames whole, or what was made of each."""
    if each_frame is None:
        return {"frames": np.stack(read(lambda pixels: pixels))}
    return {"frames": None, "prepared": tuple(read(each_frame))}


def _waveforms(
    file: MediaFile, centres: npt.NDArray[np.float64], heard: tuple[float, float | None], settings: SegmentSettings
) -> npt.NDArray[np.float32]:
    """Return the sound of a clip around its segments' centres.

    Args:
        file: open.
        centres: (T,) seconds from the clip's beginning.
        heard: when the clip begins on the file's own clock, and the end of a stretch, outside of which all is silent.
        settings: what is taken of it.
    """
    assert settings.window_seconds is not None
    assert settings.sample_rate_hz is not None
    if file.sound is None:
        return _silence(settings)
    first, last = sound_begin(file), file.sound.end_seconds
    begin, end = heard
    if end is not None:
        first, last = max(first, begin), min(last, end)
    around = window_centres(
        settings, centres, clip_begin=begin, sound_begin=first, sound_seconds=max(last - first, 0.0)
    )
    return read_sound(
        file,
        around,
        window_seconds=settings.window_seconds,
        sample_rate_hz=settings.sample_rate_hz,
        channels=settings.channels,
        between=None if end is None else (begin, end),
    )


def _silence(settings: SegmentSettings) -> npt.NDArray[np.float32]:
    assert settings.window_seconds is not None
    assert settings.sample_rate_hz is not None
    return np.zeros((settings.num_segments, round(settings.window_seconds * settings.sample_rate_hz)), np.float32)
