"""Preprocess frames for transformers models of pictures and videos.

Our vectorised resizing is used where it gives what the model's own processor gives, that processor itself where it does
not; whole clips enter a model that takes videos.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import EncoderError, SettingsError, TalikError
from .hf_processor import ClipPreprocess, ProcessorPreprocess
from .image_preprocess import ImagePreprocess, Interpolation, PicturePreprocess
from .model_sources import Prepared
from .options import EncoderOptions, Fit

_INTERPOLATIONS: dict[int, Interpolation] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
_GREY_LEVELS = 1.1  # how far ours may be from the processor's, of 255: both round, not always alike

Call = Callable[[dict[str, Tensor]], Any]


def prepare_frames(
    model: Any, name: str, options: EncoderOptions, call: Callable[[tuple[int, int] | None], Call]
) -> Prepared:
    """Find how frames become inputs of `model`.

    Args:
        model: the model.
        name: its folder, or its name on the hub.
        options: image size, fit and number of frames, as far as they are chosen.
        call: from an image size to how the model is run at that size.

    Raises:
        EncoderError: a model that needs its own processor and has none.
        SettingsError: settings that its processor, or the model, does not leave open.
    """
    config, own = _processor(name, trust_remote_code=options.trust_remote_code)
    ours = _replica(config, model.config)
    accepted = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "pixel_values")
    main = main if main in accepted else next(iter(accepted))
    size = options.size or (ours.height, ours.width)
    needs = [p for p, v in accepted.items() if v.default is v.empty and v.kind == v.POSITIONAL_OR_KEYWORD and p != main]
    num_frames = None if needs else _num_frames(model, main, options, size, call(size))
    if own is None:
        if needs:
            raise EncoderError(f"hf:{name}: its forward takes {', '.join(needs)} too; expected its image processor")
        like_own = True
    else:
        like_own = not needs and _alike(ours, own, num_frames, whole_frame=options.fit == "stretch")
    if not like_own:
        if options.image_size is not None or options.fit is not None:
            raise SettingsError(
                f"image_size, fit: {type(own).__name__} prepares frames in its own way; expected neither, or fit = "
                '"stretch" where it only resizes and normalises'
            )
        prepared = ProcessorPreprocess(own, names=tuple(accepted), num_frames=num_frames)
        _check_one_size(prepared, name)
        return Prepared(preprocess=prepared, earlier=_of_model(ours, main, num_frames), num_frames=num_frames)
    edge = min(size) / min(ours.height, ours.width)
    ours = replace(ours, height=size[0], width=size[1], resize=round(ours.resize * edge), fit=options.fit or ours.fit)
    return Prepared(preprocess=_of_model(ours, main, num_frames), image_size=size, num_frames=num_frames)


def _of_model(ours: ImagePreprocess, main: str, num_frames: int | None) -> PicturePreprocess:
    """Return our preprocessing with the name of the model's argument, put together by clips where these enter."""
    if num_frames is not None:
        return ClipPreprocess(ours, num_frames=num_frames, name=main)
    return replace(ours, name=main)


def _replica(config: dict[str, Any], model_config: Any) -> ImagePreprocess:
    """Return our preprocessing with a processor's settings, as far as they have a meaning here."""
    size, crop = _edges(config.get("size")), _edges(config.get("crop_size"))
    edge = size or native_size(model_config)[0]
    cropped = crop or edge if config.get("do_center_crop") else edge
    keeps_aspect = bool(config.get("do_center_crop")) or "shortest_edge" in (config.get("size") or ())
    fit: Fit = "crop" if keeps_aspect else "stretch"
    normalised = config.get("do_normalize", True)
    mean = tuple(config.get("image_mean") or (0.5, 0.5, 0.5)) if normalised else (0.0, 0.0, 0.0)
    std = tuple(config.get("image_std") or (0.5, 0.5, 0.5)) if normalised else (1.0, 1.0, 1.0)
    rescaled = config.get("do_rescale", True)
    if rescaled and config.get("offset"):  # values from -1 to 1 before the normalisation
        mean = tuple(m + 1 for m in mean)
    return ImagePreprocess(
        height=cropped,
        width=cropped,
        resize=edge,
        fit=fit,
        interpolation=_INTERPOLATIONS.get(config.get("resample", 3), "bicubic"),
        rescale=float(config.get("rescale_factor") or 1 / 255) if rescaled else 1.0,
        mean=mean,
        std=std,
    )


def _alike(ours: ImagePreprocess, own: Any, num_frames: int | None, *, whole_frame: bool) -> bool:
    """Say whether ours gives what the processor gives; of a flat colour only, where the whole frame is to be kept."""
    num, edge = num_frames or 1, ours.resize
    flat = np.full((num, edge + 9, 2 * edge + 5, 3), (200, 90, 30), dtype=np.uint8)
    pictures = [flat] if whole_frame else [flat, *_trial_frames(num, edge)]
    level = _GREY_LEVELS * ours.rescale / torch.tensor(ours.std).view(-1, 1, 1)
    for frames in pictures:
        try:
            found = own([list(frames)] if num_frames else list(frames), return_tensors="pt")
        except Exception:  # a processor of something else than frames
            return False
        values = [v for v in found.values() if isinstance(v, Tensor)]
        if len(values) != 1 or values[0].shape[-3:-2] != (3,):
            return False
        (expected,) = ours(frames).values()
        given = values[0].reshape(-1, *values[0].shape[-3:])
        if whole_frame:  # of another size perhaps
            given, expected = given.amax((2, 3), keepdim=True), expected.amax((2, 3), keepdim=True)
        if given.shape != expected.shape or bool(((given - expected).abs() > level).any()):
            return False
    return True


