"""The items of a manifest: a clip is known by the digest of its file, a text by the digest of its letters.

A file is digested unless a store remembers the digest of that very file (`ClipDigests`); its name, size and time alone
say nothing, since several data sets may name their files alike.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from ...cache.cores import available_cores
from ...cache.feature_store import FeatureStore, Item
from ...cache.format.dataset_files import UNKNOWN_INODE, ClipFile, DatasetFiles
from ...cache.format.digests import digest_json, digest_text
from ...errors import MissingMediaError, StoreError
from ...progress import progress_bar
from ..datasets.types import Clip, Manifest, MediaPlace
from ..media.frame_folder import DIGEST_VERSION, FrameFolder, MediaSource, MediaStat, digest_media, stat_media
from ..media.stretch import Stretch
from ..media.tar_member import FilePath, TarMember
from .run_records import FailedClip, FailedClipRecord
from .settings import ExtractSettings

FILE_MISSING = "the file is missing"

_READERS = 8  # more would wait for the disk
_CLIPS_AT_ONCE = 64  # so that an interrupt does not wait for all files


def source_of(manifest: Manifest, clip: Clip) -> str | None:
    """Return the clip's file relative to the manifest's root, with forward slashes; None where the file is missing.

    A folder of frames is named with its rate and its sound: "frames/0001 (8 fps) + audio/0001.wav"; a stretch with its
    ends: "films/a.mp4#t=60,70".
    """
    return next(_sources(os.path.realpath(manifest.root), [clip]))


def _sources(root: str, clips: list[Clip]) -> Iterator[str | None]:
    """Yield the source of each clip; the links in a folder's name are resolved once, not once a file."""
    folders: dict[str, str] = {}
    inside = root if root.endswith(os.sep) else root + os.sep

    def relative(path: FilePath) -> str:
        if isinstance(path, TarMember):
            return f"{relative(path.tar)}/{path.member}"
        folder, name = os.path.split(path)
        real = folders.get(folder)
        if real is None:
            real = folders[folder] = os.path.realpath(folder)
        full = os.path.realpath(path) if not name or name == ".." or os.path.islink(path) else os.path.join(real, name)
        return full[len(inside) :].replace(os.sep, "/") if full.startswith(inside) else path.as_posix()

    for clip in clips:
        if clip.path is None:
            yield None
            continue
        source = relative(clip.path)
        if clip.frames_fps is not None:
            source += f" ({clip.frames_fps:g} fps)"
            source += f" + {relative(clip.sound)}" if clip.sound is not None else ""
        yield source + clip.fragment


