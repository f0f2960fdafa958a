"""What a store refuses: full disks, foreign folders, other identities, numbers that are none."""

from __future__ import annotations

import errno
import os
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from talik.cache import atomic_io as durable
from talik.cache.feature_store import ArraySpec, BoundarySpec, FeatureStore, Item
from talik.cache.format import dtypes as numerics
from talik.cache.format.digests import canonical_json, digest_file, digest_json, digest_text
from talik.cache.format.spec import differences
from talik.cache.maintenance.verify import verify
from talik.cache.open import open_store
from talik.errors import NumericsError, SettingsError, StoreError, StoreFormatError, StoreFullError
from talik.errors import StoreMismatchError as Mismatch


def test_no_room_is_said_before_the_first_byte(sample, tmp_path, monkeypatch):
    store = FeatureStore.open(tmp_path / "s", "a")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(durable, "free_bytes", lambda path: 1_000_000)
    with pytest.raises(StoreFullError, match=r"4 shards to write need 0\.\d MB, the disk has 1\.0 MB free") as caught:
        sample.writer(store, sample.items(10))
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.undo()
    sample.fill(tmp_path / "s", sample.items(10))


def test_disk_full_in_mid_shard(sample, tmp_path, monkeypatch):
    path, items = tmp_path / "s", sample.items(9)
    fsync = os.fsync
    with sample.writer(FeatureStore.open(path, "a"), items) as writer:
        first, second, _ = writer.missing()
        writer.write(first, sample.states(first))

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StoreFullError, match="the disk is full") as caught:
            writer.write(second, sample.states(second))
        assert "\n" not in str(caught.value)
        monkeypatch.setattr(os, "fsync", fsync)
        assert not list(path.rglob("*partial*"))
        assert len(writer.missing()) == 2
    sample.check(path, first.items)
    assert sample.fill(path, items) == 2
    sample.check(path, items)


