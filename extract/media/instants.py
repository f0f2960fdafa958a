"""When a clip is looked at: the instants of its frames, and those that its windows of sound lie around.

With a stride the segments are of the clip's first seconds, or go on after its end, so that they keep the labels' clock.

T: segments, F: frames.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .clip_media import SegmentSettings

Seconds = npt.NDArray[np.float64]

#: What LAVISH's loader leaves after the last window, in seconds.
_AFTER_LAST_WINDOW = 0.1

#: FFmpeg's filter `fps` takes a frame that comes exactly between two of its own for the later one, in seconds.
_BEFORE = 1e-5


def segment_centres(settings: SegmentSettings, seconds: float, *, parts: int) -> Seconds:
    """Return the centres of equal parts of a clip, or of its segments with a stride, (parts,) seconds."""
    seconds = _length(settings, seconds)
    return (np.arange(parts, dtype=np.float64) + 0.5) * (seconds / parts)


def frame_instants(settings: SegmentSettings, seconds: float, picture_seconds: float, *, parts: int) -> Seconds:
    """Return the instants of a film's frames, (parts,) seconds from its first.

    From the first to the last of the frames that FFmpeg's filter `fps` takes out of it at `instants_fps`: number k,
    from 0, is on display at (k + 0.5) / instants_fps.

    Args:
        settings: what is taken of the clip.
        seconds: its length.
        picture_seconds: the length of its picture.
        parts: T, or F.

    Example:
        >>> published = SegmentSettings(num_segments=10, sound=False, instants="first-to-last", instants_fps=1.0)
        >>> frame_instants(published, 60.0, 60.0, parts=10).round(3).tolist()
        [0.5, 6.5, 13.5, 19.5, 26.5, 32.5, 39.5, 45.5, 52.5, 59.5]
    """
    if settings.instants == "centres" or settings.instants_fps is None:
        return segment_centres(settings, seconds, parts=parts)
    count = _count(settings, picture_seconds, settings.instants_fps)
    return np.maximum((_first_to_last(count, parts) + 0.5) / settings.instants_fps - _BEFORE, 0.0)


def folder_instants(settings: SegmentSettings, seconds: float, *, count: int, fps: float, parts: int) -> Seconds:
    """Return the same of a clip that is a folder of `count` frames, extracted at `fps`."""
    if settings.instants == "centres":
        return segment_centres(settings, seconds, parts=parts)
    count = count if settings.stride_seconds is None else _count(settings, seconds, fps)
    return _first_to_last(count, parts) / fps


def _length(settings: SegmentSettings, seconds: float) -> float:
    """Return the length of what the segments are parts of: the clip, or so many strides."""
    return seconds if settings.stride_seconds is None else settings.stride_seconds * settings.num_segments


def _count(settings: SegmentSettings, seconds: float, fps: float) -> int:
    """Return how many frames FFmpeg's filter `fps` takes out of that length."""
    return max(int(_length(settings, seconds) * fps + 0.5), 1)


def _first_to_last(count: int, parts: int) -> Seconds:
    """Return `parts` of `count` frames, from 0: GenjiB/LAVISH, AVE/dataloader.py, `sample_indx`."""
    return np.floor(np.linspace(1, count, parts)) - 1.0


def window_centres(
    settings: SegmentSettings, centres: Seconds, *, clip_begin: float, sound_begin: float, sound_seconds: float
) -> Seconds:
    """Return the centres of the windows of sound, (T,) seconds on the file's own clock.

    From the first sample on; the last window ends 0.1 s before the sound does, and all are the first where that is
    short (GenjiB/LAVISH, AVE/dataloader.py, `_wav2fbank`).

    Args:
        settings: what is taken of the clip, with sound.
        centres: of the segments, from the clip's beginning.
        clip_begin: when the clip begins.
        sound_begin: when its first sample is heard.
        sound_seconds: length of the sound.

    Example:
        >>> published = SegmentSettings(
        ...     num_segments=10, window_seconds=1.95, sample_rate_hz=16000, instants="first-to-last", instants_fps=1.0
        ... )
        >>> found = window_centres(published, np.zeros(10), clip_begin=0.0, sound_begin=0.0, sound_seconds=60.0)
        >>> ((found - 1.95 / 2) * 16000).round().astype(int).tolist()
        [0, 103022, 206044, 309066, 412088, 515111, 618133, 721155, 824177, 927200]
    """
    assert settings.window_seconds is not None
    assert settings.sample_rate_hz is not None
    if settings.instants == "centres":
        return clip_begin + centres
    rate = settings.sample_rate_hz
    sound_seconds = _length(settings, sound_seconds)
    last = max(round(sound_seconds * rate) - rate * (settings.window_seconds + _AFTER_LAST_WINDOW), 0.0)
    return sound_begin + np.floor(np.linspace(0, last, settings.num_segments)) / rate + settings.window_seconds / 2
