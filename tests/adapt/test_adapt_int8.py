"""Stage 1 into int8 and training from it: states come back as floats, near the exact ones, and the error is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from talik.adapt.config.experiment import load_experiment
from talik.adapt.training.adapt import adapt
from talik.adapt.training.experiment_context import ExperimentContext
from talik.cache.feature_store import FeatureStore
from talik.extract.stage.extract import extract


def test_a_variant_trains_on_int8_states(write_experiment: Callable[..., Path]) -> None:
    path = write_experiment(('dtype = "float32"', 'dtype = "int8"'))
    extract(path, progress=False)
    store = FeatureStore.open(path.parent / "features.zarr")
    for spec in store.boundaries():
        with store.reader(spec.modality, spec.boundary) as reader:
            (entry,) = reader.provenance
            assert entry["int8"]["num_items"] == len(reader.items)
            assert 0 < entry["int8"]["relative_rms"] < 0.02
    assert extract(path, progress=False).up_to_date

    context = ExperimentContext(load_experiment(path))
    model = context.build(context.experiment.variant("trimodal"), seed=0)
    questions = context.questions("train")[:6]
    (cached,) = context.cached(model).batches([questions])
    (live,) = context.live(model).batches([questions])
    for modality in ("visual", "audio"):
        encoder = context.encoders[modality]
        state = cached.states[modality]
        near = encoder.run(state, state.boundary, 2).hidden
        exact = live.states[modality].hidden
        assert near.dtype == torch.float32
        assert 0 < (near - exact).norm() / exact.norm() < 0.05
    run = adapt(load_experiment(path), variant="trimodal", progress=False, context=context)
    assert (run.folder / "result.json").is_file()
