"""Stage 1 of clips: which are to be in which boundaries, and the rounds in which their missing shards are computed.

A clip that cannot be decoded is left out of its shard, which holds then what it would hold if that clip had not been
named: so a store does not depend on when a bad clip was taken away.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...cache.feature_store import ArraySpec, BoundarySpec, BoundaryWriter, FeatureStore, Item
from ...cache.format.layout import TARGET_SHARD_BYTES, TARGET_SHARD_SECONDS
from ..datasets.types import Manifest
from ..encoders.encoder import Encoder
from ..executors.base import Executor
from ..executors.tasks import Task
from ..media.decode import iter_media
from ..media.frame_folder import FrameFolder
from .clip_items import clip_items
from .clip_worker import ClipUnit, ClipWork
from .failures import LeftOut, read_left_out
from .progress import Ledger
from .sampling import Sampling, sampling_of
from .settings import EncoderSettings, ExtractSettings
from .units import (
    Unit,
    boundary_states,
    clip_identity,
    highest_cut,
    open_encoder,
    planned_provenance,
    targets_of,
    units_of,
)


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
    engine: Executor,
    done: Ledger,
    *,
    device: str,
    progress: bool,
) -> None:
    """Have every state of every clip that the store does not hold computed; what fails stands in `done`."""
    if any(modality in ("visual", "audio") for modality, _ in settings.encoders.live()):
        done.missing += [LeftOut(source=name, key="", reason="the file is missing") for name in manifest.missing]
    if asked is None:
        return
    run = _Run(asked, settings, store, engine, done, device=device)
    run.leave_out_again({entry.key for entry in read_left_out(store.path)})
    run.all(progress=progress)


class _Run:
    """All clips and boundaries of one run; clips that cannot be decoded give up their rows, and the rest goes on."""

    def __init__(
        self,
        asked: AskedClips,
        settings: ExtractSettings,
        store: FeatureStore,
        engine: Executor,
        done: Ledger,
        *,
        device: str,
    ) -> None:
        self.asked, self.store, self.engine, self.done = asked, store, engine, done
        count = _shard_items(asked.specs, asked.encoders, asked.sampling, settings.store.shard_items)
        self.seconds_per_item = TARGET_SHARD_SECONDS / (count + 0.5)  # the half keeps rounding from taking a row away
        self.left_out: set[str] = set()
        for modality, encoder in asked.encoders.items():
            encoder.drop_above(highest_cut(encoder, asked.chosen[modality]))
        self.work = ClipWork(
            chosen=asked.chosen,
            sampling=asked.sampling,
            device=device,
            provenance={m: planned_provenance(e, settings.engine, device) for m, e in asked.encoders.items()},
            opened=asked.encoders if engine.in_process else None,
        )

    def leave_out_again(self, before: set[str]) -> None:
        """Decode what an earlier run could not; what still cannot be decoded gets no rows."""
        asked = self.asked
        again = [item for item in {i.key: i for i in asked.items}.values() if item.key in before]
        settings = asked.sampling.media_settings(set(asked.encoders), asked.encoders)
        for item, outcome in zip(again, iter_media([asked.media[i.key] for i in again], settings), strict=True):
            if outcome.error is not None:
                self._leave_out(LeftOut(source=item.source, key=item.key, reason=str(outcome.error)))

    def all(self, *, progress: bool) -> None:
        with ExitStack() as stack:
            total = sum(len(unit.items) for unit in units_of(self._writers(stack)))
        with tqdm(total=total, unit="clip", desc="clips", disable=not progress or not total) as bar:
            if self.engine.in_process:
                self.work.advance = bar.update
            while self._round(bar):
                pass

    def _round(self, bar: Any) -> bool:
        """Have every shard that is missing computed; say whether clips failed, so that their shards have to wait."""
        failed_before = len(self.left_out)
        with ExitStack() as stack:
            writers = {writer.spec.path: writer for writer in self._writers(stack)}
            units = {f"clips {n}": self._unit(unit) for n, unit in enumerate(units_of(list(writers.values())))}
            tasks = [Task(name=name, given=unit) for name, unit in units.items()]
            for receipt in self.done.taken(self.engine.run(self.work, tasks), [task.name for task in tasks], writers):
                for entry in receipt.result.get("left_out", ()):
                    self._leave_out(LeftOut(**entry))
                if not self.engine.in_process:
                    bar.update(len(units[receipt.task].items) - len(receipt.result.get("left_out", ())))
                elif len(self.left_out) > failed_before:
                    break  # it still has what it computed of the others
        return len(self.left_out) > failed_before

    def _unit(self, unit: Unit) -> ClipUnit:
        return ClipUnit(
            items=unit.items, media=tuple(self.asked.media[item.key] for item in unit.items), targets=targets_of(unit)
        )

    def _writers(self, stack: ExitStack) -> list[BoundaryWriter]:
        items = [item for item in self.asked.items if item.key not in self.left_out]
        return [
            stack.enter_context(
                self.store.writer(
                    spec,
                    items,
                    provenance=self.work.provenance[spec.modality],
                    max_seconds_per_item=self.seconds_per_item,
                )
            )
            for spec in self.asked.specs
        ]

    def _leave_out(self, entry: LeftOut) -> None:
        if entry.key not in self.left_out:
            self.left_out.add(entry.key)
            self.done.failures.append(entry)


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
    views = len(specs) / len({(spec.modality, spec.boundary) for spec in specs})
    by_time = TARGET_SHARD_SECONDS / ((time.perf_counter() - started) * views)
    by_size = min(TARGET_SHARD_BYTES // (spec.unit_bytes + 4) for spec in specs)  # 4: each item's checksum
    return max(1, min(int(by_time), by_size))
