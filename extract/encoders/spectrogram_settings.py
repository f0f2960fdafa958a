"""The settings of the front end of image models that hear."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    """The front end of an image model that hears: how a window of sound becomes a picture.

    LAVISH's pictures (16 kHz, 192 mel bands by 192 frames) are `{ num_mel_bins = 192, num_frames = 192 }` with
    `image_size = 192` and `window_seconds = 1.95`.

    Args:
        sample_rate_hz: of the sound.
        num_mel_bins: mel bands, the picture's height before it is resized.
        num_frames: its width before it is resized: more frames are cut off, fewer filled with silence; None for those
            of the whole window.
        frame_seconds, hop_seconds: length of a frame, and from one frame's beginning to the next's.
        min_hz, max_hz: the lowest and the highest band's outer edges; None for half the sample rate.
        mean, std: what the natural logarithm of the power is shifted by and divided by; AudioSet's, as in the Audio
            Spectrogram Transformer (Gong et al., Interspeech 2021), by default.
    """

    sample_rate_hz: int = 16000
    num_mel_bins: int = 128
    num_frames: int | None = None
    frame_seconds: float = 0.025
    hop_seconds: float = 0.01
    min_hz: float = 0.0
    max_hz: float | None = None
    mean: float = -4.2677393
    std: float = 2 * 4.5689974

    def __post_init__(self) -> None:
        for name in ("sample_rate_hz", "num_mel_bins", "frame_seconds", "hop_seconds", "std"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"picture.{name}: found {getattr(self, name)}, expected more than 0")
        if self.num_frames is not None and self.num_frames < 1:
            raise SettingsError(f"picture.num_frames: found {self.num_frames}, expected at least 1")
        half = self.sample_rate_hz / 2
        if not 0 <= self.min_hz < (half if self.max_hz is None else self.max_hz) <= half:
            raise SettingsError(
                f"picture.min_hz, max_hz: found {self.min_hz:g}, {self.max_hz}, expected 0 ≤ min_hz < max_hz ≤ {half:g}"
            )
