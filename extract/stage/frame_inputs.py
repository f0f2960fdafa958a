"""Frames brought to a visual encoder's size as they are decoded: memory follows its pictures and not the film's.

H, W: height and width of a decoded frame.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..encoders.encoder import Encoder
from ..encoders.image_preprocess import PicturePreprocess
from ..media.augment_settings import AugmentSettings
from .augment import changed_frames


class FrameInputs:
    """What is kept of each decoded frame of some clips: the encoder's picture of it, for each view.

    Called by `iter_media` in its threads, as `each_frame`; `Sampling.inputs` puts the results together. They are to the
    bit what the encoder's preprocessing gives of whole clips. A processor that takes a clip's frames together, and
    cannot be taken apart, gets them whole.

    Args:
        encoder: of pictures.
        views: numbers of the views, 0 for the plain one.
        augment: the changes of the other views.
        keys: of the clips' items, in the order of the files; what views are drawn from.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        views: Sequence[int] = (0,),
        augment: AugmentSettings | None = None,
        keys: Sequence[str] = (),
    ) -> None:
        self._encoder = encoder
        self._views = sorted(set(views))
        self._augment = augment
        self._keys = keys
        self._alone = threading.Lock()  # processors are not written for several threads

    def __call__(self, place: int, pixels: NDArray[np.uint8]) -> dict[int, Any]:
        """Return what is kept of a frame (H, W, 3) of the clip at `place`, by view."""
        with self._alone:
            return {view: self._kept(self._of_view(view, place, pixels[None])) for view in self._views}

    def _of_view(self, view: int, place: int, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if view == 0 or self._augment is None:
            return frames
        return changed_frames(frames, self._augment, self._encoder.modality, self._keys[place], view)

    def _kept(self, frames: NDArray[np.uint8]) -> Any:
        preprocess = self._encoder.preprocess
        if isinstance(preprocess, PicturePreprocess):
            return torch.clone(preprocess.pictures(frames)[0], memory_format=torch.contiguous_format)
        return preprocess(frames) if self._encoder.num_frames is None else frames[0]
