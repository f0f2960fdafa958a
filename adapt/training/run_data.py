"""What a run was trained on, as its folder keeps it in data.json: annotations, clips, states, encoders; comparisons.

Annotations are kept as one digest a split and 32 hex digits a question (16 of clip and text, 8 of the answer, 8 of
type, template and subset), so that "12 of 47 training labels differ" can be said without the old file. None of it
depends on the order of a file's lines or on ids.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...cache.format.digests import digest_json
from ...errors import RunError
from ...extract.datasets.types import Question
from ...extract.encoders.encoder import Encoder
from ..data.batch import Source
from ..data.cached_source import CachedSource

FORMAT = 1
_WIDTH, _QUESTION, _LABEL = 32, 16, 24
_SPLITS = {"train": "training", "val": "validation"}


def question_digest(question: Question) -> str:
    """Return 32 hex digits of a question: 16 of clip and text, 8 of its answers, 8 of type, template and subset.

    >>> first = Question(id="1", clip_id="a", text="Is it?", answer="yes", type="x", template="", split="train")
    >>> other = Question(id="2", clip_id="a", text="Is it?", answer="no", type="x", template="", split="train")
    >>> a, b = question_digest(first), question_digest(other)
    >>> a[:16] == b[:16], a[16:24] == b[16:24], a[24:] == b[24:]
    (True, False, True)
    """
    asked = [unicodedata.normalize("NFC", question.clip_id), question.text]
    labels: list[Any] = [question.answer, list(question.labels), sorted(question.choices)]
    labels += [sorted(question.answers)] if question.answers else []
    told = [question.type, question.template, question.subset]
    return digest_json(asked)[:16] + digest_json(labels)[:8] + digest_json(told)[:8]


def encoder_digest(encoder: Encoder) -> str:
    """Return the SHA-256 of all that an encoder's output depends on: weights, configuration, preprocessing."""
    end = encoder.end_digest()
    return digest_json({**encoder.identity(encoder.num_units), **({} if end is None else {"end": end})})


