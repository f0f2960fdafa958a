"""The instants of published loaders, by hand and beside the frames and sound that FFmpeg's own program extracts."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from talik.errors import SettingsError
from talik.extract.media.clip_media import SegmentSettings
from talik.extract.media.decode import decode_clip
from talik.extract.media.frame_folder import FrameFolder
from talik.extract.media.instants import folder_instants, frame_instants, window_centres
from talik.extract.presets.write_experiment import preset_text
from talik.extract.stage.sampling import Sampling

Ffmpeg = Callable[..., bytes]
RATE = 16_000

#: GenjiB/LAVISH: `np.linspace(1, N, 10, dtype=int)` of the frames, and of the sound of S samples
#: `np.linspace(0, S - 16000 * (window + 0.1), 10, dtype=int)`; worked out by hand.
MUSIC_FRAMES = [1, 7, 14, 20, 27, 33, 40, 46, 53, 60]  # 60 s at 1 frame a second
MUSIC_SAMPLES = [0, 103022, 206044, 309066, 412088, 515111, 618133, 721155, 824177, 927200]
AVE_FRAMES = [1, 4, 7, 10, 13, 17, 20, 23, 26, 30]  # 10 s at 3 frames a second
AVE_SAMPLES = [0, 15822, 31644, 47466, 63288, 79111, 94933, 110755, 126577, 142400]
PUBLISHED = {
    "music-avqa": (60.0, 1.95, MUSIC_FRAMES, MUSIC_SAMPLES),
    "ave": (10.0, 1.0, AVE_FRAMES, AVE_SAMPLES),
}


def preset(dataset: str) -> tuple[Sampling, float]:
    """The sampling that the preset's file says, and the rate of its frames."""
    tables = tomllib.loads(preset_text(dataset, "lavish"))
    data = tables["data"]
    assert data["segments"] == 10
    assert data.get("stride_seconds") == (1.0 if dataset == "ave" else None)
    chosen = {name: data[name] for name in ("instants", "instants_fps", "stride_seconds") if name in data}
    window = tables["encoders"]["audio"]["window_seconds"]
    return Sampling(num_segments=10, window_seconds=window, **chosen), data["instants_fps"]


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_the_lavish_preset_looks_where_the_published_loader_does(dataset: str) -> None:
    seconds, window, frames, samples = PUBLISHED[dataset]
    sampling, fps = preset(dataset)
    settings = SegmentSettings(
        num_segments=10,
        window_seconds=sampling.window_seconds,
        sample_rate_hz=RATE,
        instants=sampling.instants,
        instants_fps=sampling.instants_fps,
        stride_seconds=sampling.stride_seconds,
    )
    shown = frame_instants(settings, seconds, seconds, parts=10)
    np.testing.assert_allclose(shown, (np.array(frames) - 0.5) / fps, atol=2e-5)
    heard = window_centres(settings, shown, clip_begin=0.5, sound_begin=0.25, sound_seconds=seconds)
    np.testing.assert_allclose((heard - 0.25 - window / 2) * RATE, samples, atol=1e-3)
    short = replace(settings, stride_seconds=None)
    all_first = window_centres(short, shown, clip_begin=0.0, sound_begin=0.0, sound_seconds=window + 0.1)
    np.testing.assert_allclose(all_first, window / 2)
    plain = Sampling(num_segments=10, window_seconds=window)
    others = (sampling, plain, replace(sampling, stride_seconds=2.0), replace(plain, stride_seconds=2.0))
    assert len({repr(one.identity(modality)) for one in others for modality in ("visual", "audio")}) == 8


