"""Opening a pretrained encoder by name: timm, transformers, or weights inside an installed Python package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ...errors import SettingsError
from .devices import usable_device
from .encoder import Encoder
from .hf import open_hf
from .opened import MODALITIES, Opened, Request
from .packaged_weights import packaged_folder
from .preprocess import Fit
from .spectrogram_settings import PictureSettings
from .timm import open_timm


def load_encoder(
    spec: str,
    *,
    modality: str,
    weights: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    fit: Fit | None = None,
    num_frames: int | None = None,
    num_segments: int | None = None,
    window_seconds: float | None = None,
    picture: PictureSettings | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    model: nn.Module | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """Open a pretrained encoder, find its units and prove that it can be cut between them.

    Args:
        spec: "timm:NAME[.tag]"; "hf:NAME-or-folder[#part]"; or "pip:dinov2-small", "pip:whisper-tiny.en",
            "pip:minilm-l6", whose weights came inside an installed Python package.
        modality: "visual", "audio" or "text".
        weights: None for the model's own, a path, "random" from the configuration alone, or a folder that the PEFT
            library saved an adapter in, which is put on the model's own weights.
        image_size: pixels, height and width (an int for both); None for the model's own.
        fit: how frames of another aspect are fitted: "crop" cuts the centre out, "stretch" keeps the whole frame;
            None for the model's own way.
        num_frames: frames of a clip that enter together, of an encoder that takes whole clips; None for its own.
        num_segments: T, by which such an encoder's tokens are regrouped; None for every time step that it tells apart.
        window_seconds: length of a window of sound; None for the model's own.
        picture: the front end of an image model that hears log-mel pictures; None for the usual one.
        dtype: of weights and hidden tensors.
        device: where the encoder runs.
        model: a model made by the caller (wrapped by PEFT, merged, tuned) in place of the one that `spec` names, which
            still names its preprocessing. It is frozen in place.
        trust_remote_code: let transformers run code that comes with the model.

    Raises:
        SettingsError: a value that cannot be.
        EncoderError: a model that cannot be opened.
        TrunkError: a model that cannot be cut exactly.
    """
    device = usable_device(device)
    scheme, _, name = spec.partition(":")
    if modality not in MODALITIES:
        raise SettingsError(f"modality: found {modality!r}, expected one of {', '.join(MODALITIES)}")
    request = Request(
        spec=name,
        modality=modality,
        weights=weights,
        image_size=image_size,
        fit=fit,
        num_frames=num_frames,
        window_seconds=window_seconds,
        picture=picture,
        model=model,
        trust_remote_code=trust_remote_code,
    )
    if model is not None and (weights is not None or scheme == "pip"):
        raise SettingsError(f"model: found weights or {scheme!r} beside it, expected a model with its own weights")
    if scheme == "timm" and name:
        opened = open_timm(request)
    elif scheme == "hf" and name:
        opened = open_hf(request)
    elif scheme == "pip" and name:
        opened = _open_packaged(request)
    else:
        raise SettingsError(f"encoder {spec!r}: expected timm:NAME, hf:NAME-or-folder[#part] or pip:NAME")
    return Encoder(spec, opened, modality=modality, dtype=dtype, device=device, num_segments=num_segments)


def _open_packaged(request: Request) -> Opened:
    folder, entry = packaged_folder(request.spec)
    if request.modality != entry.modality:
        raise SettingsError(f"pip:{request.spec}: found modality {request.modality!r}, expected {entry.modality!r}")
    return open_hf(replace(request, spec=str(folder)), model_class=entry.model_class)
