"""A store as one HDF5 file, and back.

    /                              attributes: talik_format, kind
      <modality>/b09-<key12>       attributes: specification, provenance (JSON); modality, boundary, key, dtype
        hidden                     dense: (items, *shape), a chunk an item; ragged: (tokens, *shape)
        offsets                    ragged: (items + 1,) int64
        inputs/NAME                as hidden
        items/key, source          (items,) UTF-8 strings
        items/size_bytes, mtime_ns, provenance      (items,) int64; provenance is an index into the attribute

The names are the store's own. Items stand one after the other, without the store's empty rows; only finished ones are
exported. HDF5 has no bfloat16: such states are their bit patterns, uint16, and the attribute `dtype` says so. Those of
int8 have their scales in inputs/scale, as in the store.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...errors import StoreError, StoreFormatError, StoreFullError
from ..atomic_io import free_bytes, replacing
from ..feature_store import FeatureStore
from ..format.digests import canonical_json
from ..format.spec import FORMAT_VERSION, STORE_KIND, BoundarySpec, Item
from ..read.boundary_reader import BoundaryReader
from ..write.shard_writer import Shard, States

_BATCH_BYTES = 32_000_000
_CHUNK_BYTES = 65_536


def export_hdf5(store: FeatureStore, path: str | Path, *, progress: Callable[[int], None] | None = None) -> int:
    """Write every finished item of `store` to the file `path`, which must not be there; all of it or nothing.

    Args:
        store: open in any mode.
        path: of the file to make.
        progress: called with the number of items written since the last call.

    Returns:
        The number of items written, counted once a boundary.

    Raises:
        StoreError: `path` is there already.
        StoreFullError: no room for it.
        CorruptItemError: an item that fails its checksum.
    """
    path = Path(path)
    if path.exists():
        raise StoreError(f"{path}: is there already; remove it or export to another path")
    readers = [store.reader(spec.modality, spec.boundary, key=spec.key) for spec in store.boundaries()]
    needed = sum(reader.size_bytes for reader in readers)
    if needed > free_bytes(path):
        raise StoreFullError(f"{path}: needs {needed / 1e6:.0f} MB, the disk has {free_bytes(path) / 1e6:.0f} MB free")
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["talik_format"], file.attrs["kind"] = FORMAT_VERSION, STORE_KIND
        for reader in readers:
            _export_boundary(reader, file.create_group(reader.spec.path), progress)
    return sum(len(reader.items) for reader in readers)


def import_hdf5(path: str | Path, store: FeatureStore, *, progress: Callable[[int], None] | None = None) -> int:
    """Add what `export_hdf5` wrote to `store`, which is open in mode `a`; resumable, as extraction is.

    Args:
        path: of the file.
        store: which may hold other boundaries, or part of these.
        progress: called with the number of items imported since the last call.

    Returns:
        The number of items imported; those that were there already are not counted.

    Raises:
        StoreFormatError: not a file that `export_hdf5` wrote.
        StoreFullError: no room for it.
        NumericsError: NaN or Inf in the file.
    """
    path = Path(path)
    count = 0
    for name in _boundaries(path):
        with h5py.File(path, "r") as file:
            count += _import_boundary(file[name], store, progress)
    return count


def _boundaries(path: Path) -> list[str]:
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("kind") == STORE_KIND and file.attrs.get("talik_format") == FORMAT_VERSION:
                return [f"{modality}/{name}" for modality in file for name in file[modality]]
            found = ", ".join(sorted(file)) or "nothing"
    except OSError as error:
        raise StoreFormatError(f"{path}: cannot be opened as HDF5 ({error}); expected a file of export_hdf5") from None
    raise StoreFormatError(
        f"{path}: holds {found} and no talik_format {FORMAT_VERSION}; expected a file of export_hdf5"
    )


def _export_boundary(reader: BoundaryReader, group: Any, progress: Callable[[int], None] | None) -> None:
    spec, items = reader.spec, reader.items
    group.attrs["specification"] = canonical_json(spec.to_json()).decode()
    group.attrs["provenance"] = canonical_json(list(reader.provenance)).decode()
    for name in ("modality", "boundary", "key", "dtype"):
        group.attrs[name] = getattr(spec, name)
    lengths = reader.lengths_of([item.key for item in items]) if spec.ragged else np.ones(len(items), np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if spec.ragged:
        group["offsets"] = offsets
    text = h5py.string_dtype()
    group.create_dataset("items/key", data=[item.key for item in items], dtype=text)
    group.create_dataset("items/source", data=[item.source for item in items], dtype=text)
    group["items/size_bytes"] = np.array([item.size_bytes for item in items], np.int64)
    group["items/mtime_ns"] = np.array([item.mtime_ns for item in items], np.int64)
    group["items/provenance"] = reader.provenance_of([item.key for item in items])
    bits = np.dtype(np.uint16) if spec.dtype == "bfloat16" else spec.numpy_dtype
    members = [("hidden", bits, spec.shape)]
    members += [(f"inputs/{name}", np.dtype(a.dtype), a.shape) for name, a in spec.inputs.items()]
    data = {name: _dataset(group, name, dtype, shape, int(offsets[-1]), spec.ragged) for name, dtype, shape in members}
    step = max(1, _BATCH_BYTES // max(1, int(lengths.max(initial=1)) * spec.unit_bytes))
    for at in range(0, len(items), step):
        part = items[at : at + step]
        batch = reader.read_stored([item.key for item in part])
        place = slice(int(offsets[at]), int(offsets[at + len(part)]))
        for name, target in data.items():
            values = batch.hidden.view(bits) if name == "hidden" else batch.inputs[name.removeprefix("inputs/")]
            if batch.lengths is not None:
                values = np.concatenate([v[:n] for v, n in zip(values, batch.lengths, strict=True)])
            if len(values):
                target[place] = values
        batch.release()
        if progress:
            progress(len(part))


def _dataset(
    group: Any, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], units: int, ragged: bool
) -> h5py.Dataset:
    size = max(1, int(np.prod(shape)) * dtype.itemsize)
    chunk = (min(max(1, _CHUNK_BYTES // size) if ragged else 1, max(1, units)), *shape)
    return group.create_dataset(
        name, shape=(units, *shape), dtype=dtype, chunks=chunk if units else True, maxshape=(None, *shape)
    )


def _import_boundary(group: Any, store: FeatureStore, progress: Callable[[int], None] | None) -> int:
    try:
        spec = BoundarySpec.from_json(json.loads(group.attrs["specification"]))
        provenance = {"imported": "hdf5", "provenance": json.loads(group.attrs["provenance"])}
        table = group["items"]
        columns = [table["key"].asstr()[:], table["source"].asstr()[:], table["size_bytes"][:], table["mtime_ns"][:]]
        offsets = group["offsets"][:] if spec.ragged else None
        data = {"hidden": group["hidden"], **{f"inputs/{n}": group[f"inputs/{n}"] for n in spec.inputs}}
    except (KeyError, ValueError, TypeError) as error:
        raise StoreFormatError(
            f"{group.file.filename}: {group.name}: {error}; expected a file of export_hdf5"
        ) from None
    items = [
        Item(key=key, source=source, size_bytes=int(size), mtime_ns=int(mtime))
        for key, source, size, mtime in zip(*columns, strict=True)
    ]
    number = {item.key: i for i, item in enumerate(items)}

    def states(shard: Shard) -> States:
        for item in shard.items:
            i = number[item.key]
            place = i if offsets is None else slice(int(offsets[i]), int(offsets[i + 1]))
            yield data["hidden"][place], {n: np.asarray(data[f"inputs/{n}"][place]) for n in spec.inputs}
            if progress:
                progress(1)

    lengths = np.diff(offsets).tolist() if offsets is not None else None
    count = 0
    with store.writer(spec, items, lengths=lengths, provenance=provenance) as writer:
        for shard in writer.missing():
            writer.write(shard, states(shard))
            count += len(shard.items)
    return count
