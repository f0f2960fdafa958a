"""Read the data set that runs were trained on: the blind baseline, clips shared between splits, a few clips to show.

The page holds shown media inside data URIs, so that it needs no other file.
"""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...config import from_mapping
from ...errors import MediaError, SettingsError, TalikError
from ...extract.datasets.describe import (
    blind_baseline,
    blind_label_shares,
    most_frequent_label,
    shared_clips,
)
from ...extract.datasets.load import load_manifest
from ...extract.datasets.settings import DataSettings
from ...extract.datasets.types import Clip, Manifest
from ...extract.media.clip_media import SegmentSettings
from ...extract.media.decode import decode_segments
from ...extract.media.tar_member import FilePath, media_file
from ..scoring.multi_label import label_text
from .runs import Prediction, Run

_TYPES = {".mp4": "video/mp4", ".webm": "video/webm", ".png": "image/png", ".webp": "image/webp"}
_TYPES |= dict.fromkeys((".jpg", ".jpeg"), "image/jpeg")
_FRAME_WIDTH = 160
_MOST_FRAMES = 16  # frames of longer clips would be too narrow to recognise
_DATA_URI = re.compile(r"data:(image|video)/[a-z0-9+.-]+;base64,[A-Za-z0-9+/]+=*")


@dataclass(frozen=True, kw_only=True)
class ShownClip:
    """One clip to show: its id as the predictions have it, and a video or frames as data URIs (see `data_uri`)."""

    clip_id: str
    video: str | None = None
    frames: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for kind, uri in (("video", self.video), *(("image", frame) for frame in self.frames)):
            match = None if uri is None else _DATA_URI.fullmatch(uri)
            if uri is not None and (match is None or match[1] != kind):
                raise SettingsError(f"clip {self.clip_id!r}: found {uri[:24]!r}, expected a base64 {kind} data URI")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Data set of some runs, as far as it can be read.

    Attributes:
        manifest: None where it cannot be read.
        settings: of the manifest; None without it.
        blind: the blind baseline's answer to each reported question by id; None without a manifest that has them.
        blind_labels: of multi-label answers, how probable the baseline holds each label, by question id.
        notes: on leaks between splits, unseen answers, or why the baseline is missing; one sentence each.
        unseen: true answers of reported questions that no training question has.
    """

    manifest: Manifest | None = None
    settings: DataSettings | None = None
    blind: Mapping[str, str] | None = None
    blind_labels: Mapping[str, Mapping[str, float]] | None = None
    notes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


def find_data_set(run: Run) -> DataSet:
    """Read the data set that a run's config.toml names; media files are not needed."""
    table, task = run.config.get("data"), run.config.get("task")
    by_segment = isinstance(task, Mapping) and task.get("kind") == "events"
    by_label = isinstance(task, Mapping) and task.get("kind") == "multi-label"
    if not isinstance(table, Mapping):
        return _without("config.toml names none")
    try:
        settings = replace(from_mapping(DataSettings, table, where="data"), allow_missing=True)
        manifest = load_manifest(settings, base=run.base)
        shares = _blind_shares(manifest, run.predictions, run.split) if by_label else None
        if by_label:
            blind = None if shares is None else _texts(shares, task)
        else:
            blind = _blind_answers(manifest, run.predictions, run.split, by_segment=by_segment)
    except (TalikError, OSError) as error:
        return _without(" ".join(str(error).split()).replace(f"{run.base}/", ""))
    if blind is None:
        return _without(f"the data set in {settings.root} no longer asks these questions with these answers")
    leaks = tuple(
        f"Leak between splits. {line[:1].upper()}{line[1:]}: what is learnt of them in one is known in the other."
        for line in shared_clips(manifest)
    )
    unseen = never_trained(manifest, run.predictions)
    return DataSet(
        manifest=manifest,
        settings=settings,
        blind=blind,
        blind_labels=shares,
        notes=(*leaks, *unseen_note(unseen, run.predictions, run.split)),
        unseen=unseen,
    )


def never_trained(manifest: Manifest, predictions: Sequence[Prediction]) -> tuple[str, ...]:
    """List the true answers of the predicted questions that no training question has, most frequent first."""
    if "train" not in manifest.splits:
        return ()
    learnt = {word for q in manifest.split("train") for word in (*q.right, *q.labels)}
    true = [(p.answer, p.right if p.labels is None else p.labels) for p in predictions]
    unknown = Counter(answer for answer, words in true if words and learnt.isdisjoint(words))
    return tuple(word for word, _ in unknown.most_common())


def unseen_note(unseen: Sequence[str], predictions: Sequence[Prediction], split: str) -> tuple[str, ...]:
    """Say how many questions have a true answer that training never had; () if none has."""
    num = sum(p.answer in unseen for p in predictions)
    if not num:
        return ()
    named = ", ".join(map(repr, unseen[:5])) + ", …" * (len(unseen) > 5)
    share = f"{100 * num / len(predictions):.2g} %"
    return (
        f"Answers that training never had: the true answers of {num:,} of {len(predictions):,} {split} questions "
        f"({share}) are in no training question, so that no variant could learn them ({named}).",
    )


def _without(reason: str) -> DataSet:
    return DataSet(notes=(f"No blind baseline, and no look for clips shared between splits: {reason}.",))


