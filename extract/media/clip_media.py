"""What is taken of a clip, and a clip decoded so.

T: segments, F: frames, H: height, W: width, S: samples of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ...errors import SettingsError, unknown_name
from .deinterlace import Deinterlace

Channels = Literal["mean", "first"]
"""What is heard of a sound with several channels."""

Instants = Literal["centres", "first-to-last"]
"""Where in a clip its segments are looked at."""


def check_instants(instants: str, fps: float | None) -> None:
    """Refuse settings of the instants that do not go together.

    Raises:
        SettingsError: they do not; with the key.
    """
    if instants not in get_args(Instants):
        raise SettingsError(f"instants: {unknown_name('choice', instants, get_args(Instants))}")
    if (instants == "centres") != (fps is None):
        raise SettingsError(
            "instants_fps: the frames a second among which 'first-to-last' chooses; set both instants and this, or none"
        )
    if fps is not None and not 0.0 < fps < float("inf"):
        raise SettingsError(f"instants_fps: found {fps}, expected more than 0")


Decoder = Literal["pyav", "torchcodec", "nvdec"]


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
        decoder: of pictures: "pyav", "torchcodec" or "nvdec" (`torchcodec_frames`).
        deinterlace: FFmpeg's filter that makes interlaced frames whole; "off" leaves them with both fields in each.
        channels: of the sound: their mean, or the first alone.
        instants: whether segments are looked at in their centres, or from the first to the last frame (`instants.py`).
        instants_fps: the rate of the frames among which the first and the last are; with "first-to-last".
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
    decoder: Decoder = "pyav"
    deinterlace: Deinterlace = "off"
    channels: Channels = "mean"
    instants: Instants = "centres"
    instants_fps: float | None = None

    @property
    def frames_wanted(self) -> int:
        """F."""
        return self.num_frames or self.num_segments

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
        check_instants(self.instants, self.instants_fps)
        if self.deinterlace not in get_args(Deinterlace):
            raise SettingsError(f"deinterlace: {unknown_name('filter', self.deinterlace, get_args(Deinterlace))}")
        if self.channels not in get_args(Channels):
            raise SettingsError(f"channels: {unknown_name('way', self.channels, get_args(Channels))}")


@dataclass(frozen=True, kw_only=True)
class ClipMedia:
    """One decoded clip.

    Attributes:
        frames: (F, H, W, 3) uint8 RGB as shown (F = T unless `num_frames` says otherwise); None without pictures, or
            where each was made into something else as it came.
        waveforms: (T, S) float32 mono in [-1, 1]; None without sound.
        instants_seconds: (T,) float64, the segments' centres, or the instants of the frames from the first to the last.
        duration_seconds: from the first frame to the end of the last, or of a sound that goes on after it.
        prepared: what `each_frame` of `decode_segments` made of the F frames; None where it was not given.
        notes: what of the file is not looked at, or not as a screen would show it, a line each.
    """

    frames: npt.NDArray[np.uint8] | None
    waveforms: npt.NDArray[np.float32] | None
    instants_seconds: npt.NDArray[np.float64]
    duration_seconds: float
    prepared: tuple[Any, ...] | None = None
    notes: tuple[str, ...] = ()
