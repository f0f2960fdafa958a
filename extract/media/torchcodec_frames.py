"""Frames decoded by torchcodec in place of PyAV, on a CPU or on a GPU's own decoder (NVDEC).

torchcodec is not installed with talik, and brings no FFmpeg: it takes the shared libraries of the system.

N: wanted frames, H: height, W: width.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache

import av
import numpy as np
from av.video.frame import VideoFrame

from ...errors import SettingsError
from .clip_media import Decoder
from .container import MediaFile, Track, demux, reopened
from .geometry import Geometry, Pixels, displays_upright
from .tar_member import FilePath, TarMember

#: By how many grey levels pixels may differ from PyAV's: not at all by the same FFmpeg on a CPU; NVDEC's pictures are
#: the same before they are converted to RGB, which it does on the GPU with another rounding.
GREY_LEVELS = {"torchcodec": 1, "nvdec": 3}

#: Pixel formats that every decoder converts to RGB alike: 8 bits, chroma at half the resolution.
_FORMATS = frozenset({"yuv420p", "yuvj420p"})

#: Frames are taken in blocks of at most this many bytes.
_BLOCK_BYTES = 1 << 26

#: How far the time of a frame may be from where the container lists it, in seconds: both are rounded.
_SAME_SECONDS = 1e-3


@cache  # of what was found to work: errors are not kept
def check_decoder(decoder: Decoder) -> None:
    """Raise a SettingsError where this machine cannot decode with `decoder`, a value of `[data] decoder`.

    Example:
        >>> check_decoder("pyav")
    """
    if decoder != "pyav" and (reason := _unusable(decoder)):
        raise SettingsError(f'[data] decoder: found "{decoder}", but {reason}; or remove the key')


def _unusable(decoder: Decoder) -> str | None:
    """Return why torchcodec cannot decode here and what to do; it imports without FFmpeg too, so a frame is decoded."""
    import torch

    if decoder == "nvdec" and not torch.cuda.is_available():
        return "there is no CUDA device: take a machine with one"
    try:
        from torchcodec.decoders import VideoDecoder

        VideoDecoder(_one_frame(), device=_device(decoder)).get_frames_at([0])
    except (ImportError, OSError, RuntimeError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return f"torchcodec cannot be used ({first[:160]}): install it and FFmpeg's shared libraries"
    return None


def _device(decoder: Decoder) -> str:
    return "cuda" if decoder == "nvdec" else "cpu"


def _one_frame() -> bytes:
    """Return a video of one black frame."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width = stream.height = 256
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(VideoFrame(256, 256, "yuv420p")))
        container.mux(stream.encode(None))
    return file.getvalue()


def torchcodec_frames(
    file: MediaFile, track: Track, wanted: Sequence[int], geometry: Geometry, decoder: Decoder
) -> Iterator[tuple[int, Pixels]]:
    """Yield wanted frames as a player shows them, (H, W, 3) uint8 RGB; end before those that PyAV is to decode.

    These are all of a file whose picture is turned, mirrored, cropped, interlaced, of pixels that are not square, or of
    a format that decoders convert in different ways, or whose container does not tell the time of every frame; and
    those from the first on at which torchcodec fails, or shows another time than the container lists.

    Args:
        file: open, with a picture.
        track: of its picture.
        wanted: which frames in order of display, ascending.
        geometry: how a player shows them.
        decoder: "torchcodec" or "nvdec".
    """
    if not wanted or not track.exact or geometry != Geometry() or not _is_plain(file):
        return
    from torchcodec.decoders import VideoDecoder

    assert file.video is not None
    with suppress(RuntimeError, ValueError, IndexError):  # PyAV says what is wrong with the file, if anything is
        opened = VideoDecoder(
            _url(file.path),
            stream_index=file.video.index,
            dimension_order="NHWC",
            device=_device(decoder),
        )
        bytes_a_frame = 3 * (opened.metadata.height or 1) * (opened.metadata.width or 1)
        step = max(1, _BLOCK_BYTES // bytes_a_frame)
        for start in range(0, len(wanted), step):
            places = list(wanted[start : start + step])
            frames = opened.get_frames_at(places)
            off = frames.pts_seconds.cpu().numpy() - track.times[places] * track.unit_seconds
            if np.abs(off).max() > _SAME_SECONDS:
                return
            yield from zip(places, frames.data.cpu().numpy(), strict=True)


def _url(path: FilePath) -> str:
    return path.url if isinstance(path, TarMember) else str(path)


def _is_plain(file: MediaFile) -> bool:
    """Return whether every decoder makes the same picture of a file, by its first frame."""
    with reopened(file) as fresh:
        assert fresh.video is not None
        for packet in demux(fresh.path, fresh.container, [fresh.video]):
            for frame in packet.decode():
                assert isinstance(frame, VideoFrame)
                return frame.format.name in _FORMATS and not frame.interlaced_frame and displays_upright(frame)
    return False