def _blind_answers(
    manifest: Manifest, predictions: Sequence[Prediction], split: str, *, by_segment: bool
) -> dict[str, str] | None:
    """Answer each predicted question by the baseline; None where the manifest has other questions or answers.

    Questions are found by what they ask, since a manifest without ids numbers its lines, which may have moved.
    """
    questions = manifest.split(split)
    guesses: dict[tuple[str, str, int | None, str], str]
    if by_segment:
        label = most_frequent_label(manifest)
        guesses = {(q.clip_id, q.text, t, a): label for q in questions for t, a in enumerate(q.labels)}
    else:
        answers = blind_baseline(manifest, split)
        guesses = {(q.clip_id, q.text, None, q.answer): answers[q.id] for q in questions}
    found = {
        p.question_id: guesses.get((p.clip_id, p.question, _segment(p, by_segment), p.answer)) for p in predictions
    }
    return None if None in found.values() else {name: guess for name, guess in found.items() if guess is not None}


def _blind_shares(
    manifest: Manifest, predictions: Sequence[Prediction], split: str
) -> dict[str, dict[str, float]] | None:
    """Return how often each label is true in train, of each predicted question; None where they are no longer there."""
    shares = blind_label_shares(manifest, split)
    guesses = {(q.clip_id, q.text, label_text(q.right)): shares[q.id] for q in manifest.split(split)}
    keys = {p.question_id: (p.clip_id, p.question, p.answer) for p in predictions}
    if not guesses.keys() >= {*keys.values()}:
        return None
    return {name: guesses[key] for name, key in keys.items()}


def _texts(shares: Mapping[str, Mapping[str, float]], task: object) -> dict[str, str]:
    """Return the labels whose share reaches the task's threshold, as text, by question id."""
    threshold = float(task.get("threshold", 0.5)) if isinstance(task, Mapping) else 0.5
    return {name: label_text(label for label, s in own.items() if s >= threshold) for name, own in shares.items()}


def _segment(prediction: Prediction, by_segment: bool) -> int | None:
    """Return the segment that a prediction is about; its id ends in it."""
    end = prediction.question_id.rpartition("/")[2]
    return int(end) if by_segment and end.isdigit() else None


def some_clips(data: DataSet, predictions: Sequence[Prediction], *, count: int = 6) -> list[ShownClip]:
    """Load up to `count` of the predicted clips, those of them whose media can be read."""
    if data.manifest is None or data.settings is None:
        return []
    segments, stride = data.settings.segments, data.settings.stride_seconds
    clips = [data.manifest.clips[name] for name in pick_clips(predictions, count) if name in data.manifest.clips]
    shown = [show_clip(clip, num_segments=segments, stride_seconds=stride) for clip in clips]
    return [clip for clip in shown if clip is not None]


def pick_clips(predictions: Iterable[Prediction], num: int) -> tuple[str, ...]:
    """Pick up to `num` clip ids, evenly spaced over the order of appearance, whatever was answered to them."""
    clips = list(dict.fromkeys(p.clip_id for p in predictions))
    num = min(num, len(clips))
    return tuple(clips[(2 * i + 1) * len(clips) // (2 * num)] for i in range(num))


def show_clip(clip: Clip, *, num_segments: int, stride_seconds: float | None = None) -> ShownClip | None:
    """Load one frame per segment of a clip of at most 16 segments, and the video itself where it is small.

    Args:
        clip: of a manifest.
        num_segments, stride_seconds: the segments, as the data set's settings have them.

    Returns:
        None where the media cannot be read, or give neither frames nor a small video.
    """
    frames: tuple[str, ...] = ()
    if clip.path is None or clip.media is None:
        return None
    try:
        if num_segments <= _MOST_FRAMES:
            wanted = SegmentSettings(num_segments=num_segments, stride_seconds=stride_seconds, sound=False)
            frames = decode_segments(clip.media, wanted, _jpeg).prepared or ()
    except (TalikError, OSError):
        return None
    video = None
    if not clip.fragment and _TYPES.get(clip.path.suffix.lower(), "").startswith("video/"):
        with suppress(MediaError):
            video = data_uri(clip.path)
    return ShownClip(clip_id=clip.id, video=video, frames=frames) if frames or video else None


def _jpeg(frame: NDArray[np.uint8]) -> str:
    """Encode a frame (H, W, 3) as a data URI of a JPEG of 160 pixels' width."""
    height, width = frame.shape[:2]
    buffer = io.BytesIO()
    size = (_FRAME_WIDTH, max(2, 2 * round(height * _FRAME_WIDTH / width / 2)))
    Image.fromarray(frame).resize(size).save(buffer, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def data_uri(path: FilePath | str, *, max_bytes: int = 200_000) -> str:
    """Encode a file (mp4, webm, png, jpeg or webp) as a data URI.

    Raises:
        MediaError: the file cannot be read, is of another kind, or is larger than `max_bytes`.
    """
    path = media_file(path) if isinstance(path, str) else path
    kind = _TYPES.get(path.suffix.lower())
    if kind is None:
        raise MediaError(f"{path}: cannot be shown on a page; expected one of {', '.join(_TYPES)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error.strerror})") from None
    if not 0 < len(content) <= max_bytes:
        raise MediaError(f"{path}: {len(content)} bytes; expected 1 to {max_bytes} for a page that stays small")
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