def test_a_real_small_disk(make_sample, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs: run as root, in a container with CAP_SYS_ADMIN")
    try:
        sample = make_sample(shape=(100, 2000), shard_items=2)
        path, items = disk / "s", sample.items(12)
        store = FeatureStore.open(path, "a")
        (disk / "ballast").write_bytes(bytes(3_000_000))
        with pytest.raises(StoreFullError, match=r"6 shards to write need 4\.8 MB"):
            sample.writer(store, items)
        monkeypatch.setattr(durable, "free_bytes", lambda path: 10**12)
        with pytest.raises(StoreFullError, match="the disk is full"):
            sample.fill(path, items)
        assert not list(disk.rglob("*partial*"))
        assert not list(disk.rglob(".lock"))
        done = FeatureStore.open(path).reader("visual", 9).items
        assert 0 < len(done) < 12
        sample.check(path, done)
        assert verify(open_store(path)) == []
        (disk / "ballast").unlink()
        sample.fill(path, items)
        sample.check(path, items)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_is_no_store_is_left_alone(tmp_path, tree):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"jpg")
    (tmp_path / "file").write_text("x")
    (tmp_path / "zarr").mkdir()
    (tmp_path / "zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    before = tree(tmp_path)
    for mode in ("r", "a"):
        with pytest.raises(StoreFormatError, match=r"not a talik store.*nothing was written.*another"):
            FeatureStore.open(tmp_path / "photos", mode)
        with pytest.raises(StoreFormatError, match="is a file"):
            FeatureStore.open(tmp_path / "file", mode)
        with pytest.raises(StoreFormatError, match=r"zarr\.json: not a metadata file that talik wrote"):
            FeatureStore.open(tmp_path / "zarr", mode)
    with pytest.raises(StoreFormatError, match="there is no store; run `talik extract`"):
        FeatureStore.open(tmp_path / "none")
    assert tree(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert FeatureStore.open(tmp_path / "empty", "a").boundaries() == ()
    with pytest.raises(SettingsError, match="unknown mode 'w'"):
        FeatureStore.open(tmp_path / "empty", "w")


def test_another_format_version(tmp_path, monkeypatch):
    monkeypatch.setattr("talik.cache.format.store_root.FORMAT_VERSION", 99)
    FeatureStore.open(tmp_path / "s", "a")
    monkeypatch.undo()
    with pytest.raises(StoreFormatError, match="of format 99, expected a feature store of format 1"):
        FeatureStore.open(tmp_path / "s")


def test_a_read_only_store(make_sample, tmp_path):
    sample = make_sample()
    sample.fill(tmp_path / "s", sample.items(3))
    with pytest.raises(StoreError, match="cannot be written"), durable.disk_errors(tmp_path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    if os.geteuid():
        os.chmod(tmp_path / "s", 0o500)
        try:
            with pytest.raises(StoreError, match="cannot be written"):
                sample.fill(tmp_path / "s", sample.items(4))
            sample.check(tmp_path / "s", sample.items(3))
        finally:
            os.chmod(tmp_path / "s", 0o700)


def test_another_identity_names_the_fields(make_sample, tmp_path):
    stored = make_sample(identity={"weights": "abc", "frames": {"size": 224, "mean": [0.5, 0.5]}})
    stored.fill(tmp_path / "s", stored.items(2))
    store = FeatureStore.open(tmp_path / "s")
    assert store.reader("visual", 9, identity=stored.spec.identity).spec == stored.spec
    asked = {"weights": "abd", "frames": {"size": 224, "mean": [0.5, 0.4]}, "window": 1.0}
    with pytest.raises(Mismatch) as caught:
        store.reader("visual", 9, identity=asked)
    for clause in (
        "weights: requested 'abd', stored 'abc'",
        "frames.mean: requested [0.5, 0.4], stored [0.5, 0.5]",
        "window: requested 1.0, stored '(absent)'",
    ):
        assert clause in str(caught.value)
    assert "size" not in str(caught.value)
    with pytest.raises(Mismatch, match=r"audio boundary 2 is not stored \(held: visual/b09-"):
        store.reader("audio", 2)


def test_several_identities_need_a_name(make_sample, tmp_path):
    one, two = make_sample(), make_sample(identity={"weights": "other"})
    for sample in (one, two):
        sample.fill(tmp_path / "s", sample.items(2))
    store = FeatureStore.open(tmp_path / "s")
    with pytest.raises(Mismatch, match="stored 2 times") as caught:
        store.reader("visual", 9)
    assert one.spec.key in str(caught.value)
    assert two.spec.key in str(caught.value)
    assert store.reader("visual", 9, key=two.spec.key).spec == two.spec
    assert store.reader("visual", 9, identity=one.spec.identity).spec == one.spec
    with pytest.raises(Mismatch, match="unknown key 'abc'"):
        store.reader("visual", 9, key="abc")


def test_identity_is_what_the_key_digests():
    spec = BoundarySpec(modality="audio", boundary=2, identity={"a": (1, 2)}, dtype="float16", shape=(3, 4))
    assert spec == replace(spec, identity={"a": [1, 2]})
    assert len(spec.key) == 12
    assert spec.name == f"b02-{spec.key}"
    others = [
        replace(spec, **change)
        for change in (
            {"identity": {"a": [1, 3]}},
            {"dtype": "bfloat16"},
            {"shape": (3, 5)},
            {"ragged": True},
            {"boundary": 3},
            {"inputs": {"ids": ArraySpec(dtype="int64")}},
        )
    ]
    assert len({spec.key, *(o.key for o in others)}) == 7
    for bad in ({"dtype": "int16"}, {"shape": ()}, {"shape": (0,)}, {"boundary": -1}, {"identity": {"a": {1}}}):
        with pytest.raises(SettingsError):
            replace(spec, **bad)
    with pytest.raises(SettingsError):
        replace(spec, modality="../up")
    with pytest.raises(SettingsError, match="not a SHA-256"):
        Item(key="abc", source="a")


def test_digests(tmp_path):
    (tmp_path / "f").write_text("ä")
    assert digest_file(tmp_path / "f") == digest_text("ä")
    assert canonical_json({"b": [1, 2.5, None], "a": "ä"}) == '{"a":"ä","b":[1,2.5,null]}'.encode()
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
    with pytest.raises(SettingsError):
        digest_json({"a": float("nan")})
    assert [d.field for d in differences({"a": 1, "b": {"c": True}}, {"a": 1, "b": {"c": 1}})] == ["b.c"]


@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [
        ("float16", 70000.0, r"reaches 70000, beyond float16 \(65504\); store bfloat16"),
        ("float16", np.nan, r"gave NaN at \(1, 2\).*store bfloat16"),
        ("float32", np.inf, r"gave Inf at \(1, 2\)"),
        ("bfloat16", 3.4e38, "beyond bfloat16.*store float32"),
        ("bfloat16", -np.inf, "gave Inf"),
    ],
)
def test_numbers_that_cannot_be_stored(dtype, value, words, make_sample, tmp_path):
    sample = make_sample(dtype=dtype, shape=(3, 4))
    items = sample.items(3)
    with sample.writer(FeatureStore.open(tmp_path / "s", "a"), items) as writer:
        (shard,) = writer.missing()
        states = list(sample.states(shard))
        states[1][0][1, 2] = value
        with pytest.raises(NumericsError, match=rf"visual boundary 9: item 'clips/1\.mp4'.*{words}"):
            writer.write(shard, states)
        assert writer.missing() == [shard]
    assert not list((tmp_path / "s").rglob("*partial*"))
    assert FeatureStore.open(tmp_path / "s").reader("visual", 9).items == ()


def test_inputs_must_fit(make_sample, tmp_path):
    sample = make_sample(inputs={"ids": ArraySpec(dtype="int8", shape=(2,))})
    items = sample.items(1)
    with sample.writer(FeatureStore.open(tmp_path / "s", "a"), items) as writer:
        (shard,) = writer.missing()
        with pytest.raises(NumericsError, match="input 'ids': int64 values do not fit the declared int8"):
            writer.write(shard, [(sample.state(items[0])[0], {"ids": np.array([1, 300])})])
        writer.write(shard, [(sample.state(items[0])[0], {"ids": np.array([1, -3])})])
    assert FeatureStore.open(tmp_path / "s").reader("visual", 9).read([items[0].key]).inputs["ids"].tolist() == [
        [1, -3]
    ]


def test_bfloat16_takes_every_form_of_it(make_sample, tmp_path):
    import ml_dtypes

    sample = make_sample("dense-bfloat16", shard_items=9)
    items = sample.items(4)
    with sample.writer(FeatureStore.open(tmp_path / "s", "a"), items) as writer:
        (shard,) = writer.missing()
        values = [sample.state(item)[0] for item in items]
        patterns = sample.stored(values[1])
        forms = [values[0], patterns, patterns.view(np.uint16), values[3].astype(ml_dtypes.bfloat16)]
        writer.write(shard, [(form, {}) for form in forms])
    batch = FeatureStore.open(tmp_path / "s").reader("visual", 9).read([i.key for i in items])
    assert batch.hidden.dtype == np.int16
    for got, value in zip(batch.hidden, [values[0], values[1], values[1], values[3]], strict=True):
        np.testing.assert_array_equal(got, sample.stored(value))


def test_another_provenance_is_recorded_and_said(make_sample, tmp_path, caplog):
    sample = make_sample()
    path = tmp_path / "s"
    sample.fill(path, sample.items(3), provenance={"device": "cpu", "torch": "2"})
    with caplog.at_level("WARNING", logger="talik.cache"):
        sample.fill(path, sample.items(6), provenance={"device": "cuda", "torch": "2"})
    assert "another provenance (device)" in caplog.text
    reader = FeatureStore.open(path).reader("visual", 9)
    assert [p["device"] for p in reader.catalog.provenance] == ["cpu", "cuda"]
    assert reader.catalog.receipts[:, 2].tolist() == [0, 1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_half_that_is_not_finite_is_seen(dtype):
    import ml_dtypes

    patterns = np.arange(1 << 16, dtype=np.uint16)
    finite = np.isfinite(patterns.view(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16).astype(np.float32))
    stored = patterns.view(np.int16 if dtype == "bfloat16" else np.float16)
    assert numerics.all_finite(stored[finite], dtype)
    assert not any(numerics.all_finite(stored[i : i + 1], dtype) for i in np.flatnonzero(~finite))
    assert numerics.all_finite(stored[:0], dtype)
