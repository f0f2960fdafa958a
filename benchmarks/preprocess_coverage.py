"""Whether models get the pixels that their own code gives them: all pretrained timm configurations, many processors.

    python benchmarks/preprocess_coverage.py --markdown

No weights are read. timm models of one data configuration are compared once, with `timm.data.create_transform`;
transformers' processors have their default settings and stand beside a model of the default configuration without
storage. Writes JSON, and a page beside it; ends with an error where a pixel is more than one grey level off.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers
from PIL import Image
from preprocess_page import page
from preprocess_processors import PROCESSORS, Entry
from scan import environment
from timm.data import create_transform, resolve_data_config

from talik.errors import TalikError
from talik.extract.encoders.hf_video import prepare_frames
from talik.extract.encoders.options import EncoderOptions
from talik.extract.encoders.timm_preprocess import timm_preprocess

#: Height and width: 16:9 as small as films on the web are, and larger; portrait; nearly square, with a centre between
#: two pixels; smaller than any model's picture.
SHAPES = ((360, 640), (720, 1280), (481, 271), (168, 175), (48, 64))

#: Values are floats: a grey level is counted as exceeded from here.
_ONE_LEVEL = 1.02

Frames = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One data configuration of timm, or one processor.

    Attributes:
        family: "timm" or "transformers".
        name: of the processor, or what the configuration says.
        num_models: pretrained models that have the configuration.
        example: one of them, or the model that the processor stands beside.
        way: how talik prepares frames: the `kind` of what it describes.
        largest: largest difference in grey levels, by shape.
        beyond: share of values that are more than one grey level off, over all shapes.
        refusal: why talik does not open it; "" where it does.
    """

    family: str
    name: str
    num_models: int
    example: str
    way: str = ""
    largest: tuple[float, ...] = ()
    beyond: float = 0.0
    refusal: str = ""
    seconds: float = 0.0


