"""A few clips for the page: media inside data URIs, so that the page needs no other file."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from ...errors import MediaError, SettingsError, TalikError
from ...extract.datasets.types import Clip
from ...extract.media.decode import decode_clip
from .runs import Prediction

_TYPES = {
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
}
_FRAME_WIDTH = 160
_MOST_FRAMES = 16  # of longer clips no frame would be wide enough to be seen
_DATA_URI = re.compile(r"data:(image|video)/[a-z0-9+.-]+;base64,[A-Za-z0-9+/]+=*")


@dataclass(frozen=True, kw_only=True)
class ShownClip:
    """One clip to show: its id as the predictions have it, and a video or frames as data URIs (see `data_uri`)."""

    clip_id: str
    video: str | None = None
    frames: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for kind, uri in (("video", self.video), *(("image", frame) for frame in self.frames)):
            match = None if uri is None else _DATA_URI.fullmatch(uri)
            if uri is not None and (match is None or match[1] != kind):
                raise SettingsError(f"clip {self.clip_id!r}: found {uri[:24]!r}, expected a base64 {kind} data URI")


def show_clip(clip: Clip, *, num_segments: int, stride_seconds: float | None = None) -> ShownClip | None:
    """Return a clip with its segments' frames, at most 16 of them, and the video itself where it is small.

    Args:
        clip: of a manifest.
        num_segments, stride_seconds: the segments, as the data set's settings have them.

    Returns:
        None where the media cannot be read, or hold neither frames nor a small video.
    """
    try:
        if clip.path is None or clip.media is None:
            return None
        frames: tuple[str, ...] = ()
        if num_segments <= _MOST_FRAMES:
            decoded = decode_clip(clip.media, num_segments=num_segments, stride_seconds=stride_seconds, sound=False)
            frames = tuple(_jpeg(frame) for frame in decoded.frames) if decoded.frames is not None else ()
    except (TalikError, OSError):
        return None
    try:
        video = data_uri(clip.path)
    except MediaError:
        video = None
    if video is not None and not video.startswith("data:video/"):
        video = None
    return ShownClip(clip_id=clip.id, video=video, frames=frames) if frames or video else None


def _jpeg(frame: npt.NDArray[np.uint8]) -> str:
    """A frame (H, W, 3) as a small JPEG's data URI."""
    height, width = frame.shape[:2]
    size = {"width": _FRAME_WIDTH, "height": max(2, 2 * round(height * _FRAME_WIDTH / width / 2))}
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = *size.values(), "yuvj420p", Fraction(1)
    packets = codec.encode(picture.reformat(**size, format="yuvj420p", dst_color_range="JPEG")) + codec.encode(None)
    content = b"".join(bytes(packet) for packet in packets)
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"


def data_uri(path: Path | str, *, max_bytes: int = 200_000) -> str:
    """Return the file (mp4, webm, png, jpeg or webp) as a data URI.

    Raises:
        MediaError: the file cannot be read, is of another kind, or holds more than `max_bytes`.
    """
    path = Path(path)
    kind = _TYPES.get(path.suffix.lower())
    if kind is None:
        raise MediaError(f"{path}: cannot stand in a page; expected one of {', '.join(_TYPES)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error.strerror})") from None
    if not 0 < len(content) <= max_bytes:
        raise MediaError(f"{path}: {len(content)} bytes; expected 1 to {max_bytes} for a page that stays small")
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def pick_clips(predictions: Iterable[Prediction], num: int) -> tuple[str, ...]:
    """Return up to `num` clip ids, evenly spaced over the order of appearance, whatever was answered to them."""
    clips = list(dict.fromkeys(p.clip_id for p in predictions))
    num = min(num, len(clips))
    return tuple(clips[(2 * i + 1) * len(clips) // (2 * num)] for i in range(num))
