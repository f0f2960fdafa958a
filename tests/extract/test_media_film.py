"""The film of a file: the streams that a player shows, as long as they last, in the geometry that it shows them in.

Files are made, and their frames read for comparison, by FFmpeg's own program.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from talik.cache.format.digests import digest_file
from talik.errors import MediaError
from talik.extract.media.clip_media import ClipMedia
from talik.extract.media.decode import decode_clip
from talik.extract.media.frame_folder import FrameFolder, digest_media

Ffmpeg = Callable[..., bytes]
RATE = 8_000

#: 5 s; every second is brighter by 40; and a tone whose level in each second is a tenth more.
PICTURE = ("-f", "lavfi", "-i", "color=black:s=64x48:r=8:d=5,format=gray,geq=lum='30+40*floor(T)'")
LOUDER = "aevalsrc='0.1*(1+floor(t))*sin(2*PI*500*t)':s=8000:d="
X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "8", "-crf", "5")


def tone(level: float, seconds: float) -> tuple[str, ...]:
    return ("-f", "lavfi", "-i", f"aevalsrc='{level}*sin(2*PI*500*t)':s=8000:d={seconds}")


def decode(path: Path, **changed: object) -> ClipMedia:
    wanted: dict[str, object] = {"num_segments": 5, "window_seconds": 0.4, "sample_rate_hz": RATE}
    return decode_clip(path, **{**wanted, **changed})  # type: ignore[arg-type]


def greys(media: ClipMedia) -> np.ndarray:
    assert media.frames is not None
    return media.frames.mean((1, 2, 3))


def peaks(media: ClipMedia) -> np.ndarray:
    assert media.waveforms is not None
    return np.abs(media.waveforms).max(1)


def as_it_is(path: Path) -> None:
    """Assert that the clip is known by its file's digest alone, as ever."""
    assert digest_media(path) == digest_file(path)


def as_another(path: Path) -> None:
    """Assert that the clip is not known by what states of another film were stored under."""
    assert digest_media(path) != digest_file(path)
    assert digest_media(path) == digest_media(path)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Ffmpeg) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    sound = ("-f", "lavfi", "-i", f"{LOUDER}5")
    ffmpeg(*PICTURE, *sound, *X264, "-c:a", "aac", "-b:a", "64k", path)
    return path


@pytest.fixture(scope="module")
def expected(film: Path) -> ClipMedia:
    """The film alone, decoded."""
    found = decode(film)
    np.testing.assert_allclose(found.duration_seconds, 5.0, atol=0.13)
    np.testing.assert_allclose(np.diff(greys(found)), 40, atol=3)
    np.testing.assert_allclose(peaks(found), [0.1, 0.2, 0.3, 0.4, 0.5], atol=0.04)
    as_it_is(film)
    return found


def assert_same(found: ClipMedia, expected: ClipMedia) -> None:
    np.testing.assert_allclose(found.duration_seconds, expected.duration_seconds, atol=0.13)
    np.testing.assert_allclose(greys(found), greys(expected), atol=2)
    np.testing.assert_allclose(peaks(found), peaks(expected), atol=0.04)


STILLS = {
    "a photograph": (("-f", "lavfi", "-i", "color=white:s=320x240:r=1:d=1"), ("-c:v:0", "mjpeg"), "mkv"),
    "a photograph as film": (("-f", "lavfi", "-i", "color=white:s=320x240:r=1:d=1"), ("-c:v:0", "libx264"), "mp4"),
    "previews": (("-f", "lavfi", "-i", "color=white:s=320x240:r=1/3:d=6"), ("-c:v:0", "mjpeg"), "mkv"),
    "a png": (("-f", "lavfi", "-i", "color=white:s=320x240:r=1:d=1"), ("-c:v:0", "png"), "mov"),
}


@pytest.mark.parametrize("kind", STILLS)
@pytest.mark.parametrize("default", ["default", "0"])
def test_a_still_before_the_film_is_not_the_film(
    film: Path, expected: ClipMedia, ffmpeg: Ffmpeg, tmp_path: Path, kind: str, default: str
) -> None:
    still, codec, end = STILLS[kind]
    path = tmp_path / f"a.{end}"
    ffmpeg(*still, "-i", film, "-map", "0:v", "-map", "1", "-c", "copy", *codec, "-pix_fmt:v:0", "yuvj420p" if codec[1]
           in ("mjpeg", "libx264") else "rgb24", "-strict", "-2", "-disposition:v:0", default, path)  # fmt: skip
    assert_same(decode(path), expected)
    as_another(path)


