"""Clips found on disk by id in the folders of a root, and the one error that lists what is missing.

A clip is a video file; or a folder of extracted frames named after the clip, with or without a sound file of that name;
or a sound file alone. Of several, the first in this order is taken.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import ManifestError, MissingMediaError
from ..media.frame_folder import IMAGE_SUFFIXES
from .json_records import Record
from .settings import DataSettings
from .types import Clip

#: Endings of files that are looked at as clips; where one id has several, the first of these is taken.
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".ts")
SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".opus", ".ogg")


@dataclass(frozen=True)
class MediaIndex:
    """What some folders hold, each by name without ending; of two with one name, the earlier folder's."""

    videos: dict[str, Path] = field(default_factory=dict)
    sounds: dict[str, Path] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)

    def clip(self, clip_id: str, *, frames_fps: float | None = None) -> Clip | None:
        """Return the clip of an id, None where there is no file of it.

        Args:
            clip_id: a name without ending.
            frames_fps: the rate at which frames in folders were extracted, where there are such.

        Raises:
            ManifestError: the clip is a folder of frames, and their rate is not known.
        """
        sound = self.sounds.get(clip_id)
        if clip_id in self.videos:
            return Clip(id=clip_id, path=self.videos[clip_id])
        folder = self.folders.get(clip_id)
        if folder is not None and _holds_frames(folder):
            if frames_fps is None:
                raise ManifestError(
                    f"{folder}: clip {clip_id!r} is a folder of frames; set data.frames_fps to the frames a second "
                    "at which they were extracted"
                )
            return Clip(id=clip_id, path=folder, sound=sound, frames_fps=frames_fps)
        return None if sound is None else Clip(id=clip_id, path=sound)


def resolve_root(root: str, base: Path) -> Path:
    """Return the folder `root`, counted from `base`.

    Raises:
        ManifestError: it is not a folder.
    """
    path = base / root
    if not path.is_dir():
        raise ManifestError(f"{path}: no such folder; data.root is to be the folder that holds the media")
    return path


def annotation_folder(settings: DataSettings, *, root: Path, base: Path) -> Path:
    """Return the folder of the annotation files.

    Raises:
        ManifestError: it is not a folder.
    """
    if settings.annotations is None:
        return root / "annotations" if (root / "annotations").is_dir() else root
    folder = base / settings.annotations
    if not folder.is_dir():
        raise ManifestError(f"{folder}: no such folder; data.annotations is to be the folder of the annotation files")
    return folder


def media_folders(root: Path, names: Sequence[str]) -> list[Path]:
    """Return the folders to look for clips: those named, or the root and the folders in it, in order of name."""
    if not names:
        return [root, *sorted(p for p in root.iterdir() if p.is_dir())]
    folders = [root / name for name in names]
    for name, folder in zip(names, folders, strict=True):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ManifestError(f"data.videos: {name!r} points outside data.root {root}")
        if not folder.is_dir():
            raise ManifestError(f"data.videos: {folder} is not a folder")
    return folders


def index_media(folders: Iterable[Path]) -> MediaIndex:
    """Return what lies in some folders: video files, sound files, and folders, which may hold frames."""
    index = MediaIndex()
    for folder in folders:
        videos: dict[str, tuple[int, Path]] = {}
        sounds: dict[str, tuple[int, Path]] = {}
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, suffix = os.path.splitext(entry.name)
                for here, known in ((videos, VIDEO_SUFFIXES), (sounds, SOUND_SUFFIXES)):
                    if suffix.lower() in known and entry.is_file():
                        rank = known.index(suffix.lower())
                        if stem not in here or rank < here[stem][0]:
                            here[stem] = (rank, Path(entry.path))
                if entry.is_dir():
                    index.folders.setdefault(entry.name, Path(entry.path))
        for found, here in ((index.videos, videos), (index.sounds, sounds)):
            for stem, (_, path) in here.items():
                found.setdefault(stem, path)
    return index


def find_clips(
    named: Mapping[str, Record], settings: DataSettings, *, root: Path, by_path: bool = False
) -> dict[str, Clip]:
    """Return the clips of a manifest, in the order of `named`.

    Args:
        named: clip ids, each with the first record that names it.
        settings: `videos`, `frames_fps` and `allow_missing` are used here; with the last, a clip without a file has
            `path=None` instead of raising.
        root: the folder with the media.
        by_path: an id may also be a file's path relative to `root`, which is looked for first.

    Raises:
        ManifestError: `videos` names what is no folder below the root; a clip of frames whose rate is not known.
        MissingMediaError: clips without a file: how many, the first ten, and the record that names the first.
    """
    found: dict[str, Clip | None] = dict.fromkeys(named)
    if by_path:
        found |= {i: Clip(id=i, path=root / i) for i in named if (root / i).is_file()}
    by_name = [clip_id for clip_id, clip in found.items() if clip is None]
    if by_name or not by_path:
        index = index_media(media_folders(root, settings.videos))
        found |= {i: index.clip(i, frames_fps=settings.frames_fps) for i in by_name}
    missing = [clip_id for clip_id, clip in found.items() if clip is None]
    if missing and not settings.allow_missing:
        shown = ", ".join(repr(m) for m in missing[:10]) + (", …" if len(missing) > 10 else "")
        raise MissingMediaError(
            f"{len(missing)} of {len(named)} clips are not in {root}: {shown} (the first is named by "
            f"{named[missing[0]].where}); add the files, or set allow_missing to go on without them"
        )
    return {clip_id: Clip(id=clip_id, path=None) if clip is None else clip for clip_id, clip in found.items()}


def _holds_frames(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES for entry in entries)
