"""Damage anywhere is found by verify, never read as data, and mended by repair and another extraction."""

from __future__ import annotations

import os
import pickle
import random
import resource
import shutil
from contextlib import suppress

import pytest

from talik.cache.feature_store import FeatureStore
from talik.cache.maintenance.repair import repair
from talik.cache.maintenance.verify import verify
from talik.cache.open import open_store
from talik.errors import CorruptItemError, StoreError, StoreFormatError, TalikError


def flip(path, offset: int, bit: int = 0) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def shard_file(sample, path, shard: int, name: str = "hidden"):
    return next((path / sample.spec.path / name).glob(f"c.{shard}.*"))


def test_a_flipped_bit_in_an_item(sample, tmp_path):
    path, items = tmp_path / "s", sample.items(8)
    sample.fill(path, items)
    reader = FeatureStore.open(path).reader(sample.spec.modality, 9)
    row = next(
        r for r, i in zip(reader.rows_of([i.key for i in items]), items, strict=True) if sample.length(i) and r > 3
    )
    shard = int(row) // reader.catalog.layout.grid.rows_per_shard
    bad = next(i for i in reader.items if reader.rows_of([i.key])[0] == row)
    data = shard_file(sample, path, shard)
    inside = int(row) % reader.catalog.layout.grid.rows_per_shard * (sample.spec.hidden_bytes + 4)
    if sample.spec.ragged:
        token = reader.catalog.offsets[row] - shard * reader.catalog.layout.grid.tokens_per_shard
        inside = int(token) * sample.spec.hidden_bytes
    flip(data, inside, 3)
    fresh = FeatureStore.open(path).reader(sample.spec.modality, 9)
    with pytest.raises(CorruptItemError) as caught:
        fresh.read([i.key for i in items])
    for word in (str(path), sample.spec.path, repr(bad.source), f"row {row}", f"shard {shard}", "repair"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    good = [i for i in items if i != bad]
    sample.check(path, good)
    (finding,) = verify(open_store(path, check=False))
    assert (finding.boundary, finding.shard, finding.item) == (sample.spec.path, shard, bad.source)
    forgotten, beyond = repair(open_store(path, "a", check=False), [finding])
    assert (forgotten, beyond) == ([(sample.spec.path, shard)], [])
    assert sample.fill(path, items) == 1
    sample.check(path, items)
    assert verify(open_store(path, check=False)) == []


def test_first_touch_always_and_never(make_sample, tmp_path):
    sample = make_sample()
    path, items = tmp_path / "s", sample.items(3)
    sample.fill(path, items)
    store = FeatureStore.open(path)
    readers = {verify: store.reader("visual", 9, verify=verify) for verify in ("first", "always", "never")}
    keys = [i.key for i in items]
    before = {name: reader.read(keys).hidden for name, reader in readers.items()}
    flip(shard_file(sample, path, 0), 5)
    with pytest.raises(CorruptItemError):
        readers["always"].read(keys)
    for name in ("first", "never"):
        assert (readers[name].read(keys).hidden != before[name]).any()
    with pytest.raises(TalikError, match=r"unknown verify 'allways'; did you mean 'always'"):
        store.reader("visual", 9, verify="allways")


@pytest.mark.parametrize("left", [0, 3, 100])
def test_a_truncated_shard_is_found_at_open(left, make_sample, tmp_path):
    sample = make_sample()
    path, items = tmp_path / "s", sample.items(6)
    sample.fill(path, items)
    data = shard_file(sample, path, 1)
    os.truncate(data, left)
    with pytest.raises(CorruptItemError, match=rf"shard 1 .*clips/3\.mp4.*has {left} bytes, expected {3 * 52 + 52}"):
        FeatureStore.open(path).reader("visual", 9)
    assert [f.shard for f in verify(open_store(path, check=False))] == [1]
    data.unlink()
    with pytest.raises(CorruptItemError, match="is missing"):
        FeatureStore.open(path).reader("visual", 9)
    repair(open_store(path, "a", check=False), verify(open_store(path, check=False)))
    assert FeatureStore.open(path).reader("visual", 9).items == tuple(items[:3])
    sample.fill(path, items)
    sample.check(path, items)


def test_a_shard_truncated_while_open_is_no_crash(make_sample, tmp_path):
    sample = make_sample()
    path, items = tmp_path / "s", sample.items(6)
    sample.fill(path, items)
    reader = FeatureStore.open(path).reader("visual", 9)
    for left in (0, 60):
        os.truncate(shard_file(sample, path, 1), left)
        with pytest.raises(CorruptItemError):
            reader.read([items[4].key])


@pytest.mark.parametrize("name", ["dense-inputs", "ragged", "dense-bfloat16"])
def test_single_bit_flips_anywhere(name, make_sample, tmp_path):
    """Each is reported by verify; reading either gives the written values or raises."""
    sample = make_sample(name)
    path, items = tmp_path / "s", sample.items(5)
    sample.fill(path, items, provenance={"device": "cpu"})
    shutil.copytree(path, tmp_path / "sound")
    files = sorted(p for p in path.rglob("*") if p.is_file())
    places = random.Random(1)
    padding = 0
    for file in files * 3:
        offset, bit = places.randrange(file.stat().st_size), places.randrange(8)
        flip(file, offset, bit)
        findings = verify(open_store(path, check=False))
        assert findings, (file, offset, bit)
        padding += all(not f.data for f in findings)
        with suppress(StoreError):
            sample.check(path, items)
        flip(file, offset, bit)
    assert verify(open_store(path, check=False)) == []
    assert padding == 0 or sample.spec.ragged


@pytest.mark.parametrize("name", ["dense-inputs", "ragged"])
def test_derived_metadata_is_rewritten(name, make_sample, tmp_path, tree):
    sample = make_sample(name)
    path, items = tmp_path / "s", sample.items(5)
    sample.fill(path, items)
    before = tree(path)
    boundary = path / sample.spec.path / "zarr.json"
    for file in path.rglob("zarr.json"):
        if file != boundary:
            flip(file, 20)
    assert len(verify(open_store(path, check=False))) == sum(p.endswith("zarr.json") for p in before) - 1
    forgotten, beyond = repair(open_store(path, "a", check=False), verify(open_store(path, check=False)))
    assert (forgotten, beyond) == ([], [])
    assert tree(path) == before
    flip(boundary, 20)
    findings = verify(open_store(path, check=False))
    assert repair(open_store(path, "a", check=False), findings) == ([], findings)
    with pytest.raises(StoreFormatError, match=r"zarr\.json"):
        FeatureStore.open(path).boundaries()


def test_errors_pickle(make_sample, tmp_path):
    sample = make_sample()
    path, items = tmp_path / "s", sample.items(3)
    sample.fill(path, items)
    flip(shard_file(sample, path, 0), 5)
    reader = FeatureStore.open(path).reader("visual", 9)
    for call in (lambda: reader.read([items[0].key]), lambda: reader.read(["0" * 63 + "1"])):
        with pytest.raises(StoreError) as caught:
            call()
        again = pickle.loads(pickle.dumps(caught.value))
        assert type(again) is type(caught.value)
        assert str(again) == str(caught.value)


def test_padding_is_not_data(make_sample, tmp_path):
    sample = make_sample("ragged")
    path, items = tmp_path / "s", sample.items(3)
    sample.fill(path, items)
    reader = FeatureStore.open(path).reader("text", 9)
    tokens = int(reader.catalog.offsets[-1])
    flip(shard_file(sample, path, 0), tokens * sample.spec.hidden_bytes + 9)
    (finding,) = verify(open_store(path, check=False))
    assert "padding" in str(finding)
    assert not finding.data
    sample.check(path, items)


def test_shards_without_the_document_that_names_them(make_sample, tmp_path):
    sample = make_sample()
    path, items = tmp_path / "s", sample.items(3)
    sample.fill(path, items)
    (path / sample.spec.path / "zarr.json").unlink()
    assert ["is missing" in f.what for f in verify(open_store(path, check=False))] == [True]
    with pytest.raises(StoreFormatError, match=r"has shards and no zarr\.json"):
        sample.fill(path, sample.items(3, first=9))


def test_more_shards_than_open_files(make_sample, tmp_path):
    sample = make_sample(shard_items=1)
    path, items = tmp_path / "s", sample.items(120)
    sample.fill(path, items)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
    try:
        with FeatureStore.open(path).reader("visual", 9) as reader:
            reader.read([item.key for item in items])
            assert len(reader.rows.maps) == 120
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
