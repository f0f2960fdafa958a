"""An encoder's inputs for several clips, put together on its device from what was prepared frame by frame.

B: clips, T: frames of a clip.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..encoders.encoder import Encoder
from ..encoders.image_preprocess import PicturePreprocess
from ..executors.device import sent


def joined_frames(encoder: Encoder, clips: list[list[Any]]) -> dict[str, Tensor]:
    """Return the encoder's inputs of what was kept of the frames of some clips, on its device.

    Args:
        encoder: of pictures.
        clips: of each clip, what `FrameInputs` kept of each frame for one view.
    """
    if isinstance(encoder.preprocess, PicturePreprocess):
        pictures = np.stack([picture for clip in clips for picture in clip])  # (B*T, height, width, C) uint8
        return encoder.preprocess.normalise(sent(torch.from_numpy(pictures), encoder.device))
    if encoder.num_frames is None:
        frames = [frame for clip in clips for frame in clip]
        return {name: torch.from_numpy(np.concatenate([one[name] for one in frames])) for name in frames[0]}
    return joined([encoder.preprocess(np.stack(frames)) for frames in clips])


def joined(inputs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the inputs of several batches as those of one."""
    return {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]}
