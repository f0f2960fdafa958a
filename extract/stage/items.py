"""The items of a manifest: a clip is known by the digest of its file, a text by the digest of its letters."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from ...cache.feature_store import Item
from ...cache.format.digests import digest_text
from ..datasets.types import Clip, Manifest
from ..media.frame_folder import FrameFolder, digest_media, stat_media


def source_of(manifest: Manifest, clip: Clip) -> str | None:
    """Return the clip's file relative to the manifest's root, with forward slashes; None where the file is missing.

    A folder of frames is named with its rate and its sound: "frames/0001 (8 fps) + audio/0001.wav".
    """
    if clip.path is None:
        return None
    source = _relative(manifest.root, clip.path)
    if clip.frames_fps is not None:
        source += f" ({clip.frames_fps:g} fps)"
        source += f" + {_relative(manifest.root, clip.sound)}" if clip.sound is not None else ""
    return source


def _relative(root: Path, path: Path) -> str:
    try:
        return path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return path.as_posix()


def clip_items(
    manifest: Manifest, known: Iterable[Item], *, progress: bool = True
) -> dict[str, tuple[Item, Path | FrameFolder]]:
    """Return each clip's item and file by clip id, in the manifest's order; clips whose file is missing are left out.

    A file of the size and modification time that a known item has is not read again; any other is digested.

    Args:
        manifest: the data set.
        known: items that a store holds.
        progress: show a tqdm bar.
    """
    before = {(i.source, i.size_bytes, i.mtime_ns): i for i in known}
    found: dict[str, tuple[Item, Path | FrameFolder]] = {}
    clips = [(c, s) for c in manifest.clips.values() if (s := source_of(manifest, c)) is not None]
    for clip, source in tqdm(clips, desc="digests", unit="clip", disable=not progress, leave=False):
        media = clip.media
        assert media is not None
        size_bytes, mtime_ns = stat_media(media)
        item = before.get((source, size_bytes, mtime_ns))
        if item is None:
            item = Item(key=digest_media(media), source=source, size_bytes=size_bytes, mtime_ns=mtime_ns)
        found[clip.id] = (item, media)
    return found


def text_items(manifest: Manifest) -> list[Item]:
    """Return an item for each distinct text of a manifest's questions, in the order in which they appear."""
    texts = dict.fromkeys(question.text for question in manifest.questions if question.text)
    return [Item(key=digest_text(text), source=text, size_bytes=len(text.encode())) for text in texts]
