"""Still pictures, and animations of them, as a viewer shows them: turned as their EXIF data say, over white.

FFmpeg's decoders give the pixels; Pillow says how a picture is to be turned, since what FFmpeg tells of it depends on
its version and on PyAV's. Colour profiles and the density of pixels are not looked at, as in the readers of data sets.

H, W: height and width of a picture.
"""

from __future__ import annotations

import contextlib
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from PIL import Image, ImageOps, ImageSequence

from ...errors import MediaError
from .tar_member import FilePath

#: FFmpeg's containers of one or several still pictures, beside those whose names end in "_pipe".
_STILLS = frozenset({"image2", "gif", "apng", "webp_anim", "ico"})

#: Brands of an `ftyp` box that are still pictures in a container of films (ISO/IEC 23008-12; AV1 Image File Format).
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif"})

#: EXIF's tag of the orientation, and what it has to say of the axes: a, b, c, d of a display matrix.
_ORIENTATION = 0x0112
MATRICES = {
    1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1),
    5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0),
}  # fmt: skip

#: Of those, the ones whose axes change places.
TRANSPOSED = frozenset({5, 6, 7, 8})

#: Pillow's names of formats without transparency, and of the one whose decoder fills it with white.
_OPAQUE = ("JPEG", "MPO", "GIF")

#: In a PNG file's bytes, what may hold an orientation; Pillow would decode the whole picture to look.
_PNG_MARKS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")


def is_still(format_name: str) -> bool:
    """Return whether a container, by FFmpeg's name of it, holds still pictures.

    >>> is_still("png_pipe"), is_still("matroska,webm")
    (True, False)
    """
    return format_name.endswith("_pipe") or format_name in _STILLS


def orientation(path: FilePath) -> int:
    """Return EXIF's orientation of a picture, 1 to 8: 1 where it lies as it is shown, or does not say how."""
    # whatever damaged data make of the parser
    with contextlib.suppress(Exception), path.open("rb") as file, Image.open(file) as image:
        if image.format == "PNG" and not any(mark in path.read_bytes() for mark in _PNG_MARKS):
            return 1
        found = image.getexif().get(_ORIENTATION, 1)
        return found if found in MATRICES else 1
    return 1


def is_transparent(path: FilePath) -> bool:
    """Return whether the ground shows through any pixel of a picture or animation; a GIF's is white already."""
    with contextlib.suppress(Exception), path.open("rb") as file, Image.open(file) as image:
        if image.format not in _OPAQUE and image.has_transparency_data:
            return any(i.convert("RGBA").getchannel("A").getextrema()[0] != 255 for i in ImageSequence.Iterator(image))
    return False


def over_white(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return (H, W, 4) RGBA as (H, W, 3) RGB on a white ground.

    >>> over_white(np.array([[[9, 9, 9, 255], [0, 0, 0, 0], [0, 0, 0, 51]]], np.uint8))[0, :, 0].tolist()
    [9, 255, 204]
    """
    alpha = pixels[..., 3:].astype(np.uint16)
    blended = (pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return blended.astype(np.uint8)


def is_animated_webp(path: FilePath) -> bool:
    """Return whether a file is an animation in WebP (RFC 9649, section 2.7.1: VP8X with the flag A)."""
    with path.open("rb") as file:
        head = file.read(21)
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) > 20 and bool(head[20] & 0x02)


def is_tiled(path: FilePath, container: InputContainer) -> bool:
    """Return whether a file is a still picture in several parts: HEIC or AVIF of tiles, or with transparency."""
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and len(container.streams.video) > 1


def tiled_pixels(path: FilePath) -> npt.NDArray[np.uint8]:
    """Return a picture of tiles as shown, (H, W, 3) RGB, by Pillow: FFmpeg takes the tiles for streams of their own.

    Raises:
        MediaError: neither Pillow nor its plug-in pillow-heif can read it.
    """
    _register_heif()
    try:
        with path.open("rb") as file, Image.open(file) as image:
            shown = ImageOps.exif_transpose(image)
            if shown.has_transparency_data:
                return over_white(np.asarray(shown.convert("RGBA")))
            return np.array(shown.convert("RGB"))
    except Exception as error:  # whatever plug-ins raise
        reason = " ".join(str(error).split())[:120]
        raise MediaError(
            f"{path}: a picture of several tiles or layers (HEIC, AVIF), which Pillow cannot read here ({reason}); pip "
            "install pillow-heif, or save it as JPEG or PNG"
        ) from None


@lru_cache(maxsize=1)
def _register_heif() -> None:
    """Let Pillow open HEIC files, where the package for that is installed."""
    with contextlib.suppress(ImportError):
        plugin: Any = import_module("pillow_heif")
        plugin.register_heif_opener()
