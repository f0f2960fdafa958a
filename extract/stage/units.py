"""Units of work of stage 1: one shard's items, every boundary that misses it; what media and texts share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...cache.feature_store import BoundarySpec, BoundaryWriter, Item, Shard
from ...cache.format.catalog import read_receipt
from ...cache.format.int8 import Int8Error
from ...cache.format.layout import RECEIPT_FIELDS
from ...cache.write.shard_writer import ShardWriter
from ...errors import StoreMismatchError
from ..encoders.encoder import Encoder
from ..encoders.load import load_encoder
from ..executors.settings import EngineSettings
from ..trunk.state import State
from .sampling import Sampling
from .settings import EncoderSettings

Targets = tuple[tuple[ShardWriter, Shard], ...]
"""Where a unit's states are written: a shard of each of several boundaries."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One shard's items, and every boundary that misses that shard."""

    items: tuple[Item, ...]
    targets: tuple[tuple[BoundaryWriter, Shard], ...]


def open_encoder(settings: EncoderSettings, *, modality: str, device: str, num_segments: int | None = None) -> Encoder:
    """Load the encoder that the settings name; `num_segments` (T) regroups the tokens of one that takes whole clips."""
    return load_encoder(
        settings.model,
        modality=modality,
        weights=settings.weights,
        image_size=settings.image_size,
        fit=settings.fit,
        num_frames=settings.num_frames,
        num_segments=num_segments,
        window_seconds=settings.window_seconds,
        picture=settings.picture,
        device=device,
        trust_remote_code=settings.trust_remote_code,
    )


def clip_identity(encoder: Encoder, cut: int, sampling: Sampling) -> dict[str, Any]:
    """What identifies the states of clips at one boundary: the prefix, and how clips are sampled."""
    return {"encoder": encoder.identity(cut), "sampling": sampling.identity(encoder.modality)}


def text_identity(encoder: Encoder, cut: int) -> dict[str, Any]:
    """What identifies the states of texts at one boundary: the prefix, tokenizer included."""
    return {"encoder": encoder.identity(cut)}


def units_of(writers: Sequence[BoundaryWriter]) -> list[Unit]:
    groups: dict[tuple[str, ...], list[tuple[BoundaryWriter, Shard]]] = {}
    for writer in writers:
        for shard in writer.missing():
            groups.setdefault(tuple(item.key for item in shard.items), []).append((writer, shard))
    return [Unit(items=targets[0][1].items, targets=tuple(targets)) for targets in groups.values()]


def boundary_states(encoder: Encoder, inputs: dict[str, torch.Tensor], wanted: Sequence[int]) -> Iterator[State]:
    """Yield the states at the boundaries `wanted` (ascending), each prefix unit run once, those above never."""
    state = encoder.embed(inputs)
    for k in wanted:
        state = encoder.run(state, state.boundary, k)
        yield state


def planned_provenance(encoder: Encoder, engine: EngineSettings, device: str) -> dict[str, Any]:
    """What workers will say that they made states with, where all of them have the environment of this process."""
    if engine.in_process:
        return encoder.provenance()
    return {**encoder.provenance(), "device": device, "threads": engine.num_threads}


def open_planned(
    settings: EncoderSettings,
    planned: Mapping[str, Any],
    *,
    modality: str,
    device: str,
    num_segments: int | None = None,
) -> Encoder:
    """Open an encoder as a worker does, for states that are marked as made with `planned`.

    Raises:
        StoreMismatchError: this process would make them with something else.
    """
    encoder = open_encoder(settings, modality=modality, device=device, num_segments=num_segments)
    found = encoder.provenance()
    differs = [
        f"{name} {found.get(name)!r}, not {planned.get(name)!r}"
        for name in sorted({*found, *planned})
        if found.get(name) != planned.get(name)
    ]
    if differs:
        raise StoreMismatchError(
            f"{modality}: this worker has {'; '.join(differs)}; give all workers the environment of the one that plans"
        )
    return encoder


def highest_cut(encoder: Encoder, settings: EncoderSettings) -> int:
    """The highest boundary that is cached: units above it never run."""
    return max(encoder.boundary(k) for k in settings.cuts)


def targets_of(unit: Unit) -> Targets:
    """What another process needs to write a unit's shards."""
    return tuple((writer.shard_writer, shard) for writer, shard in unit.targets)


def missing_targets(targets: Targets) -> Targets:
    """Those of a unit's shards that nobody has written."""
    return tuple((writer, shard) for writer, shard in targets if not read_receipt(writer.layout, shard.index)[0])


def write_targets(
    targets: Targets, rows: Callable[[BoundarySpec, Shard], Iterable[tuple[np.ndarray, Mapping[str, np.ndarray]]]]
) -> list[dict[str, Any]]:
    """Write a unit's shards, and say of each, as JSON, what stands there now.

    Args:
        targets: the shards; one that is there already is left as it is.
        rows: the states of a shard's items in order; not called for a shard that is there.

    Returns:
        For each shard its boundary's path, its number, items, bytes,
        and what int8 changed in it (zeros where it is not int8, or was there before).
    """
    told = []
    for writer, shard in targets:
        error = Int8Error()
        receipt = writer.write(shard, _lazily(rows, writer.layout.spec, shard), error)
        told.append(
            {
                "boundary": writer.layout.spec.path,
                "shard": shard.index,
                "items": len(shard.items),
                "size_bytes": int(receipt[RECEIPT_FIELDS:].sum()),
                "int8": vars(error),
            }
        )
    return told


def _lazily(
    rows: Callable[[BoundarySpec, Shard], Iterable[tuple[np.ndarray, Mapping[str, np.ndarray]]]],
    spec: BoundarySpec,
    shard: Shard,
) -> Iterator[tuple[np.ndarray, Mapping[str, np.ndarray]]]:
    yield from rows(spec, shard)
