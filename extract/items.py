"""The items of a manifest: every clip known by the digest of its file, its source told relative to the data's root."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from ..cache.key import digest_file
from ..cache.store import Item
from .manifest.types import Clip, Manifest


def source_of(manifest: Manifest, clip: Clip) -> str | None:
    """The clip's file relative to the manifest's root, with forward slashes; None where the file is missing."""
    if clip.path is None:
        return None
    try:
        return clip.path.resolve().relative_to(manifest.root.resolve()).as_posix()
    except ValueError:
        return clip.path.as_posix()


def clip_items(manifest: Manifest, known: Iterable[Item], *, progress: bool = True) -> dict[str, tuple[Item, Path]]:
    """Return each clip's item and file by clip id, in the manifest's order; clips whose file is missing are left out.

    A file of the size and modification time that a known item has is not read again; any other is digested.

    Args:
        manifest: the data set.
        known: items that a store holds.
        progress: show a tqdm bar.
    """
    before = {(i.source, i.size_bytes, i.mtime_ns): i for i in known}
    found: dict[str, tuple[Item, Path]] = {}
    clips = [(c, s) for c in manifest.clips.values() if (s := source_of(manifest, c)) is not None]
    for clip, source in tqdm(clips, desc="digests", unit="clip", disable=not progress, leave=False):
        assert clip.path is not None
        stat = clip.path.stat()
        item = before.get((source, stat.st_size, stat.st_mtime_ns))
        if item is None:
            key = digest_file(clip.path)
            item = Item(key=key, source=source, size_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns)
        found[clip.id] = (item, clip.path)
    return found
