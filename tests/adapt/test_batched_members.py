"""Members of one structure that run as one batched module end as they do alone, within rounding."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from talik.adapt.config.experiment import load_experiment
from talik.adapt.config.sweep_settings import SweepSettings
from talik.adapt.model import batched_module
from talik.adapt.sweep.sweep import sweep
from talik.errors import SettingsError

SMALL = "d_model = 8, d_state = 4, num_latents = 2, num_heads = 2"
KINDS = {
    "bottleneck": ('insertion = "last 2"', 'kind = "bottleneck", d_bottleneck = 4'),
    "parallel": (
        'insertion = "last 1"\nplacement = "parallel"',
        'kind = "parallel", d_bottleneck = 4, scale = {scale}',
    ),
    "trimodal": ('insertion = "last 1"', f'kind = "trimodal", {SMALL}, scale = {{scale}}'),
    "side": ('insertion = "last 2"', 'kind = "side", reduction = 4, num_heads = 2'),  # its head alone
}
DIVERGES = """
[[variants]]
name = "diverges"
insertion = "last 2"
adapter = { kind = "bottleneck", d_bottleneck = 4 }
train = { lr = 1e30, head_lr = 1e30, clip_norm = 0.0 }
"""
OWN = [
    "lr = 1e-3, clip_norm = 0.0",
    "lr = 3e-3, weight_decay = 0.3, epochs = 1, clip_norm = 0.05",
    "lr = 2e-3, warmup = 0.5, accumulate = 2, ema = 0.5",
]


def variants(kind: str) -> str:
    where, adapter = KINDS[kind]
    return "".join(
        f'\n[[variants]]\nname = "{kind}{i}"\n{where}\n'
        f"adapter = {{ {adapter.format(scale=0.5 * (i + 1))} }}\ntrain = {{ {train} }}\n"
        for i, train in enumerate(OWN)
    )


@pytest.fixture
def experiment(in_few_steps: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, kinds: Sequence[str], sweeping: str, *, more: str = "", train: str = "") -> Path:
        dropout = "num_heads = 2\n\n[train]\n", f"num_heads = 2\ndropout = 0.4\n\n[train]\n{train}"
        added = f"{''.join(map(variants, kinds))}{more}\n[sweep]\n{sweeping}\n"
        return in_few_steps(tmp_path / name / "exp.toml", dropout, more=added)

    return write


def result(path: Path, variant: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    folder = path.parent / "runs" / "exp" / variant / "seed0"
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    numbers = [[e["train_loss"], e["val_loss"]] for e in epochs if e["event"] == "epoch"]
    return torch.tensor(numbers, dtype=torch.float64), load_file(folder / "adapter.safetensors")


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    a, b = (torch.cat([t[n].double().flatten() for n in sorted(expected)]) for t in (found, expected))
    return float((a - b).norm() / b.norm())


@pytest.fixture
def batched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What has run as one: the module's class and how many members."""
    ran: list[tuple[str, int]] = []
    run = batched_module.BatchedModules.run

    def noted(self: Any, modules: Sequence[nn.Module], *given: Any) -> Any:
        ran.append((type(modules[0]).__name__, len(modules)))
        return run(self, modules, *given)

    monkeypatch.setattr(batched_module.BatchedModules, "run", noted)
    return ran


