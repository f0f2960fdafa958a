"""The worker on texts: a unit's texts are tokenized and run through the prefix of the text encoder."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...cache.feature_store import BoundarySpec, Item, Shard
from ...cache.format.dtypes import checked
from ...cache.format.int8 import Int8Error
from ...errors import NumericsError
from .in_hand import in_hand
from .prefix import boundary_states
from .run_records import FailedClip
from .shard_worker import ItemState, Place, ShardTask, ShardWorker, States, place_of, written_record

TEXTS_PER_FORWARD = 64


@dataclass(kw_only=True)
class TextWorker(ShardWorker):
    """Computes units of texts; each text is an item's source."""

    def run(self, task: ShardTask) -> dict[str, Any]:
        """See `ShardWorker.run`."""
        states, failed = self._compute_states(task, task.missing_places())
        if failed:
            return {"failed": [vars(clip) for clip in failed]}
        return {"written": write_shards(task, states)}

    @torch.no_grad()
    def _compute_states(self, task: ShardTask, places: list[Place]) -> tuple[States, list[FailedClip]]:
        """Run a unit's texts through the prefix, `TEXTS_PER_FORWARD` at once."""
        states: States = {place: {} for place in places}
        cuts = sorted(boundary for _, boundary, _ in places)
        failed = []
        for start in range(0, len(task.items) if cuts else 0, TEXTS_PER_FORWARD):
            items = task.items[start : start + TEXTS_PER_FORWARD]
            self._run_prefix(items, cuts, states)
            failed += _checked(task, items, states)
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


def _checked(task: ShardTask, items: Collection[Item], states: States) -> list[FailedClip]:
    """Bring the states of some items to the form in which they are stored; return the items for which that fails.

    Args:
        task: of the items.
        items: whose states are all there.
        states: are replaced.
    """
    failed: dict[str, FailedClip] = {}
    specs = {place: w.layout.spec for w, _ in task.targets if (place := place_of(w.layout.spec)) in states}
    for place, spec in specs.items():
        for item in items:
            hidden, small = states[place].get(item.key, (None, {}))
            if hidden is None:
                continue
            try:
                states[place][item.key] = (checked(hidden, spec, item.source), small)
            except NumericsError as error:
                found = FailedClip(source=item.source, key=item.key, reason=str(error), boundary=spec.path)
                failed.setdefault(item.key, found)
    return list(failed.values())


def write_shards(task: ShardTask, states: States) -> list[dict[str, Any]]:
    """Write a unit's shards; one that another process has written already is left as it is.

    Returns:
        JSON of each shard: see `written_record`.
    """
    written = []
    for writer, shard in task.targets:
        error = Int8Error()
        receipt = writer.write(shard, _rows(task, states, writer.layout.spec, shard), error)
        written.append(written_record(writer.layout.spec, shard, receipt, error))
    return written


def _rows(task: ShardTask, states: States, spec: BoundarySpec, shard: Shard) -> Iterator[ItemState]:
    """Yield the states of a shard's items; looked up when the first is read, which a written shard's never is."""
    for item in shard.items:
        yield states[place_of(spec)][task.content(item)]
