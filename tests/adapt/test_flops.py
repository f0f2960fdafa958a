"""Counting the operations of a forward pass: by hand on a small model, and as finished runs record it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from talik.adapt.data.batch import Batch
from talik.adapt.model.flops import forward_flops
from talik.adapt.training.adapt import adapt


class Small(nn.Module):
    """Frozen: a matrix and an attention over its outputs; trained: two matrices."""

    def __init__(self, *, tunes_units: bool = False) -> None:
        super().__init__()
        self.tunes_units = tunes_units
        self.head = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Dropout(0.5))
        object.__setattr__(self, "frozen", nn.Linear(4, 4))

    def forward(self, batch: Batch) -> Tensor:
        x: Tensor = self.frozen(batch.states["visual"].hidden)
        assert not self.training
        x = x[:, None]
        return self.head(scaled_dot_product_attention(x, x, x)[:, 0])


def batch_of_two() -> Batch:
    states: Any = {"visual": SimpleNamespace(hidden=torch.ones(2, 7, 4))}
    questions: Any = ("first", "second")
    return Batch(questions=questions, states=states, num_segments=1)


def test_the_count_is_that_of_hand() -> None:
    batch = batch_of_two()
    linear, attention, head = 2 * 4 * 4 * 7, 2 * 2 * 7 * 7 * 4, 2 * (4 * 5 + 5 * 3) * 7
    model: Any = Small().train()
    found = forward_flops(model, batch)
    assert found == {"flops": linear + attention + head, "flops_trained": head}
    assert model.training
    assert not model.head[0]._forward_hooks
    tuned: Any = Small(tunes_units=True)
    assert forward_flops(tuned, batch) == {"flops": linear + attention + head}


def test_counting_moves_no_random_numbers() -> None:
    batch = batch_of_two()
    model: Any = Small()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    forward_flops(model, batch)
    assert torch.equal(torch.rand(3), expected)


def test_a_finished_run_records_what_it_was_trained_on_and_what_a_question_costs(
    on_store: Callable[..., Path], tmp_path: Path
) -> None:
    path = on_store(tmp_path / "exp.toml", ("epochs = 2", "epochs = 1"))
    counts = {}
    for name in ("probe", "trimodal"):
        folder = adapt(path, variant=name, progress=False).folder
        result = json.loads((folder / "result.json").read_text())
        assert (result["device"], result["live"], result["together"]) == ("cpu", False, 1)
        counts[name] = result["flops"], result["flops_trained"]
    assert counts["probe"][0] > counts["probe"][1] > 0  # the encoders' ends run too
    assert counts["trimodal"][0] > counts["trimodal"][1] > counts["probe"][1]
