"""Remote and compressed copies of a store read through zarr-python, behind the same interface."""

from __future__ import annotations

import itertools
import pickle
import shutil

import fsspec
import numpy as np
import pytest
import zarr

from talik.cache.feature_store import FeatureStore
from talik.cache.format import bfloat16
from talik.errors import CorruptItemError, MissingItemError, SettingsError, StoreError, StoreFormatError

_numbers = itertools.count()


@pytest.fixture
def in_memory():
    """Give a function that copies a store to fsspec's memory:// and returns the URL."""

    def copy(path):
        url = f"memory://talik{next(_numbers)}/s.zarr"
        fsspec.filesystem("memory").put(str(path), url, recursive=True)
        return url

    return copy


def recompressed(path, target, **codecs):
    """Copy a store array by array with other codecs and other chunks, as a user would with zarr-python."""
    bfloat16.register()
    source, copy = zarr.open_group(path, mode="r"), zarr.open_group(target, mode="w", zarr_format=3)
    copy.attrs.update(source.attrs.asdict())
    for name, member in sorted(source.members(max_depth=None)):
        if isinstance(member, zarr.Group):
            copy.require_group(name).attrs.update(member.attrs.asdict())
            continue
        array = copy.create_array(
            name,
            shape=member.shape,
            dtype=member.dtype,
            chunks=(5 if 5 < member.shape[0] < 100 else max(member.shape[0], 1), *member.shape[1:]),
            fill_value=member.fill_value,
            **codecs,
        )
        array[:] = member[:]
    return f"file://{target}"


def check(sample, url, items, **more):
    """Read `items` by the URL and compare with the sample's own values, and all else that a reader gives."""
    with FeatureStore.open(url).reader(sample.spec.modality, 9, **more) as reader:
        batch = reader.read([item.key for item in items])
        assert reader.spec == sample.spec
        assert {i.source for i in items} <= {i.source for i in reader.items}
        if sample.spec.ragged:
            assert reader.lengths_of([i.key for i in items]).tolist() == sample.lengths(items)
        for again in reader.prefetch([[item.key for item in items]] * 2):
            np.testing.assert_array_equal(again.hidden, batch.hidden)
    for i, item in enumerate(items):
        hidden, inputs = sample.state(item)
        whole = slice(0, len(hidden) if sample.spec.ragged else None)
        np.testing.assert_array_equal(batch.hidden[i][whole], sample.stored(hidden))
        assert not (sample.spec.ragged and batch.hidden[i][len(hidden) :].any())
        for name, values in inputs.items():
            np.testing.assert_array_equal(batch.inputs[name][i][whole], values)


def test_a_remote_store(sample, tmp_path, in_memory):
    items = sample.items(11)
    sample.fill(tmp_path / "s", items[:4])
    sample.fill(tmp_path / "s", items)
    url = in_memory(tmp_path / "s")
    check(sample, url, [*items[::-1], items[3], items[3]])
    check(sample, url, items, verify="always")
    store = FeatureStore.open(url)
    assert store.boundaries() == (sample.spec,)
    assert store.reader(sample.spec.modality, 9, identity=sample.spec.identity).read([]).hidden.shape[0] == 0
    with pytest.raises(MissingItemError):
        store.reader(sample.spec.modality, 9).read(["f" * 64])


def test_a_compressed_copy(sample, tmp_path):
    items = sample.items(8)
    sample.fill(tmp_path / "s", items[:3])
    sample.fill(tmp_path / "s", items)
    url = recompressed(tmp_path / "s", tmp_path / "copy", compressors=[zarr.codecs.ZstdCodec(level=3)])
    check(sample, url, items[::-1])
    with pytest.raises(StoreFormatError):
        FeatureStore.open(tmp_path / "copy")  # its metadata is not ours: by URL only


