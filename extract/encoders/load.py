"""Opening a pretrained encoder by name: timm, transformers, or another registered model source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ...errors import SettingsError
from ..executors.device import chosen_device
from .model_folders import find_weights, quiet_hub
from .model_sources import MODEL_SOURCES, is_own_source
from .options import Compute, EncoderOptions, Fit, PictureSettings
from .pretrained_encoder import PretrainedEncoder


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
    compute: Compute = "float32",
    device: torch.device | str = "auto",
    model: nn.Module | None = None,
    trust_remote_code: bool = False,
    base: str | Path = "",
) -> PretrainedEncoder:
    """Open a pretrained encoder, find its units and prove that it can be cut between them.

    Args:
        spec: "timm:NAME[.tag]"; "hf:NAME-or-folder[#part]"; or "pip:dinov2-small", "pip:whisper-tiny.en",
            "pip:minilm-l6", whose weights came inside an installed Python package; or "PREFIX:NAME" of a registered
            model source.
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
        compute: what everything is computed in: "float32", without TensorFloat-32; "tf32", float32 weights and states
            whose products a GPU computes in TensorFloat-32; "bfloat16", weights held and states computed in it (a
            `model` of the caller's is converted in place). States are identified by it.
        device: where the encoder runs; "auto" is a GPU where there is one.
        model: a model made by the caller (wrapped by PEFT, merged, tuned) in place of the one that `spec` names, which
            still names its preprocessing. It is frozen in place.
        trust_remote_code: let transformers run code that comes with the model.
        base: the folder that relative paths of models and weights count from; the working directory by default.

    Returns:
        The encoder, frozen, in eval mode.

    Raises:
        SettingsError: a value outside its range, or an unknown prefix or device.
        EncoderError: a model that cannot be opened.
        TrunkError: a model that cannot be cut exactly.

    Example:
        >>> encoder = load_encoder("timm:test_vit", modality="visual", weights="random", image_size=32)
        >>> encoder.num_units, encoder.channels[-1]
        (6, 64)
    """
    return open_encoder(
        EncoderOptions(
            spec=spec,
            modality=modality,
            weights=weights,
            image_size=image_size,
            fit=fit,
            num_frames=num_frames,
            num_segments=num_segments,
            window_seconds=window_seconds,
            picture=picture,
            dtype=dtype,
            compute=compute,
            device=device,
            model=model,
            trust_remote_code=trust_remote_code,
            base=base,
        )
    )


def open_encoder(options: EncoderOptions) -> PretrainedEncoder:
    """Open the encoder that `options` choose; as `load_encoder`, which has the same choices as keywords.

    Raises:
        SettingsError: an unknown prefix or device, or a value that the model does not take.
        EncoderError: a model that cannot be opened.
        TrunkError: a model that cannot be cut exactly.
    """
    device = torch.device(chosen_device(options.device))
    if not options.name or options.prefix not in MODEL_SOURCES:
        more = ", ".join(f"{p}:NAME" for p in MODEL_SOURCES.names() if p not in ("timm", "hf", "pip"))
        known = "timm:NAME, hf:NAME-or-folder[#part] or pip:NAME" + (f"; registered: {more}" if more else "")
        raise SettingsError(f"encoder {options.spec!r}: expected {known}")
    if options.weights is not None and not options.is_random:
        options = replace(options, weights=find_weights(options.spec, options.weights, options.folder))
    with quiet_hub():
        opened = MODEL_SOURCES.get(options.prefix)(options)
    if not is_own_source(options.prefix):  # what else it reads is not known
        opened = replace(opened, read_from=None)
    return PretrainedEncoder(replace(options, device=device), opened)
