"""The joint model: frozen trunks run in lockstep from their cuts, adapters where they meet, a head at the end.

Letters: B items, T segments, L text tokens, N tokens, D channels; an encoder's batch is B·T with t fastest.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ..extract.encoders import Encoder
from ..extract.state import State
from .adapters.triple import Deltas, Triple
from .insertion import Insertion, ResolvedInsertions

MODALITIES = ("visual", "audio", "text")


class JointModel(nn.Module):
    """Frozen encoders above their cuts, the adapters between their units, and the head.

    The encoders are not submodules: `parameters()` and `state_dict()` hold what is trained and nothing else.

    Args:
        encoders: by modality; frozen.
        insertions: where the adapters sit.
        adapter: a module with `at(i)`, or None without insertions.
        head: called with the features and the text's mask.
        placement: "between" adds at the boundary; "parallel" adds to the output of the unit after it.
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
        object.__setattr__(self, "encoders", dict(encoders))

    encoders: dict[str, Encoder]

    def starts(self) -> dict[str, int]:
        """The highest boundary that each trunk may start from: below it nothing is trainable."""
        return {m: self.insertions.first(m, e.num_units) for m, e in self.encoders.items()}

    def forward(self, states: Mapping[str, State], num_segments: int) -> Tensor:
        """Logits (B, C) from states at or below `starts()`; B·T rows for visual and audio, B for text."""
        features = self.features(states, num_segments)
        return self.head(features, text_mask(states))

    def features(self, states: Mapping[str, State], num_segments: int) -> dict[str, Tensor]:
        """What the head reads: visual and audio (B, T, N, D), text (B, L, D)."""
        live = dict(states)
        for index, insertion in enumerate(self.insertions.insertions):
            live = self._meet(live, insertion, index, num_segments)
        out = {}
        for modality, state in live.items():
            encoder = self.encoders[modality]
            with _graph_if(state.hidden.requires_grad):
                end = encoder.features(encoder.finish(encoder.run(state, state.boundary, encoder.num_units)))
            out[modality] = end if modality == "text" else _by_segment(end, num_segments)
        return out

    def _meet(self, live: dict[str, State], insertion: Insertion, index: int, num_segments: int) -> dict[str, State]:
        at = {m: self._run(m, live[m], k) for m, k in insertion.boundaries.items() if m in live}
        assert self.adapter is not None
        deltas: Deltas = self.adapter.at(index)(_triple(at, num_segments))  # type: ignore[operator]
        for modality, state in at.items():
            if self.placement == "parallel":
                state = self._run(modality, state, state.boundary + 1)
            delta = deltas.get(modality)
            if delta is not None:
                tokens = state.tokens()
                state = state.from_tokens(tokens + delta.reshape(tokens.shape).to(tokens.dtype))
            at[modality] = state
        return {**live, **at}

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


def _by_segment(tokens: Tensor, num_segments: int) -> Tensor:
    return tokens.reshape(-1, num_segments, *tokens.shape[1:])


def _graph_if(needed: bool) -> nullcontext[None] | torch.no_grad:
    """Build no graph where nothing trainable lies below."""
    return nullcontext() if needed else torch.no_grad()
