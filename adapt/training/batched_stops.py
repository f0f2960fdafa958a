"""Stops of several passes at once: adapters of one structure run as one batched module, and so do heads.

Letters: P passes, B questions, T segments, N tokens, L text tokens, D channels, C answers.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...extract.encoders.encoder import Encoder
from ...extract.encoders.options import MODALITIES
from ...extract.trunk.state import State
from ..adapters.base import BesideAdapter, Deltas, Triple
from ..data.batch import text_mask
from ..model.batched_module import BatchedModules, Call
from ..model.forward_state import ForwardState, Stop, added, encoder_end
from .failures import is_out_of_memory

if TYPE_CHECKING:
    from .stacked_forward import StackedForward


@dataclass(frozen=True)
class _Met:
    """The states of one modality that meet at a stop, of all passes: one that they share, or one each."""

    states: Sequence[State]

    @property
    def shared(self) -> bool:
        return all(state is self.states[0] for state in self.states)


class BatchedStops:
    """What the passes of a stacked forward do together.

    Args:
        forward: whose passes they are.
        modules: the batched modules of the group.
    """

    def __init__(self, forward: StackedForward, modules: BatchedModules) -> None:
        self.forward, self.modules = forward, modules
        self._pending: dict[tuple[int, ...], dict[str, Tensor]] = {}  # (P, …), by the passes, till after the unit
        self._spread: dict[int, tuple[State, State]] = {}  # rows for each question of a state that passes share

    def key(self, index: int) -> Hashable:
        """Return what is equal for passes that act together where they stand; None for one that acts by itself."""
        given, state, stop = self.forward.passes[index], self.forward.states[index], self.forward.stop(index)
        module = self._module(index, stop)
        key = self.modules.key(module)
        if key is None:
            return None
        shapes = tuple((m, id(given.model.encoders[m]), _shape(s)) for m, s in sorted(state.states.items()))
        where = None if stop is None else (stop.insertion, stop.action, tuple(sorted(stop.boundaries.items())))
        clips = None if state.batch.clips is None else id(state.batch.clips)
        rows: tuple[Hashable, ...] = (clips, frozenset(state.by_clip))
        if stop is not None and stop.action == "after unit":
            deltas, spread = state.pending
            rows += (frozenset(spread), tuple(m for m in MODALITIES if deltas.get(m) is not None))
        elif stop is not None:
            rows += (frozenset(state.to_spread(stop)),)
        return (key, where, tuple(given.model.ends), shapes, rows, given.model.precision)

    def _module(self, index: int, stop: Stop | None) -> object:
        model = self.forward.passes[index].model
        if stop is None:
            return model.head
        adapter = model.adapter
        if adapter is None or adapter.mixes_questions or stop.action not in ("add", "before unit", "after unit"):
            return None
        return adapter.at(stop.insertion)

    def apply(self, alike: Sequence[int], stop: Stop) -> None:
        """Do what a stop is for with the adapters of passes of one `key`.

        Raises:
            Exception: what the batched adapter raises.
        """
        states = [self.forward.states[index] for index in alike]
        first, place = states[0], (stop.insertion, *alike)
        if stop.action == "after unit":
            spread = first.pending[1]
            deltas = self._pending.pop(place, None) or _together([state.pending[0] for state in states])
            self._add(states, self._met(states, stop, spread), deltas, spread)
            return
        spread = first.to_spread(stop)
        met = self._met(states, stop, spread)
        deltas = self._deltas(alike, stop, met)
        if stop.action == "add":
            self._add(states, met, deltas, spread)
            return
        self._pending[place] = deltas
        for number, state in enumerate(states):
            state.pending = (Deltas(**{m: delta[number] for m, delta in deltas.items()}), spread)

    def answer(self, alike: Sequence[int]) -> dict[int, Tensor | Exception]:
        """Return the logits of passes of one `key` that have arrived at the end, by pass."""
        states = [self.forward.states[index] for index in alike]
        given, shared = self._features(states)
        names = list(given)
        mask = self.forward.passes[alike[0]].batch.text_mask
        if mask is not None:
            given["text_mask"] = mask
            shared.add("text_mask")

        def call(run: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"logits": run({m: tensors[m] for m in names}, tensors.get("text_mask"))}

        heads = [self.forward.passes[index].model.head for index in alike]
        logits = self._run(alike, heads, call, given, shared)["logits"]
        return dict(zip(alike, logits.unbind(), strict=True))

    def _deltas(self, alike: Sequence[int], stop: Stop, met: Mapping[str, _Met]) -> dict[str, Tensor]:
        """Return what each pass's adapter adds, by modality: (P, B, T, N, D), of text (P, B, L, D)."""
        first = self.forward.states[alike[0]]
        shared = {m for m, found in met.items() if found.shared}
        tokens: dict[str, Tensor] = {}
        for modality, found in met.items():
            state = found.states[0] if found.shared else self.forward.joined(found.states)
            given = first.tokens({modality: state}).get(modality)  # (P·B, …) where it is joined
            assert given is not None
            tokens[modality] = given if found.shared else given.unflatten(0, (len(alike), -1))
        mask = text_mask({m: found.states[0] for m, found in met.items()})
        if mask is not None:
            tokens["text_mask"] = mask
            shared.add("text_mask")

        def call(run: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
            deltas: Deltas = run(Triple(**given))
            return {m: delta for m in MODALITIES if (delta := deltas.get(m)) is not None}

        adapters: list[Any] = [self.forward.passes[index].model.adapter for index in alike]
        return self._run(
            alike, [adapter.at(stop.insertion) for adapter in adapters], call, tensors=tokens, shared=shared
        )

    def _run(
        self,
        alike: Sequence[int],
        modules: Sequence[nn.Module],
        call: Call,
        tensors: dict[str, Tensor],
        shared: set[str],
    ) -> dict[str, Tensor]:
        try:
            turns = [self.forward.passes[index].turn for index in alike]
            return self.modules.run(modules, call, tensors, shared, turns)
        except Exception as error:
            if not is_out_of_memory(error):
                self.modules.refuse(modules[0], error)
            raise

    def _met(self, states: Sequence[ForwardState], stop: Stop, spread: set[str]) -> dict[str, _Met]:
        """Return the states that meet at a stop, by modality, those of `spread` with rows for each question."""
        found = {}
        for modality in (m for m in stop.boundaries if m in states[0].states):
            own = [state.states[modality] for state in states]
            found[modality] = _Met([self._with_rows(s, states[0]) for s in own] if modality in spread else own)
        return found

    def _with_rows(self, state: State, of: ForwardState) -> State:
        clips = of.batch.clips
        assert clips is not None
        if id(state) not in self._spread:
            self._spread[id(state)] = (state, clips.spread(state))
        return self._spread[id(state)][1]

    def _add(
        self, states: Sequence[ForwardState], met: Mapping[str, _Met], deltas: Mapping[str, Tensor], spread: set[str]
    ) -> None:
        """Add deltas (P, …) to what met, and let every pass go on from its own part."""
        for modality, found in met.items():
            own, delta = found.states, deltas.get(modality)
            if delta is not None:
                own = self.forward.parts_of(self._sum(modality, found, delta), own)
            for state, after in zip(states, own, strict=True):
                state.states[modality] = after
        for state in states:
            state.by_clip -= spread

    def _sum(self, modality: str, found: _Met, delta: Tensor) -> State:
        """Return the joined states of all passes with their deltas (P, …) added."""
        one = found.states[0]
        if not found.shared or one.layout != "NLC" or one.clips is not None or delta[0].numel() != one.hidden.numel():
            return added(modality, self.forward.joined(found.states), delta)
        num = len(found.states)  # a sum that broadcasts spares copies of the shared one
        hidden = one.hidden + delta.reshape(num, *one.hidden.shape).to(one.hidden.dtype)
        joined = self.forward.context_of(found.states)
        lengths = None if one.lengths is None else one.lengths.repeat(num)
        return one.replace(hidden=hidden.flatten(0, 1), lengths=lengths, context=joined)

    def _features(self, states: Sequence[ForwardState]) -> tuple[dict[str, Tensor], set[str]]:
        """Return what the heads read, by modality, (P, …) or one that they share; and the modalities of the latter."""
        model, first = states[0].model, states[0]
        ends = {m: self._end(model.encoders[m], [s.states[m] for s in states]) for m in model.ends if m in first.states}
        shared = {m for m in ends if all(s.states[m] is first.states[m] for s in states)}
        if isinstance(model.adapter, BesideAdapter):
            own = [s.features({m: e if m in shared else e[n] for m, e in ends.items()}) for n, s in enumerate(states)]
            return {m: torch.stack([found[m] for found in own]) for m in own[0]}, set()
        found = {}
        for modality, end in ends.items():
            axis = 0 if modality in shared else 1
            rows = end if modality == "text" else end.unflatten(axis, (-1, first.batch.num_segments))
            clips = first.batch.clips if modality in first.by_clip else None
            found[modality] = rows if clips is None else rows.index_select(axis, clips.of.to(rows.device))
        return found, shared

    def _end(self, encoder: Encoder, own: Sequence[State]) -> Tensor:
        """Return the ends of the states of all passes, (P, rows, N, D); of one that they share, its own."""
        if all(state is own[0] for state in own):
            return encoder_end(encoder, own[0])
        if any(state.context.aside for state in own):  # what the embedding decided is known of each alone
            return torch.stack([encoder_end(encoder, state) for state in own])
        return encoder_end(encoder, self.forward.joined(own)).unflatten(0, (len(own), -1))


def _shape(state: State) -> Hashable:
    return (state.layout, tuple(state.hidden.shape), state.hidden.dtype, state.boundary)


def _together(each: Sequence[Deltas]) -> dict[str, Tensor]:
    """Stack the deltas of passes that add to the same modalities."""
    found = {m: [delta for own in each if (delta := own.get(m)) is not None] for m in MODALITIES}
    return {m: torch.stack(own) for m, own in found.items() if own}
