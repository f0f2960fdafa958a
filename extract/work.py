"""Units of work of stage 1: one shard's items, every boundary that misses it; what media and texts share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..cache.store import BoundaryWriter, Item, Shard
from .encoders import Encoder, load_encoder
from .left_out import LeftOut
from .sampling import Sampling
from .settings import EncoderSettings
from .state import State


@dataclass
class Ledger:
    items: dict[str, int] = field(default_factory=dict)
    bytes_written: int = 0
    failures: list[LeftOut] = field(default_factory=list)
    missing: list[LeftOut] = field(default_factory=list)

    def add(self, writer: BoundaryWriter, count: int, size_bytes: int) -> None:
        name = f"{writer.spec.modality}/{writer.spec.name}"
        self.items[name] = self.items.get(name, 0) + count
        self.bytes_written += size_bytes


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One shard's items, and every boundary that misses that shard."""

    items: tuple[Item, ...]
    targets: tuple[tuple[BoundaryWriter, Shard], ...]

    @property
    def modalities(self) -> set[str]:
        return {writer.spec.modality for writer, _ in self.targets}


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
