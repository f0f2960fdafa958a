"""Forward passes of several models in lockstep: frozen units that several of them need run once, on all their states.

Each pass goes from stop to stop (see `forward_state`). Of all units that are due, the lowest go first, and whatever
else waits at the same boundary for the same units goes with them: states are joined along the batch, with their
context, run, and split again. A model with units of its own (`peft:…`) runs those alone and shares the rest. What
follows the last unit runs once on joined states, too; adapters and heads of one structure as one (see `batched_stops`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from torch import Tensor

from ...extract.trunk.state import Context, State
from ..data.batch import Batch
from ..model.batched_module import BatchedModules
from ..model.forward_state import ForwardState, Stop
from ..model.frozen_units import UnitRun
from ..model.joint_model import JointModel
from .batched_stops import BatchedStops

Place = tuple[int, str]  # of a pass, a modality


@dataclass(frozen=True)
class Pass:
    """One model's forward pass.

    Attributes:
        model, batch: the model and the batch that it is given.
        turn: opened around whatever is this model's alone: its random stream, its clock.
    """

    model: JointModel
    batch: Batch
    turn: Callable[[], AbstractContextManager[None]]

    def autocast(self) -> AbstractContextManager[None]:
        """Return what is open around everything; models are stacked only with those of equal precision."""
        return self.model.precision.autocast(self.batch.device)


def run_stacked(passes: Sequence[Pass], modules: BatchedModules | None = None) -> list[Tensor | Exception]:
    """Drive all passes to their ends; return the logits of each, or the error that its own modules raised.

    Args:
        passes: of models of one precision.
        modules: batches the adapters and heads of one structure; None runs each by itself.

    Raises:
        Exception: whatever units raised that ran for several models at once.
    """
    return StackedForward(passes, modules).run()


class StackedForward:
    """Several passes, driven from stop to stop."""

    def __init__(self, passes: Sequence[Pass], modules: BatchedModules | None = None) -> None:
        self.passes = passes
        self.batched = BatchedStops(self, modules) if modules is not None else None
        self.states: dict[int, ForwardState] = {}
        self.next_stop = [0] * len(passes)
        self.ended: dict[int, Tensor | Exception] = {}
        self.waiting: dict[int, dict[str, UnitRun]] = {}
        self.contexts: dict[tuple[int, ...], tuple[Context, Sequence[Context]]] = {}
        self.whole: dict[tuple[int, ...], tuple[State, Sequence[State]]] = {}  # by the ids of its parts

    def run(self) -> list[Tensor | Exception]:
        """Drive all passes to their ends."""
        try:
            self._drive()
        finally:  # at once, not when the garbage collector comes: states fill the device's memory
            self.batched = None
            for held in (self.states, self.waiting, self.whole, self.contexts):
                held.clear()
        return [self.ended[index] for index in range(len(self.passes))]

    def _drive(self) -> None:
        for index in range(len(self.passes)):
            self._guarded(index, self._begin)
        while self.waiting:
            arrived = [i for i, rs in self.waiting.items() if all(r.state.boundary == r.stop for r in rs.values())]
            for alike in self._alike(arrived):  # before any unit runs, so that all that can go together waits
                if len(alike) > 1 and self.batched is not None:
                    self._go_on_together(alike)
                else:
                    self._guarded(alike[0], self._go_on)
            if not arrived:
                self._run_lowest()

    def _guarded(self, index: int, act: Callable[[int], None]) -> None:
        """Act on one pass in its turn; an error ends that pass alone."""
        try:
            with self.passes[index].turn(), self.passes[index].autocast():
                act(index)
        except Exception as error:
            self.waiting.pop(index, None)
            self.ended[index] = error

    def _begin(self, index: int) -> None:
        self.states[index] = ForwardState(self.passes[index].model, self.passes[index].batch)
        self._wait(index)

    def _wait(self, index: int) -> None:
        """Note the units up to the next stop, or to the end."""
        stop = self.stop(index)
        boundaries = self.passes[index].model.ends if stop is None else stop.boundaries
        self.waiting[index] = self.states[index].runs_to(boundaries)

    def stop(self, index: int) -> Stop | None:
        """Return the stop that a pass waits for, None for the end."""
        stops = self.passes[index].model.stops
        return stops[self.next_stop[index]] if self.next_stop[index] < len(stops) else None

    def _alike(self, arrived: Sequence[int]) -> list[list[int]]:
        """Group the passes that can do together what is to be done where they have arrived."""
        groups: dict[object, list[int]] = {}
        for index in sorted(arrived):
            self.states[index].states |= {m: run.state for m, run in self.waiting[index].items()}
            key = None if self.batched is None else self.batched.key(index)
            groups.setdefault(("alone", index) if key is None else key, []).append(index)
        return list(groups.values())

    def _go_on_together(self, alike: Sequence[int]) -> None:
        assert self.batched is not None
        stop = self.stop(alike[0])
        for index in alike:
            self.waiting.pop(index)
        with self.passes[alike[0]].autocast():
            if stop is None:
                self.ended |= self.batched.answer(alike)
                return
            self.batched.apply(alike, stop)
        for index in alike:
            self.next_stop[index] += 1
            self._wait(index)

    def _go_on(self, index: int) -> None:
        """Do what the stop is for at which every state of a pass has arrived; at the end, let the head answer."""
        state, given, stop = self.states[index], self.passes[index], self.stop(index)
        self.waiting.pop(index)
        if stop is None:
            self.ended[index] = given.model.head(state.features(), given.batch.text_mask)
            return
        state.apply_adapter(stop)
        self.next_stop[index] += 1
        self._wait(index)

    def _run_lowest(self) -> None:
        waiting = sorted(self.waiting.items())  # so that what is joined here has the order of batched members
        places = [(i, m) for i, rs in waiting for m, r in rs.items() if r.state.boundary < r.stop]
        lowest = min(places, key=self._depth)
        alike = [place for place in places if self._likeness(place) == self._likeness(lowest)]
        stop = self._common_stop(alike, places)
        if len(alike) == 1:  # in its turn: units of its own may draw random numbers
            self._guarded(lowest[0], lambda index: self._move(lowest, replace(self._at(lowest), stop=stop).run()))
            return
        states = {id(state): state for place in alike for state in [self._at(place).state]}  # several may have the same
        run = replace(self._at(alike[0]), stop=stop)
        with self.passes[alike[0][0]].autocast():
            after = dict(zip(states, self._run_joined(list(states.values()), run), strict=True))
        for place in alike:
            self._move(place, after[id(self._at(place).state)])

    def _run_joined(self, states: Sequence[State], run: UnitRun) -> list[State]:
        """Run the units of `run` on states of several models at once."""
        if len(states) == 1:
            return [run.run()]
        return self.parts_of(replace(run, state=self.joined(states)).run(), states)

    def parts_of(self, joined: State, states: Sequence[State]) -> list[State]:
        """Split a state that was joined from others; should its parts be joined again, it is taken itself."""
        self.whole.pop(tuple(map(id, states)), None)  # these are behind
        hidden = joined.hidden.split([state.batch_size for state in states])
        parts = [
            joined.replace(hidden=own, lengths=state.lengths, context=state.context)
            for state, own in zip(states, hidden, strict=True)
        ]
        self.whole[tuple(map(id, parts))] = (joined, parts)  # kept, so that ids stay theirs
        return parts

    def _at(self, place: Place) -> UnitRun:
        return self.waiting[place[0]][place[1]]

    def _move(self, place: Place, state: State) -> None:
        self.waiting[place[0]][place[1]] = replace(self._at(place), state=state)

    def _depth(self, place: Place) -> tuple[float, str, int]:
        run = self._at(place)
        return run.state.boundary / run.encoder.num_units, place[1], place[0]

    def _likeness(self, place: Place) -> tuple[object, ...]:
        """Return what is equal for states that the next unit can take together."""
        run = self._at(place)
        state, unit = run.state, run.encoder.units[run.state.boundary]
        shape = (state.layout, tuple(state.hidden.shape[1:]), state.hidden.dtype)
        return (id(unit), place[1], shape, run.graph, run.recompute, self.passes[place[0]].model.precision)

    def _common_stop(self, alike: Sequence[Place], places: Sequence[Place]) -> int:
        """How far they go together: to a stop, to the first unit that not all share, or to where others wait."""
        runs = [self._at(place) for place in alike]
        start, modality = runs[0].state.boundary, alike[0][1]
        others = [self._at(p).state.boundary for p in places if p[1] == modality]
        stop = min([r.stop for r in runs] + [b for b in others if b > start])
        for boundary in range(start + 1, stop):
            if len({id(r.encoder.units[boundary]) for r in runs}) > 1:
                return boundary
        return stop

    def joined(self, states: Sequence[State]) -> State:
        """Join states along the batch; the context that they take together is rebuilt once for all units."""
        known = self.whole.get(tuple(map(id, states)))
        if known is not None:
            return known[0]
        return State.concat(states, context=self.context_of(states))

    def context_of(self, states: Sequence[State]) -> Context:
        """Return the context that states take together, rebuilt once for all units."""
        key = tuple(id(state.context) for state in states)
        if key not in self.contexts:
            narrow = [state.replace(hidden=state.hidden.detach()[..., :0]) for state in states]  # copies no numbers
            self.contexts[key] = (State.concat(narrow).context, [state.context for state in states])  # ids stay theirs
        return self.contexts[key][0]