def _trial_frames(num: int, edge: int) -> Iterator[NDArray[np.uint8]]:
    """Yield (num, H, W, 3) uint8 of several shapes, smooth with a corner of noise.

    Twice as wide as high, 16:9, portrait, smaller than `edge` both ways, very wide and very high: what is cut off, or
    filled up, is an even number of pixels in some and an odd one in others.
    """
    random = torch.Generator().manual_seed(0)
    sizes = [(9, 5, 1, 2), (3, 1, 1, 16 / 9), (0, 2, 1.5, 1.1), (1, 0, 0.6, 0.5), (1, 4, 1, 2.6), (7, 1, 2.6, 1)]
    for down, right, high, wide in sizes:
        height, width = int(edge * high) + down, int(edge * wide) + right
        coarse = torch.randint(0, 256, (num, 3, 6, 9), generator=random).float()
        fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
        fine[..., : height // 3, : width // 3].random_(0, 256, generator=random)
        yield fine.permute(0, 2, 3, 1).to(torch.uint8).numpy()


def _check_one_size(prepared: ProcessorPreprocess, name: str) -> None:
    """Raise an EncoderError unless frames of unlike shapes become inputs of one shape."""
    num, shapes = prepared.num_frames or 1, []
    for height, width in ((224, 224), (360, 640)):
        try:
            made = prepared(np.zeros((num, height, width, 3), dtype=np.uint8))
        except TalikError:
            raise
        except Exception as error:  # whatever the processor's own code raises
            line = " ".join(str(error).split())[:200]
            kind = type(prepared.processor).__name__
            raise EncoderError(f"hf:{name}: {kind} fails on frames: {type(error).__name__}: {line}") from None
        shapes.append({key: tuple(value.shape) for key, value in made.items()})
    for key, first in shapes[0].items():
        if shapes[1].get(key) != first:
            raise EncoderError(
                f"hf:{name}: {type(prepared.processor).__name__} makes {key} {first} of frames of 224 x 224 pixels and "
                f"{shapes[1].get(key)} of 640 x 360; expected one shape, since states of all clips are stored in one "
                '(fit = "stretch" with an image_size brings frames to one, where the model takes plain pictures)'
            )


def _num_frames(model: Any, main: str, options: EncoderOptions, size: tuple[int, int], call: Call) -> int | None:
    """Return how many frames of a clip enter together; None where frames enter one by one."""
    declared = next((n for a in ("num_frames", "frames_per_clip") if (n := getattr(model.config, a, None))), None)

    def takes(number: int) -> bool:
        first = next(model.parameters())
        clip = torch.zeros(1, number, 3, *size, dtype=first.dtype, device=first.device)
        try:
            with torch.no_grad():
                call({main: clip})
        except Exception:  # whatever the model's own code raises
            return False
        return True

    wanted = options.num_frames
    if not isinstance(declared, int) or not takes(declared):
        if wanted is not None:
            raise SettingsError(f"num_frames: found {wanted}, expected none: the model takes frames one by one")
        return None
    if wanted is not None and wanted != declared and not takes(wanted):
        raise SettingsError(f"num_frames: found {wanted}, expected {declared}: the model takes no other number")
    return declared if wanted is None else wanted


def _edges(size: Any) -> int | None:
    """Return the edge that a processor's size names: {"shortest_edge": 256}, {"height": 224, …} or a number."""
    if isinstance(size, dict):
        found = size.get("shortest_edge") or size.get("height")
        return int(found) if found else None
    return int(size) if isinstance(size, int) else None


def native_size(config: Any) -> tuple[int, int]:
    """Return the height and width that a model's configuration names, 224 without one."""
    size = getattr(config, "image_size", None) or getattr(config, "crop_size", None) or 224
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _processor(name: str, *, trust_remote_code: bool) -> tuple[dict[str, Any], Any]:
    """Return an image or video processor's settings and the processor; ({}, None) for a model without one.

    Raises:
        EncoderError: a processor that is named, and cannot be opened.
    """
    from transformers import AutoImageProcessor, AutoVideoProcessor

    folder = Path(name)
    stored: dict[str, Any] = {}
    if folder.is_dir():
        found = next((folder / file for file in _FILES if (folder / file).is_file()), None)
        if found is None:
            return {}, None
        whole = json.loads(found.read_text(encoding="utf-8"))
        stored = dict(whole.get("image_processor") or whole.get("video_processor") or whole)
    kinds: tuple[Any, ...] = (AutoImageProcessor, AutoVideoProcessor)
    reasons = []
    for kind in kinds:
        try:
            own = kind.from_pretrained(name, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            reasons.append(" ".join(str(error).split())[:200])
            continue
        return {**json.loads(json.dumps(own.to_dict(), default=_plain)), **stored}, own
    named = stored.get("image_processor_type") or stored.get("video_processor_type") or stored.get("auto_map")
    if named:
        raise EncoderError(f"hf:{name}: its processor {named} cannot be opened: {reasons[0]}")
    return stored, None


def _plain(value: Any) -> Any:
    return value.value if hasattr(value, "value") else str(value)
