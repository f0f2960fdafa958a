"""Augmented views: a decoded clip changed at random before an encoder's own preprocessing, drawn from a seed.

An augmented view is the plain preprocessing of a changed clip (and, for masks, a changed spectrogram), so view 0, which
changes nothing, is the plain extraction itself. The draws of a view depend on the seed, the modality, the item's key
and the view's number alone: neither on the order of work nor on how many views there are.

Letters: T frames or windows, H W pixels, S samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import SettingsError
from ..encoders.encoder import Encoder
from ..media.augment_settings import AugmentSettings, draw_seed
from ..media.clip_media import ClipMedia
from .sampling import Sampling

_ASPECT = (3 / 4, 4 / 3)  # of the box to the frame; the range of Szegedy et al. 2015 (Inception crops)


def view_inputs(
    encoder: Encoder, clips: Mapping[str, ClipMedia], sampling: Sampling, settings: AugmentSettings | None, view: int
) -> dict[str, Tensor]:
    """The encoder's inputs of one view of some clips.

    Args:
        encoder: whose modality says what is changed.
        clips: decoded, by item key; frames that were prepared as they came (`FrameInputs`) are changed already.
        sampling: how they were sampled.
        settings: the changes; not read for view 0.
        view: 0 for the plain one.

    Returns:
        As `sampling.inputs`: batch B·T with t fastest.

    Raises:
        SettingsError: masks for an encoder whose inputs are no spectrogram.
    """
    prepared = encoder.modality == "visual" and all(clip.prepared is not None for clip in clips.values())
    if view == 0 or settings is None or prepared:
        return sampling.inputs(encoder, list(clips.values()), view=view)
    changed, draws = [], []
    for key, clip in clips.items():
        draw = _draw(settings, encoder.modality, key, view)
        changed.append(augmented(clip, settings, draw, modality=encoder.modality, rate_hz=encoder.sample_rate_hz))
        draws.append(draw)
    inputs = sampling.inputs(encoder, changed)
    if not (settings.time_mask or settings.frequency_mask):
        return inputs
    name, bands = _spectrogram(encoder, inputs)
    rows = inputs[name].chunk(len(draws))
    return {**inputs, name: torch.cat([masked(x, bands, settings, d) for x, d in zip(rows, draws, strict=True)])}


def augmented(
    clip: ClipMedia, settings: AugmentSettings, draw: np.random.Generator, *, modality: str, rate_hz: int | None = None
) -> ClipMedia:
    """Return the clip with the frames, or the windows of sound, of one modality changed; the other is left as it is."""
    if modality == "visual" and clip.frames is not None:
        return dataclasses.replace(clip, frames=_changed_frames(clip.frames, settings, draw))
    if modality == "audio" and clip.waveforms is not None and settings.shift_seconds:
        most = round(settings.shift_seconds * (rate_hz or 0))
        return dataclasses.replace(clip, waveforms=np.roll(clip.waveforms, int(draw.integers(-most, most + 1)), axis=1))
    return clip


def changed_frames(
    frames: NDArray[np.uint8], settings: AugmentSettings, modality: str, key: str, view: int
) -> NDArray[np.uint8]:
    """Return some frames (N, H, W, 3) of a clip, by its item's key, as a view shows them: the same draw for all."""
    return _changed_frames(frames, settings, _draw(settings, modality, key, view))


def _draw(settings: AugmentSettings, modality: str, key: str, view: int) -> np.random.Generator:
    return np.random.default_rng(draw_seed(settings.seed, modality, key, view))


def _changed_frames(raw: NDArray[np.uint8], settings: AugmentSettings, draw: np.random.Generator) -> NDArray[np.uint8]:
    """Crop, mirror and recolour (T, H, W, 3); the crop keeps its own size, since preprocessing takes any."""
    from torchvision.transforms.v2 import functional as pictures  # it imports torch's compiler: seconds of every start

    frames = torch.from_numpy(raw.copy()).permute(0, 3, 1, 2)  # (T, 3, H, W)
    if settings.crop is not None:
        top, left, height, width = _box(frames.shape[-2], frames.shape[-1], settings.crop, draw)
        frames = frames[..., top : top + height, left : left + width]
    if draw.random() < settings.flip:
        frames = pictures.horizontal_flip(frames)
    if settings.jitter:
        for adjust in (pictures.adjust_brightness, pictures.adjust_contrast, pictures.adjust_saturation):
            frames = adjust(frames, 1 + settings.jitter * float(draw.uniform(-1, 1)))
    return np.ascontiguousarray(frames.permute(0, 2, 3, 1).numpy())


def _box(height: int, width: int, share: tuple[float, float], draw: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) of a box of that share of the area; a side longer than the frame is cut."""
    area = draw.uniform(*share)
    aspect = np.exp(draw.uniform(*np.log(_ASPECT)))
    tall = min(height, max(1, round(height * float(np.sqrt(area / aspect)))))
    wide = min(width, max(1, round(width * float(np.sqrt(area * aspect)))))
    return int(draw.integers(0, height - tall + 1)), int(draw.integers(0, width - wide + 1)), tall, wide


def masked(values: Tensor, bands: int, settings: AugmentSettings, draw: np.random.Generator) -> Tensor:
    """Replace one stretch of frames and one of bands of (T, …) spectrograms by each one's mean.

    Args:
        values: (T, …) float, two of the other axes being frames and bands.
        bands: which axis the bands are on; the frames are on the longest of the others.
        settings: the shares.
        draw: the random numbers.
    """
    frames = max((axis for axis in range(1, values.ndim) if axis != bands), key=lambda axis: values.shape[axis])
    out = values.clone()
    mean = values.mean(dim=tuple(range(1, values.ndim)), keepdim=True)
    for axis, share in ((frames, settings.time_mask), (bands, settings.frequency_mask)):
        size = int(draw.integers(0, int(share * values.shape[axis]) + 1))
        start = int(draw.integers(0, values.shape[axis] - size + 1))
        place: list[Any] = [slice(None)] * values.ndim
        place[axis] = slice(start, start + size)
        out[tuple(place)] = mean.expand_as(out)[tuple(place)]
    return out


def _spectrogram(encoder: Encoder, inputs: Mapping[str, Tensor]) -> tuple[str, int]:
    """The name of the input that is a spectrogram, and the axis of its bands."""
    described = encoder.preprocess.describe()
    counts = [described.get(name) for name in ("num_mel_bins", "feature_size")]
    for count in (c for c in counts if isinstance(c, int) and c > 1):
        for name, tensor in inputs.items():
            axes = [axis for axis in range(1, tensor.ndim) if tensor.shape[axis] == count]
            if tensor.is_floating_point() and tensor.ndim >= 3 and len(axes) == 1:
                return name, axes[0]
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())
    raise SettingsError(
        f"{encoder.modality}.augment: {encoder.spec} takes no spectrogram ({shapes}), so time_mask and frequency_mask "
        "do not apply; use shift_seconds"
    )
