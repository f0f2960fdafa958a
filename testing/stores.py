"""Contract tests of a feature store's backend, run with pytest; they need no encoder and no torch.

    import pytest, talik.testing

    class TestMine(talik.testing.StoreTests):
        @pytest.fixture
        def location(self, tmp_path):
            return tmp_path / "features.zarr"  # or the URL of a place that holds nothing yet

Letters: T segments, N tokens, D channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from ..cache.feature_store import ArraySpec, BoundarySpec, FeatureStore, Item, Shard
from ..cache.format.dataset_files import ClipFile, DatasetFiles
from ..cache.maintenance.repair import repair
from ..cache.maintenance.verify import Finding, verify
from ..cache.open import open_store
from ..errors import MissingItemError, NumericsError, SettingsError, StoreError, StoreLockedError, StoreMismatchError

State = tuple[NDArray[Any], dict[str, NDArray[Any]]]

_DENSE = BoundarySpec(
    modality="visual", boundary=9, identity={"weights": "abc", "size": 224}, dtype="float16", shape=(2, 3, 4)
)
_RAGGED = replace(
    _DENSE, modality="text", boundary=3, shape=(4,), ragged=True, inputs={"ids": ArraySpec(dtype="int32")}
)
SPECS = {
    "dense": _DENSE,
    "float32 and inputs": replace(_DENSE, dtype="float32", inputs={"grid": ArraySpec(dtype="int64", shape=(2,))}),
    "bfloat16": replace(_DENSE, dtype="bfloat16", shape=(5,)),
    "int8": replace(_DENSE, dtype="int8"),
    "ragged": _RAGGED,
}
_SECONDS_PER_ITEM = 20.0  # a shard is at most a minute's work: three items


def make_items(count: int, first: int = 0) -> list[Item]:
    """Return items number `first` to `first + count - 1`, each with a key of its own."""
    numbers = range(first, first + count)
    keys = [hashlib.sha256(f"{i}".encode()).hexdigest() for i in numbers]
    return [Item(key=key, source=f"clips/{i}.mp4", size_bytes=i) for key, i in zip(keys, numbers, strict=True)]


def num_tokens(item: Item) -> int:
    """Return how many tokens an item has in a ragged boundary, 0 to 9."""
    return int(item.key[:8], 16) % 10


def make_state(spec: BoundarySpec, item: Item) -> State:
    """Return the hidden state of an item, float32 (T, N, D), (…) or (tokens, D), and its inputs by name."""
    random = np.random.default_rng(int(item.key[:12], 16))
    lead = (num_tokens(item),) if spec.ragged else ()
    hidden = random.standard_normal(lead + spec.shape).astype(np.float32)
    arrays = {name: array for name, array in spec.inputs.items() if name != "scale"}
    return hidden, {n: random.integers(0, 99, lead + a.shape).astype(a.dtype) for n, a in arrays.items()}


class StoreReadTests:
    """Contract of a backend that is only read; derive from it, give `location`, a folder to fill, and `published`."""

    @pytest.fixture
    def location(self) -> str | Path:
        """Give a path or URL that holds nothing yet, a new one for each test."""
        raise NotImplementedError(
            "a subclass of StoreTests gives the fixture `location`: a path or URL without a store"
        )

    def published(self, location: str | Path) -> str | Path:
        """Return where the backend reads what was written to `location`; the same place by default."""
        return location

    def open_to_read(self, location: str | Path) -> FeatureStore:
        """Open for reading what was written to `location`."""
        return open_store(self.published(location))

    def fill(self, location: str | Path, spec: BoundarySpec, items: Sequence[Item], shards: int | None = None) -> int:
        """Write the shards that `items` lack, at most `shards` of them, and return how many that were."""
        with _writer(open_store(location, "a"), spec, items) as writer:
            missing = writer.missing()[:shards]
            for shard in missing:
                writer.write(shard, _states(spec, shard))
        return len(missing)

    @pytest.fixture(params=list(SPECS))
    def spec(self, request: pytest.FixtureRequest) -> BoundarySpec:
        """Give each kind of boundary in turn."""
        return SPECS[request.param]

    def test_values_come_back_in_any_order(self, location: str | Path, spec: BoundarySpec) -> None:
        """What is read is what was written, as the data type rounds it, in two generations of rows."""
        items = make_items(7)
        self.fill(location, spec, items[:4])
        self.fill(location, spec, items)
        wanted = [*items[::-1], items[2], items[2]]
        with self.open_to_read(location).reader(spec.modality, spec.boundary) as reader:
            assert reader.spec == spec
            assert [item.source for item in reader.items] == [item.source for item in items]
            _assert_values(spec, reader.read([item.key for item in wanted]), wanted)
            ahead = list(reader.prefetch([[item.key] for item in wanted]))
            for item, batch in zip(wanted, ahead, strict=True):
                _assert_values(spec, batch, [item])
            assert len(reader.read([]).hidden) == 0

    def test_boundaries_and_sources_are_listed(self, location: str | Path) -> None:
        """A store says what it holds, of which files, and opens a boundary by its identity or key."""
        other = replace(_DENSE, identity={"weights": "abc", "size": 448})
        for spec in (_RAGGED, other, _DENSE):
            self.fill(location, spec, make_items(2))
        store = self.open_to_read(location)
        assert store.boundaries() == (_RAGGED, *sorted((_DENSE, other), key=lambda spec: spec.key))
        assert store.sources(_DENSE) == make_items(2)
        assert store.reader("visual", 9, key=other.key).spec == other
        assert store.reader("visual", 9, identity=_DENSE.identity).spec == _DENSE

    def test_what_is_not_stored_is_refused_by_name(self, location: str | Path) -> None:
        """Errors name the boundary, the identity's field or the item that is missing."""
        self.fill(location, _DENSE, make_items(4), shards=1)
        store = self.open_to_read(location)
        with pytest.raises(StoreMismatchError, match="text boundary 3 is not stored"):
            store.reader("text", 3)
        with pytest.raises(StoreMismatchError, match=r"size: \w+ 448, stored 224"):
            store.reader("visual", 9, identity={"weights": "abc", "size": 448})
        with store.reader("visual", 9) as reader:
            with pytest.raises(MissingItemError, match=r"clips/3\.mp4.*no data yet"):
                reader.read([make_items(4)[3].key])
            with pytest.raises(MissingItemError, match="no item with key"):
                reader.read([make_items(1, first=9)[0].key])

    def test_a_store_that_is_not_there_is_refused(self, location: str | Path) -> None:
        """Opening for reading makes nothing."""
        with pytest.raises(StoreError, match="no store"):
            self.open_to_read(location)

    def test_a_store_open_for_reading_is_not_written(self, location: str | Path) -> None:
        """Writing and repairing need mode `a`."""
        self.fill(location, _DENSE, make_items(2))
        store = self.open_to_read(location)
        with pytest.raises(SettingsError):
            store.writer(_DENSE, make_items(3))
        with pytest.raises(SettingsError):
            repair(store, [])


