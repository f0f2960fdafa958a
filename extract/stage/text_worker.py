"""The worker on texts: a unit's texts are tokenized and run through the prefix of the text encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .prefix import boundary_states
from .run_records import FailedClip
from .shard_worker import Place, ShardTask, ShardWorker, States

TEXTS_PER_FORWARD = 64


@dataclass(kw_only=True)
class TextWorker(ShardWorker):
    """Computes units of texts; each text is an item's source."""

    @torch.no_grad()
    def compute_states(self, task: ShardTask, places: list[Place]) -> tuple[States, list[FailedClip]]:
        """Run a unit's texts through the prefix, `TEXTS_PER_FORWARD` at once; no text ever fails."""
        states: States = {place: {} for place in places}
        cuts = sorted(boundary for _, boundary, _ in places)
        for start in range(0, len(task.items) if cuts else 0, TEXTS_PER_FORWARD):
            items = task.items[start : start + TEXTS_PER_FORWARD]
            encoder = self.encoders["text"]
            inputs = encoder.preprocess([item.source for item in items])
            small = encoder.context_inputs(inputs)
            for state in boundary_states(encoder, inputs, cuts):
                assert state.lengths is not None
                hidden = state.hidden.float().cpu().numpy()  # (B, L, D)
                for i, (item, length) in enumerate(zip(items, state.lengths.tolist(), strict=True)):
                    stored = {name: value[i, :length].cpu().numpy() for name, value in small.items()}
                    states["text", state.boundary, 0][item.key] = (hidden[i, :length], stored)
            if self.advance is not None:
                self.advance(len(items))
        return states, []
