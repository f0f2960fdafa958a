"""Clips decoded into what the encoders take: one frame and one window of sound for each of T segments.

An encoder that takes whole clips gets F frames instead, one at the centre of each of F equal parts.

Time is in seconds from the clip's first frame (or first sample of sound where it has no picture). The clip lasts until
its last frame is over; it is cut into T equal segments, and the centre of each is the instant of both its frame (the
one on display then) and its window of sound. With a stride, segments have that length instead, counted from the
beginning: those beyond the clip's end show its last frame and are silent.

T: segments, F: frames, H: height, W: width, S: samples of a window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...errors import MediaError, SettingsError
from .audio import read_sound
from .container import MediaFile, open_media
from .frame_folder import FrameFolder, frame_files, read_frame_files
from .video import frame_times, read_frames, shown_at

#: Ten days: what damaged timestamps claim is not looked for.
_MAX_SECONDS = 864_000.0

#: Height and width of the black frames that stand for a picture that is not there.
_BLACK_SIZE = (224, 224)


@dataclass(frozen=True, kw_only=True)
class SegmentSettings:
    """What is taken of each clip.

    Attributes:
        num_segments: T.
        num_frames: F, frames at the centres of as many equal parts of the clip; None for one a segment (F = T).
        window_seconds: length of a window of sound; may be longer than a segment. None where no sound is wanted.
        sample_rate_hz: of the sound. None where no sound is wanted.
        frames: whether pictures are wanted.
        sound: whether sound is wanted.
        missing_sound: what a file without sound gives: an error, or silence.
        missing_picture: what a file without picture gives: an error, or black.
        stride_seconds: length of a segment; None where the T segments fill the clip.
    """

    num_segments: int
    num_frames: int | None = None
    window_seconds: float | None = None
    sample_rate_hz: int | None = None
    frames: bool = True
    sound: bool = True
    missing_sound: Literal["error", "silence"] = "error"
    missing_picture: Literal["error", "black"] = "error"
    stride_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.num_frames < 1:
            raise SettingsError(f"num_frames: found {self.num_frames}, expected 1 or more")
        if self.num_segments < 1:
            raise SettingsError(f"num_segments: found {self.num_segments}, expected 1 or more")
        if self.sound and (self.window_seconds is None or self.sample_rate_hz is None):
            raise SettingsError("sound needs window_seconds and sample_rate_hz; or set sound to false")
        if self.sample_rate_hz is not None and self.sample_rate_hz < 1:
            raise SettingsError(f"sample_rate_hz: found {self.sample_rate_hz}, expected 1 or more")
        if self.sound and not (0.0 < (self.window_seconds or 0.0) < float("inf")):
            raise SettingsError(f"window_seconds: found {self.window_seconds}, expected more than 0")
        if self.sound and round((self.window_seconds or 0.0) * (self.sample_rate_hz or 0)) < 1:
            raise SettingsError("window_seconds: shorter than one sample at sample_rate_hz")
        if self.stride_seconds is not None and not (0.0 < self.stride_seconds < float("inf")):
            raise SettingsError(f"stride_seconds: found {self.stride_seconds}, expected more than 0")
        if self.missing_sound not in ("error", "silence"):
            raise SettingsError(f"missing_sound: found {self.missing_sound!r}, expected 'error' or 'silence'")
        if self.missing_picture not in ("error", "black"):
            raise SettingsError(f"missing_picture: found {self.missing_picture!r}, expected 'error' or 'black'")


@dataclass(frozen=True, kw_only=True)
class ClipMedia:
    """One decoded clip.

    Attributes:
        frames: (F, H, W, 3) uint8 RGB, upright (F = T unless `num_frames` says otherwise); None without pictures.
        waveforms: (T, S) float32 mono in [-1, 1]; None without sound.
        instants_seconds: (T,) float64, the segments' centres.
        duration_seconds: from the first frame to the end of the last.
    """

    frames: npt.NDArray[np.uint8] | None
    waveforms: npt.NDArray[np.float32] | None
    instants_seconds: npt.NDArray[np.float64]
    duration_seconds: float


@dataclass(frozen=True, kw_only=True)
class MediaOutcome:
    """What came of one file: either `media` or `error` is there."""

    path: Path
    media: ClipMedia | None
    error: MediaError | None


def decode_clip(
    path: str | Path | FrameFolder,
    *,
    num_segments: int,
    num_frames: int | None = None,
    window_seconds: float | None = None,
    sample_rate_hz: int | None = None,
    frames: bool = True,
    sound: bool = True,
    missing_sound: Literal["error", "silence"] = "error",
    missing_picture: Literal["error", "black"] = "error",
    stride_seconds: float | None = None,
) -> ClipMedia:
    """Decode F frames and T windows of sound of one file.

    The instants do not depend on whether frames, sound or both are decoded. Never holds more than one decoded frame
    beside the result.

    Args:
        path: the video or sound file, or a folder of extracted frames.
        num_segments: T, equal segments of the clip; each gives a frame and a window of sound at its centre.
        num_frames: F, frames at the centres of as many equal parts of the clip; None for one a segment.
        window_seconds: length of a window of sound; required with `sound`.
        sample_rate_hz: of the sound; required with `sound`.
        frames: whether to decode pictures.
        sound: whether to decode sound.
        missing_sound: whether a file without sound is an error, or silence.
        missing_picture: whether a file without picture is an error, or black.
        stride_seconds: length of a segment; None where the T segments fill the clip.

    Returns:
        frames (F, H, W, 3) uint8 RGB or None, waveforms (T, S) float32 mono in [-1, 1] or None with S =
        round(window_seconds * sample_rate_hz), the segments' centres (T,) and the duration in seconds.

    Raises:
        MissingMediaError: no such file.
        MediaError: it cannot be decoded, is cut off, or lacks the picture or sound.
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
    )
    return decode_segments(path if isinstance(path, FrameFolder) else Path(path), settings)