@pytest.mark.parametrize(
    ("by_clip", "kinds", "modules"),
    [
        (False, ("parallel", "side"), ("EachItsOwn",)),
        (True, ("bottleneck", "trimodal"), ("EachItsOwn", "TrimodalInsertion")),
    ],
)
def test_batched_members_end_as_alone(
    experiment: Callable[..., Path],
    batched: list[tuple[str, int]],
    by_clip: bool,
    kinds: Sequence[str],
    modules: Sequence[str],
) -> None:
    train = "group_by_clip = true\n" if by_clip else ""
    alone = experiment("alone", kinds, "stack = false", train=train)
    together = experiment("together", kinds, "batch_members = true", train=train)
    names = [f"{kind}{i}" for kind in kinds for i in range(len(OWN))]
    sweep(alone, variants=names, fuse=False, progress=False)
    assert not batched
    assert not sweep(together, variants=names, progress=False).failures
    expected_modules = {(name, count) for name in (*modules, "AnswerHead") for count in (3, 2)}
    assert expected_modules <= set(batched)  # one ends an epoch earlier
    for name in names:
        numbers, weights = result(together, name)
        expected, expected_weights = result(alone, name)
        torch.testing.assert_close(numbers, expected, rtol=0, atol=1e-5)
        assert distance(weights, expected_weights) < 1e-4, name


def test_a_member_that_diverges_leaves_the_batched_module(
    experiment: Callable[..., Path], batched: list[tuple[str, int]]
) -> None:
    alone = experiment("alone", ["bottleneck"], "stack = false")
    together = experiment("together", ["bottleneck"], "batch_members = true", more=DIVERGES)
    sweep(alone, variants=["bottleneck0", "bottleneck2"], fuse=False, progress=False)
    found = sweep(together, variants=["bottleneck0", "diverges", "bottleneck2"], progress=False)
    ((name, reason),) = found.failures
    assert name == "diverges/seed0"
    assert "the loss is" in reason
    sizes = [n for kind, n in batched if kind == "EachItsOwn"]
    assert (sizes[0], sizes[-1]) == (3, 2)
    for name in ("bottleneck0", "bottleneck2"):
        numbers, weights = result(together, name)
        expected, expected_weights = result(alone, name)
        torch.testing.assert_close(numbers, expected, rtol=0, atol=1e-5)
        assert distance(weights, expected_weights) < 1e-4, name


def test_what_fails_batched_runs_by_itself_and_the_batch_again(
    experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alone = experiment("alone", ["bottleneck"], "stack = false")
    together = experiment("together", ["bottleneck"], "batch_members = true")
    names = ["bottleneck0", "bottleneck2"]
    sweep(alone, variants=names, fuse=False, progress=False)
    tried: list[int] = []

    def fails(self: Any, modules: Sequence[nn.Module], call: Any, tensors: Any, shared: Any, turns: Any) -> Any:
        tried.append(len(modules))
        for turn in turns if modules[0].training else ():
            with turn():
                torch.rand(3)  # what has been drawn is drawn again
        raise RuntimeError("vmap: no such thing")

    monkeypatch.setattr(batched_module.BatchedModules, "run", fails)
    assert not sweep(together, variants=names, progress=False).failures
    assert 3 <= len(tried) <= 5  # adapters at both insertions, then the head; and in evaluation
    assert "members are not batched (RuntimeError: vmap: no such thing)" in caplog.text
    for name in names:
        numbers, weights = result(together, name)
        expected, expected_weights = result(alone, name)
        torch.testing.assert_close(numbers, expected, rtol=0, atol=1e-5)
        assert distance(weights, expected_weights) < 1e-4, name


@pytest.mark.parametrize(
    ("given", "device", "stacks", "batches"),
    [
        ({}, "cpu", False, False),
        ({}, "cuda", True, True),
        ({"stack": True}, "cpu", True, True),
        ({"batch_members": True}, "cpu", True, True),
        ({"batch_members": False}, "cuda", True, False),
    ],
)
def test_auto_batches_where_members_are_stacked(given: Any, device: str, stacks: bool, batches: bool) -> None:
    settings = SweepSettings(**given)
    assert settings.stacks(device) is stacks
    assert settings.batches(device) is batches


def test_batching_what_is_not_stacked_is_refused(experiment: Callable[..., Path]) -> None:
    path = experiment("refused", [], "stack = false\nbatch_members = true")
    with pytest.raises(SettingsError, match="batch_members: true has no effect beside stack = false"):
        load_experiment(path)
