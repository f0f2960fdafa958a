"""What is said once of a training that goes nowhere: at the blind baseline, with a flat loss, with gates at one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from talik.adapt.adapters.base import Triple
from talik.adapt.adapters.selection import Selection
from talik.adapt.training.adapt import adapt
from talik.adapt.training.watch import TrainingWatch


def epochs(losses: list[float], accuracies: list[float]) -> list[Any]:
    pairs = enumerate(zip(losses, accuracies, strict=True), 1)
    return [{"epoch": e, "train_loss": loss, "val_accuracy": accuracy} for e, (loss, accuracy) in pairs]


def said(losses: list[float], accuracies: list[float], *, after: int = 3, blind: float | None = 0.25) -> list[str]:
    history = epochs(losses, accuracies)
    watch = TrainingWatch(after=after, blind=lambda: blind, model=None)
    return [line for num in range(1, len(history) + 1) for line in watch.look(history[:num])]


def test_each_sign_is_told_once_after_the_stated_number_of_epochs() -> None:
    falling = [1.0, 0.8, 0.6, 0.5, 0.4]
    assert said(falling, [0.2, 0.25, 0.25, 0.5, 0.5]) == [
        "after epoch 3 the best validation, 25.0 %, has not left the blind baseline, 25.0 %"
    ]
    assert said(falling, [0.2, 0.3, 0.2, 0.2, 0.2]) == []
    assert said([1.0, 0.5, 0.4, 0.4001, 0.4], [0.5] * 5) == [
        "the training loss is flat: 0.4000 to 0.4001 in the last 3 epochs"
    ]
    assert said([0.4] * 6, [0.1] * 6, after=0) == []
    assert said(falling, [0.0] * 5, blind=None) == []


def selection() -> Selection:
    torch.manual_seed(0)
    return Selection(
        {"visual": 12, "audio": 8, "text": 10},
        kind="ssm",
        d_model=16,
        d_state=4,
        d_conv=2,
        expand=2,
        bidirectional=True,
        num_heads=2,
        scale=0.5,
    )


def test_the_bound_of_the_gates_holds_on_any_input_and_is_zero_at_first() -> None:
    module = selection()
    assert module.largest_gate_change() == 0.0
    with torch.no_grad():
        for parameter in (*module.gate.parameters(), *module.out_norm.parameters()):
            parameter.add_(0.01 * torch.randn_like(parameter))
    bound = module.largest_gate_change()
    triple = Triple(visual=torch.randn(2, 3, 5, 12), audio=torch.randn(2, 3, 4, 8), text=torch.randn(2, 6, 10))
    largest = max(float(gate.detach().abs().max()) for gate in module(triple).values())
    assert 0 < largest <= bound < 10 * largest
    model: Any = nn.ModuleList([module])
    watch = TrainingWatch(after=1, blind=lambda: None, model=model)
    assert watch.look(epochs([1.0], [0.5])) == []  # the gates have moved
    watch = TrainingWatch(after=1, blind=lambda: None, model=nn.ModuleList([selection()]))  # type: ignore[arg-type]

    (line,) = watch.look(epochs([1.0], [0.5]))
    assert line.startswith("after epoch 1 every gate is within 0 % of 1")


def test_a_run_that_learns_nothing_says_so(extracted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = extracted.read_text(encoding="utf-8")
    text = text.replace("[store]", f'[log]\nwarn_after = 1\n\n[store]\npath = "{extracted.parent}/features.zarr"')
    path = tmp_path / "exp.toml"
    path.write_text(text.replace("epochs = 2", "epochs = 2\nlr = 0.0\nhead_lr = 0.0"), encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="talik"):
        adapt(path, variant="trimodal", progress=False)
    lines = [record.getMessage() for record in caplog.records]
    assert sum("the training loss is flat" in line for line in lines) == 1
    assert sum("every gate is within 0 % of 1" in line for line in lines) == 1
    assert all(line.startswith("trimodal/seed0: ") for line in lines)