def earlier_digests(encoder: Encoder) -> tuple[str, str]:
    """Return the encoder's digest as earlier versions wrote it: without its end, and without a model's own code too."""
    identity = encoder.identity(encoder.num_units)
    return digest_json(identity), digest_json({name: value for name, value in identity.items() if name != "code"})


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The data of one run.

    Attributes:
        answers: the run's classes, in their order.
        encoders: by modality, the digest of the encoder that it was trained on.
        boundaries: by modality, the path of the stored boundary that it read; {} of a run from the media files.
        clips: by clip id, 16 hex digits of the content of the items that were read; {} of a run from the media files.
        splits: by split, `question_digest` of each question that was used, in the run's own order.
        scored: the split that the finished run is scored on; "" where that is not known.
        base: the absolute folder that relative paths of the settings count from; "" where that is not known.
        complete: whether annotations, clips and boundaries are known; not of runs of versions that did not keep them.
    """

    answers: tuple[str, ...]
    encoders: Mapping[str, str]
    boundaries: Mapping[str, str] = field(default_factory=dict)
    clips: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scored: str = ""
    base: str = ""
    complete: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the content of data.json."""
        return {
            "format": FORMAT,
            "base": self.base,
            "answers": list(self.answers),
            "encoders": dict(self.encoders),
            "boundaries": dict(self.boundaries),
            "scored": self.scored,
            "splits": {
                name: {"digest": split_digest(found), "num_questions": len(found), "questions": "".join(found)}
                for name, found in self.splits.items()
            },
            "clips": dict(self.clips),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, where: str) -> RunData:
        """Return what `to_json` described.

        Raises:
            RunError: another format, or a malformed file.
        """
        if value.get("format") != FORMAT:
            raise RunError(f"{where}: found format {value.get('format')!r}, expected {FORMAT}; update talik")
        try:
            texts = {name: split["questions"] for name, split in value["splits"].items()}
            return cls(
                answers=tuple(value["answers"]),
                encoders=dict(value["encoders"]),
                boundaries=dict(value["boundaries"]),
                clips=dict(value["clips"]),
                splits={
                    name: tuple(text[i : i + _WIDTH] for i in range(0, len(text), _WIDTH))
                    for name, text in texts.items()
                },
                scored=value["scored"],
                base=value["base"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{where}: {json.dumps(str(error))} is missing or malformed") from None


def collect_data(
    encoders: Mapping[str, Encoder],
    source: Source | None,
    questions: Mapping[str, Sequence[Question]],
    *,
    answers: Sequence[str],
    scored: str,
    base: Path,
) -> RunData:
    """Return the data of a run.

    Args:
        encoders: by modality, those that it reads.
        source: where its states come from; None where that cannot be opened.
        questions: by split, those whose states the source has.
        answers: the run's classes, in their order.
        scored: the split that the finished run is scored on.
        base: the folder that relative paths of the settings count from.
    """
    clips: dict[str, str] = {}
    if isinstance(source, CachedSource):
        first = {q.clip_id: q for found in questions.values() for q in found}
        for clip, question in first.items():
            keys = source.item_keys(question)
            clips[clip] = digest_json({m: key for m, key in keys.items() if m != "text"})[:16]
    return RunData(
        answers=tuple(answers),
        encoders={m: encoder_digest(e) for m, e in encoders.items()},
        boundaries=source.boundary_paths if isinstance(source, CachedSource) else {},
        clips=clips,
        splits={split: tuple(map(question_digest, found)) for split, found in questions.items()},
        scored=scored,
        base=str(base.resolve()),
    )


def without_scored(data: RunData) -> RunData:
    """Return the data without the split that the finished run is scored on, where nothing is trained on it."""
    kept = {name: found for name, found in data.splits.items() if name in ("train", "val")}
    return replace(data, splits=kept, scored="")


def split_digest(questions: Iterable[str]) -> str:
    """Return the SHA-256 of a split's questions, given as `question_digest`; their order does not matter."""
    return digest_json(sorted(questions))


def in_recorded_order(questions: Sequence[Question], recorded: Sequence[str]) -> list[Question]:
    """Return questions in the order in which a run used them.

    Args:
        questions: the same as those recorded, in any order.
        recorded: `question_digest` of each, in the run's order.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for place, digest in enumerate(recorded):
        places[digest].append(place)
    later = {digest: iter(found) for digest, found in places.items()}
    ranks = [next(later.get(question_digest(q), iter(())), len(recorded)) for q in questions]
    return [questions[i] for i in sorted(range(len(questions)), key=ranks.__getitem__)]


def data_differences(
    now: RunData, then: RunData, *, new_questions: bool = True, stored: Collection[str] = ()
) -> list[str]:
    """Say in numbers how the data that a run would have now differ from those that it had; [] where they do not.

    Only what both know is compared.

    Args:
        now: of the experiment as it is.
        then: of the run.
        new_questions: count questions that the run did not have; False where `now` may hold more than would be used.
        stored: paths of all boundaries of the store; one that the run read and that is still there is the same.
    """
    found = [
        f"the {m} encoder, its weights or preprocessing (digest {then.encoders[m][:12]} then, {digest[:12]} now)"
        for m, digest in now.encoders.items()
        if then.encoders.get(m, digest) != digest
    ]
    found += _other_answers(now.answers, then.answers)
    if not (now.complete and then.complete):
        return found
    for split in dict.fromkeys((*then.splits, *now.splits)):
        scored = split == then.scored
        found += split_differences(
            now.splits.get(split, ()), then.splits.get(split, ()), split, types=scored, new_questions=new_questions
        )
    if new_questions and then.scored != now.scored:
        found.append(f"the split that is scored ({then.scored}, now {now.scored})")
    found += _other_clips(now.clips, then.clips)
    gone = [
        (m, path) for m, path in then.boundaries.items() if now.boundaries.get(m, path) != path and path not in stored
    ]
    return [*found, *(f"the stored {m} states ({path} then, {now.boundaries[m]} now)" for m, path in gone)]


def split_differences(
    now: Sequence[str], then: Sequence[str], split: str, *, types: bool = True, new_questions: bool = True
) -> Iterator[str]:
    """Yield how the questions of a split differ, each a clause in numbers.

    Args:
        now, then: `question_digest` of each question.
        split: its name.
        types: compare types, templates and subsets too; what is trained does not depend on them.
        new_questions: count questions that are only in `now`.
    """
    if split_digest(now) == split_digest(then):
        return
    name = _SPLITS.get(split, split)
    both = _common(now, then, _QUESTION)
    labels = both - _common(now, then, _LABEL)
    told = both - labels - _common(now, then, _WIDTH)
    if labels:
        yield f"{labels} of {len(then)} {name} labels"
    if types and told:
        yield f"the types or templates of {told} of {len(then)} {name} questions"
    if gone := len(then) - both:
        yield f"{gone} of {len(then)} {name} questions gone"
    if new_questions and len(now) > both:
        yield f"{len(now) - both} {name} questions new, beside {len(then)}"


def _common(now: Sequence[str], then: Sequence[str], width: int) -> int:
    """Count the questions that two lists have in common in their first `width` digits."""
    return (Counter(q[:width] for q in now) & Counter(q[:width] for q in then)).total()


def _other_answers(now: Collection[str], then: Collection[str]) -> list[str]:
    gone, new = [a for a in then if a not in set(now)], [a for a in now if a not in set(then)]
    if not gone and not new:
        return []
    said = [f"{len(names)} {what} (for one {names[0]!r})" for names, what in ((gone, "gone"), (new, "new")) if names]
    return [f"the vocabulary of {len(then)} answers: {', '.join(said)}"]


def _other_clips(now: Mapping[str, str], then: Mapping[str, str]) -> list[str]:
    both = [clip for clip in then if clip in now]
    other = [clip for clip in both if now[clip] != then[clip]]
    return [f"the content of {len(other)} of {len(both)} clips (for one {other[0]!r})"] if other else []
