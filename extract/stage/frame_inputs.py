"""Frames brought to a visual encoder's size as they are decoded: memory follows its pictures and not the film's.

H, W: height and width of a decoded frame.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..encoders.encoder import Encoder
from ..encoders.image_preprocess import PicturePreprocess
from ..media.augment_settings import AugmentSettings
from ..media.decode import FrameFunction
from .augment import changed_frames

_ALONE = threading.Lock()  # processors are not written for several threads


class FrameInputs:
    """What is kept of each decoded frame of some clips: the encoder's picture of it, for each view.

    `of_clip` gives what takes the frames where they are decoded, in threads or, pickled, in other processes;
    `Sampling.inputs` puts the results together. They are to the bit what the encoder's preprocessing gives of whole
    clips. A processor that takes a clip's frames together, and cannot be taken apart, gets them whole.

    Args:
        encoder: of pictures.
        augment: the changes of the views but the plain one.
    """

    def __init__(self, encoder: Encoder, *, augment: AugmentSettings | None = None) -> None:
        self._preprocess = encoder.preprocess
        self._modality = encoder.modality
        self._one_by_one = encoder.num_frames is None
        self._augment = augment

    def of_clip(self, key: str, views: tuple[int, ...] = (0,)) -> FrameFunction:
        """Return what takes each frame (H, W, 3) of a clip and gives what is kept of it, by view.

        Args:
            key: of the clip's item; what views are drawn from.
            views: their numbers, 0 for the plain one.
        """
        return partial(self._by_view, key, views)

    def __call__(self, _place: int, pixels: NDArray[np.uint8]) -> dict[int, Any]:
        """Return what is kept of a frame (H, W, 3) of a plain clip, as `iter_media` takes it."""
        return self._by_view("", (0,), pixels)

    def _by_view(self, key: str, views: tuple[int, ...], pixels: NDArray[np.uint8]) -> dict[int, Any]:
        with _ALONE:
            return {view: self._kept(self._of_view(view, key, pixels[None])) for view in views}

    def _of_view(self, view: int, key: str, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if view == 0 or self._augment is None:
            return frames
        return changed_frames(frames, self._augment, self._modality, key, view)

    def _kept(self, frames: NDArray[np.uint8]) -> Any:
        if isinstance(self._preprocess, PicturePreprocess):
            return np.array(
                self._preprocess.pictures(frames)[0].numpy(), order="C"
            )  # a view would keep the whole frame
        if not self._one_by_one:
            return frames[0]
        found: dict[str, Tensor] = self._preprocess(frames)
        return {name: value.numpy() for name, value in found.items()}
