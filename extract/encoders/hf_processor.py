"""Frames through a model's own processor where it gives more than plain pictures, and clips of frames that go together.

Letters: N items, B clips, F frames of a clip, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import EncoderError, SettingsError
from .image_preprocess import PicturePreprocess, checked_frames


class ProcessorPreprocess:
    """Run a transformers image or video processor on frames; whatever tensors the model takes are kept.

    Args:
        processor: the model's own, from its folder.
        names: the arguments of the model's forward.
        num_frames: F, where whole clips enter the model; else None.
    """

    def __init__(self, processor: Any, *, names: Sequence[str], num_frames: int | None = None) -> None:
        self.processor = processor
        self.names = frozenset(names)
        self.num_frames = num_frames

    def __call__(self, raw: NDArray[np.uint8] | Tensor) -> dict[str, Tensor]:
        """Return the processor's tensors, each (N, …), of frames (N, H, W, 3) uint8; of B clips (B*F, H, W, 3) uint8.

        Raises:
            SettingsError: another shape or type.
            EncoderError: tensors that are not one row an item, or none that the model takes.
        """
        frames = checked_frames(raw).numpy()
        if self.num_frames is None:
            items = list(frames)
        else:
            items = [list(clip) for clip in clips_of(torch.from_numpy(frames), self.num_frames).numpy()]
        found = self.processor(items, return_tensors="pt")
        kept = {name: value for name, value in found.items() if name in self.names and isinstance(value, Tensor)}
        uneven = [name for name, value in kept.items() if not value.ndim or value.shape[0] != len(items)]
        if not kept or uneven:
            what = f"{uneven[0]} {tuple(kept[uneven[0]].shape)}" if uneven else ", ".join(found)
            raise EncoderError(
                f"{type(self.processor).__name__}: gives {what} for {len(items)} items; expected tensors that the "
                "model takes, with a row for each item"
            )
        return kept

    def describe(self) -> dict[str, Any]:
        """Return the processor's class and settings."""
        known = json.loads(json.dumps(self.processor.to_dict(), default=str))
        settings = {name: value for name, value in known.items() if not name.startswith("_")}
        clip = {} if self.num_frames is None else {"num_frames": self.num_frames}
        return {"kind": "processor", "class": type(self.processor).__name__, **clip, **settings}


class ClipPreprocess(PicturePreprocess):
    """Frames preprocessed one by one and put together by clips: (B, F, 3, height, width)."""

    def __init__(self, frames: PicturePreprocess, *, num_frames: int, name: str) -> None:
        self.frames = frames
        self.num_frames = num_frames
        self.name = name

    def pictures(self, raw: NDArray[np.uint8] | Tensor) -> Tensor:
        """Return (B*F, height, width, 3) uint8 of frames (B*F, H, W, 3) uint8, F of each clip in turn."""
        return self.frames.pictures(raw)

    def normalise(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return {name: (B, F, 3, height, width) float32} of what `pictures` gave.

        Raises:
            SettingsError: frames that make no whole clips.
        """
        (pixels,) = self.frames.normalise(pictures).values()
        return {self.name: clips_of(pixels, self.num_frames)}

    def describe(self) -> dict[str, Any]:
        """Return the settings of a frame, and how many go together."""
        return {**self.frames.describe(), "num_frames": self.num_frames}


def clips_of(frames: Tensor, num_frames: int) -> Tensor:
    """Return (B, F, …) of (B*F, …)."""
    if frames.shape[0] % num_frames:
        raise SettingsError(f"frames: found {frames.shape[0]}, expected a multiple of the {num_frames} of a clip")
    return frames.reshape(-1, num_frames, *frames.shape[1:])
