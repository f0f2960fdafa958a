"""Variants whose units run stacked end as they do alone, within rounding: mixed kinds, dropout, leavers, own units."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import talik
from talik.adapt.config.experiment import SweepSettings, load_experiment
from talik.adapt.model.registry import _PARTS, HEADS
from talik.adapt.sweep.sweep import sweep
from talik.adapt.training import stacked_forward as stacked
from talik.adapt.training.experiment_context import ExperimentContext
from talik.adapt.training.stack_size import Stacking
from talik.errors import SettingsError
from talik.extract.encoders.load import load_encoder

VARIANTS = """
[[variants]]
name = "early"
insertion = { visual = [1], audio = [1], text = [1] }
adapter = { kind = "bottleneck", d_bottleneck = 4 }
train = { epochs = 2, lr = 5e-3, accumulate = 2 }

[[variants]]
name = "lavish"
insertion = "last 1"
adapter = { kind = "lavish", reduction = 2, groups = 1, num_latents = 2 }

[[variants]]
name = "lora"
insertion = { visual = [1], audio = [2], text = [2] }
adapter = { kind = "peft:lora", r = 2, lora_dropout = 0.3 }
"""
DIVERGES = """
[[variants]]
name = "diverges"
insertion = "last 1"
adapter = { kind = "bottleneck", d_bottleneck = 4 }
train = { lr = 1e30, head_lr = 1e30, clip_norm = 0.0 }
"""
NAMES = ["trimodal", "early", "lavish", "lora"]
STEPS = 52  # at least


@dataclass(frozen=True, kw_only=True)
class DropoutHeadSettings:
    """No choices."""


class DropoutHead(nn.Module):
    """A head of whatever precision the features have, with dropout."""

    def __init__(self, settings: DropoutHeadSettings, dims: dict[str, int], num_classes: int) -> None:
        super().__init__()
        self.linear = nn.ModuleDict({m: nn.Linear(d, num_classes) for m, d in dims.items()})

    def forward(self, features: dict[str, torch.Tensor], text_mask: torch.Tensor | None) -> torch.Tensor:
        pooled = {m: nn.functional.dropout(x.flatten(1, -2).mean(1), 0.3, self.training) for m, x in features.items()}
        return sum((self.linear[m](x) for m, x in pooled.items()), torch.zeros(()))


@pytest.fixture(autouse=True)
def _head_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_PARTS, HEADS, {})  # what is registered here is gone afterwards
    talik.register_head("dropout", DropoutHeadSettings, DropoutHead)


@pytest.fixture
def experiment(on_store: Callable[..., Path], tmp_path: Path) -> Callable[[str, str], Path]:
    def write(name: str, sweeping: str) -> Path:
        head = "d_head = 16\nnum_heads = 2", 'head = { kind = "dropout" }'
        return on_store(tmp_path / name / "exp.toml", head, more=f"{VARIANTS}\n[sweep]\n{sweeping}\n")

    return write


def result(path: Path, variant: str) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, Any]]:
    folder = path.parent / "runs" / "exp" / variant / "seed0"
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = torch.tensor([e["train_loss"] for e in epochs if e["event"] == "epoch"], dtype=torch.float64)
    return losses, load_file(folder / "adapter.safetensors"), json.loads((folder / "result.json").read_text())


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Of all weights together, relative to their norm."""
    a, b = (torch.cat([t[n].double().flatten() for n in sorted(expected)]) for t in (found, expected))
    return float((a - b).norm() / b.norm())


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize(("dtype", "weights", "loss"), [(torch.float32, 1e-4, 1e-5), (torch.float64, 1e-9, 1e-9)])
def test_stacked_equals_alone(
    experiment: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    weights: float,
    loss: float,
) -> None:
    if dtype == torch.float64:
        in_double(monkeypatch)
    joined: list[int] = []
    real = stacked.StackedForward.joined
    monkeypatch.setattr(
        stacked.StackedForward, "joined", lambda self, states: joined.append(len(states)) or real(self, states)
    )
    alone, together = experiment("alone", "stack = false"), experiment("together", "stack = true")
    for path in (alone, together):
        steps = -(-len(ExperimentContext(load_experiment(path)).questions("train")) // 8)
        path.write_text(path.read_text().replace("epochs = 2\nbatch", f"epochs = {-(-STEPS // steps)}\nbatch"))
    sweep(alone, variants=NAMES, fuse=False, progress=False)
    assert not joined
    assert len(sweep(together, variants=NAMES, progress=False).runs) == len(NAMES)
    assert max(joined) == len(NAMES)
    for name in NAMES:
        losses, found, told = result(together, name)
        expected_losses, expected, _ = result(alone, name)
        assert told["stacked"]
        assert len(losses) == len(expected_losses) >= 2
        torch.testing.assert_close(losses, expected_losses, rtol=0, atol=loss)
        assert distance(found, expected) < weights, name


def test_a_failing_variant_leaves_the_stack_and_the_others_go_on(experiment: Callable[[str, str], Path]) -> None:
    alone, together = experiment("alone", "stack = false"), experiment("together", "stack = true")
    together.write_text(together.read_text().replace("[sweep]", f"{DIVERGES}\n[sweep]"))
    sweep(alone, variants=["lavish"], progress=False)
    found = sweep(together, variants=["diverges", "lavish", "trimodal"], progress=False)
    ((name, reason),) = found.failures
    assert name == "diverges/seed0"
    assert "the loss is" in reason
    losses, weights, _ = result(together, "lavish")
    expected_losses, expected, _ = result(alone, "lavish")
    torch.testing.assert_close(losses, expected_losses, rtol=0, atol=1e-5)
    assert distance(weights, expected) < 1e-4


def test_on_cuda_the_first_batch_shows_how_many_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"memory_allocated": 100, "memory_reserved": 150, "max_memory_allocated": 350, "mem_get_info": (950, 2000)}
    for name, value in held.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)

    def sizes(settings: SweepSettings, batches: int) -> list[list[int]]:
        context: Any = SimpleNamespace(experiment=SimpleNamespace(sweep=settings), device="cuda")
        stacking, members = Stacking(context, 8), [("training", {})] * 8
        return [[len(part) for part in stacking.measured_parts(members)] for _ in range(batches)]  # type: ignore[arg-type]

    one_by_one = [1] * 8  # of 250 bytes each; 1000 are free, of which 800 may be filled
    assert sizes(SweepSettings(), 3) == [one_by_one, [3, 3, 2], [3, 3, 2]]
    assert sizes(SweepSettings(stack_size=5), 1) == [[5, 3]]
    assert sizes(SweepSettings(stack=False), 2) == [one_by_one, one_by_one]


def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make encoders and all that is trained of float64, and let them start from the float32 states of the store."""
    monkeypatch.setattr("talik.extract.stage.prefix.load_encoder", partial(load_encoder, dtype=torch.float64))
    monkeypatch.setattr("talik.adapt.data.cached_source.differences", lambda asked, stored: [])
    build = ExperimentContext.build
    monkeypatch.setattr(
        ExperimentContext, "build", lambda self, variant, **given: build(self, variant, **given).double()
    )


@pytest.mark.parametrize(
    ("stack", "device", "expected"), [("auto", "cpu", False), ("auto", "cuda", True), (True, "cpu", True)]
)
def test_auto_stacks_on_cuda_only(stack: Any, device: str, expected: bool) -> None:
    assert SweepSettings(stack=stack).stacks(device) is expected
    with pytest.raises(SettingsError, match="stack_size: found -1"):
        SweepSettings(stack_size=-1)
