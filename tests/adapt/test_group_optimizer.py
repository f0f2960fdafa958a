"""One optimiser step for several members: bits of separate steps, rates, clipping and first steps of their own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from talik.adapt.config.experiment import TrainSettings
from talik.adapt.training.group_optimizer import clip_together, step_together
from talik.adapt.training.optimizer import make_optimizer

SETTINGS = [
    TrainSettings(lr=1e-3),
    TrainSettings(lr=1e-3, clip_norm=0.0),
    TrainSettings(lr=1e-3, head_lr=3e-2, weight_decay=0.0, clip_norm=0.01),
    TrainSettings(lr=5e-2, clip_norm=100.0),
]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.adapter = nn.Sequential(nn.Linear(37, 19), nn.LayerNorm(19))
        self.head = nn.Linear(19, 5)


@pytest.mark.parametrize("late", [False, True])
def test_steps_taken_together_are_those_taken_alone(late: bool) -> None:
    torch.manual_seed(0)
    together = [Model() for _ in SETTINGS]
    alone = copy.deepcopy(together)
    optimizers = [[make_optimizer(m, s) for m, s in zip(each, SETTINGS, strict=True)] for each in (together, alone)]
    for step in range(6):
        members = range(1 if late and step < 2 else 0, len(SETTINGS))  # with `late` one has taken fewer steps
        for index in members:
            for a, b in zip(together[index].parameters(), alone[index].parameters(), strict=True):
                reached = a.ndim > 1 or step > 2  # some parameters are not reached at first
                a.grad = torch.randn_like(a) if reached else None
                b.grad = None if a.grad is None else a.grad.clone()
            for group in optimizers[0][index].param_groups + optimizers[1][index].param_groups:
                group["lr"] *= 0.9
            if SETTINGS[index].clip_norm:
                nn.utils.clip_grad_norm_(alone[index].parameters(), SETTINGS[index].clip_norm)
            optimizers[1][index].step()
        grads = [[p.grad for p in together[i].parameters() if p.grad is not None] for i in members]
        clip_together(grads, [SETTINGS[i].clip_norm for i in members])
        step_together([optimizers[0][i] for i in members])
    for index, (a, b) in enumerate(zip(together, alone, strict=True)):
        for (name, found), expected in zip(a.named_parameters(), b.parameters(), strict=True):
            assert torch.equal(found, expected), (index, name)
        states = [optimizers[k][index].state_dict()["state"] for k in range(2)]
        assert states[0].keys() == states[1].keys()
        for number, own in states[0].items():
            for key, value in own.items():
                assert torch.equal(value, states[1][number][key]), (index, number, key)


def test_a_gradient_that_is_not_finite_stays_its_members_own() -> None:
    grads = [[torch.tensor([float("nan"), 1.0])], [torch.tensor([3.0, 4.0])], []]
    clip_together(grads, [1.0, 1.0, 1.0])
    assert grads[0][0].isnan().all()
    assert torch.allclose(grads[1][0], torch.tensor([0.6, 0.8]))


@pytest.mark.gpu
def test_on_a_gpu_the_fused_kernel_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    together = [Model().cuda() for _ in SETTINGS]
    alone = copy.deepcopy(together)
    optimizers = [[make_optimizer(m, s) for m, s in zip(each, SETTINGS, strict=True)] for each in (together, alone)]
    for _ in range(3):
        for a, b, optimizer in zip(together, alone, optimizers[1], strict=True):
            for p, q in zip(a.parameters(), b.parameters(), strict=True):
                p.grad = torch.randn_like(p)
                q.grad = p.grad.clone()
            optimizer.step()
        step_together(optimizers[0])
    for a, b in zip(together, alone, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
