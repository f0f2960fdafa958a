"""Units of work of stage 1, and what workers on clips and on texts share: compute a unit's states, write its shards.

A worker opens its encoders once and then does unit after unit, in this process or, pickled, in others. Which items
share a forward follows from the unit's items alone, so a shard is the same bytes whoever computes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...cache.feature_store import BoundarySpec, BoundaryWriter, Item, Shard
from ...cache.format.catalog import read_receipt
from ...cache.format.int8 import Int8Error
from ...cache.format.layout import RECEIPT_FIELDS
from ...cache.write.shard_writer import ShardWriter
from ...user_code import import_user_code
from ..encoders.encoder import Encoder
from ..media.augment_settings import view_number
from ..media.frame_folder import MediaSource
from .prefix import open_planned
from .run_records import FailedClip
from .settings import EncoderSettings

Media = Mapping[str, MediaSource]
"""The file, or folder of frames, of each clip by item key; empty for texts."""

ItemState = tuple[NDArray[Any], dict[str, NDArray[Any]]]
"""An item's hidden tensor, (rows, …) of a clip or (tokens, D) of a text, and its small inputs by name.

Float32, and once it was checked as it is stored."""

Place = tuple[str, int, int]
"""Modality, boundary, and number of the augmented view, 0 for the plain one."""

States = dict[Place, dict[str, ItemState]]
"""States by place and item key."""


def written_record(spec: BoundarySpec, shard: Shard, receipt: NDArray[np.uint64], error: Int8Error) -> dict[str, Any]:
    """Return JSON of a written shard: its boundary's path, items, bytes, and what int8 changed in it."""
    size = int(receipt[RECEIPT_FIELDS:].sum())
    return {"boundary": spec.path, "items": len(shard.items), "size_bytes": size, "int8": vars(error)}


def place_of(spec: BoundarySpec) -> Place:
    """Return the place of a boundary's states among those of a unit."""
    return spec.modality, spec.boundary, view_number(spec.identity)


@dataclass(frozen=True, kw_only=True)
class ShardUnit:
    """The items of one shard, and that shard of every boundary that misses it.

    Attributes:
        items: in the order of their rows; the key of each is the digest of its content.
        targets: the writer of each boundary, and its shard.
        contents: digest of the content of the items that have other keys in shards (see `missing_streams`).
    """

    items: tuple[Item, ...]
    targets: list[tuple[BoundaryWriter, Shard]] = field(default_factory=list)
    contents: Mapping[str, str] = field(default_factory=dict)

    def without(self, keys: Collection[str]) -> ShardUnit | None:
        """Give up the rows of the items of these keys; return the unit of those that are left, None if none is.

        The shards are then what they would be had these items never been named; all others stay as they are.
        """
        items = tuple(item for item in self.items if item.key not in keys)
        if len(items) == len(self.items):
            return self
        named = {*keys, *(key for key, content in self.contents.items() if content in keys)}
        left = [(writer, writer.give_up(shard, named)) for writer, shard in self.targets]
        targets = [(writer, shard) for writer, shard in left if shard is not None]
        return replace(self, items=items, targets=targets) if items else None

    def task(self, media: Media) -> ShardTask:
        """Return the unit as a worker takes it; `media` has the file of each clip by item key."""
        return ShardTask(
            items=self.items,
            media=tuple(media[item.key] for item in self.items) if media else (),
            targets=tuple((writer.shard_writer, shard) for writer, shard in self.targets),
            contents=self.contents,
        )


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """A unit as a worker takes it; it pickles.

    Attributes:
        items: in the order of their rows.
        media: the file of each clip; () for texts.
        targets: what writes each boundary's shard, and the shard.
        contents: see `ShardUnit`.
    """

    items: tuple[Item, ...]
    media: tuple[MediaSource, ...]
    targets: tuple[tuple[ShardWriter, Shard], ...]
    contents: Mapping[str, str] = field(default_factory=dict)

    def content(self, item: Item) -> str:
        """Return the digest of the content of an item of one of the shards."""
        return self.contents.get(item.key, item.key)

    def missing_places(self) -> list[Place]:
        """Return the places of the shards that nobody has written yet."""
        missing = [w.layout for w, shard in self.targets if not read_receipt(w.layout, shard.index)[0]]
        return [place_of(layout.spec) for layout in missing]


