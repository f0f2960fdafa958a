"""The worker on clips: decodes each clip of a unit once, preprocesses it, and runs each encoder's prefix on it once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...cache.feature_store import Item
from ...errors import MediaError
from ..encoders.encoder import Encoder
from ..media.clip_media import ClipMedia
from ..media.decode import iter_media
from ..media.frame_folder import stat_media
from .augment import view_inputs
from .frame_inputs import FrameInputs
from .in_hand import in_hand
from .prefix import boundary_states
from .run_records import FailedClip
from .sampling import Sampling
from .shard_worker import Place, ShardTask, ShardWorker, States


@dataclass(kw_only=True)
class ClipWorker(ShardWorker):
    """Computes units of clips.

    Args:
        sampling: of every clip.
    """

    sampling: Sampling
    _kept: States = field(default_factory=dict)  # of the last unit in which a clip failed: it comes again without it
    _unseen: dict[str, list[str]] = field(default_factory=dict)  # of the unit's clips, by source

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what this process has opened and computed."""
        return {**super().__getstate__(), "_kept": {}, "_unseen": {}}

    def run(self, task: ShardTask) -> dict[str, Any]:
        """Compute and write a unit as every worker does; say too, by source, what of its clips is not looked at."""
        result = super().run(task)
        unseen, self._unseen = self._unseen, {}
        return {**result, "unseen": unseen} if unseen else result

    def compute_states(self, task: ShardTask, places: list[Place]) -> tuple[States, list[FailedClip]]:
        """Decode a unit's clips and run them through the prefixes, as many at once as a forward takes."""
        states, failed = self._kept, list[FailedClip]()
        if not all(item.key in states.get(place, {}) for place in places for item in task.items):
            states, failed = self._decode_and_run(task, places)
        self._kept = states if failed else {}
        return states, failed

    def _decode_and_run(self, task: ShardTask, places: list[Place]) -> tuple[States, list[FailedClip]]:
        states: States = {place: {} for place in places}
        modalities = {modality for modality, _, _ in places}
        per_forward = {m: max(1, self.settings[m].batch_size // self.sampling.rows(m)) for m in modalities}
        pending: dict[str, dict[Item, ClipMedia]] = {m: {} for m in modalities}
        failed: dict[str, FailedClip] = {}

        def run(modality: str) -> None:
            clips = pending[modality]
            self._run_prefix(modality, clips, states)
            for clip in self.check_states(task, clips, {p: of for p, of in states.items() if p[0] == modality}):
                failed.setdefault(clip.key, clip)
            clips.clear()

        decoding = self.sampling.media_settings(modalities, self.encoders)
        outcomes = iter_media(task.media, decoding, each_frame=self._frame_inputs(task, places))
        for item, path, outcome in zip(task.items, task.media, outcomes, strict=True):
            if outcome.media is None:
                failed[item.key] = _failed(item, outcome.error)
            elif stat_media(path)[:2] != (item.size_bytes, item.mtime_ns):
                failed[item.key] = _failed(item, MediaError(f"{item.source}: was changed while it was read; run again"))
            else:
                if outcome.media.notes:
                    self._unseen[item.source] = list(outcome.media.notes)
                for modality, clips in pending.items():
                    clips[item] = outcome.media
                    if len(clips) == per_forward[modality]:
                        run(modality)
            if self.advance is not None:
                self.advance(1)
        for modality, clips in pending.items():
            if clips:
                run(modality)
        return states, [failed[item.key] for item in task.items if item.key in failed]

    def _frame_inputs(self, task: ShardTask, places: list[Place]) -> FrameInputs | None:
        """Return what takes the clips' frames as they are decoded, for each view that is computed."""
        views = [view for modality, _, view in places if modality == "visual"]
        if not views:
            return None
        keys, augment = [item.key for item in task.items], self.settings["visual"].augment
        return FrameInputs(self.encoders["visual"], views=views, augment=augment, keys=keys)

    def _run_prefix(self, modality: str, clips: Mapping[Item, ClipMedia], states: States) -> None:
        """Preprocess every view of some clips, run the prefix, and add their states by item key.

        Any error that leaves names the clip that it is about.
        """
        encoder, augment = self.encoders[modality], self.settings[modality].augment
        views = sorted({v for m, _, v in states if m == modality})
        items = list(clips)

        def run(some: Sequence[Item], states: States) -> None:
            named = {item.key: clips[item] for item in some}
            for view in views:
                inputs = view_inputs(encoder, named, self.sampling, augment, view)
                run_clips(encoder, list(named), inputs, view, states)

        def alone(number: int) -> None:
            run([items[number]], {place: {} for place in states})

        with in_hand([item.source for item in items], alone if self.device == "cpu" else None):
            run(items, states)


@torch.no_grad()
def run_clips(encoder: Encoder, keys: Sequence[str], inputs: dict[str, Tensor], view: int, states: States) -> None:
    """Run the prefix on one view of some clips and add their states at every boundary of that view.

    Args:
        encoder: of one modality.
        keys: of the B clips.
        inputs: of the encoder, batch B·T with t fastest (B where whole clips enter).
        view: its number.
        states: what is added to; its places say which boundaries.
    """
    cuts = sorted(k for m, k, v in states if (m, v) == (encoder.modality, view))

    def per_clip(rows: Tensor) -> NDArray[Any]:
        return rows.cpu().numpy().reshape(len(keys), -1, *rows.shape[1:])

    small = {name: per_clip(value) for name, value in encoder.context_inputs(inputs).items()}
    for state in boundary_states(encoder, inputs, cuts):
        hidden: NDArray[np.float32] = per_clip(state.hidden.float())  # (B, rows, …)
        for clip, key in enumerate(keys):
            stored = {name: value[clip] for name, value in small.items()}
            states[encoder.modality, state.boundary, view][key] = (hidden[clip], stored)


def _failed(item: Item, error: MediaError | None) -> FailedClip:
    return FailedClip(source=item.source, key=item.key, reason=str(error))
