"""Frames are brought to the encoder's size as they are decoded: the same inputs to the bit, no whole frame is kept."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from talik.extract.encoders.hf_processor import ClipPreprocess, ProcessorPreprocess
from talik.extract.encoders.image_preprocess import ImagePreprocess
from talik.extract.encoders.timm_preprocess import timm_preprocess
from talik.extract.media.augment_settings import AugmentSettings
from talik.extract.media.clip_media import SegmentSettings
from talik.extract.media.decode import iter_media
from talik.extract.media.decode_pool import DecodeRequest, open_decoder
from talik.extract.media.frame_folder import FrameFolder
from talik.extract.stage.augment import view_inputs
from talik.extract.stage.extract import extract
from talik.extract.stage.frame_inputs import FrameInputs
from talik.extract.stage.sampling import Sampling

Ffmpeg = Callable[..., bytes]
FRAMES = 4


class EveryOther:
    """A processor of the transformers kind that halves frames, for single frames and for clips."""

    def __call__(self, items: list[Any], return_tensors: str) -> dict[str, torch.Tensor]:
        values = torch.from_numpy(
            np.stack([np.stack([item]) if np.ndim(item) == 3 else np.stack(item) for item in items])
        )
        values = values[:, :, :16:2, :16:2].permute(0, 1, 4, 2, 3).float()
        return {"pixel_values": values}


def encoder(preprocess: Any, num_frames: int | None = None) -> Any:
    cpu = torch.device("cpu")
    return SimpleNamespace(
        modality="visual", preprocess=preprocess, num_frames=num_frames, sample_rate_hz=None, device=cpu
    )


IMAGE = ImagePreprocess(height=28, width=28, resize=32, fit="crop", mean=(0.5,) * 3, std=(0.2,) * 3)
DATA = {"input_size": (3, 32, 32), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 0.9,
        "crop_mode": "center"}  # fmt: skip
ENCODERS = {
    "cropped": encoder(IMAGE),
    "stretched": encoder(ImagePreprocess(height=20, width=24, resize=0, fit="stretch")),
    "not resized": encoder(ImagePreprocess(height=40, width=40, resize=48, fit="crop")),
    "timm": encoder(timm_preprocess(DATA)),
    "clips": encoder(ClipPreprocess(IMAGE, num_frames=FRAMES, name="clip"), FRAMES),
    "own processor": encoder(ProcessorPreprocess(EveryOther(), names=["pixel_values"])),
    "own processor of clips": encoder(
        ProcessorPreprocess(EveryOther(), names=["pixel_values"], num_frames=FRAMES), FRAMES
    ),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Ffmpeg) -> list[Path | FrameFolder]:
    """Films of several sizes, one turned, one with wide pixels, and a folder of frames."""
    folder = tmp_path_factory.mktemp("films")
    source = ("-f", "lavfi", "-i", "testsrc2=s=64x48:r=5:d=2")
    ffmpeg(*source, folder / "a.mp4")
    ffmpeg(*source, "-vf", "scale=120:90", folder / "b.mkv")
    ffmpeg("-display_rotation", "90", "-i", folder / "a.mp4", "-c", "copy", folder / "c.mp4")
    ffmpeg(*source, "-vf", "setsar=3/2", folder / "d.mp4")
    (folder / "frames").mkdir()
    ffmpeg(*source, "-vf", "fps=2", folder / "frames" / "%d.png")
    files: list[Path | FrameFolder] = [folder / name for name in ("a.mp4", "b.mkv", "c.mp4", "d.mp4")]
    return [*files, FrameFolder(path=folder / "frames", fps=2.0)]


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("view", [0, 1])
def test_frames_one_by_one_give_the_inputs_of_whole_clips(
    sources: list[Path | FrameFolder], name: str, view: int
) -> None:
    chosen = ENCODERS[name]
    sampling = Sampling(num_segments=FRAMES, num_frames=chosen.num_frames, window_seconds=None)
    decoding = SegmentSettings(num_segments=FRAMES, sound=False)
    augment = AugmentSettings(crop=(0.5, 0.9), flip=0.5, jitter=0.3, seed=4)
    keys = [str(i) for i in range(len(sources))]
    requests = [
        DecodeRequest(source=source, settings=decoding, key=key, views=(0, 1))
        for key, source in zip(keys, sources, strict=True)
    ]
    with open_decoder(0, FrameInputs(chosen, augment=augment)) as decoder:
        apart = {request.key: o.media for request, o in decoder.outcomes(requests) if o.media}
    whole = {key: o.media for key, o in zip(keys, iter_media(sources, decoding), strict=True) if o.media}
    assert len(apart) == len(whole) == len(sources)
    assert all(clip.frames is None for clip in apart.values())
    found = view_inputs(chosen, apart, sampling, augment, view)
    parts = [view_inputs(chosen, {key: clip}, sampling, augment, view) for key, clip in whole.items()]
    for input_name, value in found.items():
        assert torch.equal(value, torch.cat([part[input_name] for part in parts]))


def test_one_whole_frame_at_a_time_is_kept(sources: list[Path | FrameFolder]) -> None:
    """Each frame is gone when the next one comes, whatever the number of segments."""
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def each(_place: int, pixels: np.ndarray) -> int:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(pixels))
        return len(alive)

    for source in sources:
        (outcome,) = iter_media([source], SegmentSettings(num_segments=9, sound=False), 0, each_frame=each)
        assert outcome.media is not None
        assert outcome.media.frames is None
        assert len(outcome.media.prepared or ()) == 9
    assert most <= 1


def test_nothing_but_the_encoders_pictures_is_kept_of_a_frame(sources: list[Path | FrameFolder]) -> None:
    frames = FrameInputs(ENCODERS["not resized"])
    (outcome,) = iter_media(sources[:1], SegmentSettings(num_segments=2, sound=False), each_frame=frames)
    assert outcome.media is not None
    for kept in outcome.media.prepared or ():
        assert kept[0].nbytes == 40 * 40 * 3
        assert kept[0].base is None


def test_missing_pictures_are_black_in_every_segment(ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=d=2", tmp_path / "a.wav")
    decoding = SegmentSettings(num_segments=3, sound=False, missing_picture="black")
    chosen = ENCODERS["cropped"]
    media = [o.media for o in iter_media([tmp_path / "a.wav"], decoding, each_frame=FrameInputs(chosen)) if o.media]
    found = Sampling(num_segments=3, window_seconds=None).inputs(chosen, media)["pixel_values"]
    assert found.shape == (3, 3, 28, 28)
    assert torch.equal(found, torch.full_like(found, -2.5))


EXPERIMENT = """
[data]
dataset = "manifest"
root = "."
segments = 2
[encoders.visual]
model = "timm:test_vit"
weights = "random"
cut = [0]
[task]
kind = "classes"
[[variants]]
name = "p"
adapter = { kind = "probe", modalities = ["visual"] }
"""


def write_experiment_on(folder: Path, clips: list[str], data: str = "") -> Path:
    lines = [
        {"clip": clip, "answer": "ab"[n % 2], "split": ("train", "val", "test")[n % 3]} for n, clip in enumerate(clips)
    ]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (folder / "exp.toml").write_text(EXPERIMENT.replace("segments = 2", f"segments = 2{data}"), encoding="utf-8")
    return folder / "exp.toml"


def test_of_an_older_store_only_clips_that_are_another_film_now_are_computed_again(
    ffmpeg: Ffmpeg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ("-f", "lavfi", "-i", "testsrc2=s=64x48:r=5:d=2")
    ffmpeg(*source, tmp_path / "usual.mp4")
    ffmpeg(*source, "-f", "lavfi", "-i", "sine=d=2", tmp_path / "heard.mkv")
    ffmpeg(*source, "-vf", "setsar=2", tmp_path / "wide.mp4")
    ffmpeg(*source, "-f", "lavfi", "-i", "sine=d=5", tmp_path / "longer.mp4")
    experiment = write_experiment_on(tmp_path, ["usual.mp4", "heard.mkv", "wide.mp4", "longer.mp4"])
    with monkeypatch.context() as earlier:  # when a clip was known by its file's digest alone
        earlier.setattr("talik.extract.media.frame_folder.shown_as", lambda _path: {})
        earlier.setattr("talik.extract.stage.items.DIGEST_VERSION", 0)
        assert list(extract(experiment, progress=False).items.values()) == [4]
    assert list(extract(experiment, progress=False).items.values()) == [2]
    assert extract(experiment, progress=False).up_to_date


def test_extraction_says_what_it_does_not_look_at(ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    for number in range(5):
        source = ("-f", "lavfi", "-i", f"testsrc2=s=64x48:r=5:d={4 if number else 1}")
        ffmpeg(*source, "-metadata", f"title={number}", tmp_path / f"{number}.mp4")
    experiment = write_experiment_on(tmp_path, [f"{n}.mp4" for n in range(5)], "\nstride_seconds = 1.0")
    report = extract(experiment, progress=False)
    (note,) = report.unseen
    assert note == "1.mp4, 2.mp4, 3.mp4 and 1 more: only the first 2 s are looked at"
    assert note in report.lines()
    assert extract(experiment, progress=False).unseen == ()
