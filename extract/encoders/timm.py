"""Opening a timm model by name, without its classifier."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import EncoderError, SettingsError, TalikError
from .checkpoint_file import load_weights
from .file_stamps import FileStamps
from .fingerprint import used_parameters
from .known_models import nearest_models
from .model_folders import find_model, hub_refusal, place_of
from .model_sources import OpenedModel, Prepared
from .options import EncoderOptions
from .peft_weights import is_adapter_folder, load_adapter, unwrapped
from .spectrogram import prepare_spectrogram
from .timm_preprocess import earlier_preprocess, timm_preprocess


def open_timm(options: EncoderOptions) -> OpenedModel:
    """Open `timm:NAME[.tag]` without its classifier; or `timm:FOLDER` that timm saved, `timm:hf-hub:ORG/NAME`.

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
    name = _found_name(timm, options)
    read_from = _read_from(name, options, adapted)
    model: Any
    try:
        made = options.model
        if made is None:
            made = _without_classifier(timm, name, options.weights is None or adapted, options.image_size)
    except TalikError:
        raise
    except Exception as error:  # whatever timm, or a model's own code, raises
        refused = hub_refusal(error)
        line = " ".join(str(error).split())[:300] if refused is None else refused
        near = nearest_models(name) if ":" not in name and not timm.is_model(name.partition(".")[0]) else ""
        raise EncoderError(f"{options.spec}: cannot be opened: {line}{near}") from None
    model, wrapper = unwrapped(load_adapter(made, str(options.weights)) if adapted else made)
    if options.weights not in (None, "random") and not adapted:
        head = model.default_cfg.get("classifier") or ()
        heads = (head,) if isinstance(head, str) else tuple(head)
        ignored = (*(f"{head}." for head in heads), *_classifier_weights(timm, name, model))
        load_weights(model, options.weights, ignored=ignored)
    data = resolve_model_data_config(model)
    height, width = options.size or tuple(data["input_size"][1:])
    if options.modality == "audio":
        channels, *native = data["input_size"]
        prepared = prepare_spectrogram(options, size=(native[0], native[1]), num_channels=channels)
    elif options.picture is not None or options.num_frames is not None:
        raise SettingsError(f"{options.spec}: picture is for modality 'audio', and num_frames for video models")
    else:
        preprocess = timm_preprocess(data, size=(height, width), fit=options.fit, spec=options.spec)
        earlier = earlier_preprocess(data, size=(height, width), fit=options.fit)
        prepared = Prepared(preprocess=preprocess, earlier=earlier, image_size=(height, width))
    if name == options.name:
        architecture = name.split(".", 1)[0].removeprefix("hf-hub:")
    else:  # a folder's, wherever it lies
        architecture = str(model.pretrained_cfg.get("architecture", type(model).__name__))
    return OpenedModel(
        model=model,
        forward=lambda inputs: model(inputs["pixel_values"]),
        wrapper=None if wrapper is None else lambda inputs: wrapper(inputs["pixel_values"]),
        config={"architecture": architecture, "image_size": [height, width]},
        excluded=classifier_of(model),
        is_random=options.is_random,
        read_from=read_from,
        backbone=lambda inputs: backbone_of(model, inputs["pixel_values"]),
        **vars(prepared),
    )


def _read_from(name: str, options: EncoderOptions, adapted: bool) -> FileStamps | None:
    """Return the files that a model is read from; None where they are a hub's, or the caller's own modules."""
    if not options.is_plain:
        return None
    if name.startswith("local-dir:"):
        return FileStamps.of([name.removeprefix("local-dir:"), *options.own_weights])
    named = ":" not in name and options.weights is not None and not adapted
    return FileStamps.of(options.own_weights) if named else None


def classifier_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the classifier of a timm model (several where it was distilled); () where it has none any more."""
    get = getattr(model, "get_classifier", None)
    try:
        found = get() if get is not None else ()
    except AttributeError:  # SHViT's looks inside the head that was taken away
        found = ()
    return tuple(m for m in (found if isinstance(found, tuple | list) else (found,)) if isinstance(m, nn.Module))


def backbone_of(model: Any, pixels: Tensor) -> list[nn.Parameter] | None:
    """Return what timm calls the features: the parameters that `forward_features` uses; the head's are left out."""
    if not hasattr(model, "forward_features"):
        return None
    return used_parameters(model, lambda: model.forward_features(pixels))


def _found_name(timm: Any, options: EncoderOptions) -> str:
    """Return the name for timm, in which a folder is an absolute path.

    Raises:
        EncoderError: a path without a folder.
    """
    source, _, rest = options.name.rpartition(":")
    is_path = not source and not timm.is_model(rest) and ("/" in rest or place_of(rest, options.folder).is_dir())
    if options.model is not None or not (source == "local-dir" or is_path):
        return options.name
    folder = find_model(options.spec, rest, options.folder)
    if not Path(folder).is_dir():
        raise EncoderError(
            f"{options.spec}: cannot be opened: there is no folder {place_of(rest, options.folder)}; a hub's model is "
            f"timm:hf-hub:{rest}"
        )
    return f"local-dir:{folder}"


def _without_classifier(timm: Any, name: str, pretrained: bool, size: int | tuple[int, int] | None) -> Any:
    """Make the model without its classifier; one whose weights load only with it loses it afterwards.

    Raises:
        EncoderError: the classifier cannot be removed.
    """
    try:
        return _create(timm, name, {"pretrained": pretrained, "num_classes": 0}, size)
    except Exception as error:  # shvit_s1: a RuntimeError, since part of its head counts as the model's
        if hub_refusal(error) is not None:
            raise
        first = error
    try:
        model = _create(timm, name, {"pretrained": pretrained}, size)
    except Exception:
        raise first from None
    try:
        model.reset_classifier(0)
    except Exception as error:  # whatever the model's own code raises
        raise EncoderError(
            f"timm:{name}: opens only with its classifier, which it does not let go of ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:160]})"
        ) from None
    return model


def _classifier_weights(timm: Any, name: str, model: nn.Module) -> tuple[str, ...]:
    """Return the names of the weights that the model has with its classifier and not without, as far as known."""
    try:
        with torch.device("meta"):
            whole = timm.create_model(name)
    except Exception:  # a model that cannot be made without memory; then the classifier's declared name counts
        return ()
    own = set(model.state_dict())
    return tuple(key for key in whole.state_dict() if key not in own)


def _create(timm: Any, name: str, made_with: dict[str, Any], size: int | tuple[int, int] | None) -> Any:
    """Make the model; another image size is handed to models whose construction depends on it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if size is None:
            return timm.create_model(name, **made_with)
        entry = timm.models.model_entrypoint(name.split(".", 1)[0]) if ":" not in name else None
        takes_size = entry is None or "img_size" in inspect.getsource(sys.modules[entry.__module__])
        if takes_size:
            try:
                return timm.create_model(name, img_size=size, **made_with)
            except TypeError:
                pass
        return timm.create_model(name, **made_with)
