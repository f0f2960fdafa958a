"""The gradient through a suffix is the gradient through the whole model: a sample of the coverage table's families."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch

from talik.extract.trunk.verification import find_trunk

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from coverage_checks import TOLERANCE, gradient_error
from coverage_models import TRANSFORMERS
from coverage_timm import CHOSEN, timm_model
from trunk_coverage import small_model

KINDS = {entry.name: entry for entry in TRANSFORMERS}
SAMPLE = [
    "bert", "deberta-v2", "t5#encoder", "gemma3_text", "mamba", "dinov3_vit", "swin", "hiera", "whisper#encoder",
    "wav2vec2", "vision_transformer", "resnet",
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def _cut(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, forward, batches, *excluded = small_model(KINDS[name]) if name in KINDS else timm_model(*CHOSEN[name])
        return find_trunk(model, forward, batches.__getitem__, *excluded)[0], batches


@pytest.mark.filterwarnings("ignore")  # what the libraries say about their own models
@pytest.mark.parametrize("name", SAMPLE)
def test_gradient_at_every_boundary_is_the_whole_models(name):
    trunk, batches = _cut(name)
    error, dtype = gradient_error(trunk, batches[4])
    assert dtype == torch.float64
    assert error <= TOLERANCE[dtype]


def test_the_measure_sees_a_gradient_that_is_slightly_off(monkeypatch):
    trunk, batches = _cut("bert")
    right = trunk.run
    monkeypatch.setattr(trunk, "run", lambda hidden, *rest: right(hidden * (1 + 1e-8), *rest))
    error, dtype = gradient_error(trunk, batches[4])
    assert error > TOLERANCE[dtype]
