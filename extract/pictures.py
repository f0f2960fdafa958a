"""Sound as a picture: log-mel spectrograms for image models that are to hear (as LAVISH feeds Swin, CVPR 2023)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..cache.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class SpectrogramPreprocess:
    """Waveforms to normalised log-mel pictures of the model's image size, frequency upwards in rows, time in columns.

    25 ms Hann windows every 10 ms, `num_mel_bins` Slaney mel bands up to half the sample rate, natural logarithm,
    resized bilinearly, shifted by `mean` and divided by `std` (AudioSet's, as in the Audio Spectrogram Transformer),
    and repeated over the colour channels.
    """

    height: int
    width: int
    window_seconds: float
    sample_rate_hz: int = 16000
    num_mel_bins: int = 128
    num_channels: int = 3
    mean: float = -4.2677393
    std: float = 2 * 4.5689974

    def __call__(self, raw: np.ndarray | Tensor) -> dict[str, Tensor]:
        """Return {"pixel_values": (N, num_channels, height, width) float32} of waveforms (N, S) float32 in [-1, 1].

        Raises:
            SettingsError: another shape.
        """
        waves = torch.as_tensor(np.asarray(raw, dtype=np.float32))
        if waves.ndim != 2:
            raise SettingsError(f"waveforms: found shape {tuple(waves.shape)}, expected (N, S) float32")
        length = self.sample_rate_hz // 40
        window = torch.hann_window(length)
        spectrum = torch.stft(waves, 512, self.sample_rate_hz // 100, length, window, return_complex=True)
        mel = self._filters @ spectrum.abs().square()  # (N, mel, frames)
        pictures = (mel.clamp_min(1e-10).log() - self.mean) / self.std
        sized = F.interpolate(pictures[:, None].flip(2), (self.height, self.width), mode="bilinear", antialias=True)
        return {"pixel_values": sized.repeat(1, self.num_channels, 1, 1)}

    @cached_property
    def _filters(self) -> Tensor:
        from transformers.audio_utils import mel_filter_bank

        top = self.sample_rate_hz / 2
        bank = mel_filter_bank(257, self.num_mel_bins, 0.0, top, self.sample_rate_hz, norm="slaney", mel_scale="slaney")
        return torch.from_numpy(bank.T.astype(np.float32))

    def describe(self) -> dict[str, Any]:
        """Return the settings."""
        return {"kind": "log-mel picture", **asdict(self)}
