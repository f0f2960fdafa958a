"""The joint model: frozen trunks run in lockstep from their cuts, adapters where they meet, a head at the end.

Letters: B items, T segments, L text tokens, N tokens, D channels; an encoder's batch is B·T with t fastest.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ..cache.errors import SettingsError
from ..extract.encoders import Encoder
from ..extract.state import State
from .adapters.triple import Deltas, Triple
from .insertion import Insertion, ResolvedInsertions
from .midway import place_after_attention, run_with_second
from .rungs import climb, states_above

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
        """Logits (B, C) from states at or below `starts()`; B·T rows for visual and audio, B for text."""
        features = self.features(states, num_segments)
        return self.head(features, text_mask(states))

    def with_gates(self, states: Mapping[str, State], num_segments: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """The logits, and the adapter's gates at each insertion (see `trimodal`): (B, T), for text (B, L), in (0, 2).

        Raises:
            SettingsError: an adapter without gates.
        """
        if not getattr(self.adapter, "has_gates", False):
            raise SettingsError("gates: this adapter has none; expected one with a selection, for instance trimodal")
        gates: list[dict[str, Tensor]] = []
        features = self.features(states, num_segments, gates=gates)
        return self.head(features, text_mask(states)), gates

    def features(
        self, states: Mapping[str, State], num_segments: int, *, gates: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor]:
        """What the head reads: visual and audio (B, T, N, D), text (B, L, D); each insertion's gates go to `gates`."""
        if getattr(self.adapter, "beside", False):
            return self._beside(states, num_segments)
        live = dict(states)
        for index, insertion in enumerate(() if self.tunes_units else self.insertions.insertions):
            live = self._meet(live, insertion, index, num_segments, gates)
        out = {}
        for modality, state in live.items():
            encoder = self.encoders[modality]
            with _graph_if(state.hidden.requires_grad or self._tunes(modality)):
                end = encoder.features(encoder.finish(encoder.run(state, state.boundary, encoder.num_units)))
            out[modality] = end if modality == "text" else _by_segment(end, num_segments)
        return out

    def _beside(self, states: Mapping[str, State], num_segments: int) -> dict[str, Tensor]:
        """The features where the adapter reads the frozen states and adds to their ends: no unit is in any graph."""
        assert self.adapter is not None
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
        return out

    def _tunes(self, modality: str) -> bool:
        return self.tunes_units and bool(self.insertions.of(modality))

    def _meet(
        self,
        live: dict[str, State],
        insertion: Insertion,
        index: int,
        num_segments: int,
        gates: list[dict[str, Tensor]] | None,
    ) -> dict[str, State]:
        at = {m: self._run(m, live[m], k) for m, k in insertion.boundaries.items() if m in live}
        assert self.adapter is not None
        here, triple = self.adapter.at(index), _triple(at, num_segments)  # type: ignore[operator]
        deltas: Deltas
        if gates is None:
            deltas = here(triple)
        else:
            deltas, shown = here(triple, return_gates=True)
            gates.append(shown)
        second = getattr(here, "second", None)
        if second is not None:
            at, deltas = self._second(at, deltas, second, num_segments)
        for modality, state in at.items():
            if self.placement == "parallel" and second is None:
                state = self._run(modality, state, state.boundary + 1)
            at[modality] = _added(modality, state, deltas.get(modality))
        return {**live, **at}

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
                middle[modality], after[modality] = state, self._run(modality, state, state.boundary + 1)
                continue
            key = (modality, state.boundary)
            if key not in self._places:
                self._places[key] = place_after_attention(self.encoders[modality], state)
            flat = delta.reshape(state.tokens().shape)
            middle[modality], after[modality] = run_with_second(self.encoders[modality], state, self._places[key], flat)
        return after, second(_triple(middle, num_segments))

    def _run(self, modality: str, state: State, boundary: int) -> State:
        with _graph_if(state.hidden.requires_grad):
            return self.encoders[modality].run(state, state.boundary, boundary)


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


def _graph_if(needed: bool) -> nullcontext[None] | torch.no_grad:
    """Build no graph where nothing trainable lies below."""
    return nullcontext() if needed else torch.no_grad()
