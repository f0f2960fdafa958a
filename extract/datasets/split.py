"""A leak-free split: the same questions dealt anew so that no clip, nor two copies of one, is in two splits.

MUSIC-AVQA's own split is by question: most of the clips of its validation file are also in its test file.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

from ...cache.format.digests import digest_text
from ...errors import ManifestError
from .types import SPLITS, Manifest

_STRETCH = re.compile(r"(.+)#t=[0-9.]+(?:,[0-9.]+)?")  # as `Clip.fragment` names them
_FLIPPED = re.compile(r"(.+)_flip")  # v2.0 adds mirrored copies of its clips
# Made clips carry the number of a real one whose sound or picture was replaced; those with a leading e came later, and
# whether their numbers are of the same count is not told: kept together with them, which can leak nothing.
_SYNTHETIC = re.compile(r"e?(?:sa|va|vv)(\d{8})")


def split_by_video(manifest: Manifest, *, seed: int) -> Manifest:
    """Return `manifest` with every question's split drawn anew by the source of its clip.

    Each split keeps, to within one source's questions, the number of questions that it had. The draw depends on the
    seed and the ids alone, not on the order of the files.
    """
    wanted = Counter(q.split for q in manifest.questions)
    per_source = Counter(source_id(q.clip_id) for q in manifest.questions)
    drawn = sorted(per_source, key=lambda source: digest_text(f"{seed}:{source}"))
    largest = max(wanted, key=lambda split: (wanted[split], split), default="train")
    smaller = sorted((s for s in wanted if s != largest), key=lambda s: (wanted[s], s))
    chosen: dict[str, str] = {}
    position = 0
    for split in smaller:
        filled = 0
        while position < len(drawn) and filled < wanted[split]:
            filled += per_source[drawn[position]]
            chosen[drawn[position]] = split
            position += 1
    questions = [dataclasses.replace(q, split=chosen.get(source_id(q.clip_id), largest)) for q in manifest.questions]
    order = {split: i for i, split in enumerate(manifest.splits)}
    questions.sort(key=lambda q: order[q.split])
    note = f"split by video with seed {seed}: no clip is in two splits"
    return dataclasses.replace(manifest, questions=tuple(questions), notes=(*manifest.notes, note))


def deal_validation(manifest: Manifest, *, share: float, seed: int) -> Manifest:
    """Return `manifest` with a share of train's clips, and all questions about them, as a validation split.

    Copies of one clip stay together. The draw depends on the seed and the ids alone.

    Args:
        manifest: without a validation split.
        share: of the sources of train's clips, more than 0 and below 1; at least one clip is dealt, and one stays.
        seed: of the draw.

    Raises:
        ManifestError: there is a validation split, or train has fewer than two clips.
    """
    if "val" in manifest.splits:
        raise ManifestError(f"{manifest.root}: data.validation: the data set has a split 'val'; remove the key")
    sources = sorted(
        {source_id(q.clip_id) for q in manifest.questions if q.split == "train"},
        key=lambda source: digest_text(f"{seed}:{source}"),
    )
    if len(sources) < 2:
        raise ManifestError(
            f"{manifest.root}: data.validation: expected two clips of train at least, to deal some to val"
        )
    dealt = set(sources[: min(max(1, round(share * len(sources))), len(sources) - 1)])
    questions = [
        dataclasses.replace(q, split="val") if q.split == "train" and source_id(q.clip_id) in dealt else q
        for q in manifest.questions
    ]
    order = {split: i for i, split in enumerate(SPLITS)}
    questions.sort(key=lambda q: order.get(q.split, len(SPLITS)))
    note = f"val is {len(dealt)} of the {len(sources)} clips of train, dealt with seed {seed} (data.validation)"
    return dataclasses.replace(manifest, questions=tuple(questions), notes=(*manifest.notes, note))


def source_id(clip_id: str) -> str:
    """Return the id of the recording that a clip was made from.

    Itself; the film that it is a stretch of; what it is a mirrored or dubbed copy of.

    >>> source_id("films/a.mp4#t=60,70.5"), source_id("00000012_flip")
    ('films/a.mp4', '00000012')
    """
    stretch = _STRETCH.fullmatch(clip_id)
    clip_id = stretch[1] if stretch else clip_id
    flipped = _FLIPPED.fullmatch(clip_id)
    clip_id = flipped[1] if flipped else clip_id
    synthetic = _SYNTHETIC.fullmatch(clip_id)
    return synthetic[1] if synthetic else clip_id
