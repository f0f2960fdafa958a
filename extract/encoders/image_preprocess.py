"""Frames to an encoder's pictures: brought to its size as whole grey levels, then normalised, in two separate steps.

Letters: N frames, H W pixels of a frame, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...errors import SettingsError
from .options import Fit

Interpolation = Literal["bicubic", "bilinear", "nearest"]


class PicturePreprocess(ABC):
    """Preprocessing in two steps that can run apart: frames to uint8 pictures, pictures to inputs.

    The first step takes frames of any size and can run where they are decoded, one at a time or many: each frame's
    picture is its own. The second runs on whatever device the pictures are on. One after the other they are the whole:
    `normalise(pictures(raw))` equals `__call__(raw)` to the bit.
    """

    def __call__(self, raw: NDArray[np.uint8] | Tensor) -> dict[str, Tensor]:
        """Return the encoder's inputs of frames (N, H, W, 3) uint8."""
        return self.normalise(self.pictures(raw))

    @abstractmethod
    def pictures(self, raw: NDArray[np.uint8] | Tensor) -> Tensor:
        """Return pictures of the encoder's own size, (N, height, width, C) uint8, of frames (N, H, W, 3) uint8.

        Raises:
            SettingsError: frames of another shape or type.
        """

    @abstractmethod
    def normalise(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return the encoder's inputs, float32, of what `pictures` gave."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return a JSON-able account of every setting that the result depends on."""


@dataclass(frozen=True, kw_only=True)
class ImagePreprocess(PicturePreprocess):
    """Resize, crop and normalise frames, as the processors of transformers do.

    `fit="crop"` resizes the shorter edge to `resize` keeping the aspect, then cuts the centre (height, width) out:
    what the published processors do, and it loses the margins of wide frames. `fit="stretch"` resizes the whole frame
    to (height, width) exactly: nothing is lost, the aspect changes.
    """

    height: int
    width: int
    resize: int
    fit: Fit
    interpolation: Interpolation = "bicubic"
    rescale: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    name: str = "pixel_values"

    def pictures(self, raw: NDArray[np.uint8] | Tensor) -> Tensor:
        """Return (N, height, width, 3) uint8 of frames (N, H, W, 3) uint8.

        Resizing is antialiased and rounds to whole grey levels, as torchvision does on tensors.
        """
        pixels = checked_frames(raw).permute(0, 3, 1, 2)  # (N, 3, H, W), channels last in memory
        return self._fitted(pixels).permute(0, 2, 3, 1)

    def normalise(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return {name: (N, 3, height, width) float32} of what `pictures` gave."""
        return {self.name: normalised(pictures, mean=self.mean, std=self.std, rescale=self.rescale)}

    def _fitted(self, pixels: Tensor) -> Tensor:
        if self.fit == "stretch":
            return resized(pixels, (self.height, self.width), self.interpolation)
        height, width = pixels.shape[-2:]
        if height <= width:
            size = self.resize, max(self.resize * width // height, 1)
        else:
            size = max(self.resize * height // width, 1), self.resize
        pixels = resized(pixels, size, self.interpolation)
        height, width = size
        if height < self.height or width < self.width:
            down, right = max(self.height - height, 0), max(self.width - width, 0)
            pixels = F.pad(pixels, (right // 2, right - right // 2, down // 2, down - down // 2))
            height, width = pixels.shape[-2:]
        top, left = (height - self.height) // 2, (width - self.width) // 2
        return pixels[..., top : top + self.height, left : left + self.width]

    def describe(self) -> dict[str, Any]:
        """Return the settings; `resize` only where it is used."""
        settings = {"kind": "image", **asdict(self), "mean": list(self.mean), "std": list(self.std)}
        del settings["name"]  # changes no number
        if self.fit == "stretch":
            del settings["resize"]
        return settings


def checked_frames(raw: NDArray[np.uint8] | Tensor) -> Tensor:
    """Return frames as a tensor, or a SettingsError unless they are (N, H, W, 3) uint8."""
    if isinstance(raw, np.ndarray) and not raw.flags.writeable:
        raw = raw.copy()  # torch warns of arrays that it could write to
    frames = torch.as_tensor(raw)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
        raise SettingsError(f"frames: found {tuple(frames.shape)} {frames.dtype}, expected (N, H, W, 3) uint8")
    return frames


def resized(pixels: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Return (N, C, *size) of pixels (N, C, H, W) uint8, antialiased, rounded to whole grey levels."""
    if pixels.shape[-2:] == size:
        return pixels
    return F.interpolate(pixels, size, mode=interpolation, antialias=interpolation != "nearest")


def normalised(pictures: Tensor, *, mean: tuple[float, ...], std: tuple[float, ...], rescale: float) -> Tensor:
    """Return (N, C, H, W) float32 of pictures (N, H, W, C) uint8: times `rescale`, less `mean`, by `std`."""
    on = pictures.device
    scale = torch.tensor([rescale / s for s in std], device=on).view(1, -1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=on).view(1, -1, 1, 1)
    return torch.addcmul(shift, pictures.permute(0, 3, 1, 2).contiguous().float(), scale)
