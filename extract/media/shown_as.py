"""What the digest of a file leaves open: which of its streams, until when, and in what geometry the film is.

A state belongs to a clip's content as it was decoded. Files of which every version of talik decodes the same are known
by their digest alone; those that the first versions took for another film (another stream, the picture's length only,
coded pixels for shown ones, a picture that is not turned) by the digest and what is decoded of them now, so that old
states are not theirs.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from ...errors import MediaError
from .colours import is_interpolated
from .container import MediaFile, named_errors, open_container, open_media
from .extent import TAIL_SECONDS, film_extent, folder_extent
from .geometry import stream_geometry
from .still import is_tiled, is_transparent, orientation
from .streams import Stream
from .tar_member import FilePath
from .video import frame_times

if TYPE_CHECKING:
    from .frame_folder import FrameFolder

_SOUND_END = "the sound's end"

#: Containers whose index of packets is in their head.
_INDEXED = "mov"

_TIME = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


def shown_as(path: FilePath) -> dict[str, Any]:
    """Return what is decoded of a film otherwise than by the first versions, as JSON; {} of most files.

    Files are opened, and their packets listed only where their head does not say enough; a file that cannot be decoded
    is as most.
    """
    with contextlib.suppress(MediaError, OSError):
        with named_errors(path), open_container(path) as container:
            if _is_usual(path, container):
                return {}
        with open_media(path) as file:
            return _differences(file)
    return {}


def folder_shown_as(folder: FrameFolder, files: Sequence[Path]) -> dict[str, Any]:
    """Return the same of a clip that is a folder of frames, with its sound.

    Args:
        folder: the clip.
        files: its frames in order.
    """
    found: dict[str, Any] = {}
    frames = {str(i): shown for i, file in enumerate(files) if (shown := _still_differences(file))}
    found |= {"frames": frames} if frames else {}
    if folder.sound is not None:
        found |= {name: value for name, value in shown_as(folder.sound).items() if name == "sound"}
    if folder_extent(folder, len(files)).sound_goes_on:
        found["until"] = _SOUND_END
    return found


def _still_differences(path: FilePath) -> dict[str, Any]:
    turned = orientation(path)
    found: dict[str, Any] = {"orientation": turned} if turned != 1 else {}
    return found | ({"ground": "white"} if is_transparent(path) else {})


def _differences(file: MediaFile) -> dict[str, Any]:
    videos = [s.index for s in file.container.streams.video if not s.disposition & Disposition.attached_pic]
    audios = [s.index for s in file.container.streams.audio]
    found: dict[str, Any] = {}
    if file.video is not None:
        found |= {"picture": file.video.index} if file.video.index != videos[0] else {}
        found |= _geometry_differences(file.path, file.container, file.video)
    if file.audio is not None and file.audio.index != audios[0]:
        found["sound"] = file.audio.index
    if film_extent(file, frame_times(file) if file.picture is not None else None).sound_goes_on:
        found["until"] = _SOUND_END
    return found


def _geometry_differences(path: FilePath, container: InputContainer, stream: VideoStream) -> dict[str, Any]:
    geometry = stream_geometry(path, container, stream)
    found: dict[str, Any] = {"aspect": str(geometry.aspect)} if geometry.aspect != 1 else {}
    found |= {"crop": list(geometry.crop)} if any(geometry.crop) else {}
    found |= {"orientation": geometry.orientation} if (geometry.orientation or 1) != 1 else {}
    found |= {"ground": "white"} if geometry.over_white and is_transparent(path) else {}
    found |= {"colours": "bicubic"} if is_interpolated(stream.codec_context.format) else {}
    found |= {"fields": "apart"} if geometry.by_field else {}
    found |= {"tiles": "Pillow"} if is_tiled(path, container) else {}
    return found


def _is_usual(path: FilePath, container: InputContainer) -> bool:
    """Return whether a file's head says that its film is the one that the first versions took."""
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    audios = list(container.streams.audio)
    if len(videos) > 1 or len(audios) > 1 or any(s.codec_context is None for s in (*videos, *audios)):
        return False
    if videos and _geometry_differences(path, container, videos[0]):
        return False
    if not videos or not audios:
        return True
    picture, sound = _stated_end(container, videos[0]), _stated_end(container, audios[0])
    return picture is not None and sound is not None and sound - picture < TAIL_SECONDS / 2


def _stated_end(container: InputContainer, stream: Stream) -> float | None:
    """Return when a stream ends by what the file's head says of that stream alone; None where it says nothing."""
    if container.format.name.startswith(_INDEXED):
        if stream.time_base is None or stream.duration is None or not len(stream.index_entries):
            return None
        start = stream.start_time or 0
        if stream.type == "audio":
            return float((start + stream.duration) * stream.time_base)
        first, last = stream.index_entries[0].timestamp, stream.index_entries[-1].timestamp  # of decoding
        step = (last - first) / max(len(stream.index_entries) - 1, 1)  # the duration may count what is edited out
        return float((start + last - first + step) * stream.time_base)
    told = _TIME.fullmatch(stream.metadata.get("DURATION", ""))  # as FFmpeg and MKVToolNix write it into Matroska files
    if told is None:
        return None
    return 3600 * int(told[1]) + 60 * int(told[2]) + float(told[3])
