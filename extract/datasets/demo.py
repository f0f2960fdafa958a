"""The made set: `videos/<id>.mp4` and MUSIC-AVQA annotations in `annotations/avqa-{train,val,test}.json`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ...errors import ManifestError
from .music_avqa import load_music_avqa
from .settings import DataSettings
from .types import Manifest


def load_demo(settings: DataSettings, *, root: Path, base: Path) -> Manifest:
    """Load a set that `talik demo make` wrote.

    Raises:
        ManifestError: the folder does not look like one, or a record is malformed.
        MissingMediaError: clips that are not there.
    """
    if settings.annotations is None and not (root / "annotations").is_dir():
        raise ManifestError(f"{root}: no folder 'annotations'; make the set with: talik demo make {root}")
    if not settings.videos:
        settings = dataclasses.replace(settings, videos=("videos",))
    return load_music_avqa(settings, root=root, base=base)
