"""Sound as a picture: log-mel spectrograms for image models that are to hear, or were trained to.

Letters: N windows of sound, S samples.
"""

from __future__ import annotations

import warnings
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

_KALDI_FLOOR = float(torch.finfo(torch.float32).eps)  # of a band's power

#: The front end of AudioMAE (Huang et al., NeurIPS 2022; facebookresearch/AudioMAE, dataset.py).
AUDIO_MAE = PictureSettings(front_end="kaldi", rows="time", num_mel_bins=128, num_frames=1024, fill=0.0, min_hz=20.0)


@dataclass(frozen=True, kw_only=True)
class SpectrogramPreprocess:
    """Waveforms to normalised log-mel pictures of the model's image size.

    Front end, rows, mean and deviation as in `settings`; resized bilinearly where bands and frames are not the image
    size already, repeated over the colour channels.
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
        power = self._kaldi_power(waves) if chosen.front_end == "kaldi" else self._power(waves)
        mel = self.filters @ power.transpose(1, 2)  # (N, mel, frames)
        missing = 0 if chosen.num_frames is None else chosen.num_frames - mel.shape[2]
        if chosen.fill is None or missing < 0:
            mel = F.pad(mel, (0, missing))
        mel = mel.clamp_min(_KALDI_FLOOR if chosen.front_end == "kaldi" else 1e-10).log()
        if chosen.fill is not None and missing > 0:
            mel = F.pad(mel, (0, missing), value=chosen.fill)
        pictures = ((mel - chosen.mean) / chosen.std)[:, None]
        pictures = pictures.transpose(2, 3) if chosen.rows == "time" else pictures.flip(2)
        if pictures.shape[2:] != (self.height, self.width):
            pictures = F.interpolate(pictures, (self.height, self.width), mode="bilinear", antialias=True)
        return {"pixel_values": pictures.repeat(1, self.num_channels, 1, 1)}

    def _power(self, waves: Tensor) -> Tensor:
        """Return the power of each frame's frequencies, (N, frames, bins)."""
        frames = waves.unfold(1, self._frame, self._samples(self.settings.hop_seconds))  # (N, frames, samples)
        return torch.fft.rfft(frames * torch.hann_window(self._frame), n=self._num_bins).abs().square()

    def _kaldi_power(self, waves: Tensor) -> Tensor:
        """Return the same as Kaldi takes it: less each frame's mean, pre-emphasised, in a symmetric window.

        Povey et al., *The Kaldi speech recognition toolkit*, ASRU 2011; feat/feature-window.cc.
        """
        frames = waves.unfold(1, self._frame, self._samples(self.settings.hop_seconds))
        frames = frames - frames.mean(2, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)  # the first sample stands before itself
        frames = (frames - 0.97 * before) * torch.hann_window(self._frame, periodic=False)
        return torch.fft.rfft(frames, n=self._num_bins).abs().square()

    def _samples(self, seconds: float) -> int:
        """Return the samples of a length of time: the nearest number, or, as Kaldi counts, the whole ones."""
        samples = seconds * self.settings.sample_rate_hz
        return int(samples + 1e-6) if self.settings.front_end == "kaldi" else round(samples)

    @property
    def _frame(self) -> int:
        return self._samples(self.settings.frame_seconds)

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
        kaldi = {"norm": None, "mel_scale": "kaldi", "triangularize_in_mel_space": True}
        scale = kaldi if chosen.front_end == "kaldi" else {"norm": "slaney", "mel_scale": "slaney"}
        bins = self._num_bins // 2 + 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # many bands: the lowest lie between two frequencies
            bank = mel_filter_bank(bins, chosen.num_mel_bins, chosen.min_hz, top, chosen.sample_rate_hz, **scale)
        return torch.from_numpy(bank.T.astype(np.float32))

    def describe(self) -> dict[str, Any]:
        """Return the settings; those that came later only where they differ from what there was before."""
        settings = {**asdict(self.settings), "rows": self.settings.rows or "frequency"}
        usual = {"front_end": "log-mel", "rows": "frequency", "fill": None}
        kept = {name: value for name, value in settings.items() if name not in usual or value != usual[name]}
        return {"kind": "log-mel picture", **asdict(self), "settings": kept}


def prepare_spectrogram(options: EncoderOptions, *, size: tuple[int, int], num_channels: int) -> Prepared:
    """Return the preprocessing of an image model that hears.

    AudioMAE, named so, gets its published front end. Of other models that were made for sound (one channel, or pictures
    that are not square) nobody can see which way their pictures lie; it has to be said.

    Args:
        options: picture size, window (1 s by default, 10 s of AudioMAE) and front end, as far as they are chosen.
        size: the model's own (height, width).
        num_channels: of the pictures that it takes.

    Raises:
        SettingsError: a window shorter than a frame of the spectrogram, or rows that have to be said.
    """
    is_audio_mae = "audiomae" in options.spec.lower().replace("-", "").replace("_", "")
    settings = options.picture or (AUDIO_MAE if is_audio_mae else PictureSettings())
    if settings.rows is None and (num_channels != 3 or size[0] != size[1]):
        raise SettingsError(
            f"{options.spec}: takes pictures of {size[0]} x {size[1]} (height x width) in {num_channels} "
            f"{'channel' if num_channels == 1 else 'channels'}; expected [encoders.audio.picture] to say how sound "
            'lies in them: rows = "time" or "frequency", with the front_end, bands, mean and std of its training'
        )
    height, width = options.size or size
    usual = 10.0 if is_audio_mae else 1.0
    preprocess = SpectrogramPreprocess(
        height=height,
        width=width,
        window_seconds=usual if options.window_seconds is None else options.window_seconds,
        settings=settings,
        num_channels=num_channels,
    )
    return Prepared(
        preprocess=preprocess,
        image_size=(height, width),
        sample_rate_hz=preprocess.sample_rate_hz,
        window_seconds=preprocess.window_seconds,
    )