class StoreTests(StoreReadTests):
    """Contract of a backend that is read and written; derive from it and give the fixture `location`."""

    def test_writing_goes_on_where_it_stopped(self, location: str | Path, spec: BoundarySpec) -> None:
        """Finished shards are there at once, and are not computed again."""
        items = make_items(8)
        num_shards = self.fill(location, spec, items, shards=1) + self.fill(location, spec, items, shards=1)
        found = self.open_to_read(location).reader(spec.modality, spec.boundary).items
        assert 0 < len(found) < len(items)
        num_shards += self.fill(location, spec, items)
        assert num_shards >= 3
        assert self.fill(location, spec, items) == 0
        self._assert_sound(location, spec, items)

    def test_a_shard_that_failed_is_not_there(self, location: str | Path, spec: BoundarySpec) -> None:
        """NaN stops the shard and names the item; the shard can then be written again."""
        items = make_items(5)
        with _writer(open_store(location, "a"), spec, items) as writer:
            shard = writer.missing()[-1]

            def states() -> Iterator[State]:
                for hidden, inputs in _states(spec, shard):
                    yield np.full_like(hidden, np.nan), inputs

            with pytest.raises(NumericsError, match=r"clips/\d\.mp4"):
                writer.write(shard, states())
            assert shard in writer.missing()
            for one in writer.missing():
                writer.write(one, _states(spec, one))
        self._assert_sound(location, spec, items)

    def test_a_second_writer_of_a_boundary_is_refused(self, location: str | Path) -> None:
        """Of one boundary a process has one writer; of others it may have more."""
        store = open_store(location, "a")
        with _writer(store, _DENSE, make_items(3)), _writer(store, _RAGGED, make_items(3)):
            with pytest.raises(StoreLockedError, match="already has a writer"):
                _writer(store, _DENSE, make_items(3))
        with _writer(store, _DENSE, make_items(3)) as writer:
            assert len(writer.missing()) == 1

    def test_files_of_data_sets_are_remembered(self, location: str | Path) -> None:
        """Each place of a data set has a table of its own, which a part of the data set extends."""
        file = ClipFile(source="0.mp4", key=make_items(1)[0].key, size_bytes=5, mtime_ns=7, inode=2**62)
        clean = DatasetFiles(root="/data/clean", choice="{}", clips={"0": file})
        noisy = DatasetFiles(root="/data/noisy", choice="{}", clips={"0": replace(file, key=make_items(2)[1].key)})
        store = open_store(location, "a")
        assert store.dataset_files() == ()
        for table in (clean, noisy, replace(clean, clips={"1": replace(file, source="1.mp4")})):
            store.record_files(table)
        self.fill(location, _DENSE, make_items(2))
        store = self.open_to_read(location)
        assert store.dataset_files() == (
            replace(clean, clips={"0": file, "1": replace(file, source="1.mp4")}),
            noisy,
        )
        assert store.boundaries() == (_DENSE,)
        assert verify(store) == []

    def test_what_computed_the_states_is_recorded(self, location: str | Path) -> None:
        """Each item keeps the provenance of its shard."""
        items = make_items(6)
        for device, upto in (("cpu", 3), ("cuda", 6)):
            with _writer(open_store(location, "a"), _DENSE, items[:upto], provenance={"device": device}) as writer:
                for shard in writer.missing():
                    writer.write(shard, _states(_DENSE, shard))
        with self.open_to_read(location).reader("visual", 9) as reader:
            assert [entry["device"] for entry in reader.provenance] == ["cpu", "cuda"]
            assert reader.provenance_of([item.key for item in items]).tolist() == [0, 0, 0, 1, 1, 1]

    def test_a_repaired_shard_is_computed_again(self, location: str | Path, spec: BoundarySpec) -> None:
        """A shard with a finding is missing after repair, and the others stay."""
        items = make_items(7)
        self.fill(location, spec, items)
        bad = Finding(boundary=spec.path, shard=0, what="as if it failed its checksum")
        assert repair(open_store(location, "a", check=False), [bad]) == ([(spec.path, 0)], [])
        assert self.fill(location, spec, items) == 1
        self._assert_sound(location, spec, items)

    def _assert_sound(self, location: str | Path, spec: BoundarySpec, items: Sequence[Item]) -> None:
        store = self.open_to_read(location)
        assert verify(store) == []
        with store.reader(spec.modality, spec.boundary) as reader:
            _assert_values(spec, reader.read([item.key for item in items]), items)