def frame_of(height: int, width: int, seed: int = 0) -> Frames:
    """Return a smooth picture with a corner of noise, (H, W, 3) uint8."""
    random = np.random.default_rng([seed, height, width])
    coarse = Image.fromarray(random.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8))
    frame = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).copy()
    frame[: height // 3, : width // 3] = random.integers(0, 256, (height // 3, width // 3, 3))
    return frame


def compare(ours: Callable[[Frames], Any], own: Callable[[Sequence[Image.Image]], Any], levels: Any, num: int) -> Any:
    """Return the largest difference in grey levels by shape, and the share of values beyond one.

    Args:
        ours: from frames (num, H, W, 3) uint8 to a tensor.
        own: from as many Pillow images to a tensor of the same shape.
        levels: what a grey level is of each channel, (3, 1, 1); or a number.
        num: frames at once.
    """
    largest, beyond, total = [], 0, 0
    for shape in SHAPES:
        frames = np.stack([frame_of(*shape, seed) for seed in range(num)])
        found, expected = ours(frames), own([Image.fromarray(frame) for frame in frames])
        if found.shape != expected.shape:
            raise AssertionError(f"shapes {tuple(found.shape)} and {tuple(expected.shape)}")
        gap = (found.float() - expected.float()).abs() / levels
        largest.append(round(float(gap.max()), 3))
        beyond += int((gap > _ONE_LEVEL).sum())
        total += gap.numel()
    return {"largest": tuple(largest), "beyond": beyond / total}


def timm_rows() -> Iterator[Row]:
    """Yield a row for each data configuration of timm's pretrained models."""
    configs: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for name in timm.list_models(pretrained=True):
        data = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        configs.setdefault(repr(data), (data, []))[1].append(name)
    for data, names in configs.values():
        size = " x ".join(map(str, data["input_size"]))
        title = f"{size}, {data['crop_mode']}, {data['crop_pct']:g}, {data['interpolation']}"
        yield measured(
            lambda data=data: timm_compared(data), family="timm", name=title, num_models=len(names), example=names[0]
        )


def timm_compared(data: dict[str, Any]) -> dict[str, Any]:
    """Compare talik's preprocessing of one data configuration with timm's transform."""
    own = create_transform(**data, is_training=False)
    ours = timm_preprocess(data)
    levels = 1 / (255 * torch.tensor(data["std"]).view(-1, 1, 1))
    found = compare(
        lambda frames: ours(frames)["pixel_values"], lambda images: torch.stack([own(i) for i in images]), levels, 2
    )
    return {"way": str(ours.describe()["kind"]), **found}


def processor_rows() -> Iterator[Row]:
    """Yield a row for each processor of transformers that is listed."""
    for entry in PROCESSORS:
        yield measured(
            lambda entry=entry: processor_compared(entry),
            family="transformers",
            name=entry.title,
            num_models=1,
            example=entry.model + (f"#{entry.part}" if entry.part else ""),
        )


def processor_compared(entry: Entry) -> dict[str, Any]:
    """Compare talik's preprocessing for a model in a folder with its processor, called on single images or clips."""
    own = getattr(transformers, entry.processor)(**entry.settings)
    config = transformers.AutoConfig.for_model(entry.model)
    with torch.device("meta"):
        model: Any = transformers.AutoModel.from_config(config)
    model = getattr(model, entry.part) if entry.part else model
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        own.save_pretrained(folder)
        options = EncoderOptions(spec=f"hf:{folder}", modality="visual")
        prepared = prepare_frames(model, folder, options, lambda size: lambda inputs: model(**inputs))
    normalised = getattr(own, "do_normalize", False) and own.image_std is not None
    std = torch.tensor(own.image_std if normalised else [1.0, 1.0, 1.0]).view(3, 1, 1)
    levels = (own.rescale_factor if getattr(own, "do_rescale", True) else 1.0) / std
    num = prepared.num_frames
    name = ""

    def ours(frames: Frames) -> torch.Tensor:
        nonlocal name
        inputs = prepared.preprocess(frames)
        name = next(n for n, value in inputs.items() if value.is_floating_point())
        return inputs[name]

    def given(images: Sequence[Image.Image]) -> torch.Tensor:
        if num is not None:
            found = own([np.asarray(image) for image in images], return_tensors="pt")
            return found[name] if name in found else next(iter(found.values()))
        return torch.cat([own(image, return_tensors="pt")[name] for image in images])

    flat = entry.processor == "Siglip2ImageProcessor"  # patches, each a row of values
    found = compare(ours, given, float(levels.min()) if flat else levels, num or 2)
    return {"way": str(prepared.preprocess.describe()["kind"]), **found}


def measured(call: Callable[[], dict[str, Any]], **known: Any) -> Row:
    """Return a row with what `call` measures, or with why talik refuses."""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            known |= call()
    except TalikError as error:
        known["refusal"] = re.sub(r"^hf:\S+: ", "", " ".join(str(error).split()))  # a temporary folder's name
    return Row(seconds=round(time.perf_counter() - start, 2), **known)


def main() -> None:
    """Compare everything, print what differs or is refused, write JSON, and the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"), help="where the JSON goes")
    parser.add_argument("--markdown", action="store_true", help="write the page beside it")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    where = environment() | {"timm": version("timm"), "pillow": version("pillow")}
    rows = []
    for row in (*timm_rows(), *processor_rows()):
        rows.append(row)
        if row.refusal or row.beyond:
            print(row.name, row.largest, row.refusal, flush=True)
    account = {
        "environment": where,
        "shapes": SHAPES,
        "rows": [asdict(row) for row in rows],
    }
    parsed.out.write_text(json.dumps(account, indent=1) + "\n")
    if parsed.markdown:
        parsed.out.with_suffix(".md").write_text(page(account))
    wrong = [row.name for row in rows if row.beyond]
    print(f"{len(rows) - len(wrong)} of {len(rows)} are within one grey level or refused")
    if wrong:
        raise SystemExit("more than one grey level off: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
