"""A training step of the scan allocates at most 1.3 of one tensor of all states, results included."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from talik.adapt.scan import chunk as chunked
from talik.adapt.scan.selective_scan import selective_scan

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from tensor_memory import peak_bytes


@pytest.mark.filterwarnings("ignore::UserWarning")  # the profiler's own
@pytest.mark.parametrize("size", [(2, 200, 128, 16), (2, 2000, 64, 16), (32, 30, 128, 16)], ids=str)
def test_extra_memory_of_forward_and_backward(size: tuple[int, int, int, int]) -> None:
    batch, length, channels, states = size
    torch.manual_seed(0)
    shapes = ((batch, channels, length), (batch, channels, length), (channels, states), *[(batch, states, length)] * 2)
    u, delta, a, b, c = (torch.rand(shape).requires_grad_() for shape in shapes)
    operands = (u, delta, a, b, c)
    chunked.Workspace.kept_buffers.__dict__.clear()  # the work buffers count

    def both_ways() -> None:
        out = selective_scan(u, delta, -a, b, c, backend="torch")
        torch.autograd.grad(out, operands, torch.ones_like(out))

    peak = peak_bytes(both_ways)
    all_states = 4 * batch * length * channels * states
    assert 0 < peak <= 1.3 * all_states
