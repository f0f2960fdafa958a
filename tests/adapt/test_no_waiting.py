"""A training step asks the device for nothing: no number is read, no size depends on values, in any kind of adapter."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from talik.adapt.config.experiment import load_experiment
from talik.adapt.training.adapt import open_trainer
from talik.adapt.training.experiment_context import ExperimentContext
from talik.adapt.training.step_losses import StepLosses
from talik.adapt.training.trainer import Trainer
from talik.errors import RunError

SMALL = "d_model = 8, d_state = 4, num_latents = 2, num_heads = 2"
KINDS = {
    "probe": 'kind = "probe"',
    "trimodal": f'kind = "trimodal", {SMALL}',
    "attention": f'kind = "trimodal", selection = "attention", center = "audio", {SMALL}',
    "lavish": 'kind = "lavish", reduction = 2, groups = 1, num_latents = 2, text = true',
    "dgsct": 'kind = "dgsct", reduction = 2, groups = 1, num_latents = 2, text = true',
    "lstta": 'kind = "lstta", d_model = 8, num_heads = 2',
    "bottleneck": 'kind = "bottleneck", d_bottleneck = 4',
    "parallel": 'kind = "parallel", d_bottleneck = 4',
    "side": 'kind = "side", reduction = 4, num_heads = 2',
    "norm": 'kind = "norm"',
    "bitfit": 'kind = "bitfit"',
    "finetune": 'kind = "finetune"',
    "lora": 'kind = "peft:lora", r = 2',
}
WAITING = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique")
SENDING = "lift_fresh"  # torch.tensor([…])
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


class Waits(TorchDispatchMode):
    """Notes each operation that would make the host wait for a GPU, or send it what is in pageable memory."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if masked or any(name.startswith(waiting) for waiting in (*WAITING, SENDING)):
            place = [f for f in traceback.extract_stack() if "torch" not in Path(f.filename).parts[-3:-1]][-2]
            if name == SENDING and place.filename.endswith("targets.py"):
                return func(*args, **(kwargs or {}))  # labels, sent from pinned memory
            self.found.append(f"{name} at {place.filename}:{place.lineno}")
        return func(*args, **(kwargs or {}))


class Passed:
    """An event of a device that has done everything."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pytest.fail("a step waited")


@pytest.fixture(scope="module")
def context(on_store: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExperimentContext]:
    variants = "".join(
        f'\n[[variants]]\nname = "v-{name}"\nadapter = {{ {adapter} }}\n'
        + ('insertion = "last 2"\n' if name != "probe" else "")
        for name, adapter in KINDS.items()
    )
    path = on_store(tmp_path_factory.mktemp("waiting") / "exp.toml", more=variants)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield ExperimentContext(load_experiment(path))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", KINDS)
def test_a_step_waits_for_nothing(context: ExperimentContext, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("talik.adapt.training.trainer.StepLosses", lambda label, device: deferred(label))
    trainer = open_trainer(context, f"v-{name}", 0)
    assert isinstance(trainer, Trainer)
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)  # torch's own; on CUDA one fused kernel
    trainer.begin_epoch()
    batches = trainer.train_batches()
    first, *others = (next(batches) for _ in range(3))
    trainer.step(first)
    with Waits() as watched:
        for batch in others:
            trainer.step(batch)
    assert watched.found == []
    assert len(trainer.gradients.losses()) == 3


def deferred(label: str) -> StepLosses:
    """Losses as on a GPU: each is read once its event has passed."""
    losses = StepLosses(label, "cpu", record=Passed)
    losses.at_once = False
    return losses


def test_what_would_wait_is_noticed() -> None:
    calls: list[Callable[[torch.Tensor], Any]] = [
        lambda x: float(x.sum()),
        lambda x: x[x > 0],
        lambda x: bool((x > 0).all()),
        lambda x: torch.tensor([1.0]) + x,
        lambda x: torch.equal(x, x),
        lambda x: (x > 0).nonzero(),
    ]
    for call in calls:
        with Waits() as watched:
            call(torch.ones(3))
        assert watched.found


class Busy:
    """An event that has not come until somebody waits for it."""

    def __init__(self) -> None:
        self.done = self.waited = False

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.waited = self.done = True


def test_a_loss_that_is_not_finite_is_noticed_when_it_comes() -> None:
    events: list[Busy] = []
    losses = StepLosses("v/seed0", "cpu", record=lambda: events.append(Busy()) or events[-1])
    losses.at_once = False
    for step, value in enumerate((0.5, math.nan, 0.25)):
        assert losses.add(torch.tensor(value), step=10 + step) == step
    events[0].done = events[1].done = True
    with pytest.raises(RunError, match="v/seed0: the loss is nan at step 11; lower lr"):
        losses.add(torch.tensor(1.0), step=13)
    assert not any(event.waited for event in events)
    losses.clear()
    losses.add(torch.tensor(2.0), step=0)
    losses.add(torch.tensor(math.inf), step=1)
    losses.truncate(1)  # of a batch that is trained again
    losses.add(torch.tensor(3.0), step=1)
    assert losses.values() == [2.0, 3.0]
    losses.add(torch.tensor(math.inf), step=7)
    with pytest.raises(RunError, match="the loss is inf at step 7"):
        losses.values()


def test_many_losses_keep_their_order() -> None:
    losses = deferred("v")
    expected = [float(i) for i in range(2500)]
    for step, value in enumerate(expected):
        losses.add(torch.tensor(value), step=step)
    assert losses.values() == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and a torch built for it")
@pytest.mark.parametrize("name", KINDS)
def test_on_a_gpu_steps_run_where_waiting_is_an_error(context: ExperimentContext, name: str) -> None:
    own = ExperimentContext(context.experiment, device="cuda")
    trainer = open_trainer(own, f"v-{name}", 0)
    assert isinstance(trainer, Trainer)
    trainer.begin_epoch()
    batches = list(trainer.train_batches())
    trainer.step(batches[0])  # what is made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[1:]:
            trainer.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(trainer.gradients.losses()) == len(batches)
