"""zarr-python and tensorstore, knowing nothing of talik, read the same values."""

from __future__ import annotations

import importlib.util

import ml_dtypes
import numpy as np
import pytest
import zarr

from talik.cache import bfloat16
from talik.cache.store import FeatureStore


@pytest.fixture(autouse=True)
def registered() -> None:
    bfloat16.register()


def bits(values: np.ndarray) -> np.ndarray:
    return np.asarray(values).view(np.int16) if values.dtype == ml_dtypes.bfloat16 else np.asarray(values)


@pytest.fixture
def filled(sample, tmp_path):
    """A store in two generations, and what each row holds by our own reader."""
    items = sample.items(11)
    sample.fill(tmp_path / "s", items[:4])
    sample.fill(tmp_path / "s", items)
    reader = FeatureStore.open(tmp_path / "s").reader(sample.spec.modality, 9)
    return sample, tmp_path / "s", items, reader


def compare(sample, items, reader, open_array) -> None:
    hidden = open_array("hidden")
    rows = reader.rows_of([i.key for i in items])
    batch = reader.read([i.key for i in items])
    arrays = {name: open_array(f"inputs/{name}") for name in sample.spec.inputs}
    if sample.spec.ragged:
        offsets = open_array("offsets")
        assert offsets.dtype == np.int64
    for i, row in enumerate(rows):
        place = slice(offsets[row], offsets[row + 1]) if sample.spec.ragged else row
        whole = slice(0, batch.lengths[i]) if sample.spec.ragged else slice(None)
        np.testing.assert_array_equal(bits(hidden[place]), batch.hidden[i][whole])
        for name, values in arrays.items():
            np.testing.assert_array_equal(values[place], batch.inputs[name][i][whole])
    keys, row_column = open_array("items/key"), open_array("items/row")
    sources, at = open_array("items/source"), open_array("items/source_offsets")
    found = {
        int(row): (keys[i].tobytes().hex(), sources[at[i] : at[i + 1]].tobytes().decode())
        for i, row in enumerate(row_column)
    }
    assert found == {int(r): (i.key, i.source) for r, i in zip(rows, items, strict=True)}
    if not sample.spec.ragged:
        empty = sorted(set(range(len(hidden))) - set(rows.tolist()))
        assert empty, "the first generation ends inside a shard"
        assert np.isnan(np.asarray(hidden[empty[0]], np.float32)).all()


def test_zarr_python(filled):
    sample, path, items, reader = filled
    group = zarr.open_group(path, mode="r")
    members = dict(group.members(max_depth=None))
    assert group.attrs["talik"]["kind"] == "feature store"
    assert members[sample.spec.path].attrs["talik"]["identity"] == sample.spec.identity
    compare(sample, items, reader, lambda name: members[f"{sample.spec.path}/{name}"][...])


@pytest.mark.skipif(importlib.util.find_spec("tensorstore") is None, reason="tensorstore is not installed")
def test_tensorstore(filled):
    import tensorstore

    sample, path, items, reader = filled

    def open_array(name: str) -> np.ndarray:
        kvstore = {"driver": "file", "path": f"{path / sample.spec.path / name}/"}
        return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result().read().result()

    compare(sample, items, reader, open_array)


def test_bfloat16_round_trip_in_zarr_python(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4).astype(ml_dtypes.bfloat16)
    array = zarr.create_array(tmp_path / "a", shape=values.shape, chunks=(2, 4), dtype=values.dtype)
    array[:] = values
    again = zarr.open_array(tmp_path / "a", mode="r")
    assert again.metadata.to_dict()["data_type"] == "bfloat16"
    np.testing.assert_array_equal(again[:], values)
