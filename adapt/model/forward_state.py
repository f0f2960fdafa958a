"""One forward pass of a joint model, driven from stop to stop.

`JointModel.forward` drives one pass; `stacked_forward` drives those of several models and runs the units that they
share once on all their states.

Letters: B questions, T segments, L text tokens, N tokens, D channels; an encoder's batch is B·T with t fastest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from ...errors import SettingsError
from ...extract.encoders.encoder import Encoder
from ...extract.trunk.state import State
from ..adapters.base import Adapter, BesideAdapter, Deltas, Gates, Triple
from ..data.batch import Batch, text_mask
from .after_attention import place_after_attention, run_with_second
from .frozen_units import UnitRun, graph_if

if TYPE_CHECKING:
    from .joint_model import JointModel

Action = Literal["add", "before unit", "after unit", "within unit", "read"]


@dataclass(frozen=True)
class Stop:
    """A place in the forward pass where the frozen units pause for the adapter.

    Attributes:
        insertion: the index of the insertion.
        boundaries: by modality, the boundary that the units run up to first.
        action: "add" the adapter's output at the boundary; compute it "before unit" and add it "after unit"; run the
            unit with it added after its attention ("within unit"); or "read" the tokens for an adapter beside.
    """

    insertion: int
    boundaries: Mapping[str, int]
    action: Action


class ForwardState:
    """The states of one forward pass.

    Args:
        model: the joint model.
        batch: at or below the model's `starts()`.
        gates: receives the gates of each insertion, if given.

    Attributes:
        states: by modality, the current state.
        by_clip: modalities whose states hold each clip's rows once.
        pending: what is to be added after the unit, and the modalities to spread there.
    """

    def __init__(self, model: JointModel, batch: Batch, gates: list[Gates] | None = None) -> None:
        self.model = model
        beside = model.adapter if isinstance(model.adapter, BesideAdapter) else None
        whole = gates is not None or (beside is not None and beside.question_enters)
        self.batch = batch.by_question() if whole else batch
        self.states = {m: model.encoders[m].enter(state) for m, state in self.batch.states.items()}
        self._above = {} if beside is None else self.batch.above  # what nothing was added to is known higher up, too
        self.by_clip = set() if self.batch.clips is None else set(self.states) - {"text"}  # held once for each clip
        self._gates = gates
        self.pending: tuple[Deltas, set[str]] = (Deltas(), set())
        self._read: list[Triple] = []

    def runs_to(self, boundaries: Mapping[str, int]) -> dict[str, UnitRun]:
        """Return, by modality, the units that lead from the current state to a boundary."""
        runs = {}
        for modality, boundary in boundaries.items():
            if modality in self.states:
                candidates = (self.states[modality], *self._above.get(modality, ()))
                highest = max((s for s in candidates if s.boundary <= boundary), key=lambda s: s.boundary)
                runs[modality] = self._unit_run(modality, highest, boundary)
        return runs

    def _unit_run(self, modality: str, state: State, boundary: int) -> UnitRun:
        return UnitRun(
            encoder=self.model.encoders[modality],
            state=state,
            stop=boundary,
            graph=state.hidden.requires_grad or self.model.trains_units_of(modality),
            recompute=self.model.recompute_units,
            memo=self.batch.memo,
        )

    def advance_to(self, boundaries: Mapping[str, int]) -> None:
        """Run each modality's units up to its boundary."""
        self.states |= {modality: run.run() for modality, run in self.runs_to(boundaries).items()}

    def apply_adapter(self, stop: Stop) -> None:
        """Do what a stop is for, every state being at its boundary."""
        if stop.action == "after unit":
            deltas, spread = self.pending
            self._add(self.met(stop, spread), deltas, spread)
            return
        if stop.action == "read":
            self._read.append(self.tokens(self.met(stop, set())))
            return
        adapter, index = self._adapter, stop.insertion
        spread = self.to_spread(stop)
        met = self.met(stop, spread)
        if self._gates is None:
            deltas = adapter.at(index)(self.tokens(met))
        else:
            deltas, gates = adapter.with_gates_at(index, self.tokens(met))
            self._gates.append(gates)
        if stop.action == "before unit":
            self.pending = (deltas, spread)  # the unit itself still runs once for each clip
        elif stop.action == "add":
            self._add(met, deltas, spread)
        else:
            self._add(*self._run_within_units(index, met, deltas), spread)

    def features(self, ends: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return what the head reads, every state being at the model's `ends`.

        Args:
            ends: the encoders' own ends by modality (see `encoder_end`), where they are known.

        Returns:
            Visual and audio (B, T, N, D), text (B, L, D).
        """
        if ends is None:
            found = {m: self.states[m] for m in self.model.ends if m in self.states}
            ends = {m: encoder_end(self.model.encoders[m], state) for m, state in found.items()}
        out = {m: end if m == "text" else self._by_segment(end) for m, end in ends.items()}
        if self._read:
            self._add_beside(out)
        clips = self.batch.clips
        return {m: clips.repeat(end) if clips and m in self.by_clip else end for m, end in out.items()}

    @property
    def _adapter(self) -> Adapter:
        assert self.model.adapter is not None
        return self.model.adapter

    def to_spread(self, stop: Stop) -> set[str]:
        """Return what needs rows for each question: the text meets it here, or reached one of those that meet below."""
        met = {m for m in stop.boundaries if m in self.states}
        enters = "text" in met and self._adapter.reads_question_at(stop.insertion)
        return self.by_clip & met if enters or not met - {"text"} <= self.by_clip else set()

    def met(self, stop: Stop, spread: set[str]) -> dict[str, State]:
        """Return the states that meet at a stop, those of `spread` with rows for each question."""
        clips, found = self.batch.clips, {m: self.states[m] for m in stop.boundaries if m in self.states}
        return {m: clips.spread(s) if clips and m in spread else s for m, s in found.items()}

    def _add(self, met: Mapping[str, State], deltas: Deltas, spread: set[str]) -> None:
        self.by_clip -= spread
        self.states |= {m: added(m, s, deltas.get(m)) for m, s in met.items()}

    def _run_within_units(
        self, index: int, met: Mapping[str, State], deltas: Deltas
    ) -> tuple[dict[str, State], Deltas]:
        """Run the units, `deltas` added after their attention; return the results and what the second half adds."""
        second = self._adapter.second_at(index)
        assert second is not None
        middle, after, places = {}, {}, self.model.places_after_attention
        for modality, state in met.items():
            delta, encoder = deltas.get(modality), self.model.encoders[modality]
            if delta is None:
                middle[modality] = state
                after[modality] = self._unit_run(modality, state, state.boundary + 1).run()
                continue
            key = (modality, state.boundary)
            if key not in places:
                places[key] = place_after_attention(encoder, state)
            flat = delta.reshape(state.tokens().shape)
            middle[modality], after[modality] = run_with_second(encoder, state, places[key], flat)
        return after, second(self.tokens(middle))

    def _add_beside(self, ends: dict[str, Tensor]) -> None:
        """Add what an adapter beside the encoders gives to their ends, or let it take their place."""
        adapter = self._adapter
        assert isinstance(adapter, BesideAdapter)
        num_tokens = {m: ends[m].shape[1 if m == "text" else 2] for m in ends}
        for modality in adapter.modalities_read:
            if modality not in ends:
                num_tokens[modality] = self.states[modality].tokens().shape[1]
        for modality, delta in adapter(self._read, num_tokens).items():
            ends[modality] = ends[modality] + delta if modality in ends else delta

    def tokens(self, states: Mapping[str, State]) -> Triple:
        """Return the tokens of states as an adapter takes them."""
        tokens = {m: s.tokens() if m == "text" else self._by_segment(s.tokens()) for m, s in states.items()}
        return Triple(**tokens, text_mask=text_mask(states))

    def _by_segment(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(-1, self.batch.num_segments, *tokens.shape[1:])


def encoder_end(encoder: Encoder, state: State) -> Tensor:
    """Return what a head reads of an encoder after its last unit: (B·T, N, D), or (B, L, D) of a text."""
    with graph_if(state.hidden.requires_grad):
        return encoder.features(encoder.finish(state))


def added(modality: str, state: State, delta: Tensor | None) -> State:
    """Return the state with `delta`, of as many numbers, added to its tokens."""
    if delta is None:
        return state
    tokens = state.tokens()
    if delta.numel() != tokens.numel():
        raise SettingsError(
            f"placement: unit {state.boundary - 1} of the {modality} encoder changes its tokens' number or channels, "
            'so that nothing can stand beside it; expected "between", or another unit'
        )
    return state.from_tokens(tokens + delta.reshape(tokens.shape).to(tokens.dtype))
