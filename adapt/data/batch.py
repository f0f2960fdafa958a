"""A batch of questions with its states, what gives such batches, and how questions share clips and texts.

Letters: B questions, T segments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...errors import MissingItemError
from ...extract.datasets.types import Question
from ...extract.trunk.state import State
from .batch_states import ClipRows


@dataclass(frozen=True)
class JointBatch:
    """The states of B questions: visual and audio of B·T rows (t fastest), text of B rows.

    Where they were asked for by clip, visual and audio have the rows of each clip once (see `ClipRows`).
    """

    questions: tuple[Question, ...]
    states: Mapping[str, State]


class Source(Protocol):
    """Gives batches of states for lists of questions, in the order asked."""

    def holds(self, question: Question) -> bool: ...

    def why_not(self, question: Question) -> str: ...

    def batches(self, questions: Iterable[Sequence[Question]], *, by_clip: bool = False) -> Iterator[JointBatch]: ...


def stored_questions(source: Source, questions: Sequence[Question], *, allow_missing: bool) -> list[Question]:
    """Return the questions whose states a source holds.

    Raises:
        MissingItemError: it lacks some, and `allow_missing` is false: how many, and the first ten clips or texts; or it
            lacks all.
    """
    held = {q.id: source.holds(q) for q in questions}
    lacking = [q for q in questions if not held[q.id]]
    if not lacking or (allow_missing and len(lacking) < len(questions)):
        return [q for q in questions if held[q.id]]
    what = list(dict.fromkeys(source.why_not(q) for q in lacking[:200]))
    shown = ", ".join(what[:10]) + (", …" if len(what) > 10 else "")
    raise MissingItemError(
        f"{len(lacking)} of {len(questions)} questions need states that are not in the store: {shown}; run talik "
        "extract first" + ("" if allow_missing else ", or go on without them with allow_missing = true in [data]")
    )


def distinct(modality: str, batch: Sequence[Question]) -> list[Question]:
    """A question of each text, or of each clip, in the order of the batch."""
    return list({q.text if modality == "text" else q.clip_id: q for q in batch}.values())


def places_of(modality: str, batch: Sequence[Question]) -> Tensor:
    """Where among the distinct ones each question's text, or clip, stands: (B,) int64."""
    names = [q.text if modality == "text" else q.clip_id for q in batch]
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([order[name] for name in names])


def clip_rows(batch: Sequence[Question]) -> ClipRows | None:
    """Which clip each question is about, None where no two are about one."""
    of = places_of("visual", batch)
    num = int(of.max()) + 1
    return ClipRows(of, num) if num < len(of) else None


def shuffled(questions: Sequence[Question], *, seed: int, by_clip: bool) -> list[int]:
    """A random order of the questions, as indices.

    With `by_clip` the clips are in random order, and so are the questions of each, one after the other: a clip whose
    questions do not fit into a batch goes on in the next.
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = torch.randperm(len(questions), generator=generator).tolist()
    if by_clip:
        clips = list(dict.fromkeys(q.clip_id for q in questions))
        ranks = dict(zip(clips, torch.randperm(len(clips), generator=generator).tolist(), strict=True))
        order.sort(key=lambda i: ranks[questions[i].clip_id])
    return order
