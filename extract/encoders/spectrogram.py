"""Sound as a picture: log-mel spectrograms for image models that are to hear (as LAVISH feeds Swin-V2, CVPR 2023).

Letters: N windows of sound, S samples.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...errors import SettingsError
from .model_sources import Prepared
from .options import EncoderOptions, PictureSettings


@dataclass(frozen=True, kw_only=True)
class SpectrogramPreprocess:
    """Waveforms to normalised log-mel pictures of the model's image size, frequency upwards in rows, time in columns.

    Hann windows, Slaney mel bands, natural logarithm of the power, mean and deviation as in `settings`, resized
    bilinearly where bands and frames are not the image size already, repeated over the colour channels.
    """

    height: int
    width: int
    window_seconds: float
    settings: PictureSettings = field(default_factory=PictureSettings)
    num_channels: int = 3

    def __post_init__(self) -> None:
        if self.window_seconds < self.settings.frame_seconds:
            raise SettingsError(
                f"window_seconds: found {self.window_seconds:g}, expected at least a frame "
                f"({self.settings.frame_seconds:g})"
            )

    @property
    def sample_rate_hz(self) -> int:
        """Of the waveforms."""
        return self.settings.sample_rate_hz

    def __call__(self, raw: NDArray[np.float32] | Tensor) -> dict[str, Tensor]:
        """Return {"pixel_values": (N, num_channels, height, width) float32} of waveforms (N, S) float32 in [-1, 1].

        Raises:
            SettingsError: another shape, or shorter than a frame.
        """
        waves = torch.as_tensor(np.asarray(raw, dtype=np.float32))
        if waves.ndim != 2 or waves.shape[1] < self._frame:
            raise SettingsError(f"waveforms: found shape {tuple(waves.shape)}, expected (N, S ≥ {self._frame}) float32")
        chosen = self.settings
        frames = waves.unfold(1, self._frame, round(chosen.hop_seconds * chosen.sample_rate_hz))  # (N, frames, samples)
        spectrum = torch.fft.rfft(frames * torch.hann_window(self._frame), n=self._num_bins)
        mel = self.filters @ spectrum.abs().square().transpose(1, 2)  # (N, mel, frames)
        if chosen.num_frames is not None:
            mel = F.pad(mel, (0, chosen.num_frames - mel.shape[2]))
        pictures = ((mel.clamp_min(1e-10).log() - chosen.mean) / chosen.std)[:, None].flip(2)
        if pictures.shape[2:] != (self.height, self.width):
            pictures = F.interpolate(pictures, (self.height, self.width), mode="bilinear", antialias=True)
        return {"pixel_values": pictures.repeat(1, self.num_channels, 1, 1)}

    @property
    def _frame(self) -> int:
        return round(self.settings.frame_seconds * self.settings.sample_rate_hz)

    @property
    def _num_bins(self) -> int:
        """Samples of the transform: the next power of two."""
        return 1 << (self._frame - 1).bit_length()

    @cached_property
    def filters(self) -> Tensor:
        """The mel filter bank, (mel bins, frequencies) float32."""
        from transformers.audio_utils import mel_filter_bank

        chosen = self.settings
        top = chosen.max_hz or chosen.sample_rate_hz / 2
        bins = self._num_bins // 2 + 1
        bank = mel_filter_bank(
            bins, chosen.num_mel_bins, chosen.min_hz, top, chosen.sample_rate_hz, norm="slaney", mel_scale="slaney"
        )
        return torch.from_numpy(bank.T.astype(np.float32))

    def describe(self) -> dict[str, Any]:
        """Return the settings."""
        return {"kind": "log-mel picture", **asdict(self)}


def prepare_spectrogram(options: EncoderOptions, *, size: tuple[int, int], num_channels: int) -> Prepared:
    """Return the preprocessing of an image model that hears.

    Args:
        options: picture size, window (1 s by default) and front end, as far as they are chosen.
        size: the model's own (height, width).
        num_channels: of the pictures that it takes.

    Raises:
        SettingsError: a window shorter than a frame of the spectrogram.
    """
    height, width = options.size or size
    preprocess = SpectrogramPreprocess(
        height=height,
        width=width,
        window_seconds=1.0 if options.window_seconds is None else options.window_seconds,
        settings=options.picture or PictureSettings(),
        num_channels=num_channels,
    )
    return Prepared(
        preprocess=preprocess,
        image_size=(height, width),
        sample_rate_hz=preprocess.sample_rate_hz,
        window_seconds=preprocess.window_seconds,
    )
