"""A store goes through one HDF5 file and comes back with the same values."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from talik.cache.feature_store import FeatureStore
from talik.cache.maintenance.hdf5 import export_hdf5, import_hdf5
from talik.cache.maintenance.verify import verify
from talik.cache.open import open_store
from talik.errors import StoreError, StoreFormatError, StoreFullError


def test_there_and_back(sample, tmp_path):
    items = sample.items(10)
    sample.fill(tmp_path / "s", items[:7], provenance={"device": "cpu"})
    sample.fill(tmp_path / "s", items, provenance={"device": "cuda"})
    assert export_hdf5(FeatureStore.open(tmp_path / "s"), tmp_path / "all.h5") == 10
    with h5py.File(tmp_path / "all.h5") as file:
        group = file[sample.spec.path]
        assert json.loads(group.attrs["specification"])["identity"] == sample.spec.identity
        assert json.loads(group.attrs["provenance"]) == [{"device": "cpu"}, {"device": "cuda"}]
        assert group["items/provenance"][:].tolist() == [0] * 7 + [1] * 3
        assert group["items/source"].asstr()[:].tolist() == [item.source for item in items]
        for i, item in enumerate(items):
            hidden, inputs = sample.state(item)
            place = slice(*group["offsets"][i : i + 2]) if sample.spec.ragged else i
            np.testing.assert_array_equal(group["hidden"][place].view(sample.spec.numpy_dtype), sample.stored(hidden))
            for name, values in inputs.items():
                np.testing.assert_array_equal(group[f"inputs/{name}"][place], values)
    again = FeatureStore.open(tmp_path / "t", "a")
    assert import_hdf5(tmp_path / "all.h5", again) == 10
    assert import_hdf5(tmp_path / "all.h5", again) == 0
    assert again.boundaries() == (sample.spec,)
    sample.check(tmp_path / "t", items)
    assert verify(open_store(tmp_path / "t")) == []


def test_an_import_completes_a_store(make_sample, tmp_path):
    sample = make_sample("ragged")
    sample.fill(tmp_path / "s", sample.items(8))
    export_hdf5(FeatureStore.open(tmp_path / "s"), tmp_path / "all.h5")
    sample.fill(tmp_path / "t", sample.items(5, first=5))
    seen = []
    assert import_hdf5(tmp_path / "all.h5", FeatureStore.open(tmp_path / "t", "a"), progress=seen.append) == 5
    assert sum(seen) == 5
    sample.check(tmp_path / "t", sample.items(10))


def test_several_boundaries_and_empty_ones(make_sample, tmp_path):
    samples = [make_sample(), make_sample("ragged"), make_sample("dense-inputs")]
    for sample, count in zip(samples, (4, 0, 2), strict=True):
        sample.fill(tmp_path / "s", sample.items(count))
    assert export_hdf5(FeatureStore.open(tmp_path / "s"), tmp_path / "all.h5") == 6
    store = FeatureStore.open(tmp_path / "t", "a")
    assert import_hdf5(tmp_path / "all.h5", store) == 6
    assert store.boundaries() == FeatureStore.open(tmp_path / "s").boundaries()


def test_refusals(make_sample, tmp_path, monkeypatch):
    sample = make_sample()
    sample.fill(tmp_path / "s", sample.items(4))
    store = FeatureStore.open(tmp_path / "s", "a")
    (tmp_path / "there.h5").write_bytes(b"x")
    with pytest.raises(StoreError, match="is there already"):
        export_hdf5(store, tmp_path / "there.h5")
    with pytest.raises(StoreFormatError, match="cannot be opened as HDF5"):
        import_hdf5(tmp_path / "there.h5", store)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["avadataset"] = np.zeros((2, 3))
    with pytest.raises(StoreFormatError, match="holds avadataset and no talik_format"):
        import_hdf5(tmp_path / "other.h5", store)
    monkeypatch.setattr("talik.cache.maintenance.hdf5.free_bytes", lambda path: 10)
    with pytest.raises(StoreFullError):
        export_hdf5(store, tmp_path / "new.h5")
    assert not (tmp_path / "new.h5").exists()
