"""Stage 1 of clips: decode each once, run the prefix of each modality once, write whole shards of every boundary.

A clip that cannot be decoded is left out of its shard, which holds then what it would hold if that clip had not been
named: so a store does not depend on when a bad clip was taken away.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..cache.errors import MediaError
from ..cache.layout import TARGET_SHARD_BYTES, TARGET_SHARD_SECONDS
from ..cache.store import ArraySpec, BoundarySpec, BoundaryWriter, FeatureStore, Item
from .augment import view_inputs
from .augment_settings import view_number
from .encoders import Encoder
from .items import clip_items
from .left_out import LeftOut, read_left_out
from .manifest.types import Manifest
from .media import ClipMedia, iter_media
from .media_frames import FrameFolder, stat_media
from .sampling import Sampling, sampling_of
from .settings import EncoderSettings, ExtractSettings
from .work import Ledger, Unit, boundary_states, clip_identity, open_encoder, units_of

ClipState = tuple[np.ndarray, dict[str, np.ndarray]]
"""A clip's hidden tensors (rows, …), and its small inputs by name, (rows, …)."""

Place = tuple[str, int, int]
"""Modality, boundary, and number of the view, 0 for the plain one."""

States = dict[Place, dict[str, ClipState]]
"""By place, and there by item key."""


@dataclass(frozen=True, kw_only=True)
class AskedClips:
    """What an experiment asks of a store about its clips.

    Args:
        encoders, chosen: by modality, open, and their settings.
        sampling: of every clip.
        specs: of every boundary.
        items: of every clip whose file is there; two names of one content are two items with one key.
        media: what is decoded of each item, by key.
    """

    encoders: dict[str, Encoder]
    chosen: dict[str, EncoderSettings]
    sampling: Sampling
    specs: Sequence[BoundarySpec]
    items: Sequence[Item]
    media: dict[str, Path | FrameFolder]


def ask_clips(
    settings: ExtractSettings,
    manifest: Manifest,
    store: FeatureStore,
    *,
    device: str,
    progress: bool,
    deep: bool = False,
) -> AskedClips | None:
    """Open the encoders and find out which clips are to be in which boundaries; None without clips or encoders.

    Args:
        settings, manifest: of the experiment.
        store: whose items' digests are taken over where a file has their size and time.
        device: where the encoders run.
        progress: show a tqdm bar.
        deep: digest every file, whatever its size and time.
    """
    chosen = {m: s for m, s in settings.encoders.live() if m in ("visual", "audio")}
    if not chosen or not manifest.clips:
        return None
    found = clip_items(manifest, () if deep else _known_items(store, chosen), progress=progress)
    if not found:
        return None
    segments = settings.data.segments
    encoders = {m: open_encoder(s, modality=m, device=device, num_segments=segments) for m, s in chosen.items()}
    sampling = sampling_of(settings, encoders)
    return AskedClips(
        encoders=encoders,
        chosen=chosen,
        sampling=sampling,
        specs=_clip_specs(encoders, chosen, sampling, settings.store.dtype),
        items=[item for item, _ in found.values()],
        media={item.key: media for item, media in found.values()},
    )


def extract_clips(
    asked: AskedClips | None,
    settings: ExtractSettings,
    manifest: Manifest,
    store: FeatureStore,
    done: Ledger,
    *,
    progress: bool,
) -> None:
    """Compute and write every state of every clip that the store does not hold; what fails stands in `done`."""
    if any(modality in ("visual", "audio") for modality, _ in settings.encoders.live()):
        done.missing += [LeftOut(source=name, key="", reason="the file is missing") for name in manifest.missing]
    if asked is None:
        return
    encoders, chosen = asked.encoders, asked.chosen
    count = _shard_items(asked.specs, encoders, asked.sampling, settings.store.shard_items)
    work = _Work(
        store=store,
        specs=asked.specs,
        items=asked.items,
        media=asked.media,
        encoders=encoders,
        sampling=asked.sampling,
        chosen=chosen,
        seconds_per_item=TARGET_SHARD_SECONDS / (count + 0.5),  # the half keeps rounding from taking a row away
        done=done,
    )
    for modality, encoder in encoders.items():
        encoder.drop_above(max(encoder.boundary(k) for k in chosen[modality].cuts))
    work.leave_out_again({entry.key for entry in read_left_out(store.path)})
    work.run(progress=progress)


