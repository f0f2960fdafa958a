"""What is written is what is read, in any order, over any number of extensions."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talik.cache.feature_store import ArraySpec, BoundaryRequest, BoundarySpec, FeatureStore, Item
from talik.cache.format.digests import digest_text
from talik.cache.format.layout import TARGET_SHARD_BYTES, Grid
from talik.cache.maintenance.verify import verify
from talik.cache.open import open_store
from talik.errors import MissingItemError, SettingsError, StoreError, StoreFullError, StoreMismatchError


def test_every_kind_comes_back(sample, tmp_path):
    items = sample.items(10)
    assert sample.fill(tmp_path / "s", items) == 4
    sample.check(tmp_path / "s", items)
    sample.check(tmp_path / "s", items[::-1] + items[2:4], verify="always")
    assert verify(open_store(tmp_path / "s")) == []


def test_a_second_run_has_nothing_to_do(sample, tmp_path, tree):
    sample.fill(tmp_path / "s", sample.items(7), provenance={"device": "cpu"})
    before = tree(tmp_path / "s")
    assert sample.fill(tmp_path / "s", sample.items(7), provenance={"device": "cpu"}) == 0
    assert tree(tmp_path / "s") == before


def test_extension_keeps_rows_and_files(sample, tmp_path, tree):
    sample.fill(tmp_path / "s", sample.items(7))
    spec = sample.spec
    rows = FeatureStore.open(tmp_path / "s").reader(spec.modality, 9).rows_of([i.key for i in sample.items(7)])
    before = {p: b for p, b in tree(tmp_path / "s").items() if "/hidden/c" in p or ("/inputs/" in p and "/c" in p)}
    assert sample.fill(tmp_path / "s", sample.items(12)) == 2
    after = tree(tmp_path / "s")
    assert before.items() <= after.items()
    reader = FeatureStore.open(tmp_path / "s").reader(spec.modality, 9)
    np.testing.assert_array_equal(reader.rows_of([i.key for i in sample.items(7)]), rows)
    assert sorted(i.source for i in reader.items) == sorted(i.source for i in sample.items(12))
    sample.check(tmp_path / "s", sample.items(12))
    assert verify(open_store(tmp_path / "s")) == []


def test_rows_follow_the_order_given(make_sample, tmp_path):
    sample = make_sample()
    items = sample.items(6)[::-1]
    sample.fill(tmp_path / "s", items)
    reader = FeatureStore.open(tmp_path / "s").reader("visual", 9)
    assert reader.items == tuple(items)
    assert reader.rows_of([i.key for i in items]).tolist() == list(range(6))
    assert reader.row_by_source == {item.source: row for row, item in enumerate(items)}


def test_two_names_of_one_content_are_one_row(make_sample, tmp_path):
    sample = make_sample()
    first, second = sample.items(2)
    copy = replace(first, source="copy.mp4")
    assert sample.fill(tmp_path / "s", [first, copy, second]) == 1
    reader = FeatureStore.open(tmp_path / "s").reader("visual", 9)
    assert reader.row_by_source == {first.source: 0, "copy.mp4": 0, second.source: 1}
    assert len(reader.items) == 2


def test_a_moved_file_keeps_its_row_and_a_changed_one_gets_another(make_sample, tmp_path):
    sample = make_sample()
    items = sample.items(3)
    sample.fill(tmp_path / "s", items)
    moved = replace(items[0], source="elsewhere/0.mp4")
    changed = Item(key=digest_text("new content"), source=items[1].source, size_bytes=9)
    assert sample.fill(tmp_path / "s", [moved, changed, items[2]]) == 1
    reader = FeatureStore.open(tmp_path / "s").reader("visual", 9)
    assert reader.row_by_source == {items[0].source: 0, "elsewhere/0.mp4": 0, items[1].source: 3, items[2].source: 2}
    assert reader.items[0] == moved
    sample.check(tmp_path / "s", [moved, changed, items[1]])


def test_an_item_given_up_before_it_was_computed(sample, tmp_path):
    """A clip that cannot be decoded is taken out of the manifest: the rest of its shard is written without it."""
    items = sample.items(6)
    store = FeatureStore.open(tmp_path / "s", "a")
    with sample.writer(store, items):
        pass
    kept = items[:1] + items[2:]
    assert sample.fill(tmp_path / "s", kept) == 2
    sample.check(tmp_path / "s", kept)
    with pytest.raises(MissingItemError, match=items[1].key[:12]):
        sample.check(tmp_path / "s", items)
    assert sample.fill(tmp_path / "s", items) == 1
    sample.check(tmp_path / "s", items)
    assert verify(open_store(tmp_path / "s")) == []


def test_what_is_not_computed_yet_is_said_to_be_so(sample, tmp_path):
    items = sample.items(5)
    with sample.writer(FeatureStore.open(tmp_path / "s", "a"), items) as writer:
        first, second = writer.missing()
        writer.write(second, sample.states(second))
        assert [s.index for s in writer.missing()] == [first.index]
    reader = FeatureStore.open(tmp_path / "s").reader(sample.spec.modality, 9)
    assert reader.items == second.items
    with pytest.raises(MissingItemError, match=r"clips/0\.mp4.* no data yet"):
        reader.read([items[0].key])
    with pytest.raises(MissingItemError, match="64 hex digits"):
        reader.read(["clips/0.mp4"])


def test_no_items_at_all(sample, tmp_path):
    assert sample.fill(tmp_path / "s", []) == 0
    reader = FeatureStore.open(tmp_path / "s").reader(sample.spec.modality, 9)
    assert reader.items == ()
    assert len(reader.read([]).hidden) == 0
    with pytest.raises(MissingItemError):
        reader.read([digest_text("x")])
    sample.fill(tmp_path / "s", sample.items(4))
    sample.check(tmp_path / "s", sample.items(4))
    assert len(FeatureStore.open(tmp_path / "s").reader(sample.spec.modality, 9).read([]).hidden) == 0


def test_a_batch_is_the_callers_own(sample, tmp_path):
    items = sample.items(8)
    sample.fill(tmp_path / "s", items)
    with FeatureStore.open(tmp_path / "s").reader(sample.spec.modality, 9) as reader:
        keys = [item.key for item in items]
        held = reader.read(keys)
        kept = held.hidden.copy()
        other = reader.read(keys[::-1])
        other.hidden[:] = 1
        np.testing.assert_array_equal(held.hidden, kept)
        np.testing.assert_array_equal(reader.read(keys).hidden, kept)


def test_large_buffers_are_used_again_only_when_released(make_sample, tmp_path):
    sample = make_sample(shape=(100, 200))
    items = sample.items(4)
    sample.fill(tmp_path / "s", items)
    reader = FeatureStore.open(tmp_path / "s").reader("visual", 9)
    keys = [item.key for item in items]
    part = reader.read(keys).hidden[1:, 5]  # its batch is dropped, and never released
    kept = part.copy()
    for _ in range(20):
        again = reader.read(keys[::-1])
        assert not np.shares_memory(again.hidden, part)
        again.release()
    np.testing.assert_array_equal(part, kept)
    with reader.read(keys) as batch:
        first = batch.hidden.ctypes.data
    assert reader.read(keys).hidden.ctypes.data == first


def test_a_released_batch_shows_nothing(sample, tmp_path):
    items = sample.items(4)
    sample.fill(tmp_path / "s", items)
    with FeatureStore.open(tmp_path / "s").reader(sample.spec.modality, 9) as reader:
        batch = reader.read([item.key for item in items])
        batch.release()
        batch.release()
        for name in ("hidden", "lengths", "inputs"):
            with pytest.raises(StoreError, match="released"):
                getattr(batch, name)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    cut=st.integers(0, 30),
    shard_items=st.integers(1, 9),
    width=st.integers(1, 5),
    order=st.randoms(use_true_random=False),
)
def test_ragged_round_trip(lengths, cut, shard_items, width, order):
    spec = BoundarySpec(
        modality="text",
        boundary=0,
        identity={"w": 1},
        dtype="float32",
        shape=(width,),
        ragged=True,
        inputs={"ids": ArraySpec(dtype="int32"), "pair": ArraySpec(dtype="uint8", shape=(2,))},
    )
    items = [Item(key=digest_text(str(i)), source=str(i)) for i in range(len(lengths))]
    values = {
        item.key: (
            np.full((n, width), i, np.float32) + np.arange(n)[:, None],
            {"ids": np.arange(n, dtype=np.int32), "pair": np.full((n, 2), i % 256, np.uint8)},
        )
        for i, (item, n) in enumerate(zip(items, lengths, strict=True))
    }
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore.open(Path(folder) / "s", "a")
        for count in sorted({min(cut, len(items)), len(items)}):
            with store.writer(
                spec, items[:count], lengths=lengths[:count], max_seconds_per_item=60 / shard_items
            ) as writer:
                for shard in writer.missing():
                    writer.write(shard, (values[item.key] for item in shard.items))
        keys = [item.key for item in items]
        order.shuffle(keys)
        batch = store.reader("text", 0).read(keys)
        for i, key in enumerate(keys):
            hidden, inputs = values[key]
            assert batch.lengths[i] == len(hidden)
            np.testing.assert_array_equal(batch.hidden[i, : len(hidden)], hidden)
            assert not batch.hidden[i, len(hidden) :].any()
            for name, expected in inputs.items():
                np.testing.assert_array_equal(batch.inputs[name][i, : len(hidden)], expected)
        assert verify(open_store(store.path)) == []


def test_shards_are_bounded_by_bytes_and_by_time():
    spec = BoundarySpec(modality="visual", boundary=1, identity={}, dtype="float16", shape=(10, 197, 768))
    by_bytes = Grid.choose(spec, num_items=9000, longest=1, max_seconds_per_item=0.01)
    assert 64e6 <= by_bytes.rows_per_shard * spec.hidden_bytes <= TARGET_SHARD_BYTES
    assert Grid.choose(spec, num_items=9000, longest=1, max_seconds_per_item=3.0).rows_per_shard == 20
    assert Grid.choose(spec, num_items=9000, longest=1, max_seconds_per_item=500.0).rows_per_shard == 1
    huge = replace(spec, shape=(100, 1000, 4000))
    assert Grid.choose(huge, num_items=1, longest=1, max_seconds_per_item=None).rows_per_shard == 1
    ragged = replace(spec, shape=(384,), ragged=True)
    grid = Grid.choose(ragged, num_items=10, longest=200, max_seconds_per_item=0.001)
    assert grid.tokens_per_shard * ragged.hidden_bytes <= 1.01 * TARGET_SHARD_BYTES
    assert grid.tokens_per_shard % grid.tokens_per_chunk == 0


def test_the_choice_of_shards_is_kept(sample, tmp_path):
    items = sample.items(9)
    sample.fill(tmp_path / "s", items[:5])
    other = replace(sample, shard_items=50)
    assert other.fill(tmp_path / "s", items) == 2
    sample.check(tmp_path / "s", items)


def test_several_boundaries_side_by_side(make_sample, tmp_path):
    samples = [make_sample(), make_sample(boundary=11), make_sample("ragged")]
    store = FeatureStore.open(tmp_path / "s", "a")
    writers = [s.writer(store, s.items(4)) for s in samples]
    for one, writer in zip(samples, writers, strict=True):
        with writer:
            for shard in writer.missing():
                writer.write(shard, one.states(shard))
    for one in samples:
        one.check(tmp_path / "s", one.items(4))
    assert store.boundaries() == (samples[2].spec, samples[0].spec, samples[1].spec)
    assert not (tmp_path / "s" / ".lock").exists()


def test_wrong_calls_are_refused(make_sample, tmp_path):
    dense, ragged = make_sample("dense-inputs"), make_sample("ragged")
    store = FeatureStore.open(tmp_path / "s", "a")
    items = dense.items(2)
    with pytest.raises(SettingsError, match="needs the number of tokens"):
        store.writer(ragged.spec, items)
    with pytest.raises(SettingsError, match="takes no lengths"):
        store.writer(dense.spec, items, lengths=[1, 2])
    with pytest.raises(SettingsError, match="mode 'a'"):
        FeatureStore.open(tmp_path / "s").writer(dense.spec, items)
    with dense.writer(store, items) as writer:
        (shard,) = writer.missing()
        good = [dense.state(item) for item in items]
        for states, words in [
            (good[:1], "got 1 states, expected 2"),
            ([*good, good[0]], "more states than"),
            ([(good[0][0][1:], good[0][1]), good[1]], r"clips/0\.mp4.*shape"),
            ([(good[0][0], {}), good[1]], r"inputs \[\], expected \['grid'\]"),
            ([(good[0][0].astype(np.int64), good[0][1]), good[1]], "array of int64"),
        ]:
            with pytest.raises(StoreMismatchError, match=words):
                writer.write(shard, states)
        assert writer.missing() == [shard]
        assert not list((tmp_path / "s").rglob("*partial*"))
    with pytest.raises(SettingsError, match="closed"):
        writer.write(shard, good)
    with ragged.writer(store, ragged.items(3)) as writer:
        pass
    with pytest.raises(StoreMismatchError, match="now said to have"):
        store.writer(ragged.spec, ragged.items(3), lengths=[99, 99, 99])
    with pytest.raises(StoreMismatchError, match="a shard of this boundary holds"):
        store.writer(ragged.spec, ragged.items(1, first=70), lengths=[10**6])


def test_asking_for_less_gives_nothing_up(sample, tmp_path):
    """What another experiment has not finished stays its own, in shards of its own."""
    items = sample.items(6)
    with sample.writer(FeatureStore.open(tmp_path / "s", "a"), items) as writer:
        assert [len(s.items) for s in writer.missing()] == [3, 3]
    with sample.writer(FeatureStore.open(tmp_path / "s", "a"), items[:3]) as writer:
        assert [s.rows for s in writer.missing()] == [(0, 1, 2)]
        assert writer.bytes_missing > 0
    with sample.writer(FeatureStore.open(tmp_path / "s", "a"), items) as writer:
        assert [len(s.items) for s in writer.missing()] == [3, 3]


def test_rows_given_up_in_an_open_writer_are_those_of_a_new_writer_without_the_items(sample, tmp_path, tree):
    """Later shards and generations keep their rows, and a shard of which nothing is left stays as it is."""
    old, new = sample.items(4), sample.items(12)
    bad = {new[i].key for i in (1, 5, 9, 10, 11)}
    for name in ("open", "anew"):
        with sample.writer(FeatureStore.open(tmp_path / name, "a"), old) as writer:
            assert len(writer.missing()) == 2
    with sample.writer(FeatureStore.open(tmp_path / "open", "a"), new) as writer:
        for shard in writer.missing():
            left = writer.give_up(shard, bad)
            expected = tuple(item for item in shard.items if item.key not in bad)
            assert (left.items if left else ()) == expected
            if left is not None:
                assert left.index == shard.index
                writer.write(left, sample.states(left))
        assert writer.missing() == []
    with sample.writer(FeatureStore.open(tmp_path / "anew", "a"), new):
        pass
    sample.fill(tmp_path / "anew", [item for item in new if item.key not in bad])
    assert tree(tmp_path / "open") == tree(tmp_path / "anew")
    sample.check(tmp_path / "open", [item for item in new if item.key not in bad])
    assert verify(open_store(tmp_path / "open")) == []


def test_several_boundaries_are_planned_together_and_written_only_if_all_fit(sample, tmp_path, monkeypatch):
    store = FeatureStore.open(tmp_path / "s", "a")
    items = sample.items(5)
    specs = [sample.spec, replace(sample.spec, boundary=sample.spec.boundary + 1)]
    requests = [BoundaryRequest(spec=spec, items=items, lengths=sample.lengths(items)) for spec in specs]
    with monkeypatch.context() as patch:
        patch.setattr("talik.cache.atomic_io.free_bytes", lambda _: 1_000_000)
        with pytest.raises(StoreFullError, match="2 boundaries to write need"):
            with store.writers(requests):
                pass
    assert [path.name for path in store.path.iterdir()] == ["zarr.json"]
    with store.writers(requests) as writers:
        for writer in writers:
            for shard in writer.missing():
                writer.write(shard, sample.states(shard))
    assert [spec.boundary for spec in store.boundaries()] == [spec.boundary for spec in specs]
    assert verify(store) == []
