"""The index of keys finds what a dictionary finds, however the keys are spread."""

from __future__ import annotations

import numpy as np
import pytest

from talik.cache.format.key_index import KeyIndex


def spread(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32), np.uint8)


def crowded(count: int) -> np.ndarray:
    keys = spread(count)
    keys[:, :8] = 7  # one prefix for all
    keys[:3, :8] = [[0] * 8, [255] * 8, [7] * 7 + [8]]
    return keys


@pytest.mark.parametrize("count", [1, 2, 3, 100, 3000, 9000])
@pytest.mark.parametrize("made", [spread, crowded])
def test_as_a_dictionary(made, count):
    if made is crowded and not 3 <= count <= 100:
        return
    keys = made(count)
    random = np.random.default_rng(1)
    places = random.permutation(count)[: max(1, count - count // 4)]
    rows = random.permutation(10 * count)[: len(places)]
    index = KeyIndex(keys, places, rows)
    assert len(index) == len(places)
    expected = {keys[place].tobytes(): row for place, row in zip(places, rows, strict=True)}
    near = keys.copy()
    near[:, 31] ^= 1  # the same prefix, another key
    for asked in (keys, near, spread(7), np.zeros((1, 32), np.uint8), np.full((1, 32), 255, np.uint8)):
        found = index.find([key.tobytes().hex() for key in asked])
        assert found.tolist() == [expected.get(key.tobytes(), -1) for key in asked]


def test_empty():
    index = KeyIndex(np.zeros((0, 32), np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert index.find(["f" * 64]).tolist() == [-1]
