"""Reading ahead gives the same batches, delivers errors, and leaves no thread behind."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from talik.cache.feature_store import FeatureStore
from talik.cache.read.boundary_reader import prefetched
from talik.errors import MissingItemError


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "talik-prefetch"]


def test_the_same_batches_in_order(sample, tmp_path):
    items = sample.items(9)
    sample.fill(tmp_path / "s", items)
    reader = FeatureStore.open(tmp_path / "s").reader(sample.spec.modality, 9)
    batches = [[items[i].key for i in np.random.default_rng(n).integers(0, 9, 4)] for n in range(12)]
    held = list(reader.prefetch(batches, depth=3))
    assert len(held) == 12
    assert not any(batch.released for batch in held)
    for keys, batch in zip(batches, held, strict=True):
        np.testing.assert_array_equal(batch.hidden, reader.read(keys).hidden)
    assert not threads()


def test_an_error_comes_after_the_batches_before_it(make_sample, tmp_path):
    sample = make_sample()
    items = sample.items(2)
    sample.fill(tmp_path / "s", items)
    reader = FeatureStore.open(tmp_path / "s").reader("visual", 9)
    ahead = reader.prefetch([[items[0].key], ["f" * 64], [items[1].key]])
    assert len(next(ahead).hidden) == 1
    with pytest.raises(MissingItemError):
        next(ahead)
    assert not threads()

    def broken():
        yield [items[0].key]
        raise KeyError("sampler")

    ahead = reader.prefetch(broken())
    next(ahead)
    with pytest.raises(KeyError):
        next(ahead)
    assert not threads()


def test_leaving_early_ends_the_thread():
    def endless():
        while True:
            yield 1

    ahead = prefetched(lambda one: one, endless(), 2)
    assert next(ahead) == 1
    assert len(threads()) == 1
    ahead.close()
    assert not threads()
    for _ in prefetched(lambda one: one, endless(), 2):
        break
    time.sleep(0.01)
    assert not threads()


def test_it_reads_ahead_and_no_further_than_told():
    read = []
    ahead = prefetched(lambda one: read.append(one) or one, range(100), 3)
    next(ahead)
    deadline = time.monotonic() + 5
    while len(read) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert 4 <= len(read) <= 5
    ahead.close()
