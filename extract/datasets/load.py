"""One call for every data set: settings in, a checked manifest out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...cache.format.digests import canonical_json
from ...config import from_mapping
from ...errors import ManifestError
from ...user_code import import_user_code
from .media_index import resolve_root
from .settings import DATASETS, DataSettings
from .split import deal_validation, split_by_video
from .types import Manifest, MediaPlace


def load_manifest(settings: DataSettings | Mapping[str, Any], *, base: str | Path = ".") -> Manifest:
    """Load and check the annotations of a data set; nothing is decoded.

    Args:
        settings: the `[data]` table of an experiment, as `DataSettings` or as a mapping with its keys.
        base: the folder that its relative paths count from (the experiment file's).

    Returns:
        The manifest; every clip has a file unless `settings.allow_missing`, every answer is in the vocabulary.

    Raises:
        SettingsError: a table that is no `[data]` table.
        ManifestError: annotations that are malformed, in one line that names the file and the record.
        MissingMediaError: clips whose files are missing: how many, and the first ten.

    Example:
        >>> import json, pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> record = {"clip": "a.mp4", "question": "Is there a drum?", "answer": "yes", "split": "train"}
        >>> _ = (folder / "manifest.jsonl").write_text(json.dumps(record))
        >>> _ = (folder / "a.mp4").write_bytes(b"")
        >>> manifest = load_manifest({"dataset": "manifest", "root": "."}, base=folder)
        >>> manifest.answers, manifest.split("train")[0].text
        (('yes',), 'Is there a drum?')
    """
    base = Path(base)
    import_user_code((), base)
    if not isinstance(settings, DataSettings):
        settings = from_mapping(DataSettings, settings, where="data")
    manifest = DATASETS.get(settings.dataset)(settings, root=resolve_root(settings.root, base), base=base)
    _check(manifest, settings.dataset)
    manifest = replace(manifest, place=_place(settings, manifest.root))
    manifest = split_by_video(manifest, seed=settings.seed) if settings.split == "by-video" else manifest
    if not settings.validation:
        return manifest
    return deal_validation(manifest, share=settings.validation, seed=settings.seed)


def _place(settings: DataSettings, root: Path) -> MediaPlace:
    """Return where the clips are looked for; `annotations`, `files` and `release` say which, not where."""
    choice = {"dataset": settings.dataset, "videos": list(settings.videos), "frames_fps": settings.frames_fps}
    return MediaPlace(
        root=os.path.realpath(root),
        choice=canonical_json(choice).decode(),
        extracted_from=settings.extracted_from,
    )


def _check(manifest: Manifest, dataset: str) -> None:
    """Raise a ManifestError unless ids are unique, clips are listed, and answers, labels and choices are answers."""
    if not isinstance(manifest, Manifest):
        raise ManifestError(f"data set {dataset!r}: its loader returned {type(manifest).__name__}, expected a Manifest")
    answers, seen = frozenset(manifest.answers), set[str]()
    for question in manifest.questions:
        words = {*question.labels, *question.choices, *question.right}
        reason = ""
        if question.id in seen:
            reason = "its id is another question's too; expected unique ids"
        elif question.clip_id not in manifest.clips:
            reason = f"its clip {question.clip_id!r} is not among the manifest's clips"
        elif words - answers:
            reason = f"{sorted(words - answers)[0]!r} is not among the manifest's answers"
        elif question.answer not in question.right and question.right:
            reason = f"its answer {question.answer!r} is not among its right answers"
        if reason:
            raise ManifestError(f"data set {dataset!r}: question {question.id!r}: {reason}")
        seen.add(question.id)
