"""A state computed alone is the item's state in a padded batch: texts and sounds of unequal lengths, pictures."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch

from talik.extract.encoders.load import load_encoder
from talik.extract.trunk.state import State
from talik.extract.trunk.verification import find_trunk

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from coverage_checks import TOLERANCE, batch_noise, taken_alone
from coverage_models import TRANSFORMERS
from coverage_timm import CHOSEN, timm_model
from trunk_coverage import small_model

KINDS = {entry.name: entry for entry in TRANSFORMERS}
UNEQUAL = ["bert", "deberta-v2", "mpnet", "modernbert", "t5#encoder", "gemma3_text", "mamba", "wav2vec2", "hubert",
           "siglip2_vision_model"]  # fmt: skip
EQUAL = ["whisper#encoder", "swin", "vision_transformer", "mobilenetv3"]


pytestmark = pytest.mark.usefixtures("one_thread")


def _cut(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, forward, batches, *excluded = small_model(KINDS[name]) if name in KINDS else timm_model(*CHOSEN[name])
        return find_trunk(model, forward, batches.__getitem__, *excluded)[0], batches


@pytest.mark.filterwarnings("ignore")  # what the libraries say about their own models
@pytest.mark.parametrize("name", UNEQUAL + EQUAL)
def test_a_state_made_alone_is_the_items_in_a_padded_batch(name):
    trunk, batches = _cut(name)
    whole = next(iter(batches[4].values())).shape[1]
    assert (taken_alone(batches[4], 0)[1] not in (None, whole)) == (name in UNEQUAL)
    own, ours = batch_noise(trunk, batches[4])
    assert own <= TOLERANCE[torch.float32]
    assert ours <= TOLERANCE[torch.float32]


def test_the_measure_sees_padding_that_reaches_real_tokens():
    trunk, batches = _cut("fnet")  # it mixes all positions, padding included
    own, ours = batch_noise(trunk, batches[4])
    assert min(own, ours) > 1e-3


def test_texts_encoded_alone_are_joined_and_run_on_as_one_batch(tiny_encoders):
    encoder = load_encoder(f"hf:{tiny_encoders['text']}", modality="text")
    texts = ["is the violin first", "how many instruments are sounding in the video ?", "left"]
    with torch.no_grad():
        whole = encoder.embed(encoder.preprocess(texts))
        whole = encoder.run(whole, 0, encoder.num_units)
        alone = [encoder.run(encoder.embed(encoder.preprocess([text])), 0, 1) for text in texts]
        joined = encoder.run(State.concat(alone), 1, encoder.num_units)
    assert joined.lengths.tolist() == whole.lengths.tolist()
    assert len(set(joined.lengths.tolist())) > 1
    for item, length in enumerate(whole.lengths.tolist()):
        ours, theirs = joined.hidden[item, :length], whole.hidden[item, :length]
        assert (ours - theirs).abs().max() <= TOLERANCE[torch.float32] * theirs.abs().max()