def decode_segments(path: Path | FrameFolder, settings: SegmentSettings) -> ClipMedia:
    """Decode one file, or one folder of frames, as `settings` say; as decode_clip."""
    if isinstance(path, FrameFolder):
        return _decode_folder(path, settings)
    with open_media(path) as file:
        _check_streams(file, settings)
        times = frame_times(file) if file.picture is not None else None
        begin, end = _extent(file, times)
        if not 0.0 < end - begin < _MAX_SECONDS:
            raise file.error(f"damaged: by its timestamps it lasts {end - begin:.3g} s")
        centres, shown = _instants(settings, end - begin)  # (T,), (F,)
        return ClipMedia(
            frames=_frames(file, times, begin + shown) if settings.frames else None,
            waveforms=_waveforms(file, begin + centres, settings) if settings.sound else None,
            instants_seconds=centres,
            duration_seconds=end - begin,
        )


def _decode_folder(folder: FrameFolder, settings: SegmentSettings) -> ClipMedia:
    files = frame_files(folder.path)
    duration = len(files) / folder.fps
    centres, shown = _instants(settings, duration)  # (T,), (F,)
    frames = read_frame_files(files, shown_at(np.arange(len(files)) / folder.fps, shown)) if settings.frames else None
    waveforms: npt.NDArray[np.float32] | None = None
    if settings.sound and folder.sound is not None:
        with open_media(folder.sound) as file:
            if file.sound is None:
                raise file.error("no sound in it, though it stands for the sound of a folder of frames")
            waveforms = _waveforms(file, _sound_begin(file) + centres, settings)
    elif settings.sound:
        if settings.missing_sound == "error":
            raise MediaError(f"{folder.path}: no sound file beside it; add one, or set missing_sound to 'silence'")
        waveforms = _silence(settings)
    return ClipMedia(frames=frames, waveforms=waveforms, instants_seconds=centres, duration_seconds=duration)


