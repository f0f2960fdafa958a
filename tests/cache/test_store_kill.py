"""A writer that is killed, at any instant, costs one shard: the next one ends where an undisturbed one would."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import time
from pathlib import Path

import pytest

from talik.cache import atomic_io as durable
from talik.cache.feature_store import FeatureStore
from talik.cache.maintenance.verify import verify
from talik.cache.open import open_store
from talik.cache.write import locks
from talik.errors import StoreError, StoreLockedError, StoreMismatchError


@pytest.mark.parametrize("name", ["dense-inputs", "ragged"])
def test_killed_before_every_step(name, make_sample, tmp_path, tree, killed_at_step):
    sample = make_sample(name)
    items = sample.items(5)
    sample.fill(tmp_path / "whole", items[:4])
    sample.fill(tmp_path / "whole", items)
    expected = tree(tmp_path / "whole")

    def work() -> None:
        sample.fill(path, items[:4])
        sample.fill(path, items)

    step = 0
    while True:
        path = tmp_path / f"s{step}"
        if not killed_at_step(step, work):
            break
        left = tree(path) if path.exists() else {}
        if "zarr.json" in left:
            assert verify(open_store(path)) == []
            try:
                reader = FeatureStore.open(path).reader(sample.spec.modality, 9)
            except StoreError:
                assert f"{sample.spec.path}/zarr.json" not in left
            else:
                sample.check(path, reader.items)
        work()
        assert tree(path) == expected
        step += 11 if step > 40 else 4
    assert step > 60


def test_killed_at_random_instants_again_and_again(make_sample, tmp_path, tree, fork):
    sample = make_sample("dense-inputs", shape=(64, 100), shard_items=4)
    items = sample.items(40)
    path = tmp_path / "s"
    instants = random.Random(0)

    def work() -> None:
        with sample.writer(FeatureStore.open(path, "a"), items) as writer:
            for one in writer.missing():
                writer.write(one, (time.sleep(0.002) or state for state in sample.states(one)))

    kills = 0
    for _ in range(10):
        child = fork(work)
        time.sleep(instants.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        if (path / sample.spec.path / "zarr.json").is_file():
            assert verify(open_store(path)) == []
            done = FeatureStore.open(path).reader("visual", 9).items
            sample.check(path, done)
    assert kills > 0
    sample.fill(path, items)
    sample.fill(tmp_path / "whole", items)
    assert tree(path) == tree(tmp_path / "whole")


def test_two_processes_at_once(make_sample, tmp_path, fork):
    sample = make_sample()
    path = tmp_path / "s"
    store = FeatureStore.open(path, "a")
    reading, writing = os.pipe()

    def hold() -> None:
        with sample.writer(store, sample.items(3)):
            os.write(writing, b"x")
            time.sleep(60)

    child = fork(hold)
    try:
        os.read(reading, 1)
        with pytest.raises(StoreLockedError, match=f"process {child} on "):
            sample.writer(store, sample.items(3))
        assert json.loads((path / ".lock").read_text())["pid"] == child
        assert FeatureStore.open(path).reader("visual", 9).items == ()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
    assert sample.fill(path, sample.items(3)) == 1


def test_two_writers_of_one_boundary_in_one_process(make_sample, tmp_path, fork):
    sample = make_sample()
    store = FeatureStore.open(tmp_path / "s", "a")
    with sample.writer(store, sample.items(3)):
        with pytest.raises(StoreLockedError, match="already has a writer"):
            sample.writer(store, sample.items(3))
        _, status = os.waitpid(fork(lambda: sample.fill(tmp_path / "s", sample.items(3)) and None), 0)
        assert os.WEXITSTATUS(status) == 1
        assert (tmp_path / "s" / ".lock").exists()
    assert not (tmp_path / "s" / ".lock").exists()
    assert sample.fill(tmp_path / "s", sample.items(3)) == 1


def test_nothing_is_renamed_before_it_is_on_the_disk(make_sample, tmp_path, monkeypatch):
    """File fsync, rename, folder fsync, in this order, and the receipt after all data."""
    sample = make_sample("dense-inputs")
    log: list[tuple[str, str]] = []
    replace = os.replace

    def fsync(descriptor: int) -> None:
        log.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))

    def rename(source: Path, target: Path) -> None:
        assert ("fsync", str(source)) in log
        log.append(("rename", str(target)))
        replace(source, target)

    with sample.writer(FeatureStore.open(tmp_path / "s", "a"), sample.items(3)) as writer:
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", rename)
        (only,) = writer.missing()
        writer.write(only, sample.states(only))
    folder = tmp_path / "s" / sample.spec.path
    renames = [entry for entry in log if entry[0] == "rename"]
    assert [Path(p).relative_to(folder).parts[0] for _, p in renames] == ["hidden", "inputs", "receipts"]
    receipt = log.index(renames[-1])
    for _, target in renames:
        synced = log.index(("fsync", str(Path(target).parent)))
        assert log.index(("rename", target)) < synced
        assert synced < receipt or target == renames[-1][1]
    assert log[-1] == ("fsync", str(folder / "receipts"))


def test_what_a_killed_writer_left_is_written_over(make_sample, tmp_path, tree):
    sample = make_sample()
    path = tmp_path / "s"
    sample.fill(path, sample.items(2))
    leftover = durable.temporary_beside(path / sample.spec.path / "hidden" / "c.1.0.0.0")
    leftover.write_bytes(b"half a shard, longer than the whole one will be" * 1000)
    durable.temporary_beside(path / sample.spec.path / "receipts" / "c.1.0").write_text("{")
    (path / sample.spec.path / locks.WORKERS_NAME).touch()
    sample.fill(path, sample.items(5))
    sample.fill(tmp_path / "whole", sample.items(2))
    sample.fill(tmp_path / "whole", sample.items(5))
    assert tree(path) == tree(tmp_path / "whole")


def test_several_processes_write_different_shards(sample, tmp_path, tree, fork):
    items = sample.items(11)
    with sample.writer(FeatureStore.open(tmp_path / "s", "a"), items) as writer:
        missing = writer.missing()
        worker = pickle.loads(pickle.dumps(writer.shard_writer))

        def write(part: int) -> None:
            for one in missing[part::2]:
                worker.write(one, sample.states(one))

        children = [fork(lambda part=part: write(part)) for part in range(2)]
        assert [os.WEXITSTATUS(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
        assert writer.missing() == []
    sample.check(tmp_path / "s", items)
    sample.fill(tmp_path / "one", items)
    assert tree(tmp_path / "s") == tree(tmp_path / "one")


def test_a_shard_of_another_writer_is_refused(make_sample, tmp_path):
    sample = make_sample()
    store = FeatureStore.open(tmp_path / "s", "a")
    with sample.writer(store, sample.items(3)) as writer:
        (old,) = writer.missing()
    with sample.writer(store, sample.items(2)) as writer:
        with pytest.raises(StoreMismatchError, match=r"take it from missing\(\)"):
            writer.write(old, sample.states(old))
        (new,) = writer.missing()
        writer.write(new, sample.states(new))


def test_a_worker_outlives_its_owner_and_nothing_is_written_twice(make_sample, tmp_path, tree, fork):
    """The owner is gone; its worker is in the middle of a shard; a second owner does the others and waits for none."""
    sample = make_sample()
    items, path = sample.items(9), tmp_path / "s"
    with sample.writer(FeatureStore.open(path, "a"), items) as owner:
        missing, worker = owner.missing(), owner.shard_writer
    begun, beginning = os.pipe()
    going, go_on = os.pipe()

    def write_slowly() -> None:
        states = sample.states(missing[1])
        worker.write(missing[1], (step(i, state) for i, state in enumerate(states)))

    def step(i: int, state: object) -> object:
        if i == 1:
            os.write(beginning, b"x")
            os.read(going, 1)
        return state

    child = fork(write_slowly)
    os.read(begun, 1)
    with sample.writer(FeatureStore.open(path, "a"), items) as second:
        writing = rf"process {child} on .* is writing shard 1"
        with pytest.raises(StoreLockedError, match=writing):
            second.write(missing[1], sample.states(missing[1]))
        with (
            pytest.raises(StoreLockedError, match="still writing"),
            locks.no_shards_being_written(path / sample.spec.path),
        ):
            raise AssertionError
        for one in (missing[0], missing[2]):
            second.write(one, sample.states(one))
        os.write(go_on, b"x")
        assert os.waitpid(child, 0)[1] == 0
        assert second.missing() == []
        second.write(missing[1], iter([None]))  # it is there: the states are not looked at
    sample.check(path, items)
    sample.fill(tmp_path / "one", items)
    assert tree(path) == tree(tmp_path / "one")
    for end in (begun, beginning, going, go_on):
        os.close(end)


def test_a_worker_with_an_old_plan_is_refused(sample, tmp_path):
    """Between its plan and its work another owner gave rows of the shard up."""
    items, path = sample.items(6), tmp_path / "s"
    with sample.writer(FeatureStore.open(path, "a"), items) as owner:
        (first, *others), worker = owner.missing(), owner.shard_writer
    kept = [item for item in items if item != first.items[1]]
    with sample.writer(FeatureStore.open(path, "a"), kept) as second:
        with pytest.raises(StoreMismatchError, match="has other items now"):
            worker.write(first, sample.states(first))
        worker.write(others[0], sample.states(others[0]))  # this one is as it was
        for one in second.missing():
            second.write(one, sample.states(one))
    assert verify(open_store(path)) == []
    sample.check(path, kept)


def test_one_shard_given_to_many_processes_is_written_once(make_sample, tmp_path, tree, fork):
    sample = make_sample("ragged")
    items, path = sample.items(3), tmp_path / "s"
    with sample.writer(FeatureStore.open(path, "a"), items) as owner:
        (only,), worker = owner.missing(), owner.shard_writer
        children = [fork(lambda: worker.write(only, sample.states(only))) for _ in range(6)]
        ends = [os.waitpid(child, 0)[1] for child in children]
        assert 0 in ends  # the others were refused, or found it there
        assert owner.missing() == []
    sample.fill(tmp_path / "one", items)
    assert tree(path) == tree(tmp_path / "one")
