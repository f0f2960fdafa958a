"""Opening a timm model by name, without its classifier."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import EncoderError, SettingsError
from .checkpoint_file import load_weights
from .fingerprint import used_parameters
from .model_sources import OpenedModel, Prepared
from .options import EncoderOptions
from .peft_weights import is_adapter_folder, load_adapter, unwrapped
from .spectrogram import prepare_spectrogram
from .timm_preprocess import earlier_preprocess, timm_preprocess


def open_timm(options: EncoderOptions) -> OpenedModel:
    """Open `timm:NAME[.tag]` without its classifier.

    Weights: None for the published ones (network needed), "random", or the path of a safetensors or .pt file.

    Raises:
        EncoderError: an unknown name, weights that cannot be fetched or do not fit.
        SettingsError: a modality that an image model is not for.
    """
    import timm
    from timm.data.config import resolve_model_data_config

    if options.modality == "text":
        raise SettingsError(f"{options.spec}: found modality 'text', expected 'visual' or 'audio'")
    adapted = is_adapter_folder(options.weights)
    made_with: dict[str, Any] = {"pretrained": options.weights is None or adapted, "num_classes": 0}
    size = options.image_size
    model: Any
    try:
        made = _create(timm, options.name, made_with, size) if options.model is None else options.model
    except (RuntimeError, ValueError, OSError, TypeError) as error:
        line = " ".join(str(error).split())
        raise EncoderError(f"{options.spec}: cannot be opened: {line[:300]}") from None
    model, wrapper = unwrapped(load_adapter(made, str(options.weights)) if adapted else made)
    if options.weights not in (None, "random") and not adapted:
        head = model.default_cfg.get("classifier") or ()
        names = (head,) if isinstance(head, str) else tuple(head)
        load_weights(model, options.weights, ignored=tuple(f"{name}." for name in names))
    data = resolve_model_data_config(model)
    height, width = options.size or tuple(data["input_size"][1:])
    if options.modality == "audio":
        prepared = prepare_spectrogram(options, size=(height, width), num_channels=data["input_size"][0])
    elif options.picture is not None or options.num_frames is not None:
        raise SettingsError(f"{options.spec}: picture is for modality 'audio', and num_frames for video models")
    else:
        preprocess = timm_preprocess(data, size=(height, width), fit=options.fit, spec=options.spec)
        earlier = earlier_preprocess(data, size=(height, width), fit=options.fit)
        prepared = Prepared(preprocess=preprocess, earlier=earlier, image_size=(height, width))
    name = options.name.split(".", 1)[0].removeprefix("hf-hub:")
    return OpenedModel(
        model=model,
        forward=lambda inputs: model(inputs["pixel_values"]),
        wrapper=None if wrapper is None else lambda inputs: wrapper(inputs["pixel_values"]),
        config={"architecture": name, "image_size": [height, width]},
        excluded=classifier_of(model),
        is_random=options.is_random,
        backbone=lambda inputs: backbone_of(model, inputs["pixel_values"]),
        **vars(prepared),
    )


def classifier_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the classifier of a timm model (several where it was distilled)."""
    get = getattr(model, "get_classifier", None)
    found = get() if get is not None else ()
    return tuple(m for m in (found if isinstance(found, tuple | list) else (found,)) if isinstance(m, nn.Module))


def backbone_of(model: Any, pixels: Tensor) -> list[nn.Parameter] | None:
    """Return what timm calls the features: the parameters that `forward_features` uses; the head's are left out."""
    if not hasattr(model, "forward_features"):
        return None
    return used_parameters(model, lambda: model.forward_features(pixels))


def _create(timm: Any, name: str, made_with: dict[str, Any], size: int | tuple[int, int] | None) -> Any:
    """Make the model; another image size is handed to models whose construction depends on it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if size is None:
            return timm.create_model(name, **made_with)
        entry = timm.models.model_entrypoint(name.split(".", 1)[0]) if not name.startswith("hf-hub:") else None
        takes_size = entry is None or "img_size" in inspect.getsource(sys.modules[entry.__module__])
        if takes_size:
            try:
                return timm.create_model(name, img_size=size, **made_with)
            except TypeError:
                pass
        return timm.create_model(name, **made_with)
