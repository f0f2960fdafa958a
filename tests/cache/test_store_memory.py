"""Writing holds a table of the items, and nothing of their data."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np

from talik.cache.feature_store import BoundarySpec, FeatureStore, Item
from talik.cache.format.digests import digest_text

SPEC = BoundarySpec(modality="visual", boundary=9, identity={}, dtype="float16", shape=(1000,))
BYTES_AN_ITEM = 400  # key, row, source, index, and what making them takes; the data of an item are 2000


def traced_peak(folder: Path, count: int) -> int:
    """Return the most bytes that writing `count` items takes at once, beyond the list of them."""
    items = [Item(key=digest_text(str(i)), source=f"videos/{i:06d}.mp4") for i in range(count)]
    store = FeatureStore.open(folder / str(count), "a")
    tracemalloc.start()
    try:
        with store.writer(SPEC, items, max_seconds_per_item=0.001) as writer:
            for shard in writer.missing():
                writer.write(shard, ((np.ones(1000, np.float16), {}) for _ in shard.items))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_writer_holds_a_table_of_the_items_and_none_of_their_data(tmp_path: Path) -> None:
    traced_peak(tmp_path, 1)  # what every first write loads
    few, many = traced_peak(tmp_path, 1024), traced_peak(tmp_path, 8192)
    assert many - few < BYTES_AN_ITEM * (8192 - 1024)
    found = FeatureStore.open(tmp_path / "8192").reader("visual", 9)
    assert (found.read([found.items[-1].key]).hidden == 1).all()
