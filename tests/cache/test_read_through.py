"""The bounded cache of shards that a store in object storage is read through."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from talik.cache.atomic_io import temporary_beside
from talik.cache.feature_store import FeatureStore
from talik.cache.object_storage.client import Objects
from talik.cache.object_storage.mirror import Mirror
from talik.errors import StoreError, StoreLockedError

SHARD_BYTES = 3 * (2 * 3 * 4 * 2 + 4) + 3 * 16 + 4  # three items and their checksums, the index and its own


@pytest.fixture
def filled(make_sample, s3, tmp_path):
    """A store of eight shards in a new bucket, nothing of it in the reader's cache."""
    sample, url = make_sample(), f"{s3.bucket()}/s.zarr"
    items = sample.items(24)
    with sample.writer(FeatureStore.open(url, "a", cache_dir=str(tmp_path / "writer")), items) as writer:
        for shard in writer.missing():
            writer.write(shard, sample.states(shard))
    return sample, url, items


@pytest.fixture
def gets(monkeypatch):
    """The keys of shards that were got from the server."""
    found: list[str] = []
    real = Objects.get_file

    def get_file(self, key, *more):
        found.append(key)
        return real(self, key, *more)

    monkeypatch.setattr(Objects, "get_file", get_file)
    return found


def shards_in(cache: Path) -> dict[str, int]:
    """Bytes of the shards that were read through, parts of some included."""
    found = [p for p in cache.rglob("read/**/hidden/*") if p.name.startswith(("c.", ".c."))]
    return {path.name: path.stat().st_size for path in found}


def matches(sample, reader, items):
    batch = reader.read([item.key for item in items])
    np.testing.assert_array_equal(batch.hidden, np.stack([sample.stored(sample.state(i)[0]) for i in items]))


def opened(url, cache, gb=None, **more):
    return FeatureStore.open(url, cache_dir=str(cache), cache_gb=gb, **more).reader("visual", 9)


def test_a_shard_is_got_once_by_all_readers(filled, gets, tmp_path):
    sample, url, items = filled
    with opened(url, tmp_path / "c") as one, opened(url, tmp_path / "c") as other:
        for reader in (one, other, one):
            matches(sample, reader, items[::-1])
        assert len(gets) == 8
        assert list(shards_in(tmp_path / "c").values()) == [SHARD_BYTES] * 8
    with opened(url, tmp_path / "c") as again:
        matches(sample, again, items[4:9])
    assert len(gets) == 8


@pytest.mark.parametrize("path", ["mmap", "preadv"])
def test_it_never_exceeds_its_bound(path, filled, gets, tmp_path):
    sample, url, items = filled
    cache, bound = tmp_path / "c", 3.5 * SHARD_BYTES
    store = FeatureStore.open(url, cache_dir=str(cache), cache_gb=bound / 1e9)
    random = np.random.default_rng(0)
    with store.reader("visual", 9, path=path) as reader:
        for _ in range(20):
            asked = [items[i] for i in random.integers(0, len(items), 5)]
            matches(sample, reader, asked)
            assert sum(shards_in(cache).values()) <= bound
    assert len(shards_in(cache)) == 3
    assert len(gets) > 8  # some came twice


def test_the_longest_unused_goes_first_and_what_a_reader_holds_stays(filled, gets, tmp_path, caplog):
    sample, url, items = filled
    cache, gb = tmp_path / "c", 3 * SHARD_BYTES / 1e9
    with opened(url, cache, gb) as first:
        matches(sample, first, [items[0]])
        matches(sample, first, [items[3]])
        matches(sample, first, [items[6]])
    for number, name in enumerate(("c.1", "c.0", "c.2")):
        os.utime(next(cache.rglob(f"read/**/hidden/{name}.*")), (number, number))
    with opened(url, cache, gb) as holder, opened(url, cache, gb) as reader:
        matches(sample, holder, [items[3]])  # holds shard 1, the oldest until now
        matches(sample, reader, [items[9]])
        assert {name[:3] for name in shards_in(cache)} == {"c.1", "c.2", "c.3"}  # 0 was the oldest that nobody held
        for item in items[::3]:
            matches(sample, reader, [item])
            assert "c.1" in {name[:3] for name in shards_in(cache)}
        before = len(gets)
        matches(sample, holder, items[3:6])
        assert len(gets) == before
        assert not caplog.records
    with opened(url, cache, 0.5 * SHARD_BYTES / 1e9) as narrow, caplog.at_level(logging.WARNING):
        matches(sample, narrow, [items[12]])
        assert "raise it" in caplog.text


