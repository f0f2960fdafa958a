"""Whichever way bytes are reached, the same values come, and damage is an error that names its place."""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import threading
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from talik.cache.feature_store import FeatureStore
from talik.cache.format.crc32c import extend_crc32c
from talik.cache.format.sharding import ABSENT
from talik.cache.read import direct_shards as direct
from talik.cache.read import local_rows as rows
from talik.cache.read.batch import BatchMemory, BufferPool
from talik.cache.read.mmap_shards import FileMap
from talik.cache.read.shard_reader import read_index
from talik.errors import CorruptItemError, SettingsError


def ways(reader) -> tuple[int, int]:
    """Return how many shards are open by map, and how many as files."""
    return len(reader.rows.maps), len(reader.rows.files)


def read_all(sample, store, items, /, **more):
    """Check all values by `sample.check`, and return a reader that has read them."""
    sample.check(store, items, **more)
    reader = FeatureStore.open(store).reader(sample.spec.modality, 9, **more)
    reader.read([i.key for i in items])
    return reader


@pytest.fixture
def reached(request, monkeypatch) -> str:
    """The path of reading; of "cached" it is `auto`, which finds nothing in memory."""
    if request.param == "cached":
        monkeypatch.setattr(FileMap, "resident", lambda *about: False)
    return "auto" if request.param == "cached" else request.param


by_every_way = pytest.mark.parametrize("reached", ["mmap", "cached", "preadv"], indirect=True)


@pytest.mark.parametrize("path", ["mmap", "preadv", "auto"])
def test_the_same_values_by_every_path(path, sample, tmp_path):
    items = sample.items(11)
    sample.fill(tmp_path / "s", items[:4])
    sample.fill(tmp_path / "s", items)
    order = [*items[::-1], items[3], items[3]]
    for verify in ("first", "always", "never"):
        reader = read_all(sample, tmp_path / "s", order, path=path, verify=verify)
        maps, files = ways(reader)
        assert (maps > 0) == (path != "preadv")
        assert (files > 0) == (path == "preadv")
        reader.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("talik-read")]


def test_an_unknown_path(make_sample, tmp_path):
    sample = make_sample()
    sample.fill(tmp_path / "s", sample.items(1))
    with pytest.raises(SettingsError, match="unknown path of reading 'pread'; did you mean 'preadv'"):
        FeatureStore.open(tmp_path / "s").reader("visual", 9, path="pread")


@by_every_way
@pytest.mark.parametrize("large", [(700, 1000), (3, 100_000)])
def test_items_of_many_blocks(large, reached, make_sample, tmp_path):
    """Longer than a block, and not of whole pages, so that blocks begin and end inside items."""
    sample = make_sample(shape=large, dtype="float32")
    items = sample.items(5)
    sample.fill(tmp_path / "s", items)
    read_all(sample, tmp_path / "s", items, path=reached, verify="always")


@pytest.mark.parametrize("name", ["dense-inputs", "ragged"])
def test_a_large_batch_is_copied_by_several_threads(name, make_sample, tmp_path, monkeypatch):
    sample = make_sample(name)
    items = sample.items(9)
    sample.fill(tmp_path / "s", items)
    reader = read_all(sample, tmp_path / "s", items, path="mmap")
    assert reader.rows.pool is None, "a small one is not"
    expected = reader.read([i.key for i in items])
    monkeypatch.setattr(rows, "_BYTES_A_COPIER", 1)
    reader.rows.copiers = 4
    found = reader.read([i.key for i in items])
    assert reader.rows.pool is not None
    assert np.array_equal(found.hidden, expected.hidden)
    assert found.inputs.keys() == expected.inputs.keys()
    assert all(np.array_equal(found.inputs[key], expected.inputs[key]) for key in expected.inputs)
    reader.close()
    checking = FeatureStore.open(tmp_path / "s").reader(sample.spec.modality, 9, path="mmap", verify="always")
    checking.rows.copiers = 3
    found = checking.read([i.key for i in items])
    assert checking.rows.pool is not None
    assert np.array_equal(found.hidden, expected.hidden)
    checking.close()


