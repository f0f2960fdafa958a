"""A batch's states as a model is given them: of several boundaries, and of each clip once for all its questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...extract.encoders.encoder import Encoder
from ...extract.trunk.state import State
from ..model.unit_requests import Known


@dataclass(frozen=True, eq=False)
class ClipRows:
    """Which clip each question of a batch is about, where a clip's states stand once for all its questions.

    Attributes:
        of: (B,) int64, from 0 to num - 1.
        num: clips in the batch, at most B.
    """

    of: Tensor
    num: int

    def repeat(self, values: Tensor) -> Tensor:
        """(num, …) → (B, …), a clip's values for each of its questions."""
        return values.index_select(0, self.of.to(values.device))

    def spread(self, state: State) -> State:
        """The state with a clip's rows for each of its questions: of B·T rows (t fastest) where it had num·T."""
        per = state.batch_size // self.num
        of = self.of.to(state.hidden.device)
        return state.take((of[:, None] * per + torch.arange(per, device=of.device)).flatten())


class States(dict[str, State]):
    """The state that each trunk starts from, by modality, and those of higher boundaries that are at hand as well.

    Attributes:
        above: by modality, states of the same rows at higher boundaries; {} where there are none.
        clip_rows: where the states of visual and audio have a row a clip; None where they have one a question.
        known: what other models have run from the same states.
    """

    def __init__(
        self,
        states: Mapping[str, State],
        above: Mapping[str, Sequence[State]] | None = None,
        clip_rows: ClipRows | None = None,
        known: Known | None = None,
    ) -> None:
        super().__init__(states)
        self.above: dict[str, tuple[State, ...]] = {m: tuple(s) for m, s in (above or {}).items()}
        self.clip_rows = clip_rows
        self.known = known


def states_above(states: Mapping[str, State], modality: str) -> tuple[State, ...]:
    """The states of higher boundaries that came with `states`, () for a plain mapping."""
    return states.above.get(modality, ()) if isinstance(states, States) else ()


def clip_rows_of(states: Mapping[str, State]) -> ClipRows | None:
    """How the clips' rows belong to questions, None where each question has rows of its own."""
    return states.clip_rows if isinstance(states, States) else None


def known_of(states: Mapping[str, State]) -> Known | None:
    """What other models have run from the same states, None where there are none."""
    return states.known if isinstance(states, States) else None


def by_question(states: Mapping[str, State]) -> Mapping[str, State]:
    """The states with rows for each question."""
    clips = clip_rows_of(states)
    if clips is None:
        return states
    spread = {m: s if m == "text" else clips.spread(s) for m, s in states.items()}
    above = {
        m: [s if m == "text" else clips.spread(s) for s in several]
        for m in states
        if (several := states_above(states, m))
    }
    return States(spread, above)


@torch.no_grad()
def climb(encoder: Encoder, at_hand: Iterable[State], wanted: Iterable[int]) -> dict[int, State]:
    """The states at the boundaries `wanted`, each from the highest one at or below it, without a graph.

    Args:
        encoder: frozen.
        at_hand: states of the same rows, the lowest at or below every boundary that is wanted.
        wanted: boundaries 0 … num_units.
    """
    found = {state.boundary: state for state in at_hand}
    for k in sorted(set(wanted)):
        if k not in found:
            below = found[max(b for b in found if b < k)]
            found[k] = encoder.run(below, below.boundary, k)
    return found
