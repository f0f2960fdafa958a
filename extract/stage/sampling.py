"""How a clip is sampled: T segments, at each centre one frame and one window of sound.

For an encoder that takes whole clips, F frames: one at the centre of each of F equal parts of the clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ..encoders.encoder import Encoder
from ..executors.device import sent
from ..media.clip_media import Channels, ClipMedia, Decoder, Instants, SegmentSettings
from ..media.deinterlace import Deinterlace
from ..media.torchcodec_frames import check_decoder
from .clip_inputs import joined, joined_frames
from .settings import ExtractSettings


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The sampling of one experiment's clips.

    Args:
        num_segments: T, the segments of equal length that a clip is cut into.
        num_frames: F, of a visual encoder that takes whole clips; None for one frame a segment.
        window_seconds: length of the sound window around each segment's centre, in seconds; None without sound.
        missing_sound, missing_picture: what stands for a stream that a file does not have.
        stride_seconds: length of a segment, counted from the clip's beginning; None where T segments fill the clip.
        decoder: what decodes pictures.
        deinterlace: FFmpeg's filter that makes interlaced frames whole.
        channels: of the sound: their mean, or the first alone.
        instants, instants_fps: where in a clip its segments are looked at (`media/instants.py`).
    """

    num_segments: int
    num_frames: int | None = None
    window_seconds: float | None
    missing_sound: Literal["error", "silence"] = "error"
    missing_picture: Literal["error", "black"] = "error"
    stride_seconds: float | None = None
    decoder: Decoder = "pyav"
    deinterlace: Deinterlace = "off"
    channels: Channels = "mean"
    instants: Instants = "centres"
    instants_fps: float | None = None

    def identity(self, modality: str, *, stand_ins: bool = False) -> dict[str, Any]:
        """Return what of the sampling the states of `modality` depend on, as JSON.

        Args:
            modality: "visual" or "audio".
            stand_ins: with what stands for a missing stream, as older stores have it (see `missing_streams`).
        """
        common = {"num_segments": self.num_segments, "instants": self._instants(modality)}
        replaced = self.stand_ins(modality) if stand_ins else {}
        if modality == "visual":
            whole = {} if self.num_frames is None else {"num_segments": self.num_frames}  # T only groups its tokens
            other = {} if self.decoder == "pyav" else {"decoder": self.decoder}
            fields = {} if self.deinterlace == "off" else {"deinterlace": self.deinterlace}
            return {**common, **whole, "frame": "nearest", **fields, **replaced, **other}
        return {**common, "window_seconds": self.window_seconds, "channels": self.channels, **replaced}

    def _instants(self, modality: str) -> str:
        stride = "" if self.stride_seconds is None else f"every {self.stride_seconds!r} s, "
        if self.instants == "centres":
            return f"{stride}centred" if stride else "segment centres"
        chosen = "window" if modality == "audio" else f"of {self.instants_fps!r} frames/s"
        return f"{stride}first to last {chosen}"

    def stand_ins(self, modality: str) -> dict[str, Any]:
        """Return what stands for the stream of `modality` in films that lack it, as JSON; {}: that is an error."""
        if modality == "visual":
            return {} if self.missing_picture == "error" else {"missing_picture": self.missing_picture}
        return {} if self.missing_sound == "error" else {"missing_sound": self.missing_sound}

    def rows(self, modality: str) -> int:
        """Frames, or windows of sound, of one clip."""
        return (modality == "visual" and self.num_frames) or self.num_segments

    def media_settings(self, modalities: set[str], encoders: Mapping[str, Encoder]) -> SegmentSettings:
        """What to decode for these modalities, in one pass over a file.

        Raises:
            SettingsError: this machine lacks the decoder.
        """
        if "visual" in modalities:
            check_decoder(self.decoder)
        sound = "audio" in modalities
        return SegmentSettings(
            num_segments=self.num_segments,
            num_frames=self.num_frames,
            window_seconds=self.window_seconds if sound else None,
            sample_rate_hz=encoders["audio"].sample_rate_hz if sound else None,
            frames="visual" in modalities,
            sound=sound,
            missing_sound=self.missing_sound,
            missing_picture=self.missing_picture,
            stride_seconds=self.stride_seconds,
            decoder=self.decoder,
            deinterlace=self.deinterlace,
            channels=self.channels,
            instants=self.instants,
            instants_fps=self.instants_fps,
        )

    def blank(self, encoder: Encoder) -> np.ndarray:
        """One black, silent clip as an encoder's raw input: what shapes are found with."""
        if encoder.modality == "visual":
            return np.zeros((self.num_frames or self.num_segments, 64, 64, 3), dtype=np.uint8)
        assert self.window_seconds is not None
        assert encoder.sample_rate_hz is not None
        return np.zeros((self.num_segments, round(self.window_seconds * encoder.sample_rate_hz)), dtype=np.float32)

    def inputs(self, encoder: Encoder, clips: Sequence[ClipMedia], *, view: int = 0) -> dict[str, Tensor]:
        """The encoder's inputs for these clips, batch B·T with t fastest (B where whole clips enter the encoder).

        Args:
            encoder: of sound or pictures.
            clips: may differ in frame size.
            view: which view of frames that were prepared as they came (`FrameInputs`).
        """
        prepared = [clip.prepared for clip in clips if clip.prepared is not None]
        if encoder.modality == "visual" and prepared:
            return joined_frames(encoder, [[frame[view] for frame in frames] for frames in prepared])
        parts = [clip.frames if encoder.modality == "visual" else clip.waveforms for clip in clips]
        arrays = [part for part in parts if part is not None]
        if len({a.shape for a in arrays}) == 1:
            inputs = encoder.preprocess(np.concatenate(arrays))
        else:
            inputs = joined([encoder.preprocess(array) for array in arrays])
        return {name: sent(value, encoder.device) for name, value in inputs.items()}


def sampling_of(settings: ExtractSettings, encoders: Mapping[str, Encoder]) -> Sampling:
    """The sampling that an experiment names; the sound window and the frames of a whole clip are the encoders'."""
    audio, visual, data = encoders.get("audio"), encoders.get("visual"), settings.data
    return Sampling(
        num_segments=data.segments,
        num_frames=visual.num_frames if visual else None,
        window_seconds=audio.window_seconds if audio else None,
        missing_sound=data.missing_sound,
        missing_picture=data.missing_picture,
        stride_seconds=data.stride_seconds,
        decoder=data.decoder,
        deinterlace=data.deinterlace,
        channels=data.channels,
        instants=data.instants,
        instants_fps=data.instants_fps,
    )
