"""gc takes what is not needed and nothing else; killed at any step it leaves a store that opens, verifies, goes on."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import zarr

from talik.cache import atomic_io as durable
from talik.cache.feature_store import FeatureStore
from talik.cache.format import bfloat16
from talik.cache.maintenance.gc import Needed, collect_garbage, find_garbage
from talik.cache.maintenance.verify import verify
from talik.cache.open import open_store
from talik.errors import StoreFullError, StoreLockedError, StoreMismatchError


def keeping(sample, items) -> Needed:
    return {sample.spec.path: {item.key for item in items}}


def collect(path: Path, needed: Needed) -> int:
    store = FeatureStore.open(path, "a")
    return collect_garbage(store, needed, find_garbage(store, needed))


def size_of(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def names(path: Path, sample) -> set[str]:
    with FeatureStore.open(path).reader(sample.spec.modality, 9, key=sample.spec.key) as reader:
        return {item.source for item in reader.items}


def test_items_that_are_not_needed_go_and_the_others_stay(sample, tmp_path):
    path, items = tmp_path / "s", sample.items(11)
    sample.fill(path, items, provenance={"device": "cpu"})
    kept = [items[i] for i in (0, 2, 6, 7, 8, 9)]
    store = FeatureStore.open(path, "a")
    (found,) = find_garbage(store, keeping(sample, kept))
    assert (found.kind, found.count, found.sources) == ("items", 5, tuple(items[i].source for i in (1, 3, 4, 5, 10)))
    data = size_of(path / sample.spec.path / "hidden") + size_of(path / sample.spec.path / "inputs")
    assert collect_garbage(store, keeping(sample, kept), [found]) == found.size_bytes
    after = size_of(path / sample.spec.path / "hidden") + size_of(path / sample.spec.path / "inputs")
    assert abs(data - after - found.size_bytes) < 500  # the arrays' own documents
    assert verify(open_store(path)) == []
    sample.check(path, kept)
    assert names(path, sample) == {item.source for item in kept}
    assert find_garbage(store, keeping(sample, kept)) == ()
    assert sample.fill(path, kept) == 0
    sample.fill(path, items)  # what was taken away is computed anew
    sample.check(path, items)
    assert verify(open_store(path)) == []
    assert not list(path.rglob(".*"))


def test_what_is_needed_is_never_touched(sample, tmp_path, tree):
    path, items = tmp_path / "s", sample.items(8)
    sample.fill(path, items)
    before = tree(path)
    assert collect(path, keeping(sample, items)) == 0
    assert collect(path, {sample.spec.path: None}) == 0
    assert tree(path) == before


def test_a_whole_boundary(make_sample, tmp_path, tree):
    one, two = make_sample(), make_sample(identity={"weights": "other"})
    path = tmp_path / "s"
    one.fill(path, one.items(5))
    before = tree(path)
    two.fill(path, two.items(5))
    size = size_of(path / two.spec.path)
    store = FeatureStore.open(path, "a")
    (found,) = find_garbage(store, {one.spec.path: None})
    assert (found.kind, found.boundary, found.size_bytes, found.count) == ("boundary", two.spec.path, size, 5)
    assert collect_garbage(store, {one.spec.path: None}, [found]) == size
    assert tree(path) == before


def test_leftovers_and_unfinished_shards(make_sample, tmp_path, tree):
    sample = make_sample("ragged")
    path, items = tmp_path / "s", sample.items(9)
    with sample.writer(FeatureStore.open(path, "a"), items) as writer:
        first, *_ = writer.missing()
        writer.write(first, sample.states(first))
    before = tree(path)
    folder = path / sample.spec.path
    (folder / "hidden" / "c.1.0").write_bytes(b"renamed, and then the power went")
    for place in ("hidden/.c.2.0.partial", "items/key/.c.0.0.partial", "receipts/.c.1.0.partial"):
        (folder / place).write_bytes(b"half")
    (path / "text" / f".b00-{'0' * 12}.partial" / "hidden").mkdir(parents=True)
    (path / "text" / f"b01-{'0' * 12}" / "items").mkdir(parents=True)  # its creation was killed
    needed = keeping(sample, items)
    found = find_garbage(FeatureStore.open(path), needed)
    assert [(g.kind, g.boundary, g.count) for g in found] == [
        ("superseded", sample.spec.path, 1),
        ("temporary", "", 2),
        ("temporary", sample.spec.path, 3),
    ]
    collect(path, needed)
    assert tree(path) == before
    sample.fill(path, items)
    sample.check(path, items)


def test_names_and_provenance_move_along(make_sample, tmp_path):
    sample = make_sample()
    path, items = tmp_path / "s", sample.items(6)
    sample.fill(path, items[:3], provenance={"device": "cpu"})
    sample.fill(path, [*items, replace(items[1], source="twin.mp4")], provenance={"device": "cuda"})
    collect(path, keeping(sample, items[1:5]))
    with FeatureStore.open(path).reader("visual", 9) as reader:
        assert reader.row_by_source["twin.mp4"] == reader.row_by_source[items[1].source]
        assert reader.provenance_of([item.key for item in items[1:5]]).tolist() == [0, 0, 1, 1]
    assert sample.fill(path, items[1:5]) == 0
    sample.check(path, items[1:5])


def test_zarr_reads_what_is_left(sample, tmp_path):
    bfloat16.register()
    path, items = tmp_path / "s", sample.items(7)
    sample.fill(path, items)
    collect(path, keeping(sample, items[2:]))
    with FeatureStore.open(path).reader(sample.spec.modality, 9) as reader:
        rows = reader.rows_of([item.key for item in items[2:]])
    group = zarr.open_group(path / sample.spec.path, mode="r")
    hidden = group["hidden"]
    for item, row in zip(items[2:], rows.tolist(), strict=True):
        place = slice(*group["offsets"][row : row + 2]) if sample.spec.ragged else row
        values = hidden[place]
        expected = sample.stored(sample.state(item)[0])
        assert values.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["dense-inputs", "ragged"])
def test_killed_before_every_step(name, make_sample, tmp_path, killed_at_step):
    sample, other = make_sample(name), make_sample(name, identity={"weights": "other"})
    items = sample.items(8)
    sample.fill(tmp_path / "whole", items)
    other.fill(tmp_path / "whole", items[:2])
    kept = [items[i] for i in (0, 2, 6, 7)]
    needed = keeping(sample, kept)
    path = tmp_path / "s"

    def work() -> None:
        collect(path, needed)

    step = 0
    while True:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", path)
        killed = killed_at_step(step, work)
        assert verify(open_store(path)) == []
        sample.check(path, kept)
        assert names(path, sample) in ({i.source for i in items}, {i.source for i in kept})
        work()
        assert find_garbage(FeatureStore.open(path), needed) == ()
        assert names(path, sample) == {i.source for i in kept}
        assert [s.path for s in FeatureStore.open(path).boundaries()] == [sample.spec.path]
        sample.check(path, kept)
        if not killed:
            break
        if step % 3 == 0:  # an extraction comes first, while what the killed gc left lies there
            shutil.rmtree(path)
            shutil.copytree(tmp_path / "whole", path)
            killed_at_step(step, work)
            sample.fill(path, [*kept, *sample.items(3, first=20)])
            sample.check(path, [*kept, *sample.items(3, first=20)])
            assert verify(open_store(path)) == []
        step += 7
    assert step > 40


def test_what_was_listed_is_what_goes(make_sample, tmp_path, tree):
    sample = make_sample()
    path, items = tmp_path / "s", sample.items(6)
    sample.fill(path, items)
    store = FeatureStore.open(path, "a")
    listed = find_garbage(store, keeping(sample, items[:3]))
    sample.fill(path, sample.items(8))
    before = tree(path)
    with pytest.raises(StoreMismatchError, match="has changed since"):
        collect_garbage(store, keeping(sample, items[:3]), listed)
    assert tree(path) == before


def test_not_while_somebody_writes(make_sample, tmp_path, fork):
    sample = make_sample()
    path, items = tmp_path / "s", sample.items(6)
    sample.fill(path, items)

    def collects() -> None:
        with pytest.raises(StoreLockedError, match=f"process {os.getppid()} on "):
            collect(path, keeping(sample, items[:3]))

    with sample.writer(FeatureStore.open(path, "a"), items):
        assert os.waitpid(fork(collects), 0)[1] == 0
    sample.check(path, items)


def test_room_to_write_anew_is_asked_for_first(make_sample, tmp_path, tree, monkeypatch):
    sample = make_sample()
    path, items = tmp_path / "s", sample.items(3)
    sample.fill(path, items)
    before = tree(path)
    monkeypatch.setattr(durable, "free_bytes", lambda path: 1_000_000)
    with pytest.raises(StoreFullError, match="that gc is to keep items of"):
        collect(path, keeping(sample, items[:2]))
    assert tree(path) == before
    assert collect(path, keeping(sample, [])) > 0  # nothing is kept, so nothing is written anew
    assert names(path, sample) == set()
