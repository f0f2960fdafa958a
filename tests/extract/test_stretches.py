"""A stretch of a film is decoded as if the film had been decoded from its beginning, and nothing outside of it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from talik.errors import MediaError, SettingsError
from talik.extract.media.clip_media import SegmentSettings
from talik.extract.media.decode import decode_clip, decode_segments, iter_media
from talik.extract.media.frame_folder import FrameFolder
from talik.extract.media.stretch import Stretch

RATE = 44_100  # packets of 1024 samples do not begin at whole milliseconds, which is all that Matroska has
SECONDS = 40.0

#: Of two frames in a row the second is left out now and then; the first comes on at 0.
VARIABLE = "select='not(eq(mod(n,7),3)+eq(mod(n,11),5)+between(n,200,230))'"

PICTURE = ("-f", "lavfi", "-i", f"testsrc2=size=64x48:rate=12:duration={SECONDS}")
SOUND = ("-f", "lavfi", "-i", f"aevalsrc='0.4*sin(2*PI*t*(200+9*t))+0.1*random(0)':s={RATE}:d={SECONDS}")
LONG_GOP = ("-c:v", "libx264", "-g", "150", "-bf", "3", "-pix_fmt", "yuv420p", "-fps_mode", "vfr", "-vf", VARIABLE)

FILMS = {
    "mp4": ("film.mp4", *LONG_GOP, "-c:a", "aac"),
    "begins later": ("late.mp4", *LONG_GOP, "-c:a", "aac", "-output_ts_offset", "3.217"),
    "matroska": ("film.mkv", *LONG_GOP, "-c:a", "flac"),
    "matroska, lossy": ("lossy.mkv", *LONG_GOP, "-c:a", "aac", "-output_ts_offset", "1.5"),
    "open GOP": ("open.mp4", *LONG_GOP, "-x264-params", "open-gop=1", "-c:a", "aac"),
    "no index": ("film.ts", *LONG_GOP, "-c:a", "aac"),
}


@pytest.fixture(scope="module", params=FILMS)
def film(
    request: pytest.FixtureRequest, ffmpeg: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    name, *options = FILMS[request.param]
    path: Path = tmp_path_factory.mktemp("films") / name
    ffmpeg(*PICTURE, *SOUND, *options, path)
    return path


def whole_film(path: Path) -> tuple[list[float], list[np.ndarray], np.ndarray, int]:
    """Decode all of a film, from its beginning: times and frames, the samples, and the number of the first of them."""
    with av.open(str(path)) as container:
        shown = [(float(f.pts * f.time_base), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    parts = [f.to_ndarray().reshape(-1) for f in frames]
    scale = 2.0 ** (8 * parts[0].itemsize - 1) if parts[0].dtype.kind == "i" else 1.0
    samples = np.concatenate(parts).astype(np.float32) / np.float32(scale)
    return (
        [t for t, _ in shown],
        [p for _, p in shown],
        samples,
        round(float(frames[0].pts * frames[0].time_base) * RATE),
    )


@pytest.mark.parametrize(("start", "end"), [(0.0, 2.0), (11.3, 18.9), (31.0, None), (16.5, 21.0)])
def test_it_is_what_decoding_from_the_beginning_gives(film: Path, start: float, end: float | None) -> None:
    times, frames, samples, first = whole_film(film)
    clip = decode_clip(
        film, num_segments=5, window_seconds=0.25, sample_rate_hz=RATE, start_seconds=start, end_seconds=end
    )
    assert clip.frames is not None
    assert clip.waveforms is not None
    lasts = clip.duration_seconds
    assert end is None or lasts == pytest.approx(end - start)
    np.testing.assert_allclose(clip.instants_seconds, (np.arange(5) + 0.5) * lasts / 5)
    for instant, frame, window in zip(clip.instants_seconds, clip.frames, clip.waveforms, strict=True):
        at = times[0] + start + instant
        np.testing.assert_array_equal(frame, frames[int(np.searchsorted(times, at + 1e-6, side="right")) - 1])
        begin = round((at - 0.125) * RATE) - first
        heard = [samples[begin + shift : begin + shift + len(window)] for shift in (-1, 0, 1)]
        lossless = film.name == "film.mkv"
        off = min(np.abs(w - window[: len(w)]).max() for w in heard)
        assert off < (1e-6 if lossless else 1e-3)


def test_what_lies_outside_is_neither_seen_nor_heard(film: Path) -> None:
    clip = decode_clip(
        film,
        num_segments=4,
        window_seconds=3.0,
        sample_rate_hz=RATE,
        start_seconds=10.0,
        end_seconds=12.0,
        stride_seconds=1.0,
    )
    inner = decode_clip(
        film, num_segments=2, window_seconds=1.0, sample_rate_hz=RATE, start_seconds=10.0, end_seconds=12.0
    )
    assert clip.frames is not None
    assert inner.frames is not None
    assert clip.waveforms is not None
    np.testing.assert_array_equal(clip.frames[:2], inner.frames)
    np.testing.assert_array_equal(clip.frames[2], clip.frames[3])  # its last frame stays on display
    times, frames, _, _ = whole_film(film)
    last = max(i for i, time in enumerate(times) if time < times[0] + 12.0 - 1e-6)
    np.testing.assert_array_equal(clip.frames[3], frames[last])
    loud = np.abs(clip.waveforms) > 0
    assert not loud[0, : RATE - 1].any()  # the window begins a second before the stretch
    assert loud[0, RATE + 1 :].any()
    assert not loud[1, round(2.5 * RATE) : 3 * RATE - 1].all() or not loud[3].any()
    assert not loud[3, round(0.5 * RATE) + 1 :].any()


def test_nothing_before_it_is_decoded(ffmpeg: Callable[..., bytes], tmp_path: Path) -> None:
    """A film whose beginning is no picture and no sound any more, byte for byte as long."""
    path = tmp_path / "film.mp4"
    ffmpeg(*PICTURE, *SOUND, *FILMS["mp4"][1:], "-g", "40", path)
    wanted = {"num_segments": 3, "window_seconds": 0.5, "sample_rate_hz": RATE}
    whole = decode_clip(path, start_seconds=30.0, end_seconds=36.0, **wanted)
    content = bytearray(path.read_bytes())
    begin = content.index(b"mdat") + 4
    end = begin + (len(content) - begin) // 3
    content[begin:end] = bytes(end - begin)
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"film\.mp4"):
        decode_clip(path, num_segments=8, **{k: v for k, v in wanted.items() if k != "num_segments"})
    again = decode_clip(path, start_seconds=30.0, end_seconds=36.0, **wanted)
    np.testing.assert_array_equal(again.frames, whole.frames)
    np.testing.assert_array_equal(again.waveforms, whole.waveforms)


def test_many_stretches_of_a_film_are_those_taken_one_by_one(film: Path) -> None:
    settings = SegmentSettings(num_segments=2, window_seconds=0.5, sample_rate_hz=RATE)
    parts = [Stretch(media=film, start_seconds=s, end_seconds=s + 3.5) for s in (30.0, 2.0, 17.25)]
    for part, outcome in zip(parts, iter_media(parts, settings), strict=True):
        alone = decode_segments(part, settings)
        assert outcome.media is not None
        np.testing.assert_array_equal(outcome.media.frames, alone.frames)
        np.testing.assert_array_equal(outcome.media.waveforms, alone.waveforms)


def test_a_film_that_was_replaced_is_listed_anew(ffmpeg: Callable[..., bytes], tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    for seconds in (4, 9):
        ffmpeg("-f", "lavfi", "-i", f"testsrc2=size=64x48:rate=10:duration={seconds}", "-y", path)
        clip = decode_clip(path, num_segments=1, sound=False, start_seconds=1.0)
        assert clip.duration_seconds == pytest.approx(seconds - 1)


def test_a_stretch_of_a_folder_of_frames(ffmpeg: Callable[..., bytes], tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=4:duration=10", folder / "%03d.png")
    ffmpeg(*SOUND, "-t", "10", tmp_path / "sound.wav")
    whole = FrameFolder(path=folder, fps=4.0, sound=tmp_path / "sound.wav")
    given = {"window_seconds": 0.5, "sample_rate_hz": RATE}
    part = decode_clip(whole, num_segments=4, start_seconds=2.0, end_seconds=6.0, **given)
    all_of_it = decode_clip(whole, num_segments=10, **given)
    assert part.frames is not None
    assert all_of_it.frames is not None
    np.testing.assert_array_equal(part.frames, all_of_it.frames[2:6])
    np.testing.assert_array_equal(part.waveforms, all_of_it.waveforms[2:6])
    published = {"instants": "first-to-last", "instants_fps": 4.0, "sound": False}
    cut = tmp_path / "cut"
    cut.mkdir()
    for number in range(9, 25):
        shutil.copy(folder / f"{number:03d}.png", cut)
    expected = decode_clip(FrameFolder(path=cut, fps=4.0), num_segments=3, **published)
    found = decode_clip(whole, num_segments=3, start_seconds=2.0, end_seconds=6.0, **published)
    np.testing.assert_array_equal(found.frames, expected.frames)


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        (5.0, 5.0, "expected an end after the start"),
        (7.0, 5.0, "start is 7, end is 5"),
        (-1.0, 5.0, "start is -1, expected seconds"),
        (0.0, float("nan"), "end is nan"),
        (float("inf"), None, "start is inf"),
        (40.5, None, "start is 40.5, but"),
        (1.0, 47.0, "end is 47, but"),
    ],
)
def test_bounds_that_are_none(film: Path, start: float, end: float | None, said: str) -> None:
    with pytest.raises((MediaError, SettingsError), match=said) as raised:
        decode_clip(film, num_segments=1, sound=False, start_seconds=start, end_seconds=end)
    assert film.name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_end_in_whole_seconds_may_be_rounded_up(film: Path) -> None:
    clip = decode_clip(film, num_segments=8, sound=False, start_seconds=33.0, end_seconds=40.75)
    assert clip.duration_seconds == pytest.approx(7.75)
