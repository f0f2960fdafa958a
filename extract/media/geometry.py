"""How a player shows a picture: without the margins that the container crops, at its aspect, turned upright.

H, W: height and width of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .colours import has_field_colours, rgb_of
from .container_crop import NO_CROP, Crop, container_crop
from .still import MATRICES, TRANSPOSED, is_still, orientation
from .tar_member import FilePath

Pixels = npt.NDArray[np.uint8]

#: Pixels that are nearer to squares than this are squares: what rounding of frame sizes leaves.
_SQUARE = 0.01

#: a, b, c, d of the display matrices of turns counter-clockwise, by quarters.
_QUARTER_TURNS = {0: (1, 0, 0, 1), 1: (0, -1, 1, 0), 2: (-1, 0, 0, -1), 3: (0, 1, -1, 0)}


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """From a coded picture to the one that is shown; how a film is turned, each of its frames carries.

    Attributes:
        crop: pixels that are not shown at the top, bottom, left and right of a coded frame.
        aspect: width of a coded pixel relative to its height.
        orientation: EXIF's of a still picture; None where each frame has its display matrix.
        over_white: whether what is transparent is shown over white; films are shown without their transparency.
        by_field: whether the two fields of a frame have colours of their own.
    """

    crop: Crop = NO_CROP
    aspect: Fraction = Fraction(1)
    orientation: int | None = None
    over_white: bool = False
    by_field: bool = False

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height at which a coded frame is shown, before it is turned; no side gets shorter."""
        top, bottom, left, right = self._crop(width, height)
        width, height = width - left - right, height - top - bottom
        if self.aspect > 1:
            return round(width * self.aspect), height
        return width, round(height / self.aspect)

    def shown_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the sides of a still picture in the order in which its turn shows them; the same twice undoes it."""
        return (height, width) if self.orientation in TRANSPOSED else (width, height)

    def upright(self, frame: VideoFrame, size: tuple[int, int]) -> Pixels:
        """Return a frame as (H, W, 3) RGB: cropped, scaled to `size` (width, height), and turned upright."""
        width, height = size
        top, bottom, left, right = self._crop(frame.width, frame.height)
        matrix = _display_matrix(frame) if self.orientation is None else MATRICES[self.orientation]
        if top or bottom or left or right:
            inner = self._rgb(frame)[top : frame.height - bottom, left : frame.width - right]
            if inner.shape[:2] == (height, width):
                return np.ascontiguousarray(_turned(inner, *matrix))
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(inner), format="rgb24")
        pixels = self._rgb(frame, size)
        return np.ascontiguousarray(_turned(pixels, *matrix))

    def _rgb(self, frame: VideoFrame, size: tuple[int, int] | None = None) -> Pixels:
        return rgb_of(frame, size=size, on_white=self.over_white, by_field=self.by_field)

    def _crop(self, width: int, height: int) -> Crop:
        """Return the crop, none where it would leave nothing of a frame."""
        top, bottom, left, right = self.crop
        return self.crop if left + right < width and top + bottom < height else NO_CROP


def stream_geometry(path: FilePath, container: InputContainer, stream: VideoStream) -> Geometry:
    """Return how a player shows the frames of a stream, or a viewer a still picture."""
    if is_still(container.format.name):
        return Geometry(orientation=orientation(path), over_white=stream.codec_context.name != "mjpeg")
    number = [s.index for s in container.streams.video].index(stream.index)
    crop = container_crop(path, container.format.name, stream, number=number)
    return Geometry(crop=crop, aspect=_pixel_aspect(stream), by_field=has_field_colours(path, stream))


def displays_upright(frame: VideoFrame) -> bool:
    """Return whether a frame is shown as it is coded, neither turned nor mirrored."""
    a, b, c, d = _display_matrix(frame)
    return (b, c) == (0, 0) and a > 0 and d > 0


def _pixel_aspect(stream: VideoStream) -> Fraction:
    """Return the width of a stream's pixels relative to their height, 1 where it is not stated or nearly so."""
    aspect = stream.sample_aspect_ratio
    if not aspect or not 1 / 16 <= aspect <= 16 or abs(aspect - 1) < _SQUARE:
        return Fraction(1)
    return Fraction(aspect)


def _display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """Return a, b, c, d of a frame's display matrix (ISO/IEC 14496-12, section 6.2.2), by default the identity."""
    try:
        data: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know another entry of the frame's side data
        return _QUARTER_TURNS.get(round(frame.rotation / 90) % 4, _QUARTER_TURNS[0])
    if data is None:
        return _QUARTER_TURNS[0]
    a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
    return a, b, c, d


def _turned(pixels: Pixels, a: int, b: int, c: int, d: int) -> Pixels:
    """Apply a display matrix that maps (x, y) to (a x + c y, b x + d y), for turns by 90 degrees and mirrorings."""
    if abs(b) > abs(a):  # the axes change places
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    pixels = pixels[:, ::-1] if a < 0 else pixels
    return pixels[::-1] if d < 0 else pixels
