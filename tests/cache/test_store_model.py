"""Any sequence of adding, extending, being killed, damaging, mending and taking away against a dictionary."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from talik.cache.feature_store import ArraySpec, BoundarySpec, FeatureStore, Item
from talik.cache.format.digests import digest_text
from talik.cache.maintenance.gc import collect_garbage, find_garbage
from talik.cache.maintenance.repair import repair
from talik.cache.maintenance.verify import verify
from talik.cache.open import open_store
from talik.errors import MissingItemError


class _Died(BaseException):
    pass


@pytest.fixture(autouse=True)
def _killer(killed_at_step):
    """Hand the fixture to the machines, which pytest makes without fixtures."""
    _KILLER.append(killed_at_step)
    yield
    _KILLER.clear()


_KILLER: list[Callable[[int, Callable[[], None]], bool]] = []


def killed_at_step(number: int, work: Callable[[], None]) -> bool:
    return _KILLER[-1](number, work)


class StoreModel(RuleBasedStateMachine):
    """`done` is what must be readable, by key; everything else must be said to be missing."""

    spec = BoundarySpec(
        modality="text",
        boundary=0,
        identity={"w": 1},
        dtype="float32",
        shape=(3,),
        ragged=True,
        inputs={"ids": ArraySpec(dtype="int16")},
    )

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "s"
        self.done: set[int] = set()
        self.sources: dict[int, str] = {}
        FeatureStore.open(self.path, "a")

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def item(self, number: int) -> Item:
        return Item(key=digest_text(str(number)), source=self.sources.get(number, f"{number}.txt"))

    def state(self, number: int):
        length = number * 7 % 11 if self.spec.ragged else None
        shape = self.spec.shape if length is None else (length, *self.spec.shape)
        inputs = {"ids": np.arange(length or 0, dtype=np.int16)} if self.spec.ragged else {}
        return np.full(shape, number, np.float32), inputs

    @rule(numbers=st.lists(st.integers(0, 40), max_size=12), shards=st.integers(0, 9), halfway=st.booleans())
    def extract(self, numbers: list[int], shards: int, halfway: bool) -> None:
        """Ask for some items; stop after some shards, perhaps in the middle of one."""
        items = [self.item(n) for n in numbers]
        lengths = [len(self.state(n)[0]) for n in numbers] if self.spec.ragged else None
        known = {self.item(n).key: n for n in numbers}
        store = FeatureStore.open(self.path, "a")
        with store.writer(self.spec, items, lengths=lengths, max_seconds_per_item=20) as writer:
            missing = writer.missing()
            assert {i.key for s in missing for i in s.items} == {self.item(n).key for n in set(numbers) - self.done}
            for shard in missing[:shards]:
                writer.write(shard, (self.state(known[i.key]) for i in shard.items))
                self.done |= {known[i.key] for i in shard.items}
            if halfway and missing[shards:]:
                with pytest.raises(_Died):
                    writer.write(missing[shards], self.dying(known[missing[shards].items[0].key]))

    def dying(self, number: int):
        yield self.state(number)
        raise _Died

    @precondition(lambda self: self.done)
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        """Rename a file: nothing is to be computed."""
        number = data.draw(st.sampled_from(sorted(self.done)))
        self.sources[number] = f"moved/{number}-{len(self.sources)}.txt"
        lengths = [len(self.state(number)[0])] if self.spec.ragged else None
        with FeatureStore.open(self.path, "a").writer(self.spec, [self.item(number)], lengths=lengths) as writer:
            assert writer.missing() == []

    @rule(numbers=st.lists(st.integers(0, 40), min_size=1, max_size=12), instant=st.integers(0, 60))
    def killed(self, numbers: list[int], instant: int) -> None:
        """Ask for some items in a process that is killed at a step on the disk; what it finished counts."""
        known = {self.item(n).key: n for n in numbers}
        if killed_at_step(instant, lambda: self.write(numbers)):
            opened = FeatureStore.open(self.path, "a")  # its creation may have been what was killed
            if opened.boundaries():
                with opened.reader(self.spec.modality, 0) as reader:
                    found = {known.get(item.key) for item in reader.items}
                assert self.done <= found | self.done
                self.done |= {n for n in found if n is not None}
        else:
            self.done |= set(numbers)

    def write(self, numbers: list[int]) -> None:
        known = {self.item(n).key: n for n in numbers}
        lengths = [len(self.state(n)[0]) for n in numbers] if self.spec.ragged else None
        items = [self.item(n) for n in numbers]
        with FeatureStore.open(self.path, "a").writer(
            self.spec, items, lengths=lengths, max_seconds_per_item=20
        ) as writer:
            for shard in writer.missing():
                writer.write(shard, (self.state(known[i.key]) for i in shard.items))

    @rule(data=st.data(), instant=st.none() | st.integers(0, 40))
    def collect(self, data: st.DataObject, instant: int | None) -> None:
        """Keep some items and take the others away, perhaps killed at a step on the disk, then to the end."""
        kept = data.draw(st.sets(st.sampled_from(sorted(self.done)))) if self.done else set()
        needed = {self.spec.path: {self.item(n).key for n in kept}}

        def work() -> None:
            store = FeatureStore.open(self.path, "a")
            collect_garbage(store, needed, find_garbage(store, needed))

        if instant is not None and killed_at_step(instant, work):
            assert verify(open_store(self.path, check=False)) == []
            left: set[str] = set()
            if FeatureStore.open(self.path).boundaries():
                with FeatureStore.open(self.path).reader(self.spec.modality, 0) as reader:
                    left = {item.key for item in reader.items}
            assert left in ({self.item(n).key for n in self.done}, {self.item(n).key for n in kept})
        work()
        self.done = kept
        assert find_garbage(FeatureStore.open(self.path), needed) == ()

    @precondition(lambda self: self.done)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """Spoil a shard's file: verify names it, repair forgets its items."""
        reader = FeatureStore.open(self.path).reader(self.spec.modality, 0)
        number = data.draw(st.sampled_from(sorted(self.done)))
        rows = self.row_of(reader)
        shard = rows[number] // reader.catalog.layout.grid.rows_per_shard
        file = reader.catalog.layout.data[0].shard_path(shard)
        content = bytearray(file.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 4
        file.write_bytes(content)
        findings = verify(open_store(self.path, check=False))
        assert {f.shard for f in findings} == {shard}
        repair(open_store(self.path, "a", check=False), findings)
        self.done -= {n for n, row in rows.items() if row // reader.catalog.layout.grid.rows_per_shard == shard}

    def row_of(self, reader) -> dict[int, int]:
        return {n: int(reader.rows_of([self.item(n).key])[0]) for n in self.done}

    @invariant()
    def holds_what_it_should(self) -> None:
        assert verify(open_store(self.path, check=False)) == []
        store = FeatureStore.open(self.path)
        if not store.boundaries():
            assert not self.done
            return
        with store.reader(self.spec.modality, 0) as reader:
            assert {i.key for i in reader.items} == {self.item(n).key for n in self.done}
            numbers = sorted(self.done, key=lambda n: n * 5 % 41)
            batch = reader.read([self.item(n).key for n in numbers])
            for i, n in enumerate(numbers):
                hidden, inputs = self.state(n)
                whole = slice(0, len(hidden) if self.spec.ragged else None)
                np.testing.assert_array_equal(batch.hidden[i][whole], hidden)
                for name, values in inputs.items():
                    np.testing.assert_array_equal(batch.inputs[name][i][whole], values)
                assert reader.row_by_source[self.item(n).source] == reader.rows_of([self.item(n).key])[0]
            for n in set(range(41)) - self.done:
                with pytest.raises(MissingItemError):
                    reader.read([self.item(n).key])


class DenseModel(StoreModel):
    """The same for a dense boundary."""

    spec = replace(StoreModel.spec, modality="visual", ragged=False, inputs={})


_FEW = settings(max_examples=8, stateful_step_count=7, deadline=None)
TestRaggedModel = StoreModel.TestCase
TestRaggedModel.settings = _FEW
TestDenseModel = DenseModel.TestCase
TestDenseModel.settings = _FEW
