"""A sample of the coverage table: small random models of many families, cut and replayed."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch

from talik.errors import TrunkError
from talik.extract.trunk.forward_patching import signature_of
from talik.extract.trunk.tracing import tensors
from talik.extract.trunk.verification import find_trunk

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from coverage_models import TRANSFORMERS
from coverage_timm import CHOSEN, timm_model
from trunk_coverage import small_model

pytestmark = pytest.mark.usefixtures("one_thread")


KINDS = {entry.name: entry for entry in TRANSFORMERS}
SAMPLE = [
    "bert", "deberta-v2", "albert", "modernbert", "t5#encoder", "clip_text_model", "mamba", "gemma3_text",
    "dinov3_vit", "siglip2_vision_model", "swin", "convnextv2", "hiera", "videomae",
    "clap_audio_model", "whisper#encoder", "wav2vec2", "wavlm",
]  # fmt: skip
TIMM_SAMPLE = ["vision_transformer", "resnet", "efficientnet", "convnext", "maxxvit", "mobilenetv3", "densenet"]


def _cut(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in KINDS:
            model, forward, batches = small_model(KINDS[name])
            return *find_trunk(model, forward, batches.__getitem__), batches
        model, forward, batches, excluded, backbone = timm_model(*CHOSEN[name])
        return *find_trunk(model, forward, batches.__getitem__, excluded, backbone), batches


def _restored(trunk, inputs, batch_size):
    small = {name: inputs[name] for name in trunk.context_names}
    return trunk.context(small, batch_size, signature_of(inputs), torch.device("cpu"))


def _known(trunk, output):
    return [t for path, t in tensors(output) if path not in trunk.aside]


def _equal(ours, theirs):
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.filterwarnings("ignore")  # what the libraries say about their own models
@pytest.mark.parametrize("name", SAMPLE + TIMM_SAMPLE)
def test_every_boundary_replays_exactly_from_a_restored_state(name):
    trunk, proof, batches = _cut(name)
    assert trunk.num_units >= 2
    assert proof.share > 0.7
    inputs = batches[2]
    with torch.no_grad():
        whole = _known(trunk, trunk.forward(inputs))
        hidden, context = trunk.embed(inputs)
        for k in range(trunk.num_units + 1):
            state = trunk.run(hidden, context, 0, k)
            trunk.forward(batches[1])
            fresh = _restored(trunk, inputs, hidden.shape[0])
            ours = _known(trunk, trunk.finish(trunk.run(state, fresh, k, trunk.num_units), fresh))
            assert _equal(ours, whole)


@pytest.mark.parametrize("name", ["crossvit"])
def test_networks_of_several_streams_are_refused(name):
    with pytest.raises(TrunkError):
        _cut(name)
