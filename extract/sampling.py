"""How a clip is sampled: T segments, at each centre one frame and one window of sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .encoders import Encoder
from .media import ClipMedia, SegmentSettings
from .settings import ExtractSettings


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The sampling of one experiment's clips.

    Args:
        num_segments: T, the segments of equal length that a clip is cut into.
        window_seconds: length of the sound window around each segment's centre, in seconds; None without sound.
    """

    num_segments: int
    window_seconds: float | None

    def identity(self, modality: str) -> dict[str, Any]:
        """What of the sampling the states of `modality` depend on, as JSON."""
        common = {"num_segments": self.num_segments, "instants": "segment centres"}
        if modality == "visual":
            return {**common, "frame": "nearest"}
        return {**common, "window_seconds": self.window_seconds, "channels": "mean"}

    def media_settings(self, modalities: set[str], encoders: Mapping[str, Encoder]) -> SegmentSettings:
        """What to decode for these modalities, in one pass over a file."""
        sound = "audio" in modalities
        return SegmentSettings(
            num_segments=self.num_segments,
            window_seconds=self.window_seconds if sound else None,
            sample_rate_hz=encoders["audio"].sample_rate_hz if sound else None,
            frames="visual" in modalities,
            sound=sound,
        )

    def blank(self, encoder: Encoder) -> np.ndarray:
        """One black, silent clip as an encoder's raw input: what shapes are found with."""
        if encoder.modality == "visual":
            return np.zeros((self.num_segments, 64, 64, 3), dtype=np.uint8)
        assert self.window_seconds is not None
        assert encoder.sample_rate_hz is not None
        return np.zeros((self.num_segments, round(self.window_seconds * encoder.sample_rate_hz)), dtype=np.float32)

    def stack(self, modality: str, clips: Sequence[ClipMedia]) -> np.ndarray | list[np.ndarray]:
        """The raw input of an encoder for these clips, batch B·T with t fastest.

        Frames of unequal size stay a list, (T, H, W, 3) each; everything else is one array.
        """
        parts = [clip.frames if modality == "visual" else clip.waveforms for clip in clips]
        arrays = [part for part in parts if part is not None]
        if len({a.shape for a in arrays}) > 1:
            return arrays
        return np.concatenate(arrays)


def sampling_of(settings: ExtractSettings, encoders: Mapping[str, Encoder]) -> Sampling:
    """The sampling that an experiment names; the sound window is the audio encoder's, None without one."""
    audio = encoders.get("audio")
    return Sampling(num_segments=settings.data.segments, window_seconds=audio.window_seconds if audio else None)