class ClipDigests:
    """Finds the content of a manifest's clips: by what a store remembers of the very file, or by digesting it.

    Where a file is not on this machine, a clip's name leads to the content that it had where it was extracted, if the
    store's table of the data set at this place says so.

    Args:
        store: whose memory is used.
        manifest: the data set.
        deep: digest every file, whatever is remembered; nothing is known of files that are not here.
        unread: digest no file; one that the store does not remember has a key made of its name, size and time.
    """

    def __init__(self, store: FeatureStore, manifest: Manifest, *, deep: bool = False, unread: bool = False) -> None:
        self._store = store
        self._clips = manifest.clips
        self._deep = deep
        self._unread = unread
        self.place = manifest.place or MediaPlace(root=os.path.realpath(manifest.root), choice=manifest.name)
        clips = list(manifest.clips.values())
        self.sources = dict(zip(manifest.clips, _sources(self.place.root, clips), strict=True))
        self._found: dict[str, ClipFile | None] = {}
        self._films: dict[FilePath | FrameFolder, str] = {}  # digests of the films of which stretches were asked for

    @cached_property
    def _tables(self) -> tuple[DatasetFiles, ...]:
        return () if self._deep else self._store.dataset_files()

    @cached_property
    def _by_file(self) -> dict[str, ClipFile]:
        tables = [table for table in self._tables if table.digest_version == DIGEST_VERSION]
        return {table.file_name(file.source): file for table in tables for file in table.clips.values()}

    @cached_property
    def _here(self) -> DatasetFiles:
        """The data set at this place, without clips."""
        store = os.path.realpath(self._store.path)
        beside = self._store.where == str(self._store.path)
        relative = Path(os.path.relpath(self.place.root, os.path.dirname(store))).as_posix() if beside else ""
        return DatasetFiles(
            root=self.place.root,
            relative_root=relative,
            choice=self.place.choice,
            digest_version=DIGEST_VERSION,
        )

    @cached_property
    def _named(self) -> list[DatasetFiles]:
        """The tables of the data set at this place: of the same absolute or the same relative root."""
        here, named = self._here, self.place.extracted_from
        alike = [table for table in self._tables if table.choice == here.choice]
        if named is not None:
            root = os.path.normpath(named)
            return [t for t in alike if t.root == root] or [t for t in self._tables if t.root == root]
        return [
            t for t in alike if t.root == here.root or (here.relative_root and t.relative_root == here.relative_root)
        ]

    def find(self, clip_id: str) -> ClipFile | None:
        """Return a clip's file with the digest of its content; None where neither the file nor a memory of it is here.

        Raises:
            OSError: a file that is here and cannot be read.
            MissingMediaError: the store remembers two contents under this name.
        """
        if clip_id not in self._found:
            media, source = self._clips[clip_id].media, self.sources[clip_id]
            if media is None or source is None:
                self._found[clip_id] = self._of_name(clip_id)
            else:
                self._found[clip_id] = self._of_file(media, source)
        return self._found[clip_id]

    def find_all(self, clips: Iterable[Clip]) -> Iterator[tuple[Clip, ClipFile | OSError | None]]:
        """Yield each clip with what `find` gives, or the OSError that it raises; several files are read at once."""

        def found(clip: Clip) -> ClipFile | OSError | None:
            try:
                return self.find(clip.id)
            except OSError as error:
                return error

        waiting = iter(clips)
        _ = self._by_file, self._here, self._named  # once, before threads ask for them
        with ThreadPoolExecutor(min(available_cores(), _READERS), "talik-digest") as pool:
            while some := list(islice(waiting, _CLIPS_AT_ONCE)):
                list(pool.map(self._digest_film, self._unknown_films(some)))
                yield from zip(some, pool.map(found, some), strict=True)

    def remembered(self, clip_id: str) -> ClipFile | None:
        """Return what `find` does, but None for a file that would have to be digested.

        Raises:
            OSError, MissingMediaError: as `find` does.
        """
        media, source = self._clips[clip_id].media, self.sources[clip_id]
        if clip_id not in self._found and media is not None and source is not None:
            known = self._known(source, stat_media(media))
            if known is None:
                return None
            self._found[clip_id] = replace(known, source=source)
        return self.find(clip_id)

    def _unknown_films(self, clips: Iterable[Clip]) -> list[FilePath | FrameFolder]:
        """Return the films of which stretches are among the clips, and that are to be digested: each once."""
        films: dict[FilePath | FrameFolder, None] = {}
        for clip in () if self._unread else clips:
            media, source = clip.media, self.sources[clip.id]
            if isinstance(media, Stretch) and source is not None and media.media not in self._films:
                with suppress(OSError):  # asking for the clip says so
                    if self._known(source, stat_media(media)) is None:
                        films[media.media] = None
        return list(films)

    def _digest_film(self, film: FilePath | FrameFolder) -> None:
        with suppress(OSError):
            self._films[film] = digest_media(film)

    def _content(self, media: MediaSource, source: str, stat: MediaStat) -> str:
        """Return the digest of a file, or of a stretch, whose film is digested once for all stretches of it."""
        if self._unread:
            return digest_json([source, *stat])
        if not isinstance(media, Stretch):
            return digest_media(media)
        if media.media not in self._films:
            whole = self._known(source.removesuffix(media.fragment), stat)
            self._films[media.media] = digest_media(media.media) if whole is None else whole.key
        return media.key(self._films[media.media])

    def _of_file(self, media: MediaSource, source: str) -> ClipFile:
        stat = stat_media(media)
        known = self._known(source, stat)
        key = self._content(media, source, stat) if known is None else known.key
        return ClipFile(source=source, key=key, size_bytes=stat.size_bytes, mtime_ns=stat.mtime_ns, inode=stat.inode)

    def _known(self, source: str, stat: MediaStat) -> ClipFile | None:
        """Return what a table has of the very file; None where there is nothing."""
        known = self._by_file.get(self._here.file_name(source))
        return known if known is not None and (known.size_bytes, known.mtime_ns, known.inode) == stat else None

    def _of_name(self, clip_id: str) -> ClipFile | None:
        files = {file.key: file for table in self._named if (file := table.clips.get(clip_id)) is not None}
        if len(files) > 1:
            roots = " and ".join(table.root for table in self._named)
            raise MissingMediaError(
                f"clip {clip_id!r}: its file is not in {self.place.root}, and the store knows two contents of that "
                f'name, from {roots}; name one of them in [data], as extracted_from = "{self._named[0].root}", or '
                "bring the file"
            )
        return next(iter(files.values()), None)

    def unknown(self) -> list[FailedClip]:
        """Return the clips without a file here of which the store knows no content; no file is looked at.

        Raises:
            MissingMediaError: a clip of whose name the store knows two contents.
        """
        unknown = (clip_id for clip_id, clip in self._clips.items() if clip.media is None and not self.find(clip_id))
        return [FailedClip(source=clip_id, key="", reason=self.why_unknown(clip_id)) for clip_id in unknown]

    def why_unknown(self, clip_id: str) -> str:
        """Say, of a clip without file, why its name does not lead to states."""
        roots = [table.root for table in self._tables if clip_id in table.clips and table not in self._named]
        if not roots:
            return FILE_MISSING
        return (
            f"the file is not in {self.place.root}, and the store knows that name from {' and '.join(roots[:3])} only; "
            f'if that is this data set, say so in [data]: extracted_from = "{roots[0]}"'
        )

    def table(self) -> DatasetFiles | None:
        """Return what was found, for the store to remember; None where no file is here."""
        here = self._here
        if not any(self.sources[clip_id] is not None for clip_id in self._found):
            return None
        before = next((table.clips for table in self._tables if table.is_at(here.root, here.choice)), {})
        clips = {}
        for clip_id in (one for one in self._clips if one in self._found):  # in whatever order they were found
            file = self._found[clip_id]
            if file is not None and self.sources[clip_id] is not None:
                clips[clip_id] = file
            elif file is not None and clip_id not in before:
                clips[clip_id] = replace(file, inode=UNKNOWN_INODE)
        return replace(here, clips=clips)