def test_without_direct_reads(sample, tmp_path, monkeypatch):
    """tmpfs and some network file systems refuse O_DIRECT."""
    monkeypatch.setattr(direct, "can_bypass_cache", lambda path: False)
    sample.fill(tmp_path / "s", sample.items(7))
    reader = read_all(sample, tmp_path / "s", sample.items(7), path="preadv")
    assert reader.rows.files.open.direct is False


def test_a_network_file_system_is_never_mapped(sample, tmp_path, monkeypatch):
    sample.fill(tmp_path / "s", sample.items(7))
    assert not direct.is_network(tmp_path)
    monkeypatch.setattr(direct, "file_system_type", lambda path: 0x6969)
    monkeypatch.setattr(FileMap, "__init__", lambda self, path: pytest.fail(f"{path} was mapped"))
    for path in ("auto", "mmap", "preadv"):
        maps, files = ways(read_all(sample, tmp_path / "s", sample.items(7), path=path))
        assert (maps, files > 0) == (0, True)


def test_the_path_follows_what_is_in_memory(make_sample, tmp_path, monkeypatch):
    sample = make_sample()
    items = sample.items(9)
    keys = [i.key for i in items]
    sample.fill(tmp_path / "s", items)
    seen = []
    monkeypatch.setattr(FileMap, "resident", lambda self, begin, size: seen.append(begin) or False)
    reader = read_all(sample, tmp_path / "s", items)
    assert seen
    assert len(reader.rows.cached) == 3, "what fits in memory is read through the page cache, to be there the next time"
    assert ways(reader)[1] == 0
    assert reader.rows.pool is not None
    assert sorted(reader.rows.absent(_Nowhere(), reader.rows_of(keys))) == list(range(9)), "pushed out since"
    reader.rows.beyond_memory = True
    reader.read(keys)
    assert ways(reader)[1] == 3, "what does not fit is read past the page cache"
    monkeypatch.setattr(FileMap, "resident", lambda self, begin, size: True)
    assert reader.rows.absent(_Nowhere(resident=True), reader.rows_of(keys)) == []


class _Nowhere:
    """A job whose rows are in memory, or not."""

    def __init__(self, resident: bool = False) -> None:
        self.answer = resident

    def resident(self, i, get):
        return self.answer


