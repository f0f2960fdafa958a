"""What a report says of the data set that its runs were trained on: the blind baseline, clips shared between splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...config import from_mapping
from ...errors import TalikError
from ...extract.datasets.describe import blind_baseline, most_frequent_label, shared_clips
from ...extract.datasets.load import load_manifest
from ...extract.datasets.settings import DataSettings
from ...extract.datasets.types import Manifest
from .clips import ShownClip, pick_clips, show_clip
from .runs import Prediction, Run


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """The data set of some runs, as far as it can be read.

    Args:
        manifest: None where it cannot be read.
        settings: of the manifest; None without it.
        blind: the blind baseline's answer to each reported question by id; None without a manifest that asks them.
        notes: of leaks between splits, or of why there is no baseline; one sentence each.
    """

    manifest: Manifest | None = None
    settings: DataSettings | None = None
    blind: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()


def find_data_set(run: Run) -> DataSet:
    """Read the data set that a run's config.toml names; media files are not needed."""
    table, task = run.config.get("data"), run.config.get("task")
    by_segment = isinstance(task, Mapping) and task.get("kind") == "events"
    if not isinstance(table, Mapping):
        return _without("config.toml names none")
    try:
        settings = replace(from_mapping(DataSettings, table, where="data"), allow_missing=True)
        manifest = load_manifest(settings, base=run.base)
        blind = _blind(manifest, run.predictions, run.split, by_segment=by_segment)
    except (TalikError, OSError) as error:
        return _without(" ".join(str(error).split()).replace(f"{run.base}/", ""))
    if blind is None:
        return _without(f"the data set in {settings.root} no longer asks these questions with these answers")
    leaks = tuple(map(_leak, shared_clips(manifest)))
    return DataSet(manifest=manifest, settings=settings, blind=blind, notes=leaks)


def some_clips(data: DataSet, predictions: Sequence[Prediction], *, count: int = 6) -> list[ShownClip]:
    """Return a few of the clips that were asked about, those of them whose media can be read."""
    if data.manifest is None or data.settings is None:
        return []
    segments, stride = data.settings.segments, data.settings.stride_seconds
    clips = [data.manifest.clips[name] for name in pick_clips(predictions, count) if name in data.manifest.clips]
    shown = [show_clip(clip, num_segments=segments, stride_seconds=stride) for clip in clips]
    return [clip for clip in shown if clip is not None]


def _without(reason: str) -> DataSet:
    return DataSet(notes=(f"No blind baseline, and no look for clips shared between splits: {reason}.",))


def _leak(line: str) -> str:
    return f"Leak between splits. {line[:1].upper()}{line[1:]}: what is learnt of them in one is known in the other."


def _blind(
    manifest: Manifest, predictions: Sequence[Prediction], split: str, *, by_segment: bool
) -> dict[str, str] | None:
    """The baseline's answers, None where the manifest does not ask what was answered."""
    questions = {q.id: q for q in manifest.split(split)}
    label = most_frequent_label(manifest) if by_segment else ""
    guesses = {} if by_segment else blind_baseline(manifest, split)
    found: dict[str, str] = {}
    for p in predictions:
        name, _, segment = p.question_id.rpartition("/") if by_segment else (p.question_id, "", "")
        question = questions.get(name)
        if question is None or question.clip_id != p.clip_id:
            return None
        if by_segment and not (segment.isdigit() and int(segment) < len(question.labels)):
            return None
        if p.answer != (question.labels[int(segment)] if by_segment else question.answer):
            return None
        found[p.question_id] = label if by_segment else guesses[name]
    return found
