"""How a clip is sampled: T segments, at each centre one frame and one window of sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .encoders import Encoder
from .media import ClipMedia, SegmentSettings
from .settings import ExtractSettings


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The sampling of one experiment's clips.

    Args:
        num_segments: T, the segments of equal length that a clip is cut into.
        window_seconds: length of the sound window around each segment's centre, in seconds; None without sound.
        missing_sound, missing_picture: what stands for a stream that a file does not have.
    """

    num_segments: int
    window_seconds: float | None
    missing_sound: Literal["error", "silence"] = "error"
    missing_picture: Literal["error", "black"] = "error"

    def identity(self, modality: str) -> dict[str, Any]:
        """What of the sampling the states of `modality` depend on, as JSON."""
        common = {"num_segments": self.num_segments, "instants": "segment centres"}
        if modality == "visual":
            black = {} if self.missing_picture == "error" else {"missing_picture": self.missing_picture}
            return {**common, "frame": "nearest", **black}
        silence = {} if self.missing_sound == "error" else {"missing_sound": self.missing_sound}
        return {**common, "window_seconds": self.window_seconds, "channels": "mean", **silence}

    def media_settings(self, modalities: set[str], encoders: Mapping[str, Encoder]) -> SegmentSettings:
        """What to decode for these modalities, in one pass over a file."""
        sound = "audio" in modalities
        return SegmentSettings(
            num_segments=self.num_segments,
            window_seconds=self.window_seconds if sound else None,
            sample_rate_hz=encoders["audio"].sample_rate_hz if sound else None,
            frames="visual" in modalities,
            sound=sound,
            missing_sound=self.missing_sound,
            missing_picture=self.missing_picture,
        )

    def blank(self, encoder: Encoder) -> np.ndarray:
        """One black, silent clip as an encoder's raw input: what shapes are found with."""
        if encoder.modality == "visual":
            return np.zeros((self.num_segments, 64, 64, 3), dtype=np.uint8)
        assert self.window_seconds is not None
        assert encoder.sample_rate_hz is not None
        return np.zeros((self.num_segments, round(self.window_seconds * encoder.sample_rate_hz)), dtype=np.float32)

    def inputs(self, encoder: Encoder, clips: Sequence[ClipMedia]) -> dict[str, Tensor]:
        """The encoder's inputs for these clips, batch B·T with t fastest; clips may differ in frame size."""
        parts = [clip.frames if encoder.modality == "visual" else clip.waveforms for clip in clips]
        arrays = [part for part in parts if part is not None]
        if len({a.shape for a in arrays}) == 1:
            return encoder.preprocess(np.concatenate(arrays))
        made = [encoder.preprocess(array) for array in arrays]
        return {name: torch.cat([m[name] for m in made]) for name in made[0]}


def sampling_of(settings: ExtractSettings, encoders: Mapping[str, Encoder]) -> Sampling:
    """The sampling that an experiment names; the sound window is the audio encoder's, None without one."""
    audio, data = encoders.get("audio"), settings.data
    return Sampling(
        num_segments=data.segments,
        window_seconds=audio.window_seconds if audio else None,
        missing_sound=data.missing_sound,
        missing_picture=data.missing_picture,
    )
