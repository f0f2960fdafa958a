"""States of several boundaries of an encoder, for a network beside it that reads them and spares running units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from ..extract.encoders import Encoder
from ..extract.state import State


class States(dict[str, State]):
    """The state that each trunk starts from, by modality, and those of higher boundaries that are at hand as well.

    Attributes:
        above: by modality, states of the same rows at higher boundaries; {} where there are none.
    """

    def __init__(self, states: Mapping[str, State], above: Mapping[str, Sequence[State]] | None = None) -> None:
        super().__init__(states)
        self.above: dict[str, tuple[State, ...]] = {m: tuple(s) for m, s in (above or {}).items()}


def states_above(states: Mapping[str, State], modality: str) -> tuple[State, ...]:
    """The states of higher boundaries that came with `states`, () for a plain mapping."""
    return states.above.get(modality, ()) if isinstance(states, States) else ()


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
