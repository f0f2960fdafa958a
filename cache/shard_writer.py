"""Writes one shard of a boundary: all its files, then the receipt that makes them count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np

from .durable import sync_folder
from .errors import StoreMismatchError
from .layout import Layout
from .numerics import to_input, to_storage
from .shard import ShardFile
from .spec import Item

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A unit of work: the items of one shard in the order of their rows.

    Args:
        index: the shard's number.
        rows: of the items.
        items: what is to be computed.
        lengths: tokens of each item, for a ragged boundary; () for a dense one.
        starts: where each item's tokens begin in the shard, for a ragged boundary.
    """

    index: int
    rows: tuple[int, ...]
    items: tuple[Item, ...]
    lengths: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ShardWriter:
    """Writes shards of one boundary; pickles, so that several processes can write different shards.

    It knows nothing of locks: the `BoundaryWriter` that gave it holds the store's, and must live as long.

    Args:
        layout: of the boundary.
        provenance: the number of what computes the states.
    """

    layout: Layout
    provenance: int

    def write(self, shard: Shard, states: Iterable[tuple[Array, Mapping[str, Array]]]) -> Array:
        """Stream `states` to the shard's files and make them count; see `BoundaryWriter.write`.

        Returns:
            The receipt (fields,) uint64.
        """
        layout = self.layout
        files: list[ShardFile] = []
        try:
            for array in layout.data:
                files.append(ShardFile(array, shard.index))
            checksums = self._stream(shard, states, files)
            for file in files:
                file.close()
            for file in files:
                file.publish()
        except BaseException:
            for file in files:
                file.discard()
            raise
        for array in layout.data:
            sync_folder(array.folder)
        if layout.spec.ragged:
            layout.crc.write_chunk(shard.index, checksums)
        sizes = [file.size_bytes for file in files]
        receipt = np.array([[1, len(shard.items), self.provenance, *sizes]], np.uint64)
        layout.receipts.write_chunk(shard.index, receipt)
        return receipt[0]

    def _stream(
        self, shard: Shard, states: Iterable[tuple[Array, Mapping[str, Array]]], files: Sequence[ShardFile]
    ) -> Array:
        """Write every item, and return the checksums of a ragged boundary's rows (rows_per_shard,) uint32."""
        per_shard = self.layout.grid.rows_per_shard
        where = f"{self.layout.where}: shard {shard.index}"
        checksums = np.zeros(per_shard, np.uint32)
        number = 0
        for hidden, inputs in states:
            if number == len(shard.items):
                raise StoreMismatchError(f"{where} got more states than its {number} items")
            arrays = self._converted(shard, number, hidden, inputs)
            slot = shard.rows[number] - shard.index * per_shard
            if self.layout.spec.ragged:
                checksums[slot] = _add_tokens(files, shard.starts[number], arrays)
            else:
                for file, values in zip(files, arrays, strict=True):
                    file.add_item(slot, values)
            number += 1
        if number < len(shard.items):
            raise StoreMismatchError(f"{where} got {number} states, expected {len(shard.items)}, one an item")
        return checksums

    def _converted(self, shard: Shard, number: int, hidden: Array, inputs: Mapping[str, Array]) -> list[Array]:
        """Return `hidden` and then the inputs in order of name, as they are stored."""
        spec, source = self.layout.spec, shard.items[number].source
        where = f"{spec.modality} boundary {spec.boundary}: item {source!r}"
        lead = (shard.lengths[number],) if spec.ragged else ()
        if hidden.shape != lead + spec.shape:
            raise StoreMismatchError(f"{where}: a state of shape {hidden.shape}, expected {lead + spec.shape}")
        if set(inputs) != set(spec.inputs):
            raise StoreMismatchError(f"{where}: inputs {sorted(inputs)}, expected {sorted(spec.inputs)}")
        arrays = [to_storage(hidden, spec, source)]
        for name, array in spec.inputs.items():
            found, expected = inputs[name].shape, lead + array.shape
            if found != expected:
                raise StoreMismatchError(f"{where}: input {name!r} of shape {found}, expected {expected}")
            arrays.append(to_input(inputs[name], array, f"{where}: input {name!r}"))
        return arrays


def _add_tokens(files: Sequence[ShardFile], start: int, arrays: Sequence[Array]) -> int:
    """Write one item's tokens to each file and return the CRC32C over all of them."""
    crc = 0
    for file, values in zip(files, arrays, strict=True):
        file.add_tokens(start, values)
        crc = google_crc32c.extend(crc, values) if values.size else crc
    return crc
