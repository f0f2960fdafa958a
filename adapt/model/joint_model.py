"""The joint model: frozen trunks run in lockstep from their cuts, adapters where they meet, a head at the end.

Letters: B items, T segments, L text tokens, N tokens, D channels; an encoder's batch is B·T with t fastest.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...errors import SettingsError
from ...extract.encoders.encoder import Encoder
from ...extract.trunk.state import State
from ..adapters.modality_tokens import Deltas, Triple
from ..data.batch_states import by_question, climb, clip_rows_of, known_of, states_above
from .after_attention import place_after_attention, run_with_second
from .insertion import ResolvedInsertions
from .unit_requests import Climb, Known, Steps, alone, graph_if

MODALITIES = ("visual", "audio", "text")


class JointModel(nn.Module):
    """Frozen encoders above their cuts, the adapters between their units, and the head.

    The encoders are not submodules: `parameters()` and `state_dict()` hold what is trained and nothing else.

    Args:
        encoders: by modality; frozen.
        insertions: where the adapters sit.
        adapter: a module with `at(i)`, one that reads from beside, one that trains inside units (`tunes_units`), or
            None without insertions.
        head: called with the features and the text's mask.
        placement: "between" adds at the boundary; "parallel" adds to the output of the unit after it; "inside" is that
            of an adapter that trains inside units.

    Attributes:
        recompute_units: run units again in the backward pass instead of keeping their activations.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        insertions: ResolvedInsertions,
        adapter: nn.Module | None,
        head: nn.Module,
        *,
        placement: str = "between",
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.head = head
        self.insertions = insertions
        self.placement = placement
        self.tunes_units = bool(getattr(adapter, "tunes_units", False))
        own: Mapping[str, Encoder] = getattr(adapter, "encoders", {}) if self.tunes_units else encoders
        object.__setattr__(self, "encoders", dict(own))
        object.__setattr__(self, "_places", {})
        self.recompute_units = False

    encoders: dict[str, Encoder]
    _places: dict[tuple[str, int], nn.Module]  # by modality and unit: the module that its attention leaves by

    def starts(self) -> dict[str, int]:
        """The highest boundary that each trunk may start from: below it nothing is trainable."""
        return {m: self.insertions.first(m, e.num_units) for m, e in self.encoders.items()}

    def reads(self) -> dict[str, tuple[int, ...]]:
        """The boundaries whose states spare units if they are at hand: of a network beside the encoders, else none."""
        if not getattr(self.adapter, "beside", False):
            return {}
        return {
            m: tuple(self._rungs(m)) + ((e.num_units,) if self._needs_end(m) else ()) for m, e in self.encoders.items()
        }

    def _rungs(self, modality: str) -> list[int]:
        if modality not in self.adapter.ladders:  # type: ignore[union-attr,operator]
            return []
        return [i.boundaries[modality] for i in self.insertions.insertions]

    def _needs_end(self, modality: str) -> bool:
        return bool(self.adapter.residual) or not self._rungs(modality)  # type: ignore[union-attr]

    def forward(self, states: Mapping[str, State], num_segments: int) -> Tensor:
        """Logits (B, C) from states at or below `starts()`; B·T rows for visual and audio, B for text.

        Where the states hold each clip's rows once (see `ClipRows`), all that lies below the first adapter that reads
        the question, or else below the head, runs once a clip.
        """
        return alone(self.steps(states, num_segments))

    def steps(self, states: Mapping[str, State], num_segments: int) -> Steps[Tensor]:
        """The forward pass as a generator of the units that it needs run (see `climbing`)."""
        features = yield from self._features(states, num_segments, None)
        return self.head(features, text_mask(states))

    def with_gates(self, states: Mapping[str, State], num_segments: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """The logits, and the adapter's gates at each insertion (see `trimodal`): (B, T), for text (B, L), in (0, 2).

        Raises:
            SettingsError: an adapter without gates.
        """
        if not getattr(self.adapter, "has_gates", False):
            raise SettingsError("gates: this adapter has none; expected one with a selection, for instance trimodal")
        gates: list[dict[str, Tensor]] = []
        features = self.features(by_question(states), num_segments, gates=gates)
        return self.head(features, text_mask(states)), gates

    def features(
        self, states: Mapping[str, State], num_segments: int, *, gates: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor]:
        """What the head reads: visual and audio (B, T, N, D), text (B, L, D); each insertion's gates go to `gates`."""
        return alone(self._features(states, num_segments, gates))

    def _features(
        self, states: Mapping[str, State], num_segments: int, gates: list[dict[str, Tensor]] | None
    ) -> Steps[dict[str, Tensor]]:
        if getattr(self.adapter, "beside", False):
            return self._beside(states, num_segments)
        live = dict(states)
        clips, known = clip_rows_of(states), known_of(states)
        by_clip = set() if clips is None else set(live) - {"text"}
        for index, insertion in enumerate(() if self.tunes_units else self.insertions.insertions):
            below = yield {m: self._climb(m, live[m], k, known) for m, k in insertion.boundaries.items() if m in live}
            spread = by_clip & set(below) if self._mixes(index, below, by_clip) else set()
            met = {m: clips.spread(s) if clips and m in spread else s for m, s in below.items()}
            deltas, second = self._deltas(index, met, num_segments, gates)
            if second is not None:
                met, deltas = self._second(met, deltas, second, num_segments)
            elif self.placement == "parallel":  # a unit that no question has entered yet runs once a clip
                after = yield {m: self._climb(m, s, s.boundary + 1, known) for m, s in below.items()}
                met = {m: clips.spread(s) if clips and m in spread else s for m, s in after.items()}
            by_clip -= spread
            live |= {m: _added(m, s, deltas.get(m)) for m, s in met.items()}
        ends = yield {m: self._climb(m, s, self.encoders[m].num_units, known) for m, s in live.items()}
        out = {}
        for modality, state in ends.items():
            encoder = self.encoders[modality]
            with graph_if(state.hidden.requires_grad):
                end = encoder.features(encoder.finish(state))
            end = end if modality == "text" else _by_segment(end, num_segments)
            out[modality] = clips.repeat(end) if clips and modality in by_clip else end
        return out

    def _climb(self, modality: str, state: State, boundary: int, known: Known | None = None) -> Climb:
        return Climb(
            encoder=self.encoders[modality],
            state=state,
            stop=boundary,
            graph=state.hidden.requires_grad or self._tunes(modality),
            recompute=self.recompute_units,
            known=known,
        )

    def _mixes(self, index: int, below: Mapping[str, State], by_clip: set[str]) -> bool:
        """Whether what meets at an insertion needs rows for each question: one enters here, or has entered a part."""
        here = self.adapter.at(index)  # type: ignore[union-attr,operator]
        enters = "text" in below and getattr(here, "question_enters", True)
        return enters or not set(below) - {"text"} <= by_clip

    def _deltas(
        self, index: int, met: dict[str, State], num_segments: int, gates: list[dict[str, Tensor]] | None
    ) -> tuple[Deltas, nn.Module | None]:
        """What the adapter at an insertion gives, and its second half, where it has one."""
        here, triple = self.adapter.at(index), _triple(met, num_segments)  # type: ignore[union-attr,operator]
        second = getattr(here, "second", None)
        if gates is None:
            return here(triple), second
        deltas, shown = here(triple, return_gates=True)
        gates.append(shown)
        return deltas, second

    def _beside(self, states: Mapping[str, State], num_segments: int) -> dict[str, Tensor]:
        """The features where the adapter reads the frozen states and adds to their ends: no unit is in any graph."""
        assert self.adapter is not None
        if getattr(self.adapter, "question_enters", True):
            states = by_question(states)
        found = {m: climb(self.encoders[m], [s, *states_above(states, m)], self.reads()[m]) for m, s in states.items()}
        ends = {}
        with torch.no_grad():
            for modality, encoder in self.encoders.items():
                if self._needs_end(modality):
                    ends[modality] = encoder.features(encoder.finish(found[modality][encoder.num_units]))
        rungs = [
            _triple({m: found[m][k] for m, k in i.boundaries.items() if self._rungs(m)}, num_segments)
            for i in self.insertions.insertions
        ]
        num_tokens = {
            m: ends[m].shape[1] if m in ends else found[m][self._rungs(m)[-1]].tokens().shape[1] for m in found
        }
        out = {m: end if m == "text" else _by_segment(end, num_segments) for m, end in ends.items()}
        for modality, delta in self.adapter(rungs, num_tokens).items():
            out[modality] = out[modality] + delta if modality in out else delta
        clips = clip_rows_of(states)
        return {m: end if clips is None or m == "text" else clips.repeat(end) for m, end in out.items()}

    def _tunes(self, modality: str) -> bool:
        return self.tunes_units and bool(self.insertions.of(modality))

    def _second(
        self, at: dict[str, State], deltas: Deltas, second: nn.Module, num_segments: int
    ) -> tuple[dict[str, State], Deltas]:
        """Add what an adapter gave after the units' attention, and ask its second half beside the rest of the units."""
        if self.placement != "parallel":
            raise SettingsError(f'after_attention: found placement = "{self.placement}", expected "parallel"')
        middle, after = {}, {}
        for modality, state in at.items():
            delta = deltas.get(modality)
            if delta is None:
                middle[modality], after[modality] = state, self._climb(modality, state, state.boundary + 1).run()
                continue
            key = (modality, state.boundary)
            if key not in self._places:
                self._places[key] = place_after_attention(self.encoders[modality], state)
            flat = delta.reshape(state.tokens().shape)
            middle[modality], after[modality] = run_with_second(self.encoders[modality], state, self._places[key], flat)
        return after, second(_triple(middle, num_segments))


def text_mask(states: Mapping[str, State]) -> Tensor | None:
    """The mask (B, L) of real text tokens, None without text or without padding information."""
    text = states.get("text")
    if text is None or text.lengths is None:
        return None
    length = text.hidden.shape[1]
    return torch.arange(length, device=text.hidden.device)[None] < text.lengths.to(text.hidden.device)[:, None]


def _triple(states: Mapping[str, State], num_segments: int) -> Triple:
    tokens = {m: s.tokens() if m == "text" else _by_segment(s.tokens(), num_segments) for m, s in states.items()}
    return Triple(**tokens, text_mask=text_mask(states))


def _added(modality: str, state: State, delta: Tensor | None) -> State:
    """The state with `delta` added to its tokens."""
    if delta is None:
        return state
    tokens = state.tokens()
    if delta.numel() != tokens.numel():
        raise SettingsError(
            f"placement: unit {state.boundary - 1} of the {modality} encoder changes its tokens' number or channels, "
            'so that nothing can stand beside it; expected "between", or another unit'
        )
    return state.from_tokens(tokens + delta.reshape(tokens.shape).to(tokens.dtype))


def _by_segment(tokens: Tensor, num_segments: int) -> Tensor:
    return tokens.reshape(-1, num_segments, *tokens.shape[1:])