def test_damage_names_the_item(make_sample, tmp_path, in_memory):
    for name in ("dense-inputs", "ragged"):
        sample = make_sample(name)
        items = sample.items(8)
        sample.fill(tmp_path / name, items)
        bad = max(items[3:6], key=lambda i: 1 if not sample.spec.ragged else sample.length(i))
        if sample.spec.ragged:
            reader = FeatureStore.open(tmp_path / name).reader("text", 9)
            row = int(reader.rows_of([bad.key])[0])
            grid = reader.catalog.layout.grid
            shard = row // grid.rows_per_shard
            at = int(reader.catalog.offsets[row] - shard * grid.tokens_per_shard) * sample.spec.hidden_bytes
        else:
            shard, at = divmod(items.index(bad), 3)
            at *= sample.spec.hidden_bytes + 4
        data = next((tmp_path / name / sample.spec.path / "hidden").glob(f"c.{shard}.*"))
        content = bytearray(data.read_bytes())
        content[at + 1] ^= 4
        data.write_bytes(content)
        url = in_memory(tmp_path / name)
        reader = FeatureStore.open(url).reader(sample.spec.modality, 9)
        with pytest.raises(CorruptItemError) as caught:
            reader.read([i.key for i in items])
        for word in (sample.spec.path, repr(bad.source), f"shard {shard}"):
            assert word in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        with pytest.raises(CorruptItemError):
            list(reader.prefetch([[bad.key]]))
        good = [i for i in items if i != bad]
        assert len(reader.read([i.key for i in good]).hidden) == 7


@pytest.mark.parametrize("gone", ["hidden", "inputs/grid"])
def test_a_missing_file_is_not_read_as_its_fill_value(gone, make_sample, tmp_path, in_memory):
    sample = make_sample("dense-inputs")
    items = sample.items(6)
    sample.fill(tmp_path / "s", items)
    next((tmp_path / "s" / sample.spec.path / gone).glob("c.1.*")).unlink()
    reader = FeatureStore.open(in_memory(tmp_path / "s")).reader("visual", 9)
    assert len(reader.read([i.key for i in items[:3]]).hidden) == 3
    with pytest.raises(CorruptItemError, match=rf"clips/4\.mp4.*shard 1.*{gone}/c\.1.* missing"):
        reader.read([items[4].key])


def test_damaged_metadata_is_refused(make_sample, tmp_path, in_memory):
    sample = make_sample()
    sample.fill(tmp_path / "s", sample.items(5))
    for name, old, new in [
        (sample.spec.path, b'"generations":[[0,5]]', b'"generations":[[0,4]]'),
        ("", b"feature", b"fixture"),
    ]:
        shutil.copytree(tmp_path / "s", tmp_path / "t", dirs_exist_ok=True)
        document = tmp_path / "t" / name / "zarr.json"
        content = document.read_bytes()
        assert old in content
        document.write_bytes(content.replace(old, new))
        with pytest.raises(StoreFormatError, match="digest"):
            FeatureStore.open(in_memory(tmp_path / "t")).reader("visual", 9)
    key = next((tmp_path / "s" / sample.spec.path / "items" / "key").glob("c.*"))
    content = bytearray(key.read_bytes())
    content[40] ^= 1
    key.write_bytes(content)
    with pytest.raises(CorruptItemError, match="small array"):
        FeatureStore.open(in_memory(tmp_path / "s")).reader("visual", 9)


def test_what_a_url_cannot_be(make_sample, tmp_path, in_memory):
    sample = make_sample()
    sample.fill(tmp_path / "s", sample.items(2))
    url = in_memory(tmp_path / "s")
    with pytest.raises(SettingsError, match="only read"):
        FeatureStore.open(url, "a")
    with pytest.raises(SettingsError, match="zarr-python alone"):
        FeatureStore.open(url).reader("visual", 9, path="mmap")
    with pytest.raises(StoreFormatError, match="no store"):
        FeatureStore.open("memory://nothing-here")
    with pytest.raises(SettingsError, match="cannot be opened"):
        FeatureStore.open("gopher9://x/y")
    zarr.open_group(str(tmp_path / "other"), mode="w", zarr_format=3)
    with pytest.raises(StoreError, match="talik"):
        FeatureStore.open(f"file://{tmp_path / 'other'}")