def _writer(store: FeatureStore, spec: BoundarySpec, items: Sequence[Item], **more: Any) -> Any:
    lengths = [num_tokens(item) for item in items] if spec.ragged else None
    return store.writer(spec, items, lengths=lengths, max_seconds_per_item=_SECONDS_PER_ITEM, **more)


def _states(spec: BoundarySpec, shard: Shard) -> Iterator[State]:
    return (make_state(spec, item) for item in shard.items)


def _assert_values(spec: BoundarySpec, batch: Any, items: Sequence[Item]) -> None:
    assert len(batch.hidden) == len(items)
    for i, item in enumerate(items):
        hidden, inputs = make_state(spec, item)
        used = slice(0, num_tokens(item) if spec.ragged else None)
        found = batch.hidden[i][used]
        if spec.dtype == "int8":
            largest = np.abs(hidden).max(axis=-1, keepdims=True)
            assert (np.abs(found - hidden) <= largest / 254 * 1.001).all()
        else:
            stored = hidden.astype(ml_dtypes.bfloat16 if spec.dtype == "bfloat16" else spec.dtype)
            np.testing.assert_array_equal(found, stored.view(np.int16) if spec.dtype == "bfloat16" else stored)
        if spec.ragged:
            assert batch.lengths[i] == num_tokens(item)
            assert not batch.hidden[i][num_tokens(item) :].any()
        for name, values in inputs.items():
            np.testing.assert_array_equal(batch.inputs[name][i][used], values)
