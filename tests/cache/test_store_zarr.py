"""zarr-python and tensorstore, knowing nothing of talik, read the same values."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import zarr

from talik.cache.feature_store import FeatureStore
from talik.cache.format import bfloat16


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
        padding = hidden[empty[0]].view(ml_dtypes.bfloat16) if sample.spec.dtype == "bfloat16" else hidden[empty[0]]
        assert np.isnan(np.asarray(padding, np.float32)).all()


def test_zarr_python(filled):
    sample, path, items, reader = filled
    group = zarr.open_group(path, mode="r")
    members = dict(group.members(max_depth=None))
    assert group.attrs["talik"]["kind"] == "feature store"
    assert members[sample.spec.path].attrs["talik"]["identity"] == sample.spec.identity
    compare(sample, items, reader, lambda name: members[f"{sample.spec.path}/{name}"][...])


@pytest.mark.skipif(
    importlib.util.find_spec("tensorstore") is None, reason="tensorstore is not installed: pip install 'talik[test]'"
)
def test_tensorstore(filled):
    import tensorstore

    sample, path, items, reader = filled

    def open_array(name: str) -> np.ndarray:
        kvstore = {"driver": "file", "path": f"{path / sample.spec.path / name}/"}
        return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result().read().result()

    compare(sample, items, reader, open_array)


_ALONE = """
import json, sys
from pathlib import Path
import numpy as np

library, places, out = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
if library == "zarr":
    import zarr
else:
    import tensorstore

def values(folder):
    if library == "zarr":
        return zarr.open_array(folder, mode="r")[...]
    kvstore = {"driver": "file", "path": f"{folder}/"}
    return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result().read().result()

for number, place in enumerate(places):
    found = {}
    for document in sorted(Path(place).rglob("zarr.json")):
        if json.loads(document.read_text())["node_type"] == "array":
            one = np.asarray(values(document.parent))
            name = str(document.parent.relative_to(place))
            found[name] = one.view(np.int16) if one.dtype.name == "bfloat16" else one
    np.savez(out / f"{number}.npz", **found)
assert "talik" not in sys.modules, "talik was imported"
"""


@pytest.mark.parametrize("library", ["zarr", "tensorstore"])
def test_without_talik(library, make_sample, tmp_path):
    """Every array of finished stores, in a process that never imports talik.

    zarr-python's bfloat16 is talik's own (an entry point), so bfloat16 is tensorstore's part here.
    """
    pytest.importorskip(library, reason=f"{library} is not installed: pip install 'talik[test]'")
    names = ["dense", "dense-inputs", "ragged"] + ["dense-bfloat16", "ragged-bfloat16"] * (library == "tensorstore")
    places = []
    for name in names:
        sample = make_sample(name)
        sample.fill(tmp_path / name, sample.items(4))
        sample.fill(tmp_path / name, sample.items(11))
        places.append(str(tmp_path / name / sample.spec.path))
    command = [sys.executable, "-c", _ALONE, library, json.dumps(places), str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path)
    for number, name in enumerate(names):
        sample = make_sample(name)
        with np.load(tmp_path / f"{number}.npz") as found:
            assert {"hidden", "receipts", "items/key", "items/row"} <= set(found)
            assert ("crc" in found) == sample.spec.ragged
            reader = FeatureStore.open(tmp_path / name).reader(sample.spec.modality, 9)
            assert set(found["receipts"][:, 0].tolist()) == {1}
            compare(sample, sample.items(11), reader, lambda array, found=found: found[array])


def test_bfloat16_round_trip_in_zarr_python(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4).astype(ml_dtypes.bfloat16)
    array = zarr.create_array(tmp_path / "a", shape=values.shape, chunks=(2, 4), dtype=values.dtype)
    array[:] = values
    again = zarr.open_array(tmp_path / "a", mode="r")
    assert again.metadata.to_dict()["data_type"] == "bfloat16"
    np.testing.assert_array_equal(again[:], values)
