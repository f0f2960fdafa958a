"""Passes of several models driven in lockstep: frozen units that several of them ask for run once, on all their states.

Each pass is a generator that asks for units (see `climbing`). Of everything that is asked for, the lowest goes first,
and whatever else waits at the same boundary for the same units goes with it: states are joined along the batch, with
their context, run, and parted again. A model with units of its own (`peft:…`) runs those alone and shares the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...errors import TalikError
from ...extract.trunk.state import Context, State
from ..model.unit_requests import Climb, Returned, Steps, next_request


@dataclass(frozen=True)
class Job:
    """One model's pass.

    Args:
        steps: the pass.
        turn: opened around whatever is this model's alone: its random stream, its clock.
        autocast: opened around everything; models are stacked only with those of equal `precision`.
        precision: names what `autocast` does.
    """

    steps: Steps[Tensor]
    turn: Callable[[], AbstractContextManager[None]]
    autocast: Callable[[], AbstractContextManager[Any]]
    precision: str


def run_stacked(jobs: Sequence[Job]) -> list[Tensor | TalikError]:
    """Drive all passes to their ends; return the logits of each, or the error that it ended by."""
    return _Lockstep(jobs).run()


class _Lockstep:
    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.ended: dict[int, Tensor | TalikError] = {}
        self.waiting: dict[int, dict[str, Climb]] = {}
        self.contexts: dict[tuple[int, ...], tuple[Context, Sequence[Context]]] = {}

    def run(self) -> list[Tensor | TalikError]:
        for index in range(len(self.jobs)):
            self._go_on(index, None)
        while self.waiting:
            arrived = [i for i, cs in self.waiting.items() if all(c.state.boundary == c.stop for c in cs.values())]
            for index in arrived:  # before anything climbs, so that all that can go together waits
                self._go_on(index, {m: c.state for m, c in self.waiting[index].items()})
            if not arrived:
                self._climb_lowest()
        return [self.ended[index] for index in range(len(self.jobs))]

    def _go_on(self, index: int, states: dict[str, State] | None) -> None:
        """Send a pass what it asked for, and keep what it asks for next."""
        self.waiting.pop(index, None)
        job = self.jobs[index]
        try:
            with job.turn(), job.autocast():
                found = next_request(job.steps, states)
        except TalikError as error:
            self.ended[index] = error
            return
        if isinstance(found, Returned):
            self.ended[index] = found.value
        else:
            self.waiting[index] = found

    def _climb_lowest(self) -> None:
        places = [(i, m) for i, cs in self.waiting.items() for m, c in cs.items() if c.state.boundary < c.stop]
        lowest = min(places, key=lambda place: self._depth(*place))
        alike = [place for place in places if self._alike(place) == self._alike(lowest)]
        stop = self._common_stop(alike, places)
        if len(alike) == 1:
            with self.jobs[lowest[0]].turn():  # units of its own may draw random numbers
                self._move(lowest, self._run(replace(self._at(lowest), stop=stop), lowest[0]))
            return
        states = {id(state): state for place in alike for state in [self._at(place).state]}  # several may have the same
        made = self._run_joined(list(states.values()), self._at(alike[0]), stop, alike[0][0])
        after = dict(zip(states, made, strict=True))
        for place in alike:
            self._move(place, after[id(self._at(place).state)])

    def _run_joined(self, states: Sequence[State], climb: Climb, stop: int, index: int) -> list[State]:
        """Run units on states of several models at once; `climb` and `index` are those of any of them."""
        if len(states) == 1:
            return [self._run(replace(climb, stop=stop), index)]
        joined = self._run(replace(climb, state=self._joined(states), stop=stop), index)
        parts = joined.hidden.split([state.batch_size for state in states])
        return [
            joined.replace(hidden=hidden, lengths=own.lengths, context=own.context)
            for own, hidden in zip(states, parts, strict=True)
        ]

    def _run(self, climb: Climb, index: int) -> State:
        with self.jobs[index].autocast():
            return climb.run()

    def _at(self, place: tuple[int, str]) -> Climb:
        return self.waiting[place[0]][place[1]]

    def _move(self, place: tuple[int, str], state: State) -> None:
        self.waiting[place[0]][place[1]] = replace(self._at(place), state=state)

    def _depth(self, index: int, modality: str) -> tuple[float, str, int]:
        climb = self._at((index, modality))
        return climb.state.boundary / climb.encoder.num_units, modality, index

    def _alike(self, place: tuple[int, str]) -> tuple[Any, ...]:
        """What is equal for states that the next unit can take together."""
        climb = self._at(place)
        state = climb.state
        unit = climb.encoder.units[state.boundary]
        shape = (state.layout, tuple(state.hidden.shape[1:]), state.hidden.dtype)
        return (id(unit), place[1], shape, climb.graph, climb.recompute, self.jobs[place[0]].precision)

    def _common_stop(self, alike: Sequence[tuple[int, str]], places: Sequence[tuple[int, str]]) -> int:
        """How far they go together: to a stop, to the first unit that not all share, or to where others wait."""
        climbs = [self._at(place) for place in alike]
        start, modality = climbs[0].state.boundary, alike[0][1]
        others = [self._at(p).state.boundary for p in places if p[1] == modality]
        stop = min([c.stop for c in climbs] + [b for b in others if b > start])
        for boundary in range(start + 1, stop):
            if len({id(c.encoder.units[boundary]) for c in climbs}) > 1:
                return boundary
        return stop

    def _joined(self, states: Sequence[State]) -> State:
        """The states along one batch; what context they take together is worked out once for all units."""
        key = tuple(id(state.context) for state in states)
        if key not in self.contexts:
            joined = State.concat(states)
            self.contexts[key] = (joined.context, [state.context for state in states])  # kept, so that ids stay theirs
            return joined
        return State.concat(states, context=self.contexts[key][0])
