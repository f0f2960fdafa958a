"""Still pictures, alone and as folders of frames, beside what Pillow makes of them."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from talik.cache.format.digests import digest_file, digest_json
from talik.errors import MediaError
from talik.extract.media.decode import decode_clip
from talik.extract.media.frame_folder import FrameFolder, digest_media
from talik.extract.media.still import tiled_pixels

Y, X = np.mgrid[0:48, 0:64]
RED = np.stack([255 - X, 2 * Y, np.where((X < 16) & (Y < 12), 200, 30)], -1).astype(np.uint8)
ALPHA = np.where(Y < 24, 255, np.where(Y < 36, 128, 0)).astype(np.uint8)
OPAQUE, CLEAR = Image.fromarray(RED), Image.fromarray(np.dstack([RED, ALPHA]))
PALETTE = OPAQUE.quantize(64)
LOSSLESS = {"png": {}, "webp": {"lossless": True}, "tiff": {}}


def alone(path: Path) -> np.ndarray:
    frames = decode_clip(path, num_segments=1, sound=False).frames
    assert frames is not None
    return frames[0]


def in_folder(path: Path) -> np.ndarray:
    """The picture as a frame of a clip."""
    frames = decode_clip(FrameFolder(path=path.parent, fps=1.0), num_segments=1, sound=False).frames
    assert frames is not None
    return frames[0]


def on_white(path: Path) -> np.ndarray:
    """The picture as Pillow shows it on a white ground."""
    shown = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    white = Image.new("RGBA", shown.size, "white")
    white.alpha_composite(shown)
    return np.asarray(white.convert("RGB"))


@pytest.mark.parametrize("end", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_data_say(tmp_path: Path, orientation: int, end: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{end}"
    OPAQUE.save(path, exif=exif, **LOSSLESS.get(end, {"quality": 98, "subsampling": 0}))
    expected = on_white(path).astype(int)
    assert expected.shape == ((64, 48, 3) if orientation > 4 else (48, 64, 3))
    for found in (alone(path), in_folder(path)):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= (4 if end == "jpg" else 0)
    plain = digest_file(path)
    assert (digest_media(path) == plain) == (orientation == 1)
    folder = digest_json({"frames": [plain], "fps": 1.0, "sound": None})
    assert (digest_media(FrameFolder(path=tmp_path, fps=1.0)) == folder) == (orientation == 1)


KINDS = {
    "alpha.png": (CLEAR, {}),
    "alpha.webp": (CLEAR, {"lossless": True}),
    "grey and alpha.png": (CLEAR.convert("LA"), {}),
    "one colour of a palette.png": (PALETTE, {"transparency": PALETTE.getpixel((0, 0))}),
    "one colour.png": (OPAQUE, {"transparency": (255, 0, 200)}),
    "opaque alpha.png": (OPAQUE.convert("RGBA"), {}),
    "palette.png": (PALETTE, {}),
    "palette.bmp": (PALETTE, {}),
    "grey.png": (OPAQUE.convert("L"), {}),
    "grey.jpg": (OPAQUE.convert("L"), {"quality": 98}),
    "two colours.png": (OPAQUE.convert("1"), {}),
    "print.jpg": (OPAQUE.convert("CMYK"), {"quality": 98}),
    "progressive.jpg": (OPAQUE, {"quality": 98, "subsampling": 0, "progressive": True}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_of_any_kind_is_as_pillow_shows_it_on_white(tmp_path: Path, name: str) -> None:
    image, options = KINDS[name]
    path = tmp_path / name
    image.save(path, **options)
    for found in (alone(path), in_folder(path)):
        assert np.abs(found - on_white(path).astype(int)).max() <= (4 if name.endswith("jpg") else 0)
    usual = digest_media(path) == digest_file(path)
    assert usual == (name not in ("alpha.png", "alpha.webp", "grey and alpha.png", "one colour of a palette.png",
                                  "one colour.png"))  # fmt: skip


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    deep = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
    Image.fromarray(deep).save(tmp_path / "a.png")
    for found in (alone(tmp_path / "a.png"), in_folder(tmp_path / "a.png")):
        assert np.abs(found - (deep / 257.0)[..., None]).max() < 2


def test_frames_of_other_shapes_are_brought_to_the_first_ones(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    OPAQUE.save(tmp_path / "0.png", exif=exif)
    OPAQUE.rotate(-90, expand=True).save(tmp_path / "1.png")
    OPAQUE.resize((128, 96)).save(tmp_path / "2.png", exif=exif)
    frames = decode_clip(FrameFolder(path=tmp_path, fps=1.0), num_segments=3, sound=False).frames
    assert frames is not None
    np.testing.assert_array_equal(frames[0], frames[1])
    assert np.abs(frames[2].astype(int) - frames[0]).mean() < 8


def test_layers_of_a_picture_are_one_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.avif"
    CLEAR.save(path, quality=95)
    assert np.abs(alone(path) - on_white(path).astype(int)).max() == 0
    assert digest_media(path) != digest_file(path)
    plain = tmp_path / "b.avif"
    OPAQUE.save(plain, quality=95, subsampling="4:4:4")
    assert np.abs(alone(plain) - on_white(plain).astype(int)).max() <= 4
    assert digest_media(plain) == digest_file(plain)


def test_tiles_that_nothing_puts_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(MediaError, match="pillow-heif"):
        tiled_pixels(path)


def test_an_animated_webp_is_refused_and_a_gif_is_a_film(tmp_path: Path) -> None:
    images = [Image.new("RGB", (32, 32), (80 * k, 0, 0)) for k in range(3)]
    for end in ("webp", "gif"):
        images[0].save(tmp_path / f"a.{end}", save_all=True, append_images=images[1:], duration=100)
    frames = decode_clip(tmp_path / "a.gif", num_segments=3, sound=False).frames
    assert frames is not None
    np.testing.assert_allclose(frames[:, 0, 0, 0], [0, 80, 160], atol=8)
    images[1].save(tmp_path / "still.webp", lossless=True)
    assert alone(tmp_path / "still.webp")[0, 0, 0] == 80
    with av.open(str(tmp_path / "a.webp")) as container:
        if container.format.name != "webp_pipe":
            pytest.skip("this FFmpeg decodes animated WebP")
    with pytest.raises(MediaError, match=r"a\.webp: an animated WebP"):
        decode_clip(tmp_path / "a.webp", num_segments=3, sound=False)


def test_the_name_of_a_picture_is_no_pattern(tmp_path: Path) -> None:
    for name, level in (("a%03d.png", 9), ("a000.png", 90), ("a001.png", 91), ("100%.png", 10), ("[x]*?.png", 11)):
        Image.new("RGB", (8, 8), (level, 0, 0)).save(tmp_path / name)
    for name, level in (("a%03d.png", 9), ("100%.png", 10), ("[x]*?.png", 11)):
        assert alone(tmp_path / name)[0, 0, 0] == level