@dataclass(kw_only=True)
class _Work:
    """All clips and boundaries of one run; clips that cannot be decoded give up their rows, and the rest goes on.

    Args:
        media: what is decoded of each item, by key.
        seconds_per_item: what computing one clip takes at most.
        left_out: keys of the clips that cannot be decoded.
    """

    store: FeatureStore
    specs: Sequence[BoundarySpec]
    items: Sequence[Item]
    media: dict[str, Path | FrameFolder]
    encoders: dict[str, Encoder]
    sampling: Sampling
    chosen: dict[str, EncoderSettings]
    seconds_per_item: float
    done: Ledger
    left_out: set[str] = field(default_factory=set)

    def leave_out_again(self, before: set[str]) -> None:
        """Decode what an earlier run could not; what still cannot be decoded gets no rows."""
        again = [item for item in {i.key: i for i in self.items}.values() if item.key in before]
        settings = self.sampling.media_settings(set(self.encoders), self.encoders)
        for item, outcome in zip(again, iter_media([self.media[i.key] for i in again], settings), strict=True):
            if outcome.error is not None:
                self._leave_out(item, outcome.error)

    def run(self, *, progress: bool) -> None:
        with ExitStack() as stack:
            total = sum(len(unit.items) for unit in units_of(self._writers(stack)))
        with tqdm(total=total, unit="clip", desc="clips", disable=not progress or not total) as bar:
            while (spoilt := self._until_failure(bar)) is not None:
                self._write_rest(spoilt)

    def _until_failure(self, bar: Any) -> States | None:
        """Compute and write unit by unit; return the states of one in which a clip failed, None when all is done."""
        with ExitStack() as stack:
            for unit in units_of(self._writers(stack)):
                states = self._states(unit, bar)
                if self.left_out.intersection(item.key for item in unit.items):
                    return states
                self._write(unit, states)
        return None

    def _write_rest(self, states: States) -> None:
        """Give up the rows of clips that failed, and write what was computed for the others of their shard."""
        with ExitStack() as stack:
            for unit in units_of(self._writers(stack)):
                places = [_place(writer.spec) for writer, _ in unit.targets]
                if all(item.key in states.get(place, {}) for place in places for item in unit.items):
                    self._write(unit, states)

    def _writers(self, stack: ExitStack) -> list[BoundaryWriter]:
        items = [item for item in self.items if item.key not in self.left_out]
        return [
            stack.enter_context(
                self.store.writer(
                    spec,
                    items,
                    provenance=self.encoders[spec.modality].provenance(),
                    max_seconds_per_item=self.seconds_per_item,
                )
            )
            for spec in self.specs
        ]

    def _states(self, unit: Unit, bar: Any) -> States:
        states: States = {_place(writer.spec): {} for writer, _ in unit.targets}
        per_forward = {m: max(1, self.chosen[m].batch_size // self.sampling.rows(m)) for m in unit.modalities}
        pending: dict[str, dict[str, ClipMedia]] = {m: {} for m in unit.modalities}
        outcomes = iter_media(
            [self.media[item.key] for item in unit.items],
            self.sampling.media_settings(unit.modalities, self.encoders),
        )
        for item, outcome in zip(unit.items, outcomes, strict=True):
            if outcome.media is None:
                self._leave_out(item, outcome.error)
            elif stat_media(self.media[item.key]) != (item.size_bytes, item.mtime_ns):
                self._leave_out(item, MediaError(f"{item.source}: was changed while it was read; run again"))
            else:
                for modality, clips in pending.items():
                    clips[item.key] = outcome.media
                    if len(clips) == per_forward[modality]:
                        self._forward(modality, clips, states)
                        clips.clear()
            bar.update(1)
        for modality, clips in pending.items():
            if clips:
                self._forward(modality, clips, states)
        return states

    def _forward(self, modality: str, clips: dict[str, ClipMedia], states: States) -> None:
        encoder, augment = self.encoders[modality], self.chosen[modality].augment
        for view in sorted({v for m, _, v in states if m == modality}):
            inputs = view_inputs(encoder, clips, self.sampling, augment, view)
            _forward(encoder, list(clips), inputs, view, states)

    def _write(self, unit: Unit, states: States) -> None:
        for writer, shard in unit.targets:
            before = writer.bytes_written
            rows = states[_place(writer.spec)]
            writer.write(shard, [rows[item.key] for item in shard.items])
            self.done.add(writer, len(shard.items), writer.bytes_written - before)

    def _leave_out(self, item: Item, error: MediaError | None) -> None:
        self.left_out.add(item.key)
        self.done.failures.append(LeftOut(source=item.source, key=item.key, reason=str(error)))


def _known_items(store: FeatureStore, modalities: Iterable[str]) -> Iterator[Item]:
    for spec in store.boundaries():
        if spec.modality in modalities and "imported" not in spec.identity:
            yield from store.sources(spec)


def _clip_specs(
    encoders: dict[str, Encoder], chosen: dict[str, EncoderSettings], sampling: Sampling, dtype: str
) -> list[BoundarySpec]:
    specs = []
    for modality, encoder in encoders.items():
        shapes, inputs = _shapes(encoder, sampling)
        for cut in sorted({encoder.boundary(k) for k in chosen[modality].cuts}):
            plain = BoundarySpec(
                modality=modality,
                boundary=cut,
                identity=clip_identity(encoder, cut, sampling),
                dtype=dtype,
                shape=shapes[cut],
                inputs=inputs,
            )
            augment = chosen[modality].augment
            specs.append(plain)
            for view in range(1, chosen[modality].views + 1):
                assert augment is not None
                specs.append(replace(plain, identity=augment.view_identity(plain.identity, view)))
    return specs


def _place(spec: BoundarySpec) -> Place:
    return spec.modality, spec.boundary, view_number(spec.identity)


@torch.no_grad()
def _shapes(encoder: Encoder, sampling: Sampling) -> tuple[list[tuple[int, ...]], dict[str, ArraySpec]]:
    """The shape of a clip's state at every boundary and its small inputs, from one blank clip."""
    inputs = encoder.preprocess(sampling.blank(encoder))
    states = boundary_states(encoder, inputs, range(encoder.num_units + 1))
    rows = encoder.rows_per_clip(sampling.num_segments)
    small = {
        name: ArraySpec(dtype=str(value.cpu().numpy().dtype), shape=(rows, *value.shape[1:]))
        for name, value in encoder.context_inputs(inputs).items()
    }
    return [(rows, *state.hidden.shape[1:]) for state in states], small


def _shard_items(
    specs: Sequence[BoundarySpec], encoders: dict[str, Encoder], sampling: Sampling, wanted: int | None
) -> int:
    """How many clips a shard of every boundary holds: the same for all, so that a clip is decoded and run once."""
    if wanted is not None:
        return wanted
    started = time.perf_counter()
    for encoder in encoders.values():
        _shapes(encoder, sampling)
    views = len(specs) / len({_place(spec)[:2] for spec in specs})
    by_time = TARGET_SHARD_SECONDS / ((time.perf_counter() - started) * views)
    by_size = min(TARGET_SHARD_BYTES // (spec.unit_bytes + 4) for spec in specs)  # 4: each item's checksum
    return max(1, min(int(by_time), by_size))


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
