"""Small boundaries with known values, for all tests of the store."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from talik.cache.feature_store import ArraySpec, BoundarySpec, BoundaryWriter, FeatureStore, Item, Shard
from talik.cache.format.digests import digest_text
from talik.cache.write import shard_file as shard


@dataclass(frozen=True)
class Sample:
    """A boundary, and the values that an item of it has: a function of its key alone."""

    spec: BoundarySpec
    shard_items: int = 3

    def items(self, count: int, first: int = 0) -> list[Item]:
        """Return items `first` … `first + count - 1`."""
        numbers = range(first, first + count)
        return [Item(key=digest_text(f"{i}"), source=f"clips/{i}.mp4", size_bytes=i, mtime_ns=7 * i) for i in numbers]

    def length(self, item: Item) -> int:
        """Return the item's tokens: 0 to 9."""
        return int(item.key[:8], 16) % 10

    def lengths(self, items: Sequence[Item]) -> list[int] | None:
        """Return what the writer wants."""
        return [self.length(item) for item in items] if self.spec.ragged else None

    def state(self, item: Item) -> tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]:
        """Return the item's state and inputs."""
        random = np.random.default_rng(int(item.key[:12], 16))
        lead = (self.length(item),) if self.spec.ragged else ()
        hidden = random.standard_normal(lead + self.spec.shape).astype(np.float32)
        inputs = {
            name: random.integers(0, 100, lead + array.shape).astype(array.dtype)
            for name, array in self.spec.inputs.items()
        }
        return hidden, inputs

    def states(self, shard: Shard) -> Iterator[tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]]:
        """Yield what `BoundaryWriter.write` takes."""
        return (self.state(item) for item in shard.items)

    def writer(self, store: FeatureStore, items: Sequence[Item], **more: Any) -> BoundaryWriter:
        """Return a writer of shards of at most `shard_items` items."""
        seconds = 60.0 / self.shard_items
        return store.writer(self.spec, items, lengths=self.lengths(items), max_seconds_per_item=seconds, **more)

    def fill(self, path: Path, items: Sequence[Item], **more: Any) -> int:
        """Write all that is missing and return the number of shards that were."""
        with self.writer(FeatureStore.open(path, "a"), items, **more) as writer:
            missing = writer.missing()
            for shard in missing:
                writer.write(shard, self.states(shard))
            assert writer.missing() == []
        return len(missing)

    def check(self, path: Path, items: Sequence[Item], /, **more: Any) -> None:
        """Read `items` in this order and compare every value."""
        with FeatureStore.open(path).reader(
            self.spec.modality, self.spec.boundary, key=self.spec.key, **more
        ) as reader:
            batch = reader.read([item.key for item in items])
        assert batch.dtype == self.spec.dtype
        for i, item in enumerate(items):
            hidden, inputs = self.state(item)
            if self.spec.ragged:
                assert batch.lengths is not None
                assert batch.lengths[i] == len(hidden)
            whole = slice(0, len(hidden) if self.spec.ragged else None)
            np.testing.assert_array_equal(batch.hidden[i][whole], self.stored(hidden))
            assert not (self.spec.ragged and batch.hidden[i][len(hidden) :].any())
            for name, values in inputs.items():
                np.testing.assert_array_equal(batch.inputs[name][i][whole], values)

    def stored(self, hidden: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return what reading gives for what was written."""
        if self.spec.dtype != "bfloat16":
            return hidden.astype(self.spec.dtype)
        bits = hidden.view(np.uint32).astype(np.uint64)  # round to nearest, ties to even, by hand
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(np.int16)


def _spec(**changes: Any) -> BoundarySpec:
    plain = BoundarySpec(
        modality="visual", boundary=9, identity={"weights": "abc", "size": 224}, dtype="float16", shape=(2, 3, 4)
    )
    return replace(plain, **changes)


SPECS: dict[str, dict[str, Any]] = {
    "dense": {},
    "dense-inputs": {"dtype": "float32", "inputs": {"grid": ArraySpec(dtype="int64", shape=(2,))}},
    "dense-bfloat16": {"dtype": "bfloat16", "shape": (5,)},
    "ragged": {"modality": "text", "ragged": True, "shape": (4,), "inputs": {"ids": ArraySpec(dtype="int32")}},
    "ragged-bfloat16": {"modality": "text", "ragged": True, "shape": (4,), "dtype": "bfloat16"},
}


@pytest.fixture
def make_sample() -> Callable[..., Sample]:
    """Give samples by the name of one of SPECS, with changes."""

    def make(name: str = "dense", *, shard_items: int = 3, **changes: Any) -> Sample:
        return Sample(_spec(**{**SPECS[name], **changes}), shard_items)

    return make


@pytest.fixture(params=list(SPECS))
def sample(request: pytest.FixtureRequest) -> Sample:
    """Give each kind of boundary in turn."""
    return Sample(_spec(**SPECS[request.param]))


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Give a function that returns every file under a folder with its content."""
    return lambda root: {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


_STEPS = ("fsync", "replace", "mkdir", "unlink")


def _fork(work: Callable[[], None]) -> int:
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


def _killed_at_step(number: int, work: Callable[[], None]) -> bool:
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
        write = shard.ShardFile.write
        shard.ShardFile.write = lambda file, content: (step(write)(file, content), file.file.flush())[0]
        work()

    _, status = os.waitpid(_fork(counted), 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.fixture
def fork() -> Callable[[Callable[[], None]], int]:
    """Give a function that runs another in a child process and returns the child's id."""
    return _fork


@pytest.fixture
def killed_at_step() -> Callable[[int, Callable[[], None]], bool]:
    """Give a function that runs another in a child which dies at its n-th step on the disk, if it comes so far."""
    return _killed_at_step
