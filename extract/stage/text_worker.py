"""The worker on texts: a unit's texts are tokenized and run through the prefix of the text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...cache.feature_store import Item
from .in_hand import in_hand
from .prefix import boundary_states
from .run_records import FailedClip
from .shard_worker import Place, ShardTask, ShardWorker, States

TEXTS_PER_FORWARD = 64


@dataclass(kw_only=True)
class TextWorker(ShardWorker):
    """Computes units of texts; each text is an item's source."""

    @torch.no_grad()
    def compute_states(self, task: ShardTask, places: list[Place]) -> tuple[States, list[FailedClip]]:
        """Run a unit's texts through the prefix, `TEXTS_PER_FORWARD` at once."""
        states: States = {place: {} for place in places}
        cuts = sorted(boundary for _, boundary, _ in places)
        failed = []
        for start in range(0, len(task.items) if cuts else 0, TEXTS_PER_FORWARD):
            items = task.items[start : start + TEXTS_PER_FORWARD]
            self._run_prefix(items, cuts, states)
            failed += self.check_states(task, items, states)
            if self.advance is not None:
                self.advance(len(items))
        return states, failed

    def _run_prefix(self, items: Sequence[Item], cuts: list[int], states: States) -> None:
        """Tokenize some texts, run the prefix, and add their states; any error that leaves names the text."""

        def alone(number: int) -> None:
            self._run(items[number : number + 1], cuts, {place: {} for place in states})

        with in_hand([repr(item.source) for item in items], alone if self.device == "cpu" else None):
            self._run(items, cuts, states)

    def _run(self, items: Sequence[Item], cuts: list[int], states: States) -> None:
        encoder = self.encoders["text"]
        inputs = encoder.preprocess([item.source for item in items])
        small = encoder.context_inputs(inputs)
        for state in boundary_states(encoder, inputs, cuts):
            assert state.lengths is not None
            hidden = state.hidden.float().cpu().numpy()  # (B, L, D)
            for i, (item, length) in enumerate(zip(items, state.lengths.tolist(), strict=True)):
                stored = {name: value[i, :length].cpu().numpy() for name, value in small.items()}
                states["text", state.boundary, 0][item.key] = (hidden[i, :length], stored)
