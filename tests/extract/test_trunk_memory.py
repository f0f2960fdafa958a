"""What a suffix holds in memory: the bare units' activations and nothing of the prefix."""

from __future__ import annotations

import sys
import weakref
from pathlib import Path

import pytest
import torch

from talik.extract.trunk.tracing import tensors

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from trunk_memory import ALLOWED, bare_units, peak_bytes, suffix_peaks, text_trunk


@pytest.fixture(scope="module")
def cut():
    """A small BERT cut in six, with a batch that makes its activations large beside its masks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 64}
    yield text_trunk(8, 40, num_hidden_layers=6, **sizes)
    torch.set_num_threads(threads)


def test_a_suffix_peaks_as_its_bare_units_do(cut):
    peaks = suffix_peaks(*cut)
    assert 0 < peaks["suffix"] <= ALLOWED * peaks["bare suffix"]
    assert 0 < peaks["suffix, backward"] <= ALLOWED * peaks["bare suffix, backward"]
    assert peaks["suffix, backward"] < 0.7 * peaks["all units, backward"]  # half of the units


def test_the_measure_sees_one_activation_that_is_kept_too_long(cut):
    trunk, inputs = cut
    with torch.no_grad():
        hidden, context = trunk.embed(inputs)
        bare = peak_bytes(lambda: bare_units(trunk, hidden, context, 3, 6))
        kept = []

        def keeping():
            state = hidden
            for k in range(3, 6):
                state = trunk.run(state, context, k, k + 1)
                kept.append(state)

        assert peak_bytes(keeping) > ALLOWED * bare


@pytest.mark.parametrize("trainable", [False, True])
def test_no_activation_of_the_prefix_outlives_it(cut, trainable):
    trunk, inputs = cut
    made = []

    def note(module, args, output):
        made.extend(weakref.ref(t) for _, t in tensors(output))

    prefix = [m for link in trunk.links[: trunk.bounds[3]] for m in link.module.modules()]
    handles = [module.register_forward_hook(note) for module in prefix]
    hidden, context = trunk.embed(inputs)
    made.append(weakref.ref(hidden))
    state = trunk.run(hidden, context, 0, 3)
    del hidden
    for handle in handles:
        handle.remove()
    alive = {id(t) for ref in made if (t := ref()) is not None}
    assert alive == {id(state)}
    assert state.grad_fn is None
    out = trunk.finish(trunk.run(state.requires_grad_(trainable), context, 3, 6), context)
    assert all(ref() is None or ref() is state for ref in made)
    assert out.last_hidden_state.requires_grad == trainable
