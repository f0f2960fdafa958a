"""Which models count as one structure: those that differ in weights and in plain floats, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from talik.adapt.adapters.registry import adapter_kind, adapter_settings
from talik.adapt.model.structure import floats_of, structure_of
from talik.adapt.sweep.sweep import sweep
from talik.adapt.training import trainer

DIMS = [{"visual": 8, "audio": 8, "text": 4}] * 2


def adapter(kind: str, seed: int = 0, **settings: object) -> nn.Module:
    torch.manual_seed(seed)
    given = {"kind": kind, **settings}
    module = adapter_kind(kind).module
    assert module is not None
    return module(adapter_settings(given), DIMS)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", ["bottleneck", "parallel", "trimodal", "lavish", "lstta", "dgsct"])
def test_weights_alone_do_not_tell_structures_apart(kind: str) -> None:
    small = {"trimodal": {"d_model": 8}, "lstta": {"d_model": 8}, "bottleneck": {}, "parallel": {}}
    settings = small.get(kind, {"reduction": 2, "groups": 1})
    assert structure_of(adapter(kind, 0, **settings)) == structure_of(adapter(kind, 1, **settings))
    assert structure_of(adapter(kind, 0, **settings)) != structure_of(adapter(kind, 0, **settings).eval())


def test_sizes_switches_and_functions_do_and_a_scale_does_not() -> None:
    plain = adapter("parallel", d_bottleneck=4)
    others = [{"d_bottleneck": 5}, {"d_bottleneck": 4, "activation": "gelu"}, {"d_bottleneck": 4, "pre_norm": True}]
    for other in others:
        assert structure_of(plain) != structure_of(adapter("parallel", **other))
    scaled = adapter("parallel", d_bottleneck=4, scale=0.5)
    assert structure_of(plain) == structure_of(scaled)
    assert set(floats_of(plain).values()) == {4.0}
    assert set(floats_of(scaled).values()) == {0.5}
    windows = [adapter("trimodal", d_model=8, window=w) for w in (0, 1)]
    assert structure_of(windows[0]) != structure_of(windows[1])
    assert structure_of(nn.LayerNorm(4)) != structure_of(nn.LayerNorm(4, eps=0.1))


def test_a_hook_or_a_tied_weight_is_another_structure() -> None:
    pairs = [nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(3)]
    assert structure_of(pairs[0]) == structure_of(pairs[1])
    pairs[1][1].weight = pairs[1][0].weight
    assert structure_of(pairs[0]) != structure_of(pairs[1])
    pairs[2].register_forward_hook(lambda *given: None)
    assert structure_of(pairs[0]) != structure_of(pairs[2])
    frozen = nn.Linear(3, 3).requires_grad_(False)
    assert structure_of(frozen) != structure_of(nn.Linear(3, 3))


def test_a_group_counts_the_operations_of_a_structure_once(
    on_store: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = "".join(
        f'\n[[variants]]\nname = "b{index}"\ninsertion = "last 1"\n'
        f'adapter = {{ kind = "bottleneck", d_bottleneck = {width} }}\n'
        for index, width in enumerate((4, 4, 6))
    )
    path = on_store(tmp_path / "exp.toml", more=variants)
    counted: list[int] = []
    count: Callable[..., dict[str, int]] = trainer.forward_flops

    def noted(*given: object) -> dict[str, int]:
        counted.append(1)
        return count(*given)

    monkeypatch.setattr(trainer, "forward_flops", noted)
    sweep(path, variants=["b0", "b1", "b2"], progress=False)
    assert len(counted) == 2
    folders = [path.parent / "runs" / "exp" / f"b{i}" / "seed0" for i in range(3)]
    flops = [json.loads((folder / "result.json").read_text())["flops"] for folder in folders]
    assert flops[0] == flops[1] < flops[2]
