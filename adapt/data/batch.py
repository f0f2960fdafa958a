"""A batch of questions with the states that a joint model starts from, and the sources that yield such batches.

Letters: B questions, T segments, K distinct clips of a batch.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...errors import MissingItemError
from ...extract.datasets.types import Question
from ...extract.executors.device import sent
from ...extract.trunk.state import State
from ...extract.trunk.tracing import tensors


@dataclass(frozen=True, eq=False)
class ClipRows:
    """Index from the questions of a batch to its distinct clips, where each clip's states are held once.

    Attributes:
        of: (B,) int64, the clip of each question, 0 to num - 1.
        num: K, distinct clips in the batch, at most B.
    """

    of: Tensor
    num: int

    @classmethod
    def of_questions(cls, questions: Sequence[Question], device: torch.device | str = "cpu") -> ClipRows | None:
        """Index the clips of a batch, on a device; None where no two questions share a clip."""
        of = distinct_index("visual", questions)
        num = int(of.max()) + 1
        return cls(sent(of, device), num) if num < len(of) else None

    def repeat(self, values: Tensor) -> Tensor:
        """Repeat each clip's values for each of its questions: (K, …) → (B, …).

        >>> ClipRows(torch.tensor([0, 1, 0]), 2).repeat(torch.tensor([10, 20])).tolist()
        [10, 20, 10]
        """
        return values.index_select(0, self.of.to(values.device))

    def spread(self, state: State) -> State:
        """Repeat each clip's rows for each of its questions: a state of K·T rows (t fastest) → one of B·T rows."""
        per = state.batch_size // self.num
        of = self.of.to(state.hidden.device)
        return state.take((of[:, None] * per + torch.arange(per, device=of.device)).flatten())


class FrozenOutputs:
    """Memo of frozen-unit outputs shared by the models of a lockstep group, for one batch.

    Args:
        states: the states that the batch gives to the models, each one object for all of them.
    """

    def __init__(self, states: Iterable[State]) -> None:
        self._shared = {id(state): state for state in states}  # held, so that an id stays its own
        self._found: dict[tuple[object, ...], State] = {}

    def run(self, state: State, units: Sequence[nn.Module], compute: Callable[[], State]) -> State:
        """Return the output of frozen units on a state, computed once if the state is a shared one.

        Args:
            state: the input of the first unit.
            units: the modules to run, in order.
            compute: runs them, without a graph.
        """
        if id(state) not in self._shared:
            return compute()
        key = (id(state), *map(id, units), torch.is_autocast_enabled(state.hidden.device.type))
        if key not in self._found:
            self._found[key] = compute()
            self._shared[id(self._found[key])] = self._found[key]
        return self._found[key]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B questions and the states that a joint model starts from.

    Attributes:
        questions: B of them.
        states: by modality, the state at the boundary that the batch was read or computed at: visual and audio of B·T
            rows (t fastest), or of K·T rows where `clips` is given; text of B rows.
        num_segments: T.
        clips: the index from questions to clips where each clip's rows are held once; None where each question has
            rows of its own.
        above: by modality, states of the same rows at higher boundaries that are known too, in rising order.
        memo: outputs of frozen units shared by the models of a lockstep group; None outside a group.
    """

    questions: tuple[Question, ...]
    states: Mapping[str, State]
    num_segments: int
    clips: ClipRows | None = None
    above: Mapping[str, tuple[State, ...]] = field(default_factory=dict)
    memo: FrozenOutputs | None = None

    def __len__(self) -> int:
        """Count the questions, B."""
        return len(self.questions)

    @property
    def device(self) -> torch.device:
        """The device of the states."""
        return next(iter(self.states.values())).hidden.device

    @property
    def text_mask(self) -> Tensor | None:
        """The mask (B, L) bool of real text tokens; None without text or without padding information."""
        return text_mask(self.states)

    def by_question(self) -> Batch:
        """Return the batch with rows of its own for each question; itself where it has them already."""
        if self.clips is None:
            return self
        clips = self.clips

        def spread(modality: str, state: State) -> State:
            return state if modality == "text" else clips.spread(state)

        return dataclasses.replace(
            self,
            states={m: spread(m, s) for m, s in self.states.items()},
            above={m: tuple(spread(m, s) for s in states) for m, states in self.above.items()},
            clips=None,
        )


def text_mask(states: Mapping[str, State]) -> Tensor | None:
    """Return the mask (B, L) bool of real text tokens; None without text or without padding information."""
    text = states.get("text")
    if text is None or text.lengths is None:
        return None
    length = text.hidden.shape[1]
    return torch.arange(length, device=text.hidden.device)[None] < text.lengths.to(text.hidden.device)[:, None]


def tensors_of(batch: Batch) -> list[Tensor]:
    """Return every tensor that a batch holds, those of its states' contexts included."""
    states = [*batch.states.values(), *(state for several in batch.above.values() for state in several)]
    found = [state.hidden for state in states] + ([] if batch.clips is None else [batch.clips.of])
    for context in {id(state.context): state.context for state in states}.values():
        found += context.inputs.values()
        found += [tensor for _, tensor in tensors(context.calls)]
    return found + [state.lengths for state in states if state.lengths is not None]


class Source(Protocol):
    """Yields batches of states for lists of questions, in the order given."""

    def holds(self, question: Question) -> bool:
        """Return whether every state that a question needs can be given."""

    def why_not(self, question: Question) -> str:
        """Name the clip or text whose state is missing, with the reason as far as it is known."""

    def batches(self, questions: Iterable[Sequence[Question]], *, by_clip: bool = False) -> Iterator[Batch]:
        """Yield one batch for each list of questions; with `by_clip`, each clip's rows once a batch."""


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
    """Return one question of each distinct text, or clip, in the order of the batch."""
    return list({q.text if modality == "text" else q.clip_id: q for q in batch}.values())


def distinct_index(modality: str, batch: Sequence[Question]) -> Tensor:
    """Return the index (B,) int64 from each question to its text, or clip, among the distinct ones."""
    names = [q.text if modality == "text" else q.clip_id for q in batch]
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([order[name] for name in names])


def content_order(question: Question) -> tuple[Any, ...]:
    """Return a key that sorts questions by clip and content, whatever the order of their lines and their ids.

    >>> a = Question(id="1", clip_id="b", text="", answer="x", type="", template="", split="train")
    >>> b = Question(id="2", clip_id="a", text="", answer="x", type="", template="", split="train")
    >>> [question.clip_id for question in sorted([a, b], key=content_order)]
    ['a', 'b']
    """
    clip, choices = unicodedata.normalize("NFC", question.clip_id), tuple(sorted(question.choices))
    told = (question.type, question.template, question.subset)
    return (clip, question.text, question.answer, question.labels, choices, told, tuple(sorted(question.answers)))


def shuffled(questions: Sequence[Question], *, seed: int, by_clip: bool) -> list[int]:
    """Return a random order of the questions, as indices.

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
