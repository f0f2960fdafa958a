"""A timm model sees the pixels that timm's own transform gives, at every shape of frame."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from talik.errors import SettingsError
from talik.extract.encoders.image_preprocess import ImagePreprocess
from talik.extract.encoders.load import load_encoder
from talik.extract.encoders.timm_preprocess import timm_preprocess

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from preprocess_coverage import compare, processor_compared, timm_compared
from preprocess_processors import Entry

#: Heights and widths: wide, portrait, smaller than the picture, higher than twice its width, one pixel off the picture,
#: and two whose centre lies between two pixels (7 and 11 are cut off).
SHAPES = [(180, 320), (241, 135), (19, 23), (201, 83), (57, 56), (112, 119), (224, 235)]

CONFIGS = {
    "centre": {"crop_pct": 1.0},
    "centre, resized to more": {"crop_pct": 0.875, "interpolation": "bilinear"},
    "centre of less than the picture": {"crop_pct": 1.15},
    "higher than wide": {"input_size": (3, 64, 48), "crop_pct": 0.9},
    "squash": {"crop_mode": "squash", "crop_pct": 1.0},
    "squash and crop": {"crop_mode": "squash", "crop_pct": 0.9},
    "squash, wider than high": {"crop_mode": "squash", "crop_pct": 0.95, "input_size": (3, 40, 56)},
    "border": {"crop_mode": "border", "crop_pct": 1.0},
    "border and crop": {"crop_mode": "border", "crop_pct": 0.9, "interpolation": "bilinear"},
    "lanczos": {"interpolation": "lanczos"},
    "nearest": {"interpolation": "nearest", "crop_pct": 1.0},
    "grey": {"input_size": (1, 56, 56), "mean": (0.5,), "std": (0.25,)},
    "one mean for all": {"mean": (0.5,), "std": (0.5,)},
}


def _data(**changes):
    config = {"input_size": (3, 56, 56), "interpolation": "bicubic", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    return resolve_data_config({}, pretrained_cfg=config | changes)


def _frame(height, width, seed=0):
    """A smooth picture with a corner of noise."""
    random = np.random.default_rng([seed, height, width])
    coarse = Image.fromarray(random.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8))
    frame = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).copy()
    frame[: height // 3, : width // 3] = random.integers(0, 256, (height // 3, width // 3, 3))
    return frame


def _own(data, frame, size=None):
    image = Image.fromarray(frame).convert("RGB" if data["input_size"][0] == 3 else "L")
    size = data["input_size"] if size is None else (data["input_size"][0], *size)
    return create_transform(**{**data, "input_size": size}, is_training=False)(image)


@pytest.mark.parametrize("name", CONFIGS)
def test_pixels_are_those_of_timms_transform(name):
    data = _data(**CONFIGS[name])
    preprocess = timm_preprocess(data)
    for shape in SHAPES:
        frames = np.stack([_frame(*shape, seed) for seed in range(2)])
        (ours,) = preprocess(frames).values()
        levels = 255 * torch.tensor(data["std"]).view(-1, 1, 1)
        for frame, found in zip(frames, ours, strict=True):
            assert float(((found - _own(data, frame)).abs() * levels).max()) < 1.01, shape
        pictures = [preprocess.pictures(frame[None]) for frame in frames]
        assert torch.cat(pictures).dtype == torch.uint8
        (apart,) = preprocess.normalise(torch.cat(pictures)).values()
        assert torch.equal(apart, ours)


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (96, 96)])
def test_another_image_size_is_prepared_as_timm_would(size):
    encoder = load_encoder("timm:test_vit", modality="visual", weights="random", image_size=size)
    data = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg("test_vit").to_dict())
    for shape in SHAPES:
        frame = _frame(*shape)
        gap = encoder.preprocess(frame[None])["pixel_values"][0] - _own(data, frame, size)
        assert float(gap.abs().max() * max(data["std"]) * 255) < 1.01, shape


def test_what_pixels_depend_on_identifies_them():
    described = {name: timm_preprocess(_data(**changes)).describe() for name, changes in CONFIGS.items()}
    assert len({repr(d) for d in described.values()}) == len(CONFIGS)
    # whole frames resized and nothing cut were right, and keep what identified them
    data = _data(crop_mode="squash", crop_pct=1.0)
    stretched = ImagePreprocess(height=56, width=56, resize=56, fit="stretch", mean=data["mean"], std=data["std"])
    assert described["squash"] == stretched.describe() == timm_preprocess(_data(), fit="stretch").describe()
    assert timm_preprocess(data, fit="crop").describe() == timm_preprocess(_data(crop_pct=1.0)).describe()
    drawn = timm_preprocess(_data(interpolation="random"))
    assert drawn.describe() == timm_preprocess(_data()).describe()


def test_pictures_that_no_frame_becomes_are_refused():
    for changes in ({"input_size": (2, 56, 56)}, {"input_size": (1, 56, 56)}):
        with pytest.raises(SettingsError, match=r"timm:x: found pictures of \d channels, with 3 means; expected"):
            timm_preprocess(_data(**changes), spec="timm:x")
    with pytest.raises(SettingsError, match=r"frames: found \(2, 3, 8, 8\)"):
        timm_preprocess(_data()).pictures(np.zeros((2, 3, 8, 8), np.uint8))


def test_the_comparison_over_all_models_sees_one_pixel_and_two_levels():
    data = _data(crop_pct=0.9)
    own, ours = create_transform(**data, is_training=False), timm_preprocess(data)
    levels = 1 / (255 * torch.tensor(data["std"]).view(-1, 1, 1))

    def compared(change):
        return compare(
            lambda frames: change(ours(frames)["pixel_values"]), lambda i: torch.stack([own(x) for x in i]), levels, 1
        )

    assert compared(lambda pixels: pixels)["beyond"] == 0
    assert compared(lambda pixels: pixels.roll(1, 3))["beyond"] > 0.5
    assert compared(lambda pixels: pixels + 2.1 * levels)["beyond"] > 0.9
    assert timm_compared(data)["way"] == "timm"
    entry = Entry(processor="ViTImageProcessor", model="vit", settings={"size": {"height": 32, "width": 32}})
    found = processor_compared(entry)
    assert (found["way"], found["largest"]) == ("image", (0.0,) * 5)
