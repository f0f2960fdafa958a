"""A writer that is killed, at any instant, costs one shard: the next one ends where an undisturbed one would."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from talik.cache import durable, shard
from talik.cache.errors import StoreError, StoreLockedError, StoreMismatchError
from talik.cache.store import FeatureStore
from talik.cache.verify import verify

_STEPS = ("fsync", "replace", "mkdir", "unlink")


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a child process and return its id; the child ends with status 0, or 1 after an exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of zarr-python, which the child never touches
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def killed_at_step(number: int, work: Callable[[], None]) -> bool:
    """Run `work` in a child that kills itself before its `number`-th step on the disk; False if it ended before."""

    def counted() -> None:
        left = number

        def step(real: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **more: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **more)

            return call

        for name in _STEPS:
            setattr(os, name, step(getattr(os, name)))
        write = shard.ShardFile._write
        shard.ShardFile._write = lambda file, content: (step(write)(file, content), file._file.flush())[0]
        work()

    _, status = os.waitpid(fork(counted), 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("name", ["dense-inputs", "ragged"])
def test_killed_before_every_step(name, make_sample, tmp_path, tree):
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
            assert verify(path) == []
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


def test_killed_at_random_instants_again_and_again(make_sample, tmp_path, tree):
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
            assert verify(path) == []
            done = FeatureStore.open(path).reader("visual", 9).items
            sample.check(path, done)
    assert kills > 0
    sample.fill(path, items)
    sample.fill(tmp_path / "whole", items)
    assert tree(path) == tree(tmp_path / "whole")


def test_two_processes_at_once(make_sample, tmp_path):
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


def test_two_writers_of_one_boundary_in_one_process(make_sample, tmp_path):
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


def test_a_writers_leftovers_are_removed(make_sample, tmp_path, monkeypatch):
    sample = make_sample()
    path = tmp_path / "s"
    sample.fill(path, sample.items(2))
    leftover = durable.temporary_beside(path / sample.spec.path / "hidden" / "c.1.0.0.0")
    leftover.write_bytes(b"half a shard")
    sample.fill(path, sample.items(5))
    assert not leftover.exists()


def test_several_processes_write_different_shards(sample, tmp_path, tree):
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