def test_covers_are_no_picture(film: Path, ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    cover = tmp_path / "cover.jpg"
    ffmpeg("-f", "lavfi", "-i", "color=white:s=64x64", "-frames:v", "1", cover)
    for end in ("mp3", "m4a"):
        path = tmp_path / f"song.{end}"
        ffmpeg(
            "-i", film, "-i", cover, "-map", "0:a", "-map", "1", "-c:v", "copy", "-disposition:v", "attached_pic", path
        )
        np.testing.assert_allclose(peaks(decode(path, frames=False)), [0.1, 0.2, 0.3, 0.4, 0.5], atol=0.05)
        with pytest.raises(MediaError, match="no picture in it"):
            decode(path)
        as_it_is(path)


@pytest.mark.parametrize("end", ["mkv", "mp4", "mov"])
def test_of_several_pictures_and_sounds_the_default_ones_are_taken(
    film: Path, expected: ClipMedia, ffmpeg: Ffmpeg, tmp_path: Path, end: str
) -> None:
    path = tmp_path / f"a.{end}"
    other = ("-f", "lavfi", "-i", "color=white:s=96x96:r=8:d=5")
    maps = ("-map", "0:v", "-map", "1:v", "-map", "2:a", "-map", "1:a")
    marks = (
        "-disposition:v:0",
        "0",
        "-disposition:v:1",
        "default",
        "-disposition:a:0",
        "0",
        "-disposition:a:1",
        "default",
    )
    ffmpeg(*other, "-i", film, *tone(0.8, 5), *maps, *X264, *marks, path)
    assert_same(decode(path), expected)
    as_another(path)
    first = tmp_path / f"b.{end}"
    swapped = (
        "-disposition:v:0",
        "default",
        "-disposition:v:1",
        "0",
        "-disposition:a:0",
        "default",
        "-disposition:a:1",
        "0",
    )
    ffmpeg(*other, "-i", film, *tone(0.8, 5), *maps, *X264, *swapped, first)
    assert (greys(decode(first)) > 240).all()
    np.testing.assert_allclose(peaks(decode(first)), 0.8, atol=0.06)
    as_it_is(first)


def test_sound_for_some_listeners_gives_way(film: Path, ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    ffmpeg(*tone(0.8, 5), "-i", film, "-map", "1:v", "-map", "0:a", "-map", "1:a", "-c:v", "copy",
           "-disposition:a:0", "visual_impaired", "-disposition:a:1", "0", path)  # fmt: skip
    np.testing.assert_allclose(peaks(decode(path)), [0.1, 0.2, 0.3, 0.4, 0.5], atol=0.05)


@pytest.mark.parametrize("end", ["mp4", "mkv", "avi", "ts"])
def test_a_picture_that_ends_before_the_sound_stays_on_display(
    film: Path, ffmpeg: Ffmpeg, tmp_path: Path, end: str
) -> None:
    path, codec = tmp_path / f"a.{end}", "aac" if end == "mp4" else "mp3"
    ffmpeg("-t", "2", "-i", film, "-i", film, "-map", "0:v", "-map", "1:a", "-c:a", codec, *X264, path)
    media = decode(path)
    np.testing.assert_allclose(media.duration_seconds, 5.0, atol=0.2)
    np.testing.assert_allclose(np.diff(greys(media)), [40, 0, 0, 0], atol=3)
    np.testing.assert_allclose(peaks(media), [0.1, 0.2, 0.3, 0.4, 0.5], atol=0.05)
    as_another(path)
    song = tmp_path / f"song.{end}"
    ffmpeg("-t", "0.125", "-i", film, "-i", film, "-map", "0:v", "-map", "1:a", "-c:a", codec, *X264, song)
    np.testing.assert_allclose(peaks(decode(song)), [0.1, 0.2, 0.3, 0.4, 0.5], atol=0.05)
    as_another(song)


def test_sound_that_ends_first_is_followed_by_silence(film: Path, ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    ffmpeg("-i", film, "-t", "2", "-i", film, "-map", "0:v", "-map", "1:a", "-c", "copy", path)
    media = decode(path)
    np.testing.assert_allclose(media.duration_seconds, 5.0, atol=0.13)
    np.testing.assert_allclose(peaks(media), [0.1, 0.2, 0, 0, 0], atol=0.04)
    as_it_is(path)


def test_what_is_not_looked_at_is_said(film: Path, ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    assert decode(film).notes == ()
    assert decode(film, stride_seconds=1.0).notes == ()
    assert decode(film, stride_seconds=0.5).notes == ("only the first 2.5 s are looked at",)
    late = tmp_path / "late.mkv"
    ffmpeg("-itsoffset", "1.5", "-i", film, "-i", film, "-map", "0:v", "-map", "1:a", "-c", "copy", late)
    assert decode(late).notes == ("sound before the first frame is not looked at",)


def test_frames_in_a_folder_last_as_long_as_their_sound(tmp_path: Path, film: Path, ffmpeg: Ffmpeg) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    ffmpeg("-i", film, "-vf", "fps=2", folder / "%02d.png")
    ffmpeg("-i", film, tmp_path / "a.wav")
    whole = FrameFolder(path=folder, fps=2.0, sound=tmp_path / "a.wav")
    media = decode(whole)  # type: ignore[arg-type]
    assert media.duration_seconds == len(list(folder.iterdir())) / 2
    silent = digest_media(FrameFolder(path=folder, fps=2.0))
    for number in range(5, 11):
        (folder / f"{number:02}.png").unlink(missing_ok=True)
    media = decode(whole)  # type: ignore[arg-type]
    np.testing.assert_allclose(media.duration_seconds, 5.0, atol=0.13)
    np.testing.assert_allclose(peaks(media), [0.1, 0.2, 0.3, 0.4, 0.5], atol=0.05)
    assert silent != digest_media(FrameFolder(path=folder, fps=2.0)) != digest_media(whole)


SHAPES = {
    "wide pixels": ("setsar=16/11", (), "mp4", (48, 93)),
    "narrow pixels": ("setsar=8/9", (), "mkv", (54, 64)),
    "an aspect of the container": ("null", ("-aspect", "2.0"), "mkv", (48, 96)),
    "a transport stream": ("setsar=4/3", (), "ts", (48, 85)),
    "nearly square pixels": ("setsar=161/160:max=1000", (), "mp4", (48, 64)),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_pixels_are_shown_square(film: Path, ffmpeg: Ffmpeg, tmp_path: Path, kind: str) -> None:
    change, options, end, shape = SHAPES[kind]
    path = tmp_path / f"a.{end}"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=8:d=2", "-vf", f"gblur=2,{change}", *options, *X264, path)
    media = decode(path, sound=False, num_segments=2)
    assert media.frames is not None
    assert media.frames.shape[1:3] == shape
    height, width = shape
    raw = ffmpeg(
        "-i", path, "-vf", f"scale={width}:{height}:flags=bilinear", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"
    )
    theirs = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)
    assert np.abs(theirs[4].astype(int) - media.frames[0]).mean() < 3
    (as_it_is if shape == (48, 64) else as_another)(path)


def test_a_turned_picture_of_wide_pixels(film: Path, ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    ffmpeg("-i", film, "-vf", "setsar=4/3", *X264, tmp_path / "wide.mp4")
    ffmpeg("-display_rotation", "90", "-i", tmp_path / "wide.mp4", "-c", "copy", tmp_path / "turned.mp4")
    media = decode(tmp_path / "turned.mp4")
    assert media.frames is not None
    assert media.frames.shape[1:3] == (85, 48)


def _elements(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """The elements of a part of a Matroska file: id, head and content."""
    found, place = [], 0
    while place < len(data):
        begin, place = place, place + 9 - data[place].bit_length()
        name = data[begin:place]
        width = 9 - data[place].bit_length()
        size = int.from_bytes(bytes([data[place] & (0xFF >> width)]) + data[place + 1 : place + width], "big")
        place += width
        found.append((name, data[begin:place], data[place : place + size]))
        place += size
    return found


def _with_crop(data: bytes, path: tuple[str, ...], crop: bytes) -> bytes:
    out = b""
    for name, head, content in _elements(data):
        if path and name == bytes.fromhex(path[0]):
            inner = _with_crop(content, path[1:], crop)
            out += name + ((1 << 56) | len(inner)).to_bytes(8, "big") + inner
        else:
            out += head + content
    return out if path else out + crop


def test_margins_that_a_matroska_file_crops_are_not_shown(ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    plain, cropped = tmp_path / "plain.mkv", tmp_path / "cropped.mkv"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=8:d=2", *X264, plain)
    sides = {"54bb": 4, "54aa": 6, "54cc": 10, "54dd": 2}
    crop = b"".join(bytes.fromhex(name) + b"\x81" + bytes([value]) for name, value in sides.items())
    cropped.write_bytes(_with_crop(plain.read_bytes(), ("18538067", "1654ae6b", "ae", "e0"), crop))
    whole, media = (decode(p, sound=False, num_segments=2).frames for p in (plain, cropped))
    assert whole is not None
    assert media is not None
    np.testing.assert_array_equal(media, whole[:, 4:42, 10:62])
    raw = ffmpeg("-i", cropped, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    assert len(raw) == 16 * 38 * 52 * 3  # ffmpeg's program crops alike
    as_it_is(plain)
    as_another(cropped)


def test_margins_outside_the_clean_aperture_of_an_mp4_are_not_shown(ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    plain, cropped = tmp_path / "plain.mp4", tmp_path / "cropped.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=8:d=2", *X264, plain)
    data = plain.read_bytes()  # the index stands at the end, so that a box more in it moves no frame
    numbers = (50, 1, 40, 1, 3, 1, -2, 1)
    clap = (40).to_bytes(4, "big") + b"clap" + b"".join(n.to_bytes(4, "big", signed=True) for n in numbers)
    end = data.index(b"pasp") - 4
    data = data[:end] + clap + data[end:]
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        place = data.index(name) - 4
        size = int.from_bytes(data[place : place + 4], "big") + len(clap)
        data = data[:place] + size.to_bytes(4, "big") + data[place + 4 :]
    cropped.write_bytes(data)
    whole, media = (decode(p, sound=False, num_segments=2).frames for p in (plain, cropped))
    assert whole is not None
    assert media is not None
    np.testing.assert_array_equal(media, whole[:, 2:42, 10:60])
    raw = ffmpeg("-i", cropped, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    assert len(raw) == 16 * 40 * 50 * 3
    as_another(cropped)


def test_a_file_that_is_no_media_is_known_by_its_digest(tmp_path: Path, film: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.mp4").write_bytes(b"")
    shutil.copy(film, tmp_path / "film.dat")
    for path in tmp_path.iterdir():
        as_it_is(path)