def _instants(settings: SegmentSettings, duration: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the segments' centres, (T,), and the instants of the frames, (F,), in seconds from the beginning."""
    seconds = duration if settings.stride_seconds is None else settings.stride_seconds * settings.num_segments

    def centres(parts: int) -> npt.NDArray[np.float64]:
        return (np.arange(parts, dtype=np.float64) + 0.5) * (seconds / parts)

    return centres(settings.num_segments), centres(settings.num_frames or settings.num_segments)


def iter_media(
    paths: Iterable[str | Path | FrameFolder], settings: SegmentSettings, workers: int = 2
) -> Iterator[MediaOutcome]:
    """Decode many files ahead of the caller, in threads; outcomes come in the order of `paths`.

    At most 2 * workers decoded clips wait at any time. A file that cannot be decoded is an outcome with its error, and
    the rest go on. The results do not depend on the number of workers.

    Args:
        paths: the files, or folders of frames; read as far ahead as decoding goes.
        settings: what is taken of each.
        workers: threads; 0 decodes in the caller's thread.
    """
    if workers < 0:
        raise SettingsError(f"workers: found {workers}, expected 0 or more")
    if workers == 0:
        for path in paths:
            yield _outcome(path, settings)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="talik-media")
    waiting: deque[Future[MediaOutcome]] = deque()
    try:
        for path in paths:
            waiting.append(pool.submit(_outcome, path, settings))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _outcome(source: str | Path | FrameFolder, settings: SegmentSettings) -> MediaOutcome:
    source = Path(source) if isinstance(source, str) else source
    path = source.path if isinstance(source, FrameFolder) else source
    try:
        return MediaOutcome(path=path, media=decode_segments(source, settings), error=None)
    except MediaError as error:
        return MediaOutcome(path=path, media=None, error=error)


def _check_streams(file: MediaFile, settings: SegmentSettings) -> None:
    if settings.frames and file.picture is None and settings.missing_picture == "error":
        raise file.error("no picture in it; leave the file out, or set missing_picture to 'black'")
    if settings.sound and file.sound is None and settings.missing_sound == "error":
        raise file.error("no sound in it; leave the file out, or set missing_sound to 'silence'")


def _extent(file: MediaFile, times: npt.NDArray[np.float64] | None) -> tuple[float, float]:
    """Return when the clip begins and ends on the file's own clock: its picture's extent, or else its sound's."""
    if file.picture is None or times is None:
        assert file.sound is not None
        return _sound_begin(file), file.sound.end_seconds
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    end = file.picture.end_seconds if file.picture.timed else float(times[-1]) + step
    return float(times[0]), max(end, float(times[-1]) + file.picture.unit_seconds)


def _sound_begin(file: MediaFile) -> float:
    assert file.sound is not None
    assert file.audio is not None
    begin = (file.audio.start_time or 0) * file.sound.unit_seconds  # later than packets that prime the decoder
    return max(begin, file.sound.start_seconds)


def _frames(
    file: MediaFile, times: npt.NDArray[np.float64] | None, instants: npt.NDArray[np.float64]
) -> npt.NDArray[np.uint8]:
    if times is None:
        return np.zeros((len(instants), *_BLACK_SIZE, 3), np.uint8)
    return read_frames(file, shown_at(times, instants))


def _waveforms(
    file: MediaFile, instants: npt.NDArray[np.float64], settings: SegmentSettings
) -> npt.NDArray[np.float32]:
    assert settings.window_seconds is not None
    assert settings.sample_rate_hz is not None
    if file.sound is None:
        return _silence(settings)
    return read_sound(file, instants, window_seconds=settings.window_seconds, sample_rate_hz=settings.sample_rate_hz)


def _silence(settings: SegmentSettings) -> npt.NDArray[np.float32]:
    assert settings.window_seconds is not None
    assert settings.sample_rate_hz is not None
    return np.zeros((settings.num_segments, round(settings.window_seconds * settings.sample_rate_hz)), np.float32)
