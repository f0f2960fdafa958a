"""A batch is held as long as its copy to the device is under way, and no longer."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from talik.adapt.data.device_transfer import Transfers, pinned_allocator
from talik.cache.feature_store import BoundarySpec, FeatureStore, Item
from talik.cache.format.digests import digest_text
from talik.cache.read.boundary_reader import Batch


class Pending:
    """An event of a device that is busy until told otherwise."""

    def __init__(self) -> None:
        self.done = False
        self.waited = False

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.waited = self.done = True


def send(transfers: Transfers, value: float) -> tuple[torch.Tensor, weakref.ref]:
    batch = Batch(hidden=np.full((2, 3), value, np.float32), lengths=None)
    with transfers.of(batch) as to_device:
        sent = to_device(batch.hidden)
    return sent, weakref.ref(batch)


def test_held_until_done():
    events: list[Pending] = []
    transfers = Transfers("meta", record=lambda: events.append(Pending()) or events[-1])
    first = send(transfers, 1)[1]
    second = send(transfers, 2)[1]
    assert first() is not None
    events[0].done = True
    send(transfers, 3)
    gc.collect()
    assert first() is None
    assert second() is not None
    for _ in range(4):
        send(transfers, 4)
    gc.collect()
    assert second() is None, "no more than a few batches wait"
    assert events[1].waited
    assert not events[-1].waited


def test_nothing_is_held_or_copied_on_a_cpu():
    sent, batch = send(Transfers("cpu", record=lambda: pytest.fail("no event on a CPU")), 5)
    gc.collect()
    assert batch() is None
    assert torch.equal(sent, torch.full((2, 3), 5.0))
    assert pinned_allocator("cpu") is None


def test_a_reader_leaves_buffers_alone_while_a_copy_is_under_way(tmp_path):
    """The reader uses a buffer again when nobody holds its batch: with a copy pending, it must not."""
    spec = BoundarySpec(modality="visual", boundary=0, identity={}, dtype="float32", shape=(200, 200))
    items = [Item(key=digest_text(str(i)), source=str(i)) for i in range(4)]
    with FeatureStore.open(tmp_path / "s", "a").writer(spec, items) as writer:
        for shard in writer.missing():
            writer.write(shard, ((np.full(spec.shape, row, np.float32), {}) for row in shard.rows))
    made: list[int] = []

    def allocate(size_bytes: int) -> np.ndarray:
        made.append(size_bytes)
        return torch.empty(size_bytes, dtype=torch.uint8).numpy()  # as pinned memory comes

    reader = FeatureStore.open(tmp_path / "s").reader("visual", 0, allocate=allocate)
    events: list[Pending] = []
    transfers = Transfers("meta", record=lambda: events.append(Pending()) or events[-1])
    addresses = []
    for item in items[:3]:
        batch = reader.read([item.key])
        with transfers.of(batch) as to_device:
            to_device(batch.hidden)
        addresses.append(batch.hidden.ctypes.data)
        del batch
    assert len(set(addresses)) == 3, "all three are on their way"
    for event in events:
        event.done = True
    send(transfers, 0)
    gc.collect()
    assert reader.read([items[3].key]).hidden.ctypes.data in addresses
    assert len(made) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    memory = pinned_allocator("cuda")(1000)
    assert torch.from_numpy(memory).is_pinned()
    sent, _ = send(Transfers("cuda"), 7)
    assert torch.equal(sent.cpu(), torch.full((2, 3), 7.0))
