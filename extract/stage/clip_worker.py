"""The work of stage 1 on clips: a unit's clips are decoded once, each prefix run once, all its shards written.

A worker opens its encoders once and then does unit after unit. Which clips share a forward follows from the unit's
clips alone, so a shard is the same bytes whoever computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...cache.feature_store import BoundarySpec, Item, Shard
from ...errors import MediaError
from ..encoders.encoder import Encoder
from ..media.augment_settings import view_number
from ..media.decode import ClipMedia, iter_media
from ..media.frame_folder import FrameFolder, stat_media
from .augment import view_inputs
from .failures import LeftOut
from .sampling import Sampling
from .settings import EncoderSettings
from .units import Targets, boundary_states, highest_cut, missing_targets, open_planned, write_targets

ClipState = tuple[np.ndarray, dict[str, np.ndarray]]
"""A clip's hidden tensors (rows, …), and its small inputs by name, (rows, …)."""

Place = tuple[str, int, int]
"""Modality, boundary, and number of the view, 0 for the plain one."""

States = dict[Place, dict[str, ClipState]]
"""By place, and there by item key."""


@dataclass(frozen=True, kw_only=True)
class ClipUnit:
    """One shard's clips, and every boundary that misses that shard.

    Args:
        items, media: the clips, and what is decoded of each.
        targets: where their states are written.
    """

    items: tuple[Item, ...]
    media: tuple[Path | FrameFolder, ...]
    targets: Targets


@dataclass(kw_only=True)
class ClipWork:
    """What computes units of clips, in this process or, pickled, in others.

    Args:
        chosen: the encoders' settings by modality.
        sampling: of every clip.
        device: where the encoders run.
        provenance: by modality, what the states are said to be made with; a worker that would differ refuses.
        opened: the encoders, where this process has them; never pickled.
        advance: told of each clip that is done; never pickled.
    """

    chosen: dict[str, EncoderSettings]
    sampling: Sampling
    device: str
    provenance: dict[str, dict[str, Any]]
    opened: dict[str, Encoder] | None = None
    advance: Callable[[int], object] | None = None
    _kept: States = field(default_factory=dict)  # of the last unit in which a clip failed

    def __getstate__(self) -> dict[str, Any]:
        fields = ("chosen", "sampling", "device", "provenance")
        return {**{name: getattr(self, name) for name in fields}, "opened": None, "advance": None, "_kept": {}}

    @cached_property
    def encoders(self) -> dict[str, Encoder]:
        """The encoders by modality, without what lies above their highest cuts."""
        if self.opened is not None:
            return self.opened
        return {m: self._open(m, settings) for m, settings in self.chosen.items()}

    def _open(self, modality: str, settings: EncoderSettings) -> Encoder:
        segments = self.sampling.num_segments
        encoder = open_planned(
            settings, self.provenance[modality], modality=modality, device=self.device, num_segments=segments
        )
        encoder.drop_above(highest_cut(encoder, settings))
        return encoder

    def run(self, unit: ClipUnit) -> dict[str, Any]:
        """Compute and write a unit; with a clip that cannot be decoded, write nothing and say which.

        Returns:
            `written` (see `work.write_targets`), or `left_out`: the clips that failed, as `LeftOut` has them.
        """
        missing = missing_targets(unit.targets)
        states = self._kept
        failed: list[LeftOut] = []
        if not all(item.key in states.get(_place(w.layout.spec), {}) for w, _ in missing for item in unit.items):
            states, failed = self._states(unit, missing)
        self._kept = states if failed else {}
        if failed:
            return {"left_out": [vars(entry) for entry in failed]}

        def rows(spec: BoundarySpec, shard: Shard) -> Iterator[ClipState]:
            return (states[_place(spec)][item.key] for item in shard.items)

        return {"written": write_targets(unit.targets, rows)}

    def _states(self, unit: ClipUnit, targets: Targets) -> tuple[States, list[LeftOut]]:
        states: States = {_place(writer.layout.spec): {} for writer, _ in targets}
        modalities = {modality for modality, _, _ in states}
        per_forward = {m: max(1, self.chosen[m].batch_size // self.sampling.rows(m)) for m in modalities}
        pending: dict[str, dict[str, ClipMedia]] = {m: {} for m in modalities}
        failed: list[LeftOut] = []
        outcomes = iter_media(unit.media, self.sampling.media_settings(modalities, self.encoders))
        for item, media, outcome in zip(unit.items, unit.media, outcomes, strict=True):
            if outcome.media is None:
                failed.append(_left_out(item, outcome.error))
            elif stat_media(media) != (item.size_bytes, item.mtime_ns):
                failed.append(_left_out(item, MediaError(f"{item.source}: was changed while it was read; run again")))
            else:
                for modality, clips in pending.items():
                    clips[item.key] = outcome.media
                    if len(clips) == per_forward[modality]:
                        self._forward(modality, clips, states)
                        clips.clear()
            if self.advance is not None:
                self.advance(1)
        for modality, clips in pending.items():
            if clips:
                self._forward(modality, clips, states)
        return states, failed

    def _forward(self, modality: str, clips: dict[str, ClipMedia], states: States) -> None:
        encoder, augment = self.encoders[modality], self.chosen[modality].augment
        for view in sorted({v for m, _, v in states if m == modality}):
            inputs = view_inputs(encoder, clips, self.sampling, augment, view)
            _forward(encoder, list(clips), inputs, view, states)


def _place(spec: BoundarySpec) -> Place:
    return spec.modality, spec.boundary, view_number(spec.identity)


def _left_out(item: Item, error: MediaError | None) -> LeftOut:
    return LeftOut(source=item.source, key=item.key, reason=str(error))


@torch.no_grad()
def _forward(encoder: Encoder, keys: Sequence[str], inputs: dict[str, torch.Tensor], view: int, states: States) -> None:
    """Run the prefix on one view of some clips, by item key, and put their states at every boundary into `states`."""
    wanted = sorted(k for m, k, v in states if (m, v) == (encoder.modality, view))

    def per_clip(rows: torch.Tensor) -> np.ndarray:
        return rows.cpu().numpy().reshape(len(keys), -1, *rows.shape[1:])

    small = {name: per_clip(value) for name, value in encoder.context_inputs(inputs).items()}
    for state in boundary_states(encoder, inputs, wanted):
        for clip, (key, hidden) in enumerate(zip(keys, per_clip(state.hidden.float()), strict=True)):
            stored = {name: value[clip] for name, value in small.items()}
            states[encoder.modality, state.boundary, view][key] = (hidden, stored)
