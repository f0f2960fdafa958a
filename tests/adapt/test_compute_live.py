"""Training on states that were computed in bfloat16: from the store and live alike; what the plan says of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from talik.adapt.config.experiment import load_experiment
from talik.adapt.evaluation.evaluate import evaluate
from talik.adapt.plan import measure as kept_module
from talik.adapt.plan.plan import plan
from talik.adapt.plan.text import plan_lines
from talik.adapt.training.adapt import adapt
from talik.adapt.training.experiment_context import ExperimentContext
from talik.errors import TalikError
from talik.extract.stage.extract import extract

NARROW = tuple((f"[encoders.{m}]", f'[encoders.{m}]\ncompute = "bfloat16"') for m in ("visual", "audio", "text"))
ROUNDING = 2e-2  # of bfloat16, of the largest number: what shares a forward moves its last bits


def test_cached_is_live(write_experiment: Callable[..., Path]) -> None:
    path = write_experiment(*NARROW)
    extract(path, progress=False)
    context = ExperimentContext(load_experiment(path))
    model = context.build(context.experiment.variant("trimodal"), seed=0).eval()
    plain = ExperimentContext(load_experiment(write_experiment()))
    exact = plain.build(plain.experiment.variant("trimodal"), seed=0).eval()
    questions = list(context.questions("train"))[:4]
    cached, live = (next(iter(s.batches([questions]))) for s in (context.cached(model), context.live(model)))
    full = next(iter(plain.live(exact).batches([questions])))
    for modality, state in live.states.items():
        stored = cached.states[modality]
        assert (state.boundary, state.hidden.dtype) == (stored.boundary, torch.float32)
        assert torch.equal(state.hidden, state.hidden.to(torch.bfloat16).float())  # it came out of bfloat16
        scale = stored.hidden.abs().max()
        known = state.lengths
        mask = None if known is None else torch.arange(state.hidden.shape[1])[None] < known[:, None]
        ours, theirs = (h if mask is None else h[mask] for h in (stored.hidden, state.hidden))
        assert (ours - theirs).abs().max() <= ROUNDING * scale
        assert not torch.equal(state.hidden, full.states[modality].hidden)
    with torch.no_grad():
        gap = (model(cached) - model(live)).abs().max()
        assert gap <= ROUNDING * model(live).abs().max()
    assert all(p.dtype == torch.float32 for e in context.encoders.values() for p in e.model.parameters())


def test_a_run_reads_states_of_its_own_compute(write_experiment: Callable[..., Path]) -> None:
    path = write_experiment(*NARROW)
    with pytest.raises(TalikError):
        adapt(path, variant="probe", progress=False)  # nothing is stored yet
    extract(path, progress=False)
    run = adapt(path, variant="trimodal", progress=False)
    again = [evaluate(run.folder, live=live, save=False).scores.overall for live in (False, True)]
    assert again[0].total == again[1].total
    assert again[0].accuracy == run.accuracy
    assert abs(again[0].correct - again[1].correct) <= 1


def test_the_plan_says_what_each_costs(
    write_experiment: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALIK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_module, "pace", lambda device: 0.01)
    path = write_experiment(("[encoders.audio]", '[encoders.audio]\ncompute = "bfloat16"'))
    found = plan(path, progress=False)
    for costs in found.compute_costs.values():
        assert [one.compute for one in costs] == ["float32", "bfloat16"]  # on a CPU tf32 is float32
        assert all(one.seconds > 0 and one.error is not None for one in costs)
    lines = [line for line in plan_lines(found) if "the prefix in" in line]
    pattern = (
        r" +the prefix in float32 [\d.]+ ms a (clip|text), error \S+; bfloat16 [\d.]+ ms a \1, error [\d.]+e-0[1-3] "
        rf'\(compute = "(\w+)"; errors are of the states as {found.dtype}\)'
    )
    chosen = [match[2] for line in lines if (match := re.fullmatch(pattern, line))]
    assert chosen == ["float32", "bfloat16", "float32"]
    assert plan(path, progress=False).compute_costs == found.compute_costs  # as it was measured
