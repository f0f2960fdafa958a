"""Modules of one structure as one: every adapter and head, results and gradients of each member as alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from talik.adapt.adapters.base import Deltas, Triple
from talik.adapt.adapters.registry import adapter_kind, adapter_settings
from talik.adapt.model.batched_module import BatchedModule, BatchedModules
from talik.adapt.model.heads import AnswerHead, EventHead, TaskSettings
from talik.adapt.model.structure import structure_of

MEMBERS, ITEMS, SEGMENTS, LENGTH = 3, 2, 4, 5
DIMS = {"visual": 8, "audio": 12, "text": 4}
MASK = torch.tensor([[True] * LENGTH, [True] * 2 + [False] * (LENGTH - 2)])
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("bottleneck", {"d_bottleneck": 4, "pre_norm": True}),
    ("parallel", {"d_bottleneck": 4}),
    ("lavish", {"reduction": 2, "groups": 2, "num_latents": 3, "latents": "random", "text": True}),
    ("dgsct", {"reduction": 2, "groups": 2}),
    ("lstta", {"d_model": 8, "num_heads": 2}),
    ("trimodal", {"d_model": 8, "d_state": 4, "num_latents": 2, "num_heads": 2}),
    ("trimodal", {"d_model": 8, "selection": "attention", "interaction": "global", "num_latents": 2}),
]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.06}


def adapters(kind: str, settings: dict[str, Any], *, scales: bool = False) -> list[nn.Module]:
    made = []
    for seed in range(MEMBERS):
        torch.manual_seed(seed)
        own = {**settings, "scale": 0.5 + seed} if scales else settings
        module: Any = adapter_kind(kind).module
        adapter = module(adapter_settings({"kind": kind, **own}), [DIMS]).at(0)
        with torch.no_grad():  # away from the zeros that it starts with
            for parameter in adapter.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        made.append(adapter)
    return made


def tokens(shared: bool) -> dict[str, Tensor]:
    ahead = () if shared else (MEMBERS,)
    shapes = {"visual": (ITEMS, SEGMENTS, 3, 8), "audio": (ITEMS, SEGMENTS, 2, 12), "text": (ITEMS, LENGTH, 4)}
    return {m: torch.randn(*ahead, *shape, requires_grad=not shared) for m, shape in shapes.items()}


def call(run: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    deltas: Deltas = run(Triple(**given, text_mask=MASK))
    return {m: d for m in DIMS if (d := deltas.get(m)) is not None}


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert (found.double() - expected.double()).norm() <= tolerance * expected.double().norm() + 1e-12


@pytest.mark.parametrize(("kind", "settings"), KINDS, ids=[f"{k}{i}" for i, (k, _) in enumerate(KINDS)])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_adapter_of_each_member_is_one_batched_adapter(
    kind: str, settings: dict[str, Any], shared: bool, dtype: torch.dtype
) -> None:
    modules = adapters(kind, settings, scales=kind in ("parallel", "trimodal"))
    given = tokens(shared)
    if dtype == torch.float64:
        modules = [module.double() for module in modules]
        given = {m: x.detach().double().requires_grad_(not shared) for m, x in given.items()}
    assert len({structure_of(module) for module in modules}) == 1
    names = set(given) if shared else set()
    weights = [p for module in modules for p in module.parameters()]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        alone = [call(m, given if shared else {n: x[i] for n, x in given.items()}) for i, m in enumerate(modules)]
        together = BatchedModule(modules)(call, given, names, [])
    assert set(together) == set(alone[0])
    total: list[Tensor] = [torch.zeros(()), torch.zeros(())]
    for name, whole in together.items():
        expected = torch.stack([own[name] for own in alone])
        assert_near(whole, expected, TOLERANCE[dtype])
        share = torch.randn_like(expected)
        total = [total[0] + (whole * share).sum(), total[1] + (expected * share).sum()]
    inputs = [*weights, *(() if shared else given.values())]
    found, expected_grads = (torch.autograd.grad(t, inputs, allow_unused=True) for t in total)
    flat = [torch.cat([g.double().flatten() for g in each if g is not None]) for each in (found, expected_grads)]
    assert flat[1].norm() > 0
    assert_near(*flat, TOLERANCE[dtype])


@pytest.mark.parametrize("kind", [AnswerHead, EventHead])
@pytest.mark.parametrize("training", [True, False])
def test_heads_are_one_and_each_draws_its_own_dropout(kind: type[nn.Module], training: bool) -> None:
    heads = []
    for seed in range(MEMBERS):
        torch.manual_seed(seed)
        heads.append(kind(DIMS, 6, TaskSettings(d_head=8, num_heads=2, dropout=0.5)).train(training))  # type: ignore[call-arg]
    given = tokens(False)
    given["text"] = given["text"][0]
    states = [torch.Generator().manual_seed(10 + i).get_state() for i in range(MEMBERS)]
    drawn = list(states)

    def turn(index: int) -> Any:
        @contextmanager
        def own() -> Iterator[None]:
            before = torch.get_rng_state()
            torch.set_rng_state(drawn[index])
            yield
            drawn[index] = torch.get_rng_state()
            torch.set_rng_state(before)

        return own

    def answer(run: Any, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": run(features, MASK)}

    with torch.no_grad():
        found = BatchedModule(heads)(answer, given, {"text"}, [turn(i) for i in range(MEMBERS)])["logits"]
        after = list(drawn)
        drawn = list(states)
        for index, head in enumerate(heads):
            with turn(index)():
                alone = head({m: x if m == "text" else x[index] for m, x in given.items()}, MASK)
            assert_near(found[index], alone, 1e-6)
            assert torch.equal(after[index], drawn[index])
            assert training == (not torch.equal(states[index], drawn[index]))


def test_what_is_written_in_the_forward_or_draws_otherwise_runs_by_itself() -> None:
    told: list[str] = []
    modules = BatchedModules(told.append)
    norms = [nn.BatchNorm1d(3) for _ in range(2)]
    assert modules.key(norms[0]) is None
    assert modules.key(lambda x: x) is None

    class Draws(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x), 0.5)

    drawing = [Draws(3, 3) for _ in range(2)]
    assert modules.key(drawing[0]) == modules.key(drawing[1]) is not None
    given = {"x": torch.randn(2, 5, 3)}
    with pytest.raises(RuntimeError, match="random") as error:
        modules.run(drawing, lambda run, t: {"y": run(t["x"])}, given, set(), [])
    modules.refuse(drawing[0], error.value)
    assert modules.key(drawing[1]) is None
    assert modules.num_refused == 1
    assert "Draws: members are not batched" in told[0]