def test_a_part_of_a_shard_is_never_read(filled, tmp_path):
    sample, url, items = filled
    with opened(url, tmp_path / "c") as reader:
        matches(sample, reader, items)
    whole = next((tmp_path / "c").rglob("read/**/hidden/c.2.*"))
    content = whole.read_bytes()
    whole.unlink()
    temporary_beside(whole).write_bytes(content[:20])  # as a killed process leaves it
    with opened(url, tmp_path / "c") as reader:
        matches(sample, reader, items)
    assert whole.read_bytes() == content
    assert not temporary_beside(whole).exists()


def test_a_shard_stays_though_another_reader_opens_meanwhile(filled, gets, tmp_path, monkeypatch):
    sample, url, items = filled
    real = Mirror.note

    def note(self, tags):
        FeatureStore.open(url, cache_dir=str(tmp_path / "c"))
        real(self, tags)

    monkeypatch.setattr(Mirror, "note", note)
    with opened(url, tmp_path / "c") as reader:
        matches(sample, reader, items)
    assert len(gets) == len(shards_in(tmp_path / "c")) == 8


def test_damage_in_the_cache_is_mended(filled, gets, tmp_path):
    sample, url, items = filled
    with opened(url, tmp_path / "c") as reader:
        matches(sample, reader, items)
    for name, cut in (("c.2", 30), ("c.5", None)):
        path = next((tmp_path / "c").rglob(f"read/**/hidden/{name}.*"))
        content = bytearray(path.read_bytes())
        content[3] ^= 1
        path.write_bytes(content[:cut])
    with opened(url, tmp_path / "c") as reader:
        matches(sample, reader, items)
    assert len(gets) > 8


def test_the_server_dies_while_a_reader_is_open(filled, s3, tmp_path):
    sample, url, items = filled
    with opened(url, tmp_path / "c", storage_options={"retry_seconds": 0.3}) as reader:
        matches(sample, reader, items[:12])
        s3.kill()
        matches(sample, reader, items[:12])
        with pytest.raises(StoreError, match=rf"{url}/visual/.*{s3.endpoint} has not answered for 0.3 s"):
            reader.read([item.key for item in items])
        held = shards_in(tmp_path / "c")
        assert held
        assert not any(name.startswith(".") for name in held)
        s3.start()
        matches(sample, reader, items)


def test_what_was_added_since_is_seen_when_opened_again(filled, gets, tmp_path):
    sample, url, items = filled
    more = sample.items(30)
    with opened(url, tmp_path / "c") as reader:
        matches(sample, reader, items)
        with sample.writer(FeatureStore.open(url, "a", cache_dir=str(tmp_path / "writer")), more) as writer:
            with pytest.raises(StoreLockedError, match="already has a writer"):
                sample.writer(FeatureStore.open(url, "a", cache_dir=str(tmp_path / "writer")), more)
            for shard in writer.missing():
                writer.write(shard, sample.states(shard))
        matches(sample, reader, items)
    with opened(url, tmp_path / "c") as reader:
        matches(sample, reader, more)
    assert len(gets) == 10


def test_a_full_disk(filled, tmp_path, monkeypatch):
    sample, url, items = filled

    def pwrite(descriptor, content, begin):
        raise OSError(28, "No space left on device")

    with opened(url, tmp_path / "c") as reader:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", pwrite)
            with pytest.raises(StoreError, match="the disk is full"):
                reader.read([items[0].key])
        matches(sample, reader, items)