def test_labels_of_seconds_stay_right_in_a_short_clip() -> None:
    """AVE: each instant lies in the second that its label is of, whatever the clip's length."""
    sampling, _ = preset("ave")
    settings = SegmentSettings(
        num_segments=10, sound=False, stride_seconds=1.0, instants=sampling.instants, instants_fps=sampling.instants_fps
    )
    for seconds in (6.0, 10.0, 12.0):
        np.testing.assert_array_equal(np.floor(frame_instants(settings, seconds, seconds, parts=10)), np.arange(10))
        folder = folder_instants(settings, seconds, count=round(3 * seconds), fps=3.0, parts=10)
        np.testing.assert_array_equal(np.floor(folder), np.arange(10))


@pytest.fixture(scope="module", params=[25, 30])
def film(request: pytest.FixtureRequest, ffmpeg: Ffmpeg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 s whose every frame has its own grey, with noise that begins with the picture."""
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    frames = np.repeat(np.arange(10 * request.param, dtype=np.uint16)[:, None] * 200, 64, axis=1).astype("<u2")
    noise = np.random.default_rng(0).integers(-9000, 9000, 10 * RATE).astype("<i2")
    (path.parent / "noise.raw").write_bytes(noise.tobytes())
    ffmpeg("-f", "rawvideo", "-pix_fmt", "gray16le", "-s", "8x8", "-r", request.param, "-i", "-",
           "-f", "s16le", "-ar", RATE, "-ac", "1", "-i", path.parent / "noise.raw",
           "-c:v", "ffv1", "-c:a", "pcm_s16le", path, data=frames.tobytes())  # fmt: skip
    return path


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_frames_and_sound_are_those_that_the_loader_reads(
    film: Path, ffmpeg: Ffmpeg, tmp_path: Path, dataset: str
) -> None:
    """What LAVISH's loader takes of what `ffmpeg -vf fps=N %04d.jpg` and `ffmpeg -ac 1 -ar 16000` leave."""
    sampling, fps = preset(dataset)
    (tmp_path / "frames").mkdir()
    ffmpeg("-i", film, "-vf", f"fps={fps:g}", "-pix_fmt", "rgb24", tmp_path / "frames" / "%04d.png")
    files = sorted((tmp_path / "frames").iterdir())
    chosen = np.linspace(1, len(files), num=10, dtype=int)
    wanted = {"num_segments": 10, "window_seconds": sampling.window_seconds, "sample_rate_hz": RATE,
              "instants": sampling.instants, "instants_fps": sampling.instants_fps,
              "stride_seconds": sampling.stride_seconds}  # fmt: skip
    media = decode_clip(film, **wanted)  # type: ignore[arg-type]
    assert media.frames is not None
    assert media.waveforms is not None
    folder = decode_clip(
        FrameFolder(path=tmp_path / "frames", fps=fps), **wanted, missing_sound="silence"  # type: ignore[arg-type]
    )  # fmt: skip
    expected = np.stack([decode_clip(files[k - 1], num_segments=1, sound=False).frames for k in chosen])[:, 0]
    np.testing.assert_array_equal(media.frames, expected)
    np.testing.assert_array_equal(folder.frames, expected)
    wave = np.frombuffer(ffmpeg("-i", film, "-ac", "1", "-ar", RATE, "-f", "s16le", "-"), "<i2") / 32768
    window = sampling.window_seconds
    assert window is not None
    begins = np.linspace(0, len(wave) - RATE * (window + 0.1), num=10, dtype=int)
    heard = np.stack([wave[b : b + int(RATE * window)] for b in begins])
    np.testing.assert_allclose(media.waveforms, heard, atol=1e-6)


def test_settings_of_instants_go_together() -> None:
    for wrong, key in (
        ({"instants": "first-to-last"}, "instants_fps"),
        ({"instants_fps": 1.0}, "instants_fps"),
        ({"instants": "first-to-last", "instants_fps": -1.0}, "instants_fps"),
        ({"instants": "last-to-first"}, "instants"),
    ):
        with pytest.raises(SettingsError, match=f"^{key}"):
            SegmentSettings(num_segments=2, sound=False, **wrong)  # type: ignore[arg-type]
