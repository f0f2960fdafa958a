"""A batch is released when its copy to the device is complete, and not before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from talik.adapt.data.device_transfer import Transfers, pinned_allocator
from talik.cache.feature_store import BoundarySpec, FeatureStore, Item
from talik.cache.format.digests import digest_text
from talik.cache.read.batch import Batch


class Pending:
    """An event of a device that is busy until told otherwise."""

    def __init__(self) -> None:
        self.done = False
        self.waited = False

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.waited = self.done = True


def send(transfers: Transfers, value: float) -> tuple[torch.Tensor, Batch]:
    batch = Batch(hidden=np.full((2, 3), value, np.float32))
    with transfers.of(batch) as to_device:
        sent = to_device(batch.hidden)
    return sent, batch


def test_released_when_the_copy_is_done():
    events: list[Pending] = []
    transfers = Transfers("meta", record=lambda: events.append(Pending()) or events[-1])
    first = send(transfers, 1)[1]
    second = send(transfers, 2)[1]
    assert not first.released
    events[0].done = True
    send(transfers, 3)
    assert first.released
    assert not second.released
    for _ in range(4):
        send(transfers, 4)
    assert second.released, "no more than a few copies are under way"
    assert events[1].waited
    assert not events[-1].waited


def test_released_at_once_and_not_copied_on_a_cpu():
    transfers = Transfers("cpu", record=lambda: pytest.fail("no event on a CPU"))
    batch = Batch(hidden=np.full((2, 3), 5, np.float32))
    values = batch.hidden
    with transfers.of(batch) as to_device:
        assert to_device(values).data_ptr() == values.ctypes.data
        assert not batch.released
    assert batch.released
    assert pinned_allocator("cpu") is None


def test_a_reader_leaves_buffers_alone_while_a_copy_is_under_way(tmp_path):
    """The reader uses a buffer again when its batch is released: with a copy under way, it is not."""
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
    assert len(set(addresses)) == 3, "all three are on their way"
    for event in events:
        event.done = True
    send(transfers, 0)
    assert reader.read([items[3].key]).hidden.ctypes.data in addresses
    assert len(made) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and a torch built for it")
def test_on_a_gpu():
    memory = pinned_allocator("cuda")(1000)
    assert torch.from_numpy(memory).is_pinned()
    sent, _ = send(Transfers("cuda"), 7)
    assert torch.equal(sent.cpu(), torch.full((2, 3), 7.0))
