"""The same items in every format that is compared: writes them once, and gives a function that reads a batch of each.

A reading function takes row numbers and returns a torch tensor (len(rows), *ITEM) float16. Each does what its library's
manual gives as the fast way: into a buffer that is used again where the library can, else into memory of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import safetensors
import safetensors.numpy
import tensorstore
import torch
import zarr

from talik.cache.feature_store import Batch, BoundarySpec, FeatureStore, Item
from talik.cache.format.digests import digest_text

ITEM = (10, 197, 768)
ITEM_BYTES = 2 * 10 * 197 * 768
Read = Callable[[Sequence[int]], torch.Tensor]


def item(row: int) -> Item:
    """Return what row `row` is of."""
    return Item(key=digest_text(f"reader benchmark {row}"), source=f"{row}.mp4")


def values(row: int) -> np.ndarray[Any, Any]:
    """Return the values of a row: normal random numbers, as float16."""
    return np.random.default_rng(row).standard_normal(ITEM, np.float32).astype(np.float16)


def spec() -> BoundarySpec:
    """Return what the store holds."""
    return BoundarySpec(modality="visual", boundary=9, identity={"made": "by hand"}, dtype="float16", shape=ITEM)


def write_all(folder: Path, num_items: int) -> None:
    """Write `num_items` in every format, unless they are there; flushed to the disk.

    Raises:
        SystemExit: the folder holds something else.
    """
    complete = folder / "complete"
    held = complete.read_text() if complete.exists() else ""
    if held == str(num_items):
        return
    if folder.exists() and any(folder.iterdir()):
        what = f"{held} items, --items {num_items} was asked for" if held else "no finished files of this benchmark"
        raise SystemExit(f"{folder}: holds {what}; remove it, name another --folder, or give the --items that it has")
    folder.mkdir(parents=True, exist_ok=True)
    with FeatureStore.open(folder / "s.zarr", "a").writer(spec(), [item(r) for r in range(num_items)]) as writer:
        for shard in writer.missing():
            writer.write(shard, ((values(row), {}) for row in shard.rows))
    shape = (num_items, *ITEM)
    flat = np.memmap(folder / "flat.bin", np.float16, "w+", shape=shape)
    (folder / "npy").mkdir(exist_ok=True)
    with h5py.File(folder / "contiguous.h5", "w") as one, h5py.File(folder / "chunked.h5", "w") as two:
        contiguous = one.create_dataset("x", shape, np.float16)
        chunked = two.create_dataset("x", shape, np.float16, chunks=(1, *ITEM))
        for row in range(num_items):
            flat[row] = contiguous[row] = chunked[row] = values(row)
            np.save(folder / "npy" / f"{row}.npy", flat[row])
    flat.flush()
    safetensors.numpy.save_file({"x": np.asarray(flat)}, folder / "x.safetensors")
    complete.write_text(str(num_items))


def memmap(folder: Path, buffer: torch.Tensor) -> Read:
    """NumPy's memory map, copied item by item into one tensor that is used again: what 1.0 stands for."""
    data = np.memmap(folder / "flat.bin", np.float16, "r").reshape(-1, *ITEM)
    out = buffer.numpy()

    def read(rows: Sequence[int]) -> torch.Tensor:
        for place, row in enumerate(rows):
            np.copyto(out[place], data[row])
        return buffer

    return read


def memmap_fresh(folder: Path, buffer: torch.Tensor) -> Read:
    """NumPy's memory map by a list of rows, into fresh memory."""
    data = np.memmap(folder / "flat.bin", np.float16, "r").reshape(-1, *ITEM)
    return lambda rows: torch.from_numpy(data[list(rows)])


def h5py_into(name: str) -> Callable[[Path, torch.Tensor], Read]:
    """h5py's `read_direct` into one tensor that is used again."""

    def open_(folder: Path, buffer: torch.Tensor) -> Read:
        data, out = h5py.File(folder / f"{name}.h5", "r")["x"], buffer.numpy()

        def read(rows: Sequence[int]) -> torch.Tensor:
            for place, row in enumerate(rows):
                data.read_direct(out, np.s_[row], np.s_[place])
            return buffer

        return read

    return open_


def safetensors_slices(folder: Path, buffer: torch.Tensor) -> Read:
    """A slice of one tensor in a safetensors file, an item at a time, copied into one tensor."""
    file = safetensors.safe_open(folder / "x.safetensors", "pt")
    data = file.get_slice("x")

    def read(rows: Sequence[int]) -> torch.Tensor:
        for place, row in enumerate(rows):
            buffer[place] = data[row]
        return buffer

    return read


def np_load(folder: Path, buffer: torch.Tensor) -> Read:
    """One .npy file an item, as features are commonly kept, copied into one tensor."""
    out = buffer.numpy()

    def read(rows: Sequence[int]) -> torch.Tensor:
        for place, row in enumerate(rows):
            out[place] = np.load(folder / "npy" / f"{row}.npy")
        return buffer

    return read


def zarr_python(folder: Path, buffer: torch.Tensor) -> Read:
    """zarr-python on talik's own store, item by item (a list of rows by `oindex` takes 80 times as long)."""
    array, out = zarr.open_array(folder / "s.zarr" / spec().path / "hidden", mode="r"), buffer.numpy()

    def read(rows: Sequence[int]) -> torch.Tensor:
        for place, row in enumerate(rows):
            out[place] = array[row]
        return buffer

    return read


def tensorstore_array(folder: Path, buffer: torch.Tensor) -> Read:
    """Tensorstore on talik's own store, all items of a batch at once into one tensor."""
    kvstore = {"driver": "file", "path": f"{folder / 's.zarr' / spec().path / 'hidden'}/"}
    array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
    out = buffer.numpy()

    def read(rows: Sequence[int]) -> torch.Tensor:
        found = [tensorstore.array(out[i]).write(array[row]) for i, row in enumerate(rows)]
        for one in found:
            one.result()
        return buffer

    return read


def talik(**settings: Any) -> Callable[[Path, torch.Tensor], Read]:
    """The store's own reader."""

    def open_(folder: Path, buffer: torch.Tensor) -> Read:
        reader = FeatureStore.open(folder / "s.zarr").reader("visual", 9, **settings)
        last: list[Batch] = []

        def read(rows: Sequence[int]) -> torch.Tensor:
            while last:  # memory of its own, used again for every batch
                last.pop().release()
            last.append(reader.read([KEYS[row] for row in rows]))
            return torch.from_numpy(last[0].hidden)

        return read

    return open_


class _Keys(dict[int, str]):
    def __missing__(self, row: int) -> str:
        return self.setdefault(row, item(row).key)


KEYS = _Keys()


def batches(num_items: int, size: int, seed: int) -> Iterator[list[int]]:
    """Yield random batches without end, each item once before any a second time."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(num_items)
        for first in range(0, num_items - size + 1, size):
            yield order[first : first + size].tolist()