def test_what_the_kernel_says_is_in_memory(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(os.urandom(1 << 20))
    found = FileMap(path)
    assert found.resident(0, 1 << 20)
    if os.access("/proc/self/statm", os.R_OK):
        empty = tmp_path / "hole"
        with open(empty, "wb") as file:
            file.truncate(1 << 22)
        assert not FileMap(empty).resident(1 << 21, 4096), "a hole has no page until it is read"


@by_every_way
@pytest.mark.parametrize("name", ["dense-inputs", "ragged"])
def test_a_corrupt_item_names_its_place_by_every_path(name, reached, make_sample, tmp_path):
    sample = make_sample(name)
    items = sample.items(9)
    sample.fill(tmp_path / "s", items)
    data = next((tmp_path / "s" / sample.spec.path / "hidden").glob("c.1.*"))
    content = bytearray(data.read_bytes())
    content[1] ^= 16  # of the shard's first item that has tokens
    data.write_bytes(content)
    reader = FeatureStore.open(tmp_path / "s").reader(sample.spec.modality, 9, path=reached)
    row_of = {int(r): i for r, i in zip(reader.rows_of([i.key for i in items]), items, strict=True)}
    in_shard = sorted(r for r in row_of if r // reader.catalog.layout.grid.rows_per_shard == 1)
    bad = row_of[next(r for r in in_shard if not sample.spec.ragged or sample.length(row_of[r]))]
    ahead = reader.prefetch([[i.key for i in items if i != bad], [i.key for i in items], [items[0].key]])
    next(ahead)
    with pytest.raises(CorruptItemError) as caught:
        next(ahead)
    for word in (str(tmp_path / "s"), sample.spec.path, repr(bad.source), "shard 1", "repair"):
        assert word in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (CorruptItemError, str(caught.value))
    assert not [t for t in threading.enumerate() if t.name == "talik-prefetch"]
    with pytest.raises(CorruptItemError):
        reader.read([bad.key])  # never taken for checked
    reader.close()


@by_every_way
@pytest.mark.parametrize("name", ["dense", "ragged"])
def test_chunks_in_any_order(name, reached, make_sample, tmp_path, monkeypatch):
    """Another writer may put them so; the index says where each is, and is parsed once."""
    monkeypatch.setattr("talik.cache.format.layout.TARGET_CHUNK_BYTES", 16)  # one token a chunk
    sample = make_sample(name)
    items = sample.items(7)
    sample.fill(tmp_path / "s", items)
    reader = FeatureStore.open(tmp_path / "s").reader(sample.spec.modality, 9)
    array = reader.catalog.layout.data[0]
    for shard in range(reader.catalog.num_shards):
        _turn_round(array, shard, reader.catalog.layout.where)
    parsed = []
    monkeypatch.setattr(
        "talik.cache.read.shard_reader.read_index", lambda *about: parsed.append(about[:2]) or read_index(*about)
    )
    reader = read_all(sample, tmp_path / "s", items[::-1], path=reached, verify="always")
    parsed.clear()
    reader = FeatureStore.open(tmp_path / "s").reader(sample.spec.modality, 9, path=reached)
    for _ in range(3):
        reader.read([i.key for i in items])
    assert len(parsed) == len(set(parsed)) > 0
    reader.close()


def _turn_round(array, shard: int, where: str) -> None:
    """Write the shard's chunks in reverse order, with an index that says so."""
    path = array.shard_path(shard)
    content = path.read_bytes()
    stored = read_index(array, shard, where)
    begins = [stored.item(slot) for slot in range(array.chunks_per_shard)]
    index = np.full((array.chunks_per_shard, 2), ABSENT, "<u8")
    turned = b""
    for slot in reversed(range(array.chunks_per_shard)):
        if begins[slot] >= 0:
            index[slot] = len(turned), array.stored_chunk_bytes
            turned += content[begins[slot] : begins[slot] + array.stored_chunk_bytes]
    path.write_bytes(turned + index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little"))
    assert path.stat().st_size == len(content)


@pytest.mark.parametrize("reached", ["cached", "preadv"], indirect=True)
def test_a_file_that_got_shorter_while_open(reached, make_sample, tmp_path):
    sample = make_sample(shape=(100, 100))
    items = sample.items(3)
    sample.fill(tmp_path / "s", items)
    reader = FeatureStore.open(tmp_path / "s").reader("visual", 9, path=reached, verify="always")
    reader.read([i.key for i in items])
    os.truncate(next((tmp_path / "s" / sample.spec.path / "hidden").glob("c.0.*")), 30_000)
    with pytest.raises(CorruptItemError, match=r"shard 0 of hidden: ends before byte \d+"):
        reader.read([items[2].key])
    reader.close()


@pytest.mark.parametrize("size", [0, 9, 1000, 1 << 16, (1 << 20) + 3])
def test_checksums_are_those_of_the_library(size):
    values = np.frombuffer(os.urandom(size), np.uint8)
    assert extend_crc32c(0, values) == google_crc32c.value(values.tobytes())
    assert extend_crc32c(77, values) == google_crc32c.extend(77, values.tobytes())


def test_open_files_are_bounded(make_sample, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_MAX_DESCRIPTORS", 5)
    sample = make_sample(shard_items=1)
    items = sample.items(40)
    sample.fill(tmp_path / "s", items)
    before = len(os.listdir("/proc/self/fd"))
    reader = read_all(sample, tmp_path / "s", items, path="preadv")
    assert ways(reader) == (0, 5)
    assert len(os.listdir("/proc/self/fd")) <= before + 5 + 1
    reader.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_memory_of_the_callers_own(make_sample, tmp_path):
    """As pinned memory is: from the caller's function, used again once a batch is released."""
    given = []

    def allocate(size_bytes):
        memory = np.frombuffer(mmap.mmap(-1, size_bytes), np.uint8)
        given.append(memory.__array_interface__["data"][0])
        return memory

    sample = make_sample(shape=(300, 200))
    items = sample.items(6)
    sample.fill(tmp_path / "s", items)
    reader = FeatureStore.open(tmp_path / "s").reader("visual", 9, allocate=allocate)
    addresses = set()
    for batch in reader.prefetch([[i.key for i in items]] * 12):
        with batch:
            addresses.add(batch.hidden.ctypes.data)
    assert addresses == set(given)
    assert len(given) <= 5
    sample.check(tmp_path / "s", items, allocate=allocate)


def test_a_longer_batch_fits_in_the_buffer_of_a_little_shorter_one():
    sizes = []
    pool = BufferPool(allocate=lambda size: sizes.append(size) or np.empty(size, np.uint8))
    for count in (100_000, 101_000, 99_000, 102_000):
        memory = BatchMemory(pool)
        assert memory.allocate((count,), np.dtype(np.uint8)).shape == (count,)
        memory.release()
    assert len(sizes) == 1
    assert sizes[0] < 1.3 * 100_000


def test_maps_are_bounded_and_what_was_read_by_address_stays_right(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_MAPS", 3)
    items = sample.items(12)
    sample.fill(tmp_path / "s", items)
    keys = [i.key for i in items]
    reader = FeatureStore.open(tmp_path / "s").reader(sample.spec.modality, 9)
    expected = reader.read(keys)
    copied = []
    monkeypatch.setattr(rows.MappedAddresses, "copy", _noting(rows.MappedAddresses.copy, copied))
    for start in (0, 0, 3, 3, 9, 9, 0, 0):  # a shard's items, twice each: the second time by address
        part = reader.read(keys[start : start + 3])
        width = part.hidden.shape[1]
        np.testing.assert_array_equal(part.hidden, expected.hidden[start : start + 3, :width])
        for name, values in part.inputs.items():
            np.testing.assert_array_equal(values, expected.inputs[name][start : start + 3, :width])
        assert len(reader.rows.maps) <= 3
    assert copied
    reader.close()
    np.testing.assert_array_equal(reader.read(keys).hidden, expected.hidden)


def _noting(real, calls):
    def call(*arguments):
        calls.append(arguments[1])
        return real(*arguments)

    return call


def test_by_address_only_what_was_checked(make_sample, tmp_path, monkeypatch):
    sample = make_sample()
    items = sample.items(6)
    sample.fill(tmp_path / "s", items)
    monkeypatch.setattr(rows.MappedAddresses, "copy", lambda *about: pytest.fail("copied without a checksum"))
    for verify in ("first", "always"):
        reader = FeatureStore.open(tmp_path / "s").reader("visual", 9, verify=verify)
        reader.read([items[0].key])
        reader.read([items[0].key, items[1].key])
        if verify == "always":
            reader.read([items[0].key])


def test_what_was_pushed_out_comes_by_the_threads_again(make_sample, tmp_path, monkeypatch):
    sample = make_sample()
    items = sample.items(6)
    sample.fill(tmp_path / "s", items)
    reader = FeatureStore.open(tmp_path / "s").reader("visual", 9)
    keys = [i.key for i in items]
    before = reader.read(keys).hidden
    assert reader.rows.pool is None
    monkeypatch.setattr(rows.MappedAddresses, "resident", lambda *about: False)
    monkeypatch.setattr(FileMap, "resident", lambda *about: False)
    np.testing.assert_array_equal(reader.read(keys).hidden, before)
    assert reader.rows.pool is not None
    reader.close()


def test_a_reader_that_is_dropped_leaves_no_map(make_sample, tmp_path):
    """Without the garbage collector: a map keeps its pages in memory and its file's blocks on the disk."""
    sample = make_sample()
    sample.fill(tmp_path / "s", sample.items(6))
    gc.disable()
    try:
        reader = FeatureStore.open(tmp_path / "s").reader("visual", 9)
        reader.read([i.key for i in sample.items(6)])
        assert str(tmp_path) in Path("/proc/self/maps").read_text()
        del reader
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    finally:
        gc.enable()
