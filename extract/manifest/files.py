"""Clips found on disk: media files by id in the folders of a root, and the one error that lists what is missing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ...cache.errors import ManifestError, MissingMediaError
from .records import Record
from .types import Clip

#: Endings of files that are looked at as clips; where one id has several, the first of these is taken.
MEDIA_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".ts", ".wav", ".flac", ".mp3", ".m4a")


def resolve_root(root: str, base: Path) -> Path:
    """Return the folder `root`, counted from `base`.

    Raises:
        ManifestError: it is not a folder.
    """
    path = base / root
    if not path.is_dir():
        raise ManifestError(f"{path}: no such folder; data.root is to be the folder that holds the media")
    return path


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


def index_media(folders: Iterable[Path]) -> dict[str, Path]:
    """Return the media files of some folders by name without ending; of two with one name, the earlier folder's."""
    found: dict[str, Path] = {}
    for folder in folders:
        here: dict[str, tuple[int, Path]] = {}
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, suffix = os.path.splitext(entry.name)
                if suffix.lower() in MEDIA_SUFFIXES and entry.is_file():
                    rank = MEDIA_SUFFIXES.index(suffix.lower())
                    if stem not in here or rank < here[stem][0]:
                        here[stem] = (rank, Path(entry.path))
        for stem, (_, path) in here.items():
            found.setdefault(stem, path)
    return found


def make_clips(named: Mapping[str, Record], found: Mapping[str, Path], *, root: Path, allow: bool) -> dict[str, Clip]:
    """Return the clips of a manifest, in the order of `named`.

    Args:
        named: clip ids, each with the first record that names it.
        found: the files that are there, by clip id.
        root: where they were looked for, for the message.
        allow: give clips without a file `path=None` instead of raising.

    Raises:
        MissingMediaError: clips without a file: how many, the first ten, and the record that names the first.
    """
    missing = [clip_id for clip_id in named if clip_id not in found]
    if missing and not allow:
        shown = ", ".join(repr(m) for m in missing[:10]) + (", …" if len(missing) > 10 else "")
        raise MissingMediaError(
            f"{len(missing)} of {len(named)} clips are not in {root}: {shown} (the first is named by "
            f"{named[missing[0]].where}); add the files, or set allow_missing to go on without them"
        )
    return {clip_id: Clip(id=clip_id, path=found.get(clip_id)) for clip_id in named}