@dataclass(frozen=True, kw_only=True)
class ClipItems:
    """The clips of a manifest as a store's items.

    Attributes:
        items: by clip id, in the manifest's order; two clips of one content have one key.
        media: the file, or folder of frames, by item key; items whose files are not here have none.
        unreadable: clips whose file cannot be read.
        files: what the store is to remember; None where no file is here.
    """

    items: dict[str, Item] = field(default_factory=dict)
    media: dict[str, MediaSource] = field(default_factory=dict)
    unreadable: list[FailedClip] = field(default_factory=list)
    files: DatasetFiles | None = None


def clip_items(manifest: Manifest, digests: ClipDigests, *, progress: bool = True) -> ClipItems:
    """Return the item and file of each clip; a file that the store does not remember is digested.

    Clips that `ClipDigests.unknown` gives are left out.

    Args:
        manifest: the data set.
        digests: of its clips.
        progress: show a tqdm bar.

    Raises:
        MissingMediaError: a clip without file of whose name the store knows two contents.
    """
    found = ClipItems()
    clips = digests.find_all(manifest.clips.values())
    for clip, file in progress_bar(
        clips, total=len(manifest.clips), desc="digests", unit="clip", disable=not progress, leave=False
    ):
        source, media = digests.sources[clip.id], clip.media
        if isinstance(file, OSError):
            error = file
            if media is None or isinstance(error, StoreError):
                raise error
            reason = f"{source}: cannot be read: {error.strerror or error}"
            found.unreadable.append(FailedClip(source=source or clip.id, key="", reason=reason))
            continue
        if file is None:
            continue
        found.items[clip.id] = Item(
            key=file.key, source=file.source, size_bytes=file.size_bytes, mtime_ns=file.mtime_ns
        )
        if media is not None:
            found.media[file.key] = media
    return replace(found, files=digests.table())


def trainable(manifest: Manifest, settings: ExtractSettings, gone: Collection[str]) -> Manifest:
    """Return the part of the data set whose questions can be trained on: imported features need no files.

    Args:
        manifest: the data set.
        settings: of the experiment.
        gone: ids of the clips without states and without files.
    """
    if any(encoder.is_imported for _, encoder in settings.encoders.items()):
        return manifest
    if not gone or not settings.data.allow_missing:
        return manifest
    return replace(manifest, questions=tuple(q for q in manifest.questions if q.clip_id not in gone))


def failed_clip_record(store: FeatureStore, manifest: Manifest) -> FailedClipRecord:
    """Return the record beside a store of the clips and texts of a data set that have no states."""

    def sources() -> set[str | None]:
        files = _sources(os.path.realpath(manifest.root), list(manifest.clips.values()))
        return {*files, *manifest.clips, *(question.text for question in manifest.questions)}

    root = manifest.place.root if manifest.place is not None else ""
    return FailedClipRecord(store.path, root, sources)


def text_items(manifest: Manifest) -> list[Item]:
    """Return an item for each distinct text of a manifest's questions, in the order in which they appear."""
    texts = dict.fromkeys(question.text for question in manifest.questions if question.text)
    return [Item(key=digest_text(text), source=text, size_bytes=len(text.encode())) for text in texts]
