"""Units as a joint model asks for them: from which state how far up; run for one model here, for several in `stacked`.

A model's forward pass is a generator of such requests. Whoever drives it runs the units and sends the states back, so
that units asked for by several models at once can be run once on all their states.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...extract.encoders.encoder import Encoder
from ...extract.trunk.state import State

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Climb:
    """The units of one encoder from a state's boundary up.

    Args:
        encoder: whose units they are.
        state: where they start.
        stop: the boundary to reach.
        graph: whether a gradient has to pass through them; without, none is recorded.
        recompute: keep no activations of theirs for the backward pass, but run them again then.
        known: what several models of a group have run without a graph from the same states.
    """

    encoder: Encoder
    state: State
    stop: int
    graph: bool
    recompute: bool = False
    known: Known | None = None

    @property
    def units(self) -> list[nn.Module]:
        """The units themselves."""
        return list(self.encoder.units[self.state.boundary : self.stop])

    def run(self) -> State:
        """Run the units; where there are none, the state is the same object."""
        if self.state.boundary == self.stop:
            return self.state
        if self.known is not None and not self.graph:
            return self.known.run(self)
        return self.run_anew()

    def run_anew(self) -> State:
        """Run the units, whatever is known."""
        with graph_if(self.graph):
            if self.graph and self.recompute:
                return self._recomputed()
            return self.encoder.run(self.state, self.state.boundary, self.stop)

    def _recomputed(self) -> State:
        state = self.state
        for boundary in range(state.boundary, self.stop):
            state = _unit(self.encoder, state, boundary)
        return state


class Known:
    """What was run without a graph from the states that a batch gives to several models: for all of them once.

    Args:
        states: of the batch, one object for all models.
    """

    def __init__(self, states: Iterable[State]) -> None:
        self._shared = {id(state): state for state in states}  # held, so that an id stays its own
        self._found: dict[tuple[object, ...], State] = {}

    def run(self, climb: Climb) -> State:
        """Run the units on a shared state once; on any other, each time."""
        state = climb.state
        if id(state) not in self._shared:
            return climb.run_anew()
        key = (id(state), *map(id, climb.units), torch.is_autocast_enabled(state.hidden.device.type))
        if key not in self._found:
            self._found[key] = climb.run_anew()
            self._shared[id(self._found[key])] = self._found[key]
        return self._found[key]


Steps = Generator[dict[str, Climb], dict[str, State], T]


def alone(steps: Steps[T]) -> T:
    """Drive one model's pass, running what it asks for."""
    wanted = next_request(steps, None)
    while not isinstance(wanted, Returned):
        wanted = next_request(steps, {m: climb.run() for m, climb in wanted.items()})
    return wanted.value


@dataclass(frozen=True)
class Returned(Generic[T]):
    """What a pass ended with."""

    value: T


def next_request(steps: Steps[T], states: dict[str, State] | None) -> dict[str, Climb] | Returned[T]:
    """Send states to a pass (None to begin it) and take its next request, or its end."""
    try:
        return next(steps) if states is None else steps.send(states)
    except StopIteration as end:
        return Returned(end.value)


def graph_if(needed: bool) -> nullcontext[None] | torch.no_grad:
    """Build no graph where nothing trainable lies below."""
    return nullcontext() if needed else torch.no_grad()


def _unit(encoder: Encoder, state: State, boundary: int) -> State:
    """One unit under torch's activation checkpointing, which puts random state and autocast back when it runs again."""
    made: list[State] = []

    def run(hidden: Tensor) -> Tensor:
        after = encoder.run(state.replace(hidden=hidden), boundary, boundary + 1)
        if not made:
            made.append(after.replace(hidden=after.hidden.detach()))
        return after.hidden

    hidden = checkpoint(run, state.hidden, use_reentrant=False)
    return made[0].replace(hidden=hidden)
