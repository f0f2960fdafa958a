"""Frames by torchcodec are those of PyAV, which decodes what it would show otherwise; the identity names it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

from talik.errors import SettingsError
from talik.extract.media.clip_media import SegmentSettings
from talik.extract.media.decode import decode_segments
from talik.extract.media.torchcodec_frames import GREY_LEVELS, check_decoder, torchcodec_frames
from talik.extract.stage.sampling import Sampling

#: Each kind of file, with FFmpeg's options, and whether torchcodec is to decode it.
KINDS = {
    "plain": ((), True),
    "bt709": (("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"), True),
    "b frames": (("-bf", "3", "-g", "12"), True),
    "wide pixels": (("-vf", "setsar=4/3"), False),
    "ten bits": (("-pix_fmt", "yuv420p10le"), False),
}


@pytest.fixture(scope="module")
def films(ffmpeg: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("films")
    found = {}
    for name, (options, _) in KINDS.items():
        found[name] = folder / f"{name.replace(' ', '_')}.mp4"
        source = ("-f", "lavfi", "-i", "testsrc2=size=96x64:rate=12:duration=3")
        ffmpeg(*source, "-c:v", "libx264", "-pix_fmt", "yuv420p", *options, found[name])
    found["turned"] = folder / "turned.mp4"
    ffmpeg("-display_rotation", "90", "-i", found["plain"], "-c", "copy", found["turned"])
    return found


def settings(decoder: Any) -> SegmentSettings:
    return SegmentSettings(num_segments=5, sound=False, decoder=decoder)


def frames(path: Path, decoder: str) -> np.ndarray:
    found = decode_segments(path, settings(decoder)).frames
    assert found is not None
    return found


class StandIn:
    """torchcodec's decoder, made of PyAV: says which films it was asked for, and may be wrong about their times."""

    asked: list[str]
    late: float
    broken_from: int | None

    def __init__(self, source: str, *, stream_index: int, dimension_order: str, device: str) -> None:
        assert (dimension_order, device) == ("NHWC", "cpu")
        with av.open(source) as container:
            decoded = list(container.decode(container.streams[stream_index]))
        self._pixels = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])
        self._times = np.array([frame.time for frame in decoded])
        self.metadata = SimpleNamespace(height=self._pixels.shape[1], width=self._pixels.shape[2])
        type(self).asked.append(Path(source).stem)

    def get_frames_at(self, places: list[int]) -> SimpleNamespace:
        if self.broken_from is not None and places[-1] >= self.broken_from:
            raise RuntimeError("no more frames")
        pixels = 255 - self._pixels[places]  # unlike PyAV's, so that it shows who decoded
        times = self._times[places] + self.late
        return SimpleNamespace(data=torch.from_numpy(pixels), pts_seconds=torch.from_numpy(times))


@pytest.fixture(autouse=True)
def asked_anew() -> None:
    check_decoder.cache_clear()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    decoders = ModuleType("torchcodec.decoders")
    StandIn.asked, StandIn.late, StandIn.broken_from = [], 0.0, None
    decoders.VideoDecoder = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    return StandIn


@pytest.mark.parametrize(("name", "by_torchcodec"), [*((n, by) for n, (_, by) in KINDS.items()), ("turned", False)])
def test_torchcodec_decodes_what_it_shows_as_a_player_does(
    films: dict[str, Path], stand_in: type[StandIn], name: str, by_torchcodec: bool
) -> None:
    found, expected = frames(films[name], "torchcodec"), frames(films[name], "pyav")
    assert stand_in.asked == ([films[name].stem] if by_torchcodec else [])
    np.testing.assert_array_equal(found, 255 - expected if by_torchcodec else expected)


def test_other_times_than_the_container_lists_are_not_taken(films: dict[str, Path], stand_in: type[StandIn]) -> None:
    stand_in.late = 1 / 12
    np.testing.assert_array_equal(frames(films["plain"], "torchcodec"), frames(films["plain"], "pyav"))
    assert stand_in.asked == ["plain"]


def test_pyav_goes_on_where_torchcodec_fails(
    films: dict[str, Path], stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("talik.extract.media.torchcodec_frames._BLOCK_BYTES", 2 * 96 * 64 * 3)  # two frames a block
    stand_in.broken_from = 18  # the third frame's place
    found, expected = frames(films["plain"], "torchcodec"), frames(films["plain"], "pyav")
    np.testing.assert_array_equal(found, np.concatenate([255 - expected[:2], expected[2:]]))


def test_the_decoder_is_part_of_the_identity_of_pictures() -> None:
    plain, other = (
        Sampling(num_segments=4, window_seconds=1.0, decoder=d)  # type: ignore[arg-type]
        for d in ("pyav", "torchcodec")
    )
    assert other.identity("visual") == {**plain.identity("visual"), "decoder": "torchcodec"}
    assert other.identity("audio") == plain.identity("audio")


def test_without_torchcodec_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(SettingsError, match=r'^\[data\] decoder: found "torchcodec", but .*: install it and FFmpeg'):
        check_decoder("torchcodec")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nvdec_is_refused(stand_in: type[StandIn]) -> None:
    with pytest.raises(SettingsError, match=r'^\[data\] decoder: found "nvdec", but there is no CUDA device'):
        check_decoder("nvdec")


@pytest.mark.parametrize("name", [*KINDS, "turned"])
@pytest.mark.parametrize("decoder", ["torchcodec", pytest.param("nvdec", marks=pytest.mark.gpu)])
def test_frames_are_those_of_pyav(
    films: dict[str, Path], name: str, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        check_decoder(decoder)  # type: ignore[arg-type]
    except SettingsError as error:
        pytest.skip(f"pip install torchcodec, and FFmpeg's shared libraries (Debian: libavdevice59): {error}")
    decoded: list[int] = []

    def counted(*given: Any) -> Iterator[tuple[int, Any]]:
        for place, pixels in torchcodec_frames(*given):
            decoded.append(place)
            yield place, pixels

    monkeypatch.setattr("talik.extract.media.video.torchcodec_frames", counted)
    difference = np.abs(frames(films[name], decoder).astype(int) - frames(films[name], "pyav"))
    assert difference.max() <= GREY_LEVELS[decoder]
    assert len(decoded) == (5 if KINDS.get(name, ((), False))[1] else 0)
