"""Features as one file that other programs read: NumPy's .npz, HDF5, Parquet."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...cache.atomic_io import make_folder, replacing
from ...errors import SettingsError

Pool = Literal["none", "mean"]
Arrays = Mapping[str, NDArray[np.float32]]


def pooled(features: NDArray[np.float32], pool: Pool) -> NDArray[np.float32]:
    """Return features (…, N, D) as they are, or the mean of their tokens, (…, D)."""
    return features if pool == "none" else features.mean(axis=-2)


def write_features(arrays: Arrays, path: Path, *, axes: Sequence[str]) -> None:
    """Write features to a file, which appears when it is whole.

    Args:
        arrays: by file name.
        path: ends in `.npz` (an array a file), `.h5` (a dataset a file) or `.parquet` (a row for each place: file, then
            the axes but the last, then the values of the last as a list).
        axes: what the axes of each array stand for, the last one the channels.

    Raises:
        SettingsError: another ending, or pyarrow missing for `.parquet`.
        StoreError: the disk refuses it.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "out.npz"
        >>> write_features({"a.mp4": np.ones((2, 3), np.float32)}, path, axes=("segment", "channel"))
        >>> np.load(path)["a.mp4"].shape
        (2, 3)
    """
    write = FORMATS.get(path.suffix)
    if write is None:
        raise SettingsError(f"{path}: expected an ending of {', '.join(FORMATS)}")
    make_folder(path.parent)
    with replacing(path) as temporary:
        write(arrays, temporary, axes)


def _write_npz(arrays: Arrays, path: Path, axes: Sequence[str]) -> None:  # noqa: ARG001
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:  # one array in memory at a time
        for name in arrays:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, arrays[name], allow_pickle=False)


def _write_hdf5(arrays: Arrays, path: Path, axes: Sequence[str]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name in arrays:
            dataset = file.create_dataset(name, data=arrays[name])
            for axis, label in enumerate(axes):
                dataset.dims[axis].label = label


def _write_parquet(arrays: Arrays, path: Path, axes: Sequence[str]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise SettingsError(f"{path}: Parquet needs pyarrow; run pip install 'talik[parquet]', or write .npz") from None
    places = list(axes[:-1])
    schema = pa.schema(
        [("file", pa.string()), *((a, pa.int32()) for a in places), ("features", pa.list_(pa.float32()))]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for name in arrays:
            array = arrays[name]
            rows = array.reshape(-1, array.shape[-1])
            grid = np.indices(array.shape[:-1], dtype=np.int32).reshape(len(places), -1)
            offsets = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
            values = pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.ravel()))
            columns = [pa.array([name] * len(rows)), *(pa.array(g) for g in grid), values]
            writer.write_table(pa.table(columns, schema=schema))


#: What writes a file, by its ending.
FORMATS: dict[str, Callable[[Arrays, Path, Sequence[str]], None]] = {
    ".npz": _write_npz,
    ".h5": _write_hdf5,
    ".parquet": _write_parquet,
}
