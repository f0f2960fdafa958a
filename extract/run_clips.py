"""Stage 1 of clips: decode each once, run the prefix of each modality once, write whole shards of every boundary."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..cache.layout import TARGET_SHARD_BYTES, TARGET_SHARD_SECONDS
from ..cache.store import BoundarySpec, FeatureStore, Item
from .encoders import Encoder
from .items import clip_items
from .manifest.types import Manifest
from .media import ClipMedia, iter_media
from .sampling import Sampling, sampling_of
from .settings import EncoderSettings, ExtractSettings
from .work import Ledger, Unit, boundary_states, clip_identity, open_encoder, units_of


def extract_clips(
    settings: ExtractSettings,
    manifest: Manifest,
    store: FeatureStore,
    stack: ExitStack,
    done: Ledger,
    *,
    device: str,
    progress: bool,
) -> None:
    chosen = {m: s for m, s in settings.encoders.items() if m in ("visual", "audio")}
    if not chosen or not manifest.clips:
        return
    found = clip_items(manifest, _known_items(store, chosen), progress=progress)
    done.skipped += [(name, "the file is missing") for name in manifest.missing]
    paths = {item.key: path for item, path in found.values()}
    items = list({item.key: item for item, _ in found.values()}.values())
    if not items:
        return
    encoders = {m: open_encoder(s, modality=m, device=device) for m, s in chosen.items()}
    sampling = sampling_of(settings, encoders)
    specs = _clip_specs(encoders, chosen, sampling, settings.store.dtype)
    count = _shard_items(specs, encoders, sampling, settings.store.shard_items)
    seconds = TARGET_SHARD_SECONDS / (count + 0.5)  # the half keeps rounding from taking a row away
    writers = [
        stack.enter_context(
            store.writer(spec, items, provenance=encoders[spec.modality].provenance(), max_seconds_per_item=seconds)
        )
        for spec in specs
    ]
    units = units_of(writers)
    for modality, encoder in encoders.items():
        encoder.drop_above(max(encoder.boundary(k) for k in chosen[modality].cuts))
    total = sum(len(unit.items) for unit in units)
    with tqdm(total=total, unit="clip", desc="clips", disable=not progress or not total) as bar:
        for unit in units:
            _run_unit(unit, encoders, sampling, paths, chosen, done, bar)


def _known_items(store: FeatureStore, modalities: Iterable[str]) -> Iterator[Item]:
    for spec in store.boundaries():
        if spec.modality in modalities:
            with store.reader(spec.modality, spec.boundary, key=spec.key) as reader:
                yield from reader.items


def _clip_specs(
    encoders: dict[str, Encoder], chosen: dict[str, EncoderSettings], sampling: Sampling, dtype: str
) -> list[BoundarySpec]:
    specs = []
    for modality, encoder in encoders.items():
        shapes = _shapes(encoder, sampling)
        for cut in sorted({encoder.boundary(k) for k in chosen[modality].cuts}):
            identity = clip_identity(encoder, cut, sampling)
            specs.append(
                BoundarySpec(modality=modality, boundary=cut, identity=identity, dtype=dtype, shape=shapes[cut])
            )
    return specs


@torch.no_grad()
def _shapes(encoder: Encoder, sampling: Sampling) -> list[tuple[int, ...]]:
    """The shape of a clip's state at every boundary, from one blank clip."""
    inputs = encoder.preprocess(sampling.blank(encoder))
    states = boundary_states(encoder, inputs, range(encoder.num_units + 1))
    return [(sampling.num_segments, *state.hidden.shape[1:]) for state in states]


def _shard_items(
    specs: Sequence[BoundarySpec], encoders: dict[str, Encoder], sampling: Sampling, wanted: int | None
) -> int:
    """How many clips a shard of every boundary holds: the same for all, so that a clip is decoded and run once."""
    if wanted is not None:
        return wanted
    started = time.perf_counter()
    for encoder in encoders.values():
        _shapes(encoder, sampling)
    by_time = TARGET_SHARD_SECONDS / (time.perf_counter() - started)
    by_size = min(TARGET_SHARD_BYTES // (spec.unit_bytes + 4) for spec in specs)  # 4: each item's checksum
    return max(1, min(int(by_time), by_size))


def _run_unit(
    unit: Unit,
    encoders: dict[str, Encoder],
    sampling: Sampling,
    paths: dict[str, Path],
    chosen: dict[str, EncoderSettings],
    done: Ledger,
    bar: Any,
) -> None:
    states: dict[tuple[str, int], list[np.ndarray]] = {(w.spec.modality, w.spec.boundary): [] for w, _ in unit.targets}
    per_forward = {m: max(1, chosen[m].batch_size // sampling.num_segments) for m in unit.modalities}
    pending: dict[str, list[ClipMedia]] = {m: [] for m in unit.modalities}
    failed = False
    outcomes = iter_media(
        [paths[item.key] for item in unit.items],
        sampling.media_settings(unit.modalities, encoders),
    )
    for index, (item, outcome) in enumerate(zip(unit.items, outcomes, strict=True)):
        if outcome.media is None:
            done.failures.append((item.source, str(outcome.error)))
            failed = True
        elif not failed:
            for modality, clips in pending.items():
                clips.append(outcome.media)
                if len(clips) == per_forward[modality] or index == len(unit.items) - 1:
                    _forward(encoders[modality], clips, states, sampling)
                    clips.clear()
        bar.update(1)
    if failed:
        return
    for writer, shard in unit.targets:
        before = writer.bytes_written
        rows = states.pop((writer.spec.modality, writer.spec.boundary))
        writer.write(shard, ((row, {}) for row in rows))
        done.add(writer, len(rows), writer.bytes_written - before)


@torch.no_grad()
def _forward(
    encoder: Encoder,
    clips: Sequence[ClipMedia],
    states: dict[tuple[str, int], list[np.ndarray]],
    sampling: Sampling,
) -> None:
    wanted = sorted(k for modality, k in states if modality == encoder.modality)
    for state in boundary_states(encoder, sampling.inputs(encoder, clips), wanted):
        hidden = state.hidden.float().cpu().numpy()
        per_clip = hidden.reshape(len(clips), sampling.num_segments, *hidden.shape[1:])
        states[encoder.modality, state.boundary].extend(per_clip)
