"""int8 with a scale a token: no value off by more than half a step, the error told, and all else as with any dtype."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from talik.cache.feature_store import FeatureStore, Item
from talik.cache.format.int8 import Int8Error, quantized, restored
from talik.cache.format.spec import ArraySpec, BoundarySpec
from talik.cache.maintenance.explain import why
from talik.cache.maintenance.hdf5 import export_hdf5, import_hdf5
from talik.cache.maintenance.repair import repair
from talik.cache.maintenance.verify import verify
from talik.cache.open import open_store
from talik.errors import CorruptItemError, NumericsError, SettingsError, StoreMismatchError

#: Largest relative root mean square of what reading gives against what was written, standard normal tokens of 64.
RELATIVE_RMS = {"float32": 0.0, "float16": 4e-4, "bfloat16": 3e-3, "int8": 9e-3}


@pytest.fixture(params=["dense", "ragged"])
def sample(request: pytest.FixtureRequest, make_sample: Any) -> Any:
    return make_sample(
        request.param, dtype="int8", shape=(2, 3, 4) if request.param == "dense" else (4,), identity={"w": "abc"}
    )


def read(store: Path, spec: BoundarySpec, items: Sequence[Item], **more: Any) -> Any:
    with FeatureStore.open(store).reader(spec.modality, spec.boundary, key=spec.key, **more) as reader:
        return reader.read([item.key for item in items])


def check(path: Path, sample: Any, items: Sequence[Item]) -> None:
    batch = read(path, sample.spec, items)
    assert batch.dtype == "float32"
    assert batch.hidden.dtype == np.float32
    assert "scale" not in batch.inputs
    for i, item in enumerate(items):
        hidden, inputs = sample.state(item)
        got = batch.hidden[i][: len(hidden)]
        np.testing.assert_array_equal(got, restored(*quantized(hidden, "here")))
        assert not (sample.spec.ragged and batch.hidden[i][len(hidden) :].any())
        assert (np.abs(got - hidden) <= np.abs(hidden).max(axis=-1, keepdims=True) / 253).all()
        for name in set(inputs) - {"scale"}:
            np.testing.assert_array_equal(batch.inputs[name][i][: len(hidden)], inputs[name])


@pytest.fixture
def fill(sample: Any) -> Any:
    """Fill a store from states without scales, as an encoder gives them."""

    def states(shard: Any) -> Any:
        for item in shard.items:
            hidden, inputs = sample.state(item)
            yield hidden, {name: values for name, values in inputs.items() if name != "scale"}

    def run(path: Path, items: Sequence[Item], **more: Any) -> None:
        with sample.writer(FeatureStore.open(path, "a"), items, **more) as writer:
            for shard in writer.missing():
                writer.write(shard, states(shard))

    return run


def test_there_and_back_through_store_hdf5_and_zarr(sample: Any, fill: Any, tmp_path: Path) -> None:
    items = sample.items(8)
    fill(tmp_path / "s", items)
    check(tmp_path / "s", sample, items[::-1])
    assert verify(open_store(tmp_path / "s")) == []
    export_hdf5(FeatureStore.open(tmp_path / "s"), tmp_path / "all.h5")
    with h5py.File(tmp_path / "all.h5") as file:
        group = file[sample.spec.path]
        assert group["hidden"].dtype == np.int8
        assert group["inputs/scale"].shape == group["hidden"].shape[:-1]
    assert import_hdf5(tmp_path / "all.h5", FeatureStore.open(tmp_path / "t", "a")) == 8
    check(tmp_path / "t", sample, items)
    array: Any = zarr.open_group(tmp_path / "s", mode="r")[f"{sample.spec.path}/hidden"]
    assert array.dtype == np.int8
    for path in ("mmap", "preadv"):
        np.testing.assert_array_equal(
            read(tmp_path / "s", sample.spec, items, path=path).hidden, read(tmp_path / "s", sample.spec, items).hidden
        )


def test_the_error_stands_in_the_provenance_and_grows_with_the_store(sample: Any, fill: Any, tmp_path: Path) -> None:
    def measured() -> list[dict[str, Any]]:
        with FeatureStore.open(tmp_path / "s").reader(sample.spec.modality, sample.spec.boundary) as reader:
            return [entry.get("int8", {}) for entry in reader.provenance]

    items = sample.items(9)
    fill(tmp_path / "s", items[:4], provenance={"device": "cpu"})
    assert measured()[0]["num_items"] == 4
    fill(tmp_path / "s", items, provenance={"device": "cpu"})
    (found,) = measured()
    assert found["num_items"] == 9
    given = np.concatenate([sample.state(item)[0].ravel() for item in items]).astype(np.float64)
    batch = read(tmp_path / "s", sample.spec, items)
    got = np.concatenate([h[: len(sample.state(i)[0])].ravel() for h, i in zip(batch.hidden, items, strict=True)])
    expected = np.sqrt(np.square(got - given).sum() / np.square(given).sum())
    assert found["relative_rms"] == pytest.approx(expected, rel=1e-5)
    assert 0 < found["relative_rms"] < 0.02
    fill(tmp_path / "s", sample.items(11), provenance={"device": "cuda"})
    assert [entry["num_items"] for entry in measured()] == [9, 2]
    assert verify(open_store(tmp_path / "s")) == []


def test_damage_is_found_and_repaired(sample: Any, fill: Any, tmp_path: Path) -> None:
    items = sample.items(6)
    fill(tmp_path / "s", items)
    shutil.copytree(tmp_path / "s", tmp_path / "whole")
    for array in ("hidden", "inputs/scale"):
        file = next(p for p in (tmp_path / "s" / sample.spec.path / array).iterdir() if p.name.startswith("c.0"))
        content = bytearray(file.read_bytes())
        content[1] ^= 16
        file.write_bytes(content)
        findings = verify(open_store(tmp_path / "s"))
        assert [finding.shard for finding in findings] == [0]
        with pytest.raises(CorruptItemError):
            read(tmp_path / "s", sample.spec, items)
        repair(open_store(tmp_path / "s", "a"), findings)
        fill(tmp_path / "s", items)
        check(tmp_path / "s", sample, items)
        assert file.read_bytes() == (tmp_path / "whole" / file.relative_to(tmp_path / "s")).read_bytes()
        assert verify(open_store(tmp_path / "s")) == []


def test_another_dtype_is_another_boundary_and_why_says_so(sample: Any, fill: Any, tmp_path: Path) -> None:
    items = sample.items(3)
    fill(tmp_path / "s", items)
    inputs = {name: array for name, array in sample.spec.inputs.items() if name != "scale"}
    asked = replace(sample.spec, dtype="float16", inputs=inputs)
    assert asked.key != sample.spec.key
    answer = why(FeatureStore.open(tmp_path / "s"), asked, items)
    assert ("dtype", "float16", "int8") in [(f.field, f.requested, f.stored) for f in answer.fields]
    assert not why(FeatureStore.open(tmp_path / "s"), sample.spec, items).fields
    assert BoundarySpec.from_json(json.loads(json.dumps(sample.spec.to_json()))) == sample.spec


@pytest.mark.parametrize("dtype", list(RELATIVE_RMS))
def test_what_each_dtype_costs(make_sample: Any, tmp_path: Path, dtype: str) -> None:
    base = make_sample("dense", dtype=dtype, shape=(50, 64))
    item = base.items(1)[0]
    hidden = np.random.default_rng(1).standard_normal((50, 64)).astype(np.float32)
    with base.writer(FeatureStore.open(tmp_path / "s", "a"), [item]) as writer:
        writer.write(writer.missing()[0], [(hidden, {})])
    batch = read(tmp_path / "s", base.spec, [item])
    got = batch.hidden[0].view(ml_dtypes.bfloat16) if dtype == "bfloat16" else batch.hidden[0]
    error = np.sqrt(np.square(got.astype(np.float64) - hidden).mean() / np.square(hidden.astype(np.float64)).mean())
    assert error <= RELATIVE_RMS[dtype]
    assert error >= RELATIVE_RMS[dtype] / 3


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=6),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_no_value_is_off_by_more_than_half_a_step(hidden: np.ndarray) -> None:
    error = Int8Error()
    stored, scale = quantized(hidden, "here", error)
    assert stored.dtype == np.int8
    assert scale.shape == hidden.shape[:-1]
    largest = np.abs(hidden.astype(np.float64)).max(axis=-1, keepdims=True)
    off = np.abs(restored(stored, scale).astype(np.float64) - hidden)
    assert (off <= largest / 253 + 1e-42).all()  # below lie subnormal numbers
    assert error.num_items == 1
    assert error.relative_rms <= 1


def test_refusals(make_sample: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the input 'scale' of int8 is its own"):
        make_sample("dense", dtype="int8", inputs={"scale": ArraySpec(dtype="int32")})
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(NumericsError, match="clip 7: NaN, Inf or beyond float32"):
            quantized(np.array([[1.0, bad]], np.float32), "clip 7")
    with pytest.raises(NumericsError, match="beyond float32"):
        quantized(np.array([1e300]), "clip 7")
    with pytest.raises(StoreMismatchError, match="int64, expected floats"):
        quantized(np.array([1, 2]), "clip 7")
    sample = make_sample("dense", dtype="int8")
    with sample.writer(FeatureStore.open(tmp_path / "s", "a"), sample.items(1)) as writer:
        with pytest.raises(StoreMismatchError, match=r"inputs \[\], expected \['scale'\]"):
            writer.write(writer.missing()[0], [(np.zeros((2, 3, 4), np.int8), {})])


def test_what_was_measured_stays_when_rows_are_given_up(make_sample, tmp_path):
    sample = make_sample("dense", dtype="int8")
    items = sample.items(6)
    with sample.writer(FeatureStore.open(tmp_path / "s", "a"), items) as writer:
        first, second = writer.missing()
        writer.write(first, sample.states(first))
        assert writer.give_up(second, {second.items[0].key}) is not None
        reader = FeatureStore.open(tmp_path / "s").reader("visual", 9)
        assert reader.provenance[0]["int8"]["num_items"] == 3
