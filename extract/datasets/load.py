"""One call for every data set: settings in, a checked manifest out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .ave import load_ave
from .avqa import load_avqa
from .demo import load_demo
from .generic import load_generic
from .media_index import resolve_root
from .music_avqa import load_music_avqa
from .settings import DataSettings
from .split import split_by_video
from .types import Manifest

_LOADERS: dict[str, Callable[..., Manifest]] = {
    "ave": load_ave,
    "avqa": load_avqa,
    "demo": load_demo,
    "manifest": load_generic,
    "music-avqa": load_music_avqa,
}


def load_manifest(settings: DataSettings, *, base: Path) -> Manifest:
    """Load and check a data set; nothing is decoded.

    Args:
        settings: the `[data]` table.
        base: the folder that its relative paths count from (the experiment file's).

    Returns:
        The manifest; every clip has a file unless `settings.allow_missing`, every answer is in the vocabulary.

    Raises:
        ManifestError: annotations that are malformed, in one line that names the file and the record.
        MissingMediaError: clips that are not there: how many, and the first ten.
    """
    manifest = _LOADERS[settings.dataset](settings, root=resolve_root(settings.root, base), base=base)
    return split_by_video(manifest, seed=settings.seed) if settings.split == "by-video" else manifest
