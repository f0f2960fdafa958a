"""A batch is released when its copy to the device is complete, and not before."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from talik.adapt.config.experiment import load_experiment
from talik.adapt.data.batch import tensors_of
from talik.adapt.data.device_transfer import Transfers, made_ahead, pinned_allocator
from talik.adapt.model.precision import Precision
from talik.adapt.training.experiment_context import ExperimentContext
from talik.cache.feature_store import BoundarySpec, FeatureStore, Item
from talik.cache.format.digests import digest_text
from talik.cache.read.batch import Batch
from talik.extract.trunk.tracing import tensors


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


class Side:
    """A stream of a device that notes what it is asked for."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.threads: set[str] = set()

    @contextmanager
    def active(self) -> Iterator[None]:
        self.threads.add(threading.current_thread().name)
        yield

    def mark(self) -> Pending:
        return Pending()

    def hand_over(self, event: Pending, tensors: Iterable[torch.Tensor]) -> None:
        assert not event.waited, "the host does not wait, the consumer's stream does"
        self.log += [f"handed {int(tensor)}" for tensor in tensors]


def test_a_batch_is_made_ahead_by_a_thread_and_handed_over_before_it_is_used():
    side, second = Side(), threading.Event()

    def make(value: int) -> torch.Tensor:
        if value == 1:
            second.set()
        if value == 3:
            raise ValueError("no batch 3")
        assert not torch.is_grad_enabled()
        return torch.tensor(value)

    batches = made_ahead(make, range(9), side, lambda made: [made])  # type: ignore[arg-type]
    for _ in range(3):
        made = next(batches)
        assert second.wait(5), "the next one is made while this one is used"
        side.log.append(f"used {int(made)}")
    with pytest.raises(ValueError, match="no batch 3"):
        next(batches)
    assert side.log == [f"{what} {i}" for i in range(3) for what in ("handed", "used")]
    assert side.threads == {"talik-prefetch"}


def test_every_tensor_of_a_batch_is_handed_over(extracted: Path):
    context = ExperimentContext(load_experiment(extracted))
    model = context.build(context.experiment.variant("trimodal"), seed=0)
    (batch,) = context.cached(model).batches([context.questions("train")[:8]], by_clip=True)
    held = {id(tensor) for tensor in tensors_of(batch)}
    assert batch.clips is not None
    assert id(batch.clips.of) in held
    for state in batch.states.values():
        assert id(state.hidden) in held
        assert {id(t) for t in state.context.inputs.values()} <= held
        assert {id(t) for _, t in tensors(state.context.calls)} <= held
    assert id(batch.states["text"].lengths) in held


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and a torch built for it")
def test_on_a_gpu_batches_made_ahead_hold_what_was_read(extracted: Path):
    found = {}
    for device in ("cpu", f"cuda:{torch.cuda.device_count() - 1}"):
        context = ExperimentContext(load_experiment(extracted), device=device)
        model = context.build(context.experiment.variant("trimodal"), seed=0, precision=Precision())
        batches = context.cached(model).batches([context.questions("train")[i : i + 4] for i in range(12)])
        found[device] = []
        for batch in batches:
            if device != "cpu":
                torch.randn(4000, 4000, device=device).matrix_power(3)  # the consumer's stream is behind
            found[device].append({m: s.hidden.cpu() for m, s in batch.states.items()})
        assert {s.hidden.device for s in batch.states.values()} == {torch.device(device)}
    ours, theirs = found.values()
    for one, other in zip(ours, theirs, strict=True):
        for modality, hidden in one.items():
            assert torch.equal(hidden, other[modality])
