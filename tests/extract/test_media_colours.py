"""Colours of films, and films of fields, beside what FFmpeg's own program makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from talik.cache.format.digests import digest_file
from talik.errors import SettingsError
from talik.extract.datasets.settings import DataSettings
from talik.extract.media.clip_media import SegmentSettings
from talik.extract.media.decode import decode_clip, decode_segments
from talik.extract.media.frame_folder import digest_media
from talik.extract.stage.sampling import Sampling

Ffmpeg = Callable[..., bytes]
HEIGHT, WIDTH, FRAMES = 96, 128, 10
SOURCE = ("-f", "lavfi", "-i", f"testsrc2=s={WIDTH}x{HEIGHT}:r=10:d=1")


def every_frame(ffmpeg: Ffmpeg, path: Path, *options: str) -> np.ndarray:
    """All frames as FFmpeg's program shows them, (N, H, W, 3)."""
    raw = ffmpeg("-i", path, *options, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)


def x265(*, matrix: str, transfer: str, primaries: str, layout: str = "yuv420p10le") -> tuple[str, ...]:
    told = f"setparams=color_primaries={primaries}:color_trc={transfer}"
    filters = f"scale=out_color_matrix={matrix},format={layout},{told}"
    return ("-vf", filters, "-c:v", "libx265", "-x265-params", "log-level=none")


KINDS = {
    "ten bits": ("mkv", x265(matrix="bt709", transfer="bt709", primaries="bt709"), True),
    "twelve bits": ("mkv", ("-vf", "scale=out_color_matrix=bt709,format=yuv422p12le", "-c:v", "ffv1",
                            "-colorspace", "bt709"), False),
    "twelve bits, 4:2:0": ("mkv", ("-pix_fmt", "yuv420p12le", "-c:v", "ffv1"), True),
    "pq": ("mp4", x265(matrix="bt2020", transfer="smpte2084", primaries="bt2020"), True),
    "hlg": ("mkv", x265(matrix="bt2020", transfer="arib-std-b67", primaries="bt2020"), True),
    "full range": ("mp4", ("-vf", "scale=out_color_matrix=bt709:out_range=full,format=yuv420p", "-c:v", "libx264",
                           "-colorspace", "bt709", "-color_range", "pc"), False),
    "smpte 240": ("mkv", ("-vf", "scale=out_color_matrix=smpte240m,format=yuv420p", "-c:v", "libx264",
                          "-colorspace", "smpte240m"), False),
    "nv12": ("avi", ("-c:v", "rawvideo", "-pix_fmt", "nv12"), True),
    "4:1:0": ("avi", ("-c:v", "rawvideo", "-pix_fmt", "yuv410p"), True),
    "prores": ("mov", ("-c:v", "prores_ks", "-pix_fmt", "yuva444p10le"), False),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_colours_are_those_of_ffmpeg(tmp_path: Path, ffmpeg: Ffmpeg, name: str) -> None:
    end, options, another = KINDS[name]
    path = tmp_path / f"a.{end}"
    ffmpeg(*SOURCE, *options, path)
    media = decode_clip(path, num_segments=FRAMES, sound=False)
    np.testing.assert_array_equal(media.frames, every_frame(ffmpeg, path))
    assert (digest_media(path) != digest_file(path)) == another
    said = [note for note in media.notes if f"HDR ({name.upper()})" in note]
    assert len(said) == (name in ("pq", "hlg"))


FIELDS = ("-vf", "tinterlace=interleave_top,setfield=tff", "-r", "10")
INTERLACED = {
    "mpeg2.mpg": ("-c:v", "mpeg2video", "-flags", "+ildct+ilme", "-q:v", "2", "-bf", "2", "-g", "6"),
    "h264.mkv": ("-c:v", "libx264", "-x264-params", "tff=1:bframes=2:keyint=6", "-pix_fmt", "yuv420p"),
    "dv.mkv": ("-c:v", "ffv1", "-pix_fmt", "yuv422p", "-field_order", "tt"),
}


@pytest.fixture(scope="module", params=INTERLACED)
def interlaced(request: pytest.FixtureRequest, ffmpeg: Ffmpeg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of 10 frames, each of two fields."""
    path = tmp_path_factory.mktemp("fields") / request.param
    source = ("-f", "lavfi", "-i", f"testsrc2=s={WIDTH}x{HEIGHT}:r=20:d=1")
    ffmpeg(*source, *FIELDS, *INTERLACED[request.param], path)
    return path


@pytest.mark.parametrize("how", ["off", "yadif", "bwdif"])
@pytest.mark.parametrize("num_segments", [FRAMES, 3])
def test_interlaced_films_are_those_of_ffmpeg(ffmpeg: Ffmpeg, interlaced: Path, how: str, num_segments: int) -> None:
    """To the bit, whichever frames are wanted, the first and last among them; bwdif's first depends on its version."""
    settings = SegmentSettings(num_segments=num_segments, sound=False, deinterlace=how)  # type: ignore[arg-type]
    media = decode_segments(interlaced, settings)
    expected = every_frame(
        ffmpeg, interlaced, *(() if how == "off" else ("-vf", f"{how}=mode=send_frame:deint=interlaced"))
    )
    assert media.frames is not None
    assert len(expected) == FRAMES
    wanted = list(range(FRAMES) if num_segments == FRAMES else (1, 5, 8))
    known = np.array(wanted) >= (how == "bwdif")
    np.testing.assert_array_equal(media.frames[known], expected[wanted][known])
    assert (digest_media(interlaced) != digest_file(interlaced)) == ("yuv422p" not in INTERLACED[interlaced.name])
    assert any("interlaced" in note for note in media.notes) == (how == "off")
    woven = decode_segments(interlaced, SegmentSettings(num_segments=num_segments, sound=False)).frames
    assert (woven is not None and np.array_equal(woven, media.frames)) == (how == "off")


def test_frames_without_fields_stay_as_they_are(ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    ffmpeg(*SOURCE, "-c:v", "libx264", tmp_path / "a.mkv")
    plain, filtered = (
        decode_clip(tmp_path / "a.mkv", num_segments=4, sound=False, deinterlace=how)
        for how in ("off", "yadif")
    )  # fmt: skip
    np.testing.assert_array_equal(plain.frames, filtered.frames)
    assert plain.notes == filtered.notes == ()


def test_the_channels_that_are_heard_are_part_of_the_sounds_identity() -> None:
    usual, first = (Sampling(num_segments=2, window_seconds=1.0, channels=how) for how in ("mean", "first"))  # type: ignore[arg-type]
    assert first.identity("audio") == {**usual.identity("audio"), "channels": "first"}
    assert first.identity("visual") == usual.identity("visual")


def test_what_makes_frames_whole_is_part_of_their_identity() -> None:
    usual = Sampling(num_segments=2, window_seconds=1.0)
    whole = Sampling(num_segments=2, window_seconds=1.0, deinterlace="yadif")
    assert "deinterlace" not in usual.identity("visual")
    assert whole.identity("visual") == {**usual.identity("visual"), "deinterlace": "yadif"}
    assert whole.identity("audio") == usual.identity("audio")
    assert DataSettings(dataset="manifest", root=".").deinterlace == "off"
    with pytest.raises(SettingsError, match="yadif"):
        SegmentSettings(num_segments=1, sound=False, deinterlace="yadiff")  # type: ignore[arg-type]
