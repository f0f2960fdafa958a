"""Runs of consecutive units of one encoder: with or without a graph, recomputed in the backward pass, or shared."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...extract.encoders.encoder import Encoder
from ...extract.trunk.state import State
from ..data.batch import FrozenOutputs


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitRun:
    """The units of one encoder from a state's boundary up to another one.

    Attributes:
        encoder: the encoder.
        state: the state to start from.
        stop: the boundary to reach, at or above the state's.
        graph: whether a gradient must pass through the units; otherwise no graph is recorded.
        recompute: keep no activations for the backward pass, but run the units again then.
        memo: outputs shared by the models of a lockstep group; used only without a graph.
    """

    encoder: Encoder
    state: State
    stop: int
    graph: bool
    recompute: bool = False
    memo: FrozenOutputs | None = None

    @property
    def units(self) -> list[nn.Module]:
        """The modules to run, in order."""
        return list(self.encoder.units[self.state.boundary : self.stop])

    def run(self) -> State:
        """Run the units and return the state at `stop`; without units, the same object."""
        if self.state.boundary == self.stop:
            return self.state
        if self.memo is not None and not self.graph:
            return self.memo.run(self.state, self.units, self._compute)
        return self._compute()

    def _compute(self) -> State:
        with graph_if(self.graph):
            if not (self.graph and self.recompute):
                return self.encoder.run(self.state, self.state.boundary, self.stop)
            state = self.state
            for boundary in range(state.boundary, self.stop):
                state = _checkpointed(self.encoder, state, boundary)
            return state


def graph_if(needed: bool) -> nullcontext[None] | torch.no_grad:
    """Record no graph where nothing trainable lies below."""
    return nullcontext() if needed else torch.no_grad()


@torch.no_grad()
def states_at(encoder: Encoder, known: Iterable[State], boundaries: Iterable[int]) -> dict[int, State]:
    """Return the states at several boundaries, each computed from the highest known one at or below it.

    Args:
        encoder: a frozen encoder.
        known: states of the same rows, the lowest of them at or below every wanted boundary.
        boundaries: the wanted boundaries, 0 to num_units.

    Returns:
        A state for each wanted and each known boundary, in the encoder's type, without a graph.
    """
    found = {state.boundary: encoder.enter(state) for state in known}
    for k in sorted(set(boundaries)):
        if k not in found:
            below = found[max(b for b in found if b < k)]
            found[k] = encoder.run(below, below.boundary, k)
    return found


def _checkpointed(encoder: Encoder, state: State, boundary: int) -> State:
    """Run one unit under torch's activation checkpointing, which restores random state and autocast for the rerun."""
    made: list[State] = []

    def run(hidden: Tensor) -> Tensor:
        after = encoder.run(state.replace(hidden=hidden), boundary, boundary + 1)
        if not made:
            made.append(after.replace(hidden=after.hidden.detach()))
        return after.hidden

    hidden = checkpoint(run, state.hidden, use_reentrant=False)
    return made[0].replace(hidden=hidden)
