"""Frames to pictures as `timm.data.create_transform` makes them for evaluation, whatever a model's configuration names.

timm resizes with Pillow, one picture at a time. Large frames are resized by torch, many at once, where that is within
one grey level of Pillow; all others go through the transform that timm makes.

Letters: N frames, H W pixels of a frame, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional

from ...errors import SettingsError
from .image_preprocess import ImagePreprocess, PicturePreprocess, checked_frames, normalised, resized
from .options import Fit

_MODES = {1: "L", 3: "RGB"}  # Pillow's, by the number of channels
_BATCHED_FROM = 2  # times smaller: torch's weights of 16 bits are up to two grey levels off where less is averaged


class TimmPreprocess(PicturePreprocess):
    """A timm model's own transform for evaluation, in batches.

    Args:
        data: the model's data configuration, as `timm.data.resolve_model_data_config` gives it.
        size: (height, width) of the pictures.
        crop_mode: "center", "squash" or "border"; None for the configuration's.

    Raises:
        SettingsError: a number of channels, or an interpolation, that frames have no transform for.
    """

    def __init__(
        self, data: Mapping[str, Any], *, size: tuple[int, int], crop_mode: str | None = None, spec: str = "timm"
    ) -> None:
        self.height, self.width = size
        self.crop_mode = crop_mode or data["crop_mode"] or "center"
        self.crop_pct = float(data["crop_pct"])
        self.interpolation = _interpolation(data)
        self.num_channels = int(data["input_size"][0])
        mean, std = tuple(data["mean"]), tuple(data["std"])
        if self.num_channels not in _MODES or not {len(mean), len(std)} <= {1, self.num_channels}:
            raise SettingsError(
                f"{spec}: found pictures of {self.num_channels} channels, with {len(mean)} means; expected a model "
                "that takes frames in colour (3 of each) or in grey (1)"
            )
        self.mean, self.std = (v * self.num_channels if len(v) == 1 else v for v in (mean, std))

    @cached_property
    def own(self) -> Any:
        """The transform that timm makes: from a Pillow image to (C, height, width) uint8."""
        from timm.data.transforms_factory import create_transform

        return create_transform(
            input_size=(self.num_channels, self.height, self.width),
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            normalize=False,
        )

    def pictures(self, raw: NDArray[np.uint8] | Tensor) -> Tensor:
        """Return (N, height, width, C) uint8 of frames (N, H, W, 3) uint8."""
        frames = checked_frames(raw)
        pixels = frames.permute(0, 3, 1, 2)  # (N, 3, H, W), channels last in memory
        size = self._batched_size(*pixels.shape[-2:])
        if size is not None:
            pixels = resized(pixels, size, self.interpolation)
            return functional.center_crop(pixels, [self.height, self.width]).permute(0, 2, 3, 1)
        images = (Image.fromarray(frame).convert(_MODES[self.num_channels]) for frame in frames.numpy())
        return torch.stack([self.own(image) for image in images]).permute(0, 2, 3, 1)

    def normalise(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return {"pixel_values": (N, C, height, width) float32} of what `pictures` gave."""
        return {"pixel_values": normalised(pictures, mean=self.mean, std=self.std, rescale=1 / 255)}

    def _batched_size(self, height: int, width: int) -> tuple[int, int] | None:
        """Return the size that torch resizes frames to, before the centre is cut out; None where timm is to do it.

        Pillow 13 resizes the height first where it shrinks more than the width, which torch never does.
        """
        scale = math.floor(self.height / self.crop_pct), math.floor(self.width / self.crop_pct)
        if self.num_channels != 3 or self.interpolation not in ("bicubic", "bilinear") or height > width:
            return None
        if self.crop_mode == "center" and scale[0] == scale[1]:
            scale = scale[0], scale[0] * width // height
        elif self.crop_mode != "squash":
            return None
        shrinks = min(height / scale[0], width / scale[1]) >= _BATCHED_FROM
        return scale if shrinks and height * scale[1] <= width * scale[0] else None

    def describe(self) -> dict[str, Any]:
        """Return the settings; where whole frames are resized and nothing is cut, those of `fit="stretch"`."""
        whole = self.crop_mode == "squash" and self.crop_pct == 1 and self.num_channels == 3
        if whole and self.interpolation in ("bicubic", "bilinear"):
            return _stretch(self.interpolation, self.mean, self.std, (self.height, self.width)).describe()
        return {
            "kind": "timm",
            "height": self.height,
            "width": self.width,
            "channels": self.num_channels,
            "crop_mode": self.crop_mode,
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def timm_preprocess(
    data: Mapping[str, Any], *, size: tuple[int, int] | None = None, fit: Fit | None = None, spec: str = "timm"
) -> PicturePreprocess:
    """Return how frames are prepared for a timm model.

    Args:
        data: the model's data configuration.
        size: (height, width) of the pictures; None for the configuration's.
        fit: "crop" cuts the centre out, "stretch" keeps the whole frame; None for the configuration's own way.
        spec: the model, for messages.

    Raises:
        SettingsError: a number of channels that frames have no transform for.

    Example:
        >>> from timm.data import resolve_data_config
        >>> data = resolve_data_config({}, pretrained_cfg={"crop_pct": 0.9})
        >>> timm_preprocess(data, size=(32, 32)).describe()["crop_mode"]
        'center'
    """
    height, width = size or tuple(data["input_size"][1:])
    own = TimmPreprocess(data, size=(height, width), crop_mode="center" if fit == "crop" else None, spec=spec)
    if fit == "stretch":
        known = own.interpolation if own.interpolation in ("bicubic", "bilinear", "nearest") else "bicubic"
        return _stretch(known, own.mean, own.std, (height, width))
    return own


def earlier_preprocess(
    data: Mapping[str, Any], *, size: tuple[int, int], fit: Fit | None = None
) -> ImagePreprocess | None:
    """Return how frames were prepared before they followed timm: the centre rounded down, `border` not known.

    Args:
        data: the model's data configuration.
        size: (height, width) of the pictures.
        fit: as in `timm_preprocess`.

    Returns:
        None for a configuration that this cannot have been used with.
    """
    known = ("bicubic", "bilinear", "nearest")
    if len(data["mean"]) != 3 or len(data["std"]) != 3:
        return None
    return ImagePreprocess(
        height=size[0],
        width=size[1],
        resize=int(min(size) / data["crop_pct"]),
        fit=fit or ("stretch" if data.get("crop_mode") == "squash" else "crop"),
        interpolation=data["interpolation"] if data["interpolation"] in known else "bicubic",
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )


def _stretch(
    interpolation: Any, mean: tuple[float, ...], std: tuple[float, ...], size: tuple[int, int]
) -> ImagePreprocess:
    return ImagePreprocess(
        height=size[0], width=size[1], resize=0, fit="stretch", interpolation=interpolation, mean=mean, std=std
    )


def _interpolation(data: Mapping[str, Any]) -> str:
    """Return the name of a configuration's interpolation; of one that is drawn at random in training, bicubic."""
    found = data["interpolation"]
    return found if isinstance(found, str) and found not in ("", "random") else "bicubic"
