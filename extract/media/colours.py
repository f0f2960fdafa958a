"""A decoded frame as RGB with 8 bits, in the matrix and the range that it states, as FFmpeg's command converts it.

H, W: height and width of a picture.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av.filter
import numpy as np
import numpy.typing as npt
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .still import over_white
from .tar_member import PROTOCOLS, FilePath, media_url

#: Layouts with colours at half the height whose conversion takes the nearest colour, in PyAV as in FFmpeg's command.
_NEAREST = frozenset({"yuv420p", "yuvj420p", "yuva420p"})

#: Transfer functions (ITU-T H.273, table 3) of high dynamic range, by what people call them.
_HDR = {16: "PQ", 18: "HLG"}


def rgb_of(
    frame: VideoFrame, *, size: tuple[int, int] | None = None, on_white: bool = False, by_field: bool = False
) -> npt.NDArray[np.uint8]:
    """Return a frame as (H, W, 3) RGB.

    Args:
        frame: in any format.
        size: its new width and height; None for its own.
        on_white: show it on a white ground where it is transparent; else its transparency is not looked at.
        by_field: of an interlaced frame, take each field's colours from that field alone.
    """
    width, height = size or (frame.width, frame.height)
    if on_white and (frame.format.has_palette or any(part.is_alpha for part in frame.format.components)):
        rgba: npt.NDArray[Any] = frame.to_ndarray(format="rgba", width=width, height=height)
        return over_white(rgba)
    if is_interpolated(frame.format) or (by_field and frame.interlaced_frame):
        (frame,) = filtered([frame], ("scale", f"{width}:{height}:flags=bicubic"), ("format", "rgb24"))
    rgb: npt.NDArray[Any] = frame.to_ndarray(format="rgb24", width=width, height=height)
    return rgb


def is_interpolated(layout: VideoFormat | None) -> bool:
    """Return whether colours lie between those that frames in this format have: 10-bit 4:2:0, NV12, 4:1:1 and the like.

    FFmpeg's command interpolates them bicubically, from the places that the film states; PyAV bilinearly, and not.

    >>> is_interpolated(VideoFormat("yuv420p10le")), is_interpolated(VideoFormat("yuv420p"))
    (True, False)
    """
    if layout is None or layout.is_rgb or layout.name in _NEAREST:
        return False
    return layout.chroma_height(16) < 16 or layout.chroma_width(16) < 8


def has_field_colours(path: FilePath, stream: VideoStream) -> bool:
    """Return whether the film is interlaced and its fields' colours lie in other rows than their brightness (4:2:0)."""
    layout = stream.codec_context.format
    if layout is None or layout.is_rgb or layout.chroma_height(16) == 16:
        return False
    order = getattr(stream.codec_context, "field_order", None)  # AVFieldOrder: unknown, progressive, four of two fields
    return _begins_interlaced(path, stream.index) if order is None else int(order) > 1


def _begins_interlaced(path: FilePath, index: int) -> bool:
    """Return the same by the first frame, for versions of PyAV that do not tell the order of fields."""
    with av.open(media_url(path), options={"protocol_whitelist": PROTOCOLS}) as container:
        frame = next(container.decode(container.streams[index]), None)
    return isinstance(frame, VideoFrame) and frame.interlaced_frame


def filtered(frames: list[VideoFrame], *filters: tuple[str, str]) -> list[VideoFrame]:
    """Return what a chain of FFmpeg's filters, each with its arguments, makes of some frames of one size and format."""
    graph, first = av.filter.Graph(), frames[0]
    base = first.time_base or Fraction(1, 1000)
    chain = [graph.add_buffer(width=first.width, height=first.height, format=first.format, time_base=base)]
    chain += [graph.add(name, arguments) for name, arguments in filters]
    chain.append(graph.add("buffersink"))
    graph.link_nodes(*chain).configure()
    for frame in (*frames, None):
        graph.push(frame)
    out: list[VideoFrame] = []
    while True:
        try:
            found = graph.pull()
        except (av.EOFError, av.BlockingIOError):
            return out
        assert isinstance(found, VideoFrame)
        out.append(found)


def hdr_note(stream: VideoStream) -> str | None:
    """Return a line on a film of high dynamic range, None for others: its range is not compressed."""
    kind = _HDR.get(int(stream.codec_context.color_trc or 0))
    if kind is None:
        return None
    return (
        f"the picture is HDR ({kind}) and is taken without tone mapping, so it is paler than on a screen; to change "
        "that, convert the film first, with ffmpeg's filters zscale and tonemap (docs/media.md)"
    )
