"""Clips found on disk by id in the folders of a root, and the one error that lists what is missing.

A clip is a video file; or a folder of extracted frames named after the clip, with or without a sound file of that name;
or a sound file alone. Of several kinds, the first in this order is taken; two files of one kind are an error. Videos
and sounds may also lie in tar files (WebDataset's shards): in those that are named, and, where no file has the clip's
name, in those that lie in the folders.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ...errors import ManifestError, MediaError, MissingMediaError
from ..media.frame_folder import IMAGE_SUFFIXES
from ..media.tar_member import TAR_SUFFIX, FilePath, TarMember, tar_members
from .json_records import Record
from .settings import DataSettings
from .types import Clip

#: Endings of files that are looked at as clips.
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".ts")
SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".opus", ".ogg")


@dataclass(frozen=True)
class MediaIndex:
    """What some folders hold, by name: files without and with their ending, folders; names are in Unicode's form NFC.

    Attributes:
        videos, sounds, folders: by name, all that have it, in the order of the folders that were looked at.
        tars: the tar files, by name.
        in_order: of several of one name in different folders, or tar files, the earlier one's is taken.
    """

    videos: dict[str, list[FilePath]] = field(default_factory=dict)
    sounds: dict[str, list[FilePath]] = field(default_factory=dict)
    folders: dict[str, list[Path]] = field(default_factory=dict)
    tars: dict[str, list[Path]] = field(default_factory=dict)
    in_order: bool = False

    def clip(self, clip_id: str, name: str, *, frames_fps: float | None = None) -> Clip | None:
        """Return the clip of a name, None where there is no file of it.

        Args:
            clip_id: the clip's id.
            name: of its file, with or without ending, or of its folder of frames.
            frames_fps: the rate at which frames in folders were extracted, where there are such.

        Raises:
            ManifestError: several files have that name; or the clip is a folder of frames, and their rate is not known.
        """
        if video := self._only(name, self.videos.get(name, ())):
            return Clip(id=clip_id, path=video)
        folder = self._only(name, [f for f in self.folders.get(name, ()) if _holds_frames(f)])
        assert not isinstance(folder, TarMember)
        sounds = self.sounds.get(name, ())
        if folder is not None:
            if frames_fps is None:
                raise ManifestError(
                    f"{folder}: clip {clip_id!r} is a folder of frames; set data.frames_fps to the frames a second "
                    "at which they were extracted"
                )
            sound = self._only(name, [s for s in sounds if _place(s) == folder.parent] or sounds)
            return Clip(id=clip_id, path=folder, sound=sound, frames_fps=frames_fps)
        sound = self._only(name, sounds)
        return None if sound is None else Clip(id=clip_id, path=sound)

    def add_tar(self, tar: Path) -> None:
        """Add the videos and sounds in a tar file, by their names without and with the folders in it.

        Raises:
            MediaError: it is compressed, damaged or cut off.
        """
        for member in tar_members(tar).values():
            stem, suffix = os.path.splitext(unicodedata.normalize("NFC", member.member))
            for known, endings in ((self.videos, VIDEO_SUFFIXES), (self.sounds, SOUND_SUFFIXES)):
                if suffix.lower() in endings:
                    names = (stem, stem.rpartition("/")[2])
                    for name in dict.fromkeys(one + end for one in names for end in ("", suffix)):
                        known.setdefault(name, []).append(member)

    def _only(self, name: str, found: Sequence[FilePath]) -> FilePath | None:
        """Return the one of several paths that a name stands for; they may be links to one file."""
        if self.in_order:
            found = [path for path in found if _place(path) == _place(found[0])]
        for other in found[1:]:
            if not _is_same(found[0], other):
                raise ManifestError(
                    f"clip {name!r} may be {found[0]} or {other}: one name for two files; name each clip by its path "
                    "below data.root, or the folders to look in, in order, in data.videos; or remove one"
                )
        return found[0] if found else None


def _place(path: FilePath) -> Path:
    """Return the folder that a file lies in, or its tar file."""
    return path.tar if isinstance(path, TarMember) else path.parent


def _is_same(one: FilePath, other: FilePath) -> bool:
    if isinstance(one, Path) and isinstance(other, Path):
        return os.path.samefile(one, other)
    if isinstance(one, Path) or isinstance(other, Path):
        return False
    return one.member == other.member and os.path.samefile(one.tar, other.tar)


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


def media_folders(root: Path, names: Sequence[str], *, also: Sequence[str] = ()) -> list[Path]:
    """Return the folders and tar files to look for clips: those named, or the root and the folders in it, in order.

    Args:
        root: the folder with the media.
        names: folders and tar files below it; with `*` in it, all tar files of such names.
        also: where none are named, further folders below it to look in, as far as they are there.
    """
    if not names:
        further = (root / folder for folder in also)
        in_root = sorted(p for p in root.iterdir() if p.is_dir())
        return list(dict.fromkeys([root, *in_root, *(folder for folder in further if folder.is_dir())]))
    folders: list[Path] = []
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ManifestError(f"data.videos: {name!r} points outside data.root {root}")
        found = [root / name]
        if not found[0].exists() and any(mark in name for mark in "*?["):
            found = sorted(path for path in root.glob(name) if path.suffix.lower() == TAR_SUFFIX)
            if not found:
                raise ManifestError(f"data.videos: no tar file below {root} is called {name!r}")
        if not found[0].is_dir() and (found[0].suffix.lower() != TAR_SUFFIX or not found[0].is_file()):
            raise ManifestError(f"data.videos: {found[0]} is not a folder, and no tar file")
        folders += found
    return folders


def index_media(folders: Iterable[Path], *, in_order: bool = False) -> MediaIndex:
    """Return what lies in some folders: video files, sound files, tar files, and folders, which may hold frames.

    Args:
        folders: to look in, not in what is below them; of a tar file, at all files in it.
        in_order: see `MediaIndex`.

    Raises:
        MediaError: a tar file that is compressed, damaged or cut off.
    """
    index = MediaIndex(in_order=in_order)
    for folder in folders:
        if not folder.is_dir():
            index.add_tar(folder)
            continue
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                stem, suffix = os.path.splitext(unicodedata.normalize("NFC", entry.name))
                for known, endings in ((index.videos, VIDEO_SUFFIXES), (index.sounds, SOUND_SUFFIXES)):
                    if suffix.lower() in endings and entry.is_file():
                        known.setdefault(stem, []).append(Path(entry.path))
                        known.setdefault(stem + suffix, []).append(Path(entry.path))
                if suffix.lower() == TAR_SUFFIX and entry.is_file():
                    index.tars.setdefault(stem + suffix, []).append(Path(entry.path))
                if entry.is_dir():
                    index.folders.setdefault(stem + suffix, []).append(Path(entry.path))
    return index


def find_clips(
    named: Mapping[str, Record],
    settings: DataSettings,
    *,
    root: Path,
    by_path: bool = False,
    also: Sequence[str] = (),
) -> dict[str, Clip]:
    """Return the clips of a manifest, in the order of `named`.

    Args:
        named: clip ids, each with the first record that names it.
        settings: `videos`, `frames_fps` and `allow_missing` are used here; with the last, a clip without a file has
            `path=None` instead of raising.
        root: the folder with the media.
        by_path: an id may also be the path, relative to `root`, of a file, with or without its ending, or of a folder
            of frames; that is looked for first.
        also: folders below the root to look in beside it and the folders in it, where `videos` names none.

    Raises:
        ManifestError: `videos` names what is no folder below the root; a clip of frames whose rate is not known; one
            name for two files; a tar file that is compressed, damaged or cut off.
        MissingMediaError: clips without a file: how many, the first ten, and the record that names the first.
    """
    finder = _Finder(settings, root, also)
    found: dict[str, Clip | None] = {}
    for clip_id, record in named.items():
        try:
            found[clip_id] = (finder.by_path(clip_id) if by_path else None) or finder.by_name(clip_id)
        except (ManifestError, MediaError) as error:
            raise record.error(str(error)) from None
    missing = [clip_id for clip_id, clip in found.items() if clip is None]
    if missing and not settings.allow_missing:
        shown = ", ".join(repr(m) for m in missing[:10]) + (", …" if len(missing) > 10 else "")
        raise MissingMediaError(
            f"{len(missing)} of {len(named)} clips are not in {root}: {shown} (the first is named by "
            f"{named[missing[0]].where}{finder.hint(missing[0])}); add the files, or set allow_missing to go on "
            "without them"
        )
    return {clip_id: Clip(id=clip_id, path=None) if clip is None else clip for clip_id, clip in found.items()}


class _Finder:
    """Looks for clips below a root; reads each folder once."""

    def __init__(self, settings: DataSettings, root: Path, also: Sequence[str]) -> None:
        self._settings, self._root, self._also = settings, root, also
        self._below: dict[Path, MediaIndex] = {}

    @cached_property
    def _index(self) -> MediaIndex:
        folders = media_folders(self._root, self._settings.videos, also=self._also)
        return index_media(folders, in_order=bool(self._settings.videos))

    @cached_property
    def _in_tars(self) -> MediaIndex:
        """What the tar files hold that lie in the folders to look in."""
        tars = [tar for found in self._index.tars.values() for tar in found]
        return index_media(tars, in_order=bool(self._settings.videos))

    def by_name(self, clip_id: str) -> Clip | None:
        """Return the clip of a name in the folders to look in, or else in the tar files there."""
        found = self._index.clip(clip_id, clip_id, frames_fps=self._settings.frames_fps)
        return found or self._in_tars.clip(clip_id, clip_id)

    def by_path(self, clip_id: str) -> Clip | None:
        """Return the clip at a path below the root, which may go on inside a tar file."""
        exact = self._root / clip_id
        if clip_id.isascii() and exact.is_file():
            return Clip(id=clip_id, path=exact)
        *above, name = clip_id.split("/")
        folder: Path | None = self._root
        for place, part in enumerate(above):
            if part.lower().endswith(TAR_SUFFIX) and folder is not None and (tar := self._tar(folder, part)):
                return self._in(tar).clip(clip_id, "/".join((*above[place + 1 :], name)))
            folder = None if folder is None else self._folder(folder, part)
        if folder is None or not (above or exact.is_file() or exact.is_dir() or not clip_id.isascii()):
            return None
        clip = self._in(folder).clip(clip_id, name, frames_fps=self._settings.frames_fps)
        return clip or (Clip(id=clip_id, path=exact) if exact.is_file() else None)

    def hint(self, clip_id: str) -> str:
        """Return where there is a file whose name differs in capitals only, for the message; else ""."""
        index = self._index
        known = {name.casefold(): paths[0] for kind in (index.videos, index.sounds) for name, paths in kind.items()}
        near = known.get(clip_id.rpartition("/")[2].casefold())
        return "" if near is None else f"; there is {near}"

    def _folder(self, above: Path, name: str) -> Path | None:
        if (above / name).is_dir() and name.isascii():
            return above / name
        found = self._in(above).folders.get(name, [])
        if len(found) > 1:
            raise ManifestError(
                f"folder {name!r} may be {found[0]} or {found[1]}: one name for two folders; rename one"
            )
        return found[0] if found else None

    def _tar(self, above: Path, name: str) -> Path | None:
        if name.isascii():
            return above / name if (above / name).is_file() else None
        return next(iter(self._in(above).tars.get(name, ())), None)

    def _in(self, folder: Path) -> MediaIndex:
        if folder not in self._below:
            self._below[folder] = index_media([folder])
        return self._below[folder]


def _holds_frames(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES for entry in entries)
