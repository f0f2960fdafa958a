"""Clips given as extracted frames, one image a frame in a folder, with or without a sound file beside them.

T: instants, H: height, W: width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ...cache.format.digests import digest_json, digest_stream
from ...errors import MediaError, MissingMediaError
from .container import named_errors, open_container
from .geometry import Pixels, stream_geometry
from .shown_as import folder_shown_as, shown_as
from .stretch import Stretch
from .tar_member import FilePath, TarMember

T = TypeVar("T")

#: Endings of files that count as frames.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True, kw_only=True)
class FrameFolder:
    """A clip as a folder of images, in the order of the last number in their names, or else of the names.

    Attributes:
        path: the folder.
        fps: frames a second at which they were extracted; the first is on display from 0 s.
        sound: the sound file, whose first sample is heard at 0 s; None for a clip without sound.
    """

    path: Path
    fps: float
    sound: FilePath | None = None


MediaSource = FilePath | FrameFolder | Stretch
"""What a clip is decoded from: a file (also inside a tar file), a folder of frames, or a part of either."""


def frame_files(folder: Path) -> list[Path]:
    """Return the images of a folder in order.

    Raises:
        MissingMediaError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise MissingMediaError(f"{folder}: no such folder of frames")
    files = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    if not files:
        raise MissingMediaError(f"{folder}: no frame in it; expected images ({', '.join(IMAGE_SUFFIXES)})")
    return sorted(files, key=_order)


def read_frame_files(files: Sequence[Path], ordinals: npt.NDArray[np.intp], each: Callable[[Pixels], T]) -> list[T]:
    """Return some frames; of the whole frames one at a time is kept.

    Args:
        files: in order.
        ordinals: which of them, (T,); one may be listed several times.
        each: called once with each frame as a viewer shows it, (H, W, 3) uint8 RGB; what it returns takes the frame's
            place. H and W are the first frame's, to which others are scaled.

    Raises:
        MediaError: an image that cannot be decoded; names it.
    """
    made: dict[int, T] = {}
    size: tuple[int, int] | None = None
    for ordinal in sorted({int(o) for o in ordinals}):
        path = files[ordinal]
        with named_errors(path), open_container(path) as container:
            frame = next(container.decode(video=0), None) if container.streams.video else None
            if frame is None or frame.is_corrupt:
                raise MediaError(f"{path}: damaged: not a whole image")
            geometry = stream_geometry(path, container, container.streams.video[0])
            size = size or geometry.shown_size(frame.width, frame.height)
            pixels = geometry.upright(frame, geometry.shown_size(*size))
        made[ordinal] = each(pixels)
    return [made[int(o)] for o in ordinals]


#: Of `digest_media`; raise it where the digest of some file changes, so that remembered ones are taken anew.
DIGEST_VERSION = 2


def digest_media(source: FilePath | FrameFolder) -> str:
    """Return the digest that a clip is known by: of its file, or of its frames, their rate and its sound.

    What of a film is decoded otherwise than by the first versions enters too (`shown_as`).
    """
    if not isinstance(source, FrameFolder):
        shown = shown_as(source)
        return digest_json({"file": _digest(source), "shown": shown}) if shown else _digest(source)
    files = frame_files(source.path)
    frames = [_digest(path) for path in files]
    sound = None if source.sound is None else _digest(source.sound)
    content: dict[str, Any] = {"frames": frames, "fps": source.fps, "sound": sound}
    shown = folder_shown_as(source, files)
    return digest_json({**content, "shown": shown} if shown else content)


def _digest(path: FilePath) -> str:
    with path.open("rb") as file:
        return digest_stream(file)


class MediaStat(NamedTuple):
    """What tells, without reading it, that a file is the one that it was.

    Attributes:
        size_bytes: of all that a clip is read from.
        mtime_ns: when the last of it changed.
        inode: its number in the file system; of a folder of frames, 63 bits of a digest of all names and numbers.
    """

    size_bytes: int
    mtime_ns: int
    inode: int


def stat_media(source: MediaSource) -> MediaStat:
    """Look at all that a clip is read from, without reading it; of a stretch, at its film.

    Raises:
        OSError: it cannot be looked at.
    """
    source = source.media if isinstance(source, Stretch) else source
    if isinstance(source, Path | TarMember):
        found = source.stat()
        return MediaStat(found.st_size, found.st_mtime_ns, found.st_ino & _SIGNED)
    files = frame_files(source.path) + ([] if source.sound is None else [source.sound])
    stats = [path.stat() for path in files]
    names = digest_json([[path.name, stat.st_ino] for path, stat in zip(files, stats, strict=True)])
    inode = int(names[:16], 16) & _SIGNED
    return MediaStat(sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats), inode)


_SIGNED = (1 << 63) - 1


def _order(path: Path) -> tuple[int, str]:
    numbers = re.findall(r"\d+", path.stem)
    return (int(numbers[-1]) if numbers else -1, path.name)