@dataclass(frozen=True, kw_only=True)
class UnitDone:
    """What came of a unit.

    Attributes:
        unit: of this process's plan; None where it is another process's.
        result: what `ShardWorker.run` returns.
    """

    unit: ShardUnit | None
    result: dict[str, Any]

    @property
    def failed_keys(self) -> set[str]:
        """Keys of the items that have no states."""
        return {clip["key"] for clip in self.result.get("failed", ())}


@dataclass(kw_only=True)
class ShardWorker(ABC):
    """What computes and writes units, in this process or, pickled, in others; a `Job` of the executors.

    Args:
        settings: of the encoders, by modality.
        device: where they run.
        provenance: of the states, by modality; a worker whose own would differ refuses.
        num_segments: T of clips, which regroups the tokens of encoders that take whole clips.
        base: the experiment's folder, absolute, which the encoders' relative paths count from.
        imports: code of one's own that makes sources of models known.
        opened: the encoders, where this process has them; never pickled.
        advance: called with the number of items computed; never pickled.
        failed: called with items that have no states as soon as they are known, before anything is given up; never
            pickled.
    """

    settings: Mapping[str, EncoderSettings]
    device: str
    provenance: Mapping[str, dict[str, Any]]
    num_segments: int | None = None
    base: Path = Path()
    imports: tuple[str, ...] = ()
    opened: dict[str, Encoder] | None = None
    advance: Callable[[int], object] | None = None
    failed: Callable[[list[FailedClip]], object] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what this process has opened."""
        return {n: v for n, v in vars(self).items() if n != "encoders"} | {
            "opened": None,
            "advance": None,
            "failed": None,
        }

    @cached_property
    def encoders(self) -> dict[str, Encoder]:
        """The encoders by modality, without the units above their highest cuts."""
        if self.opened is not None:
            return self.opened
        import_user_code(self.imports, self.base)
        return {
            modality: open_planned(
                chosen,
                self.provenance[modality],
                modality=modality,
                device=self.device,
                num_segments=self.num_segments,
                base=self.base,
            )
            for modality, chosen in self.settings.items()
        }

    @abstractmethod
    def run(self, task: ShardTask) -> dict[str, Any]:
        """Compute and write a unit; if an item has no states that can be stored, write nothing.

        Returns:
            JSON: `written`, a list with, for each shard, its boundary's path, items, bytes, and what int8 changed in it
            (zeros where it is not int8, or was written before); or `failed`, the items that have no states.
        """

    def results(self, units: Iterable[ShardUnit], media: Media, left_out: set[str]) -> Iterator[UnitDone]:
        """Compute and write units in this process, whose plan they are, and yield each when it is stored.

        An item without states is given up, and the rest of its unit is stored: `failed` beside `written`, or before it.

        Args:
            units: in order.
            media: the file of each clip by item key.
            left_out: keys of items that are known to have no states; those that are found are added.
        """
        for unit in units:
            left = unit.without(left_out)
            while left is not None:
                done = UnitDone(unit=left, result=self.run(left.task(media)))
                left_out |= done.failed_keys
                if done.failed_keys and self.failed is not None:
                    self.failed([FailedClip(**clip) for clip in done.result["failed"]])
                for (writer, _), written in zip(left.targets, done.result.get("written", ()), strict=False):
                    error = Int8Error(**written["int8"])
                    if error.num_items:
                        writer.measured(error)
                yield done
                left = None if "written" in done.result else left.without(left_out)

    def close(self) -> None:  # noqa: B027 (not every worker begins something)
        """End what was begun to compute with."""
