"""Training on augmented views: one a clip and epoch, drawn by seed; evaluation, and who asks for none, sees view 0."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from talik.adapt.config.experiment import load_experiment
from talik.adapt.data.augmented_views import mixed_views, view_readers
from talik.adapt.evaluation.evaluate import evaluate
from talik.adapt.training.adapt import adapt
from talik.adapt.training.checkpoint import Checkpointer
from talik.adapt.training.experiment_context import ExperimentContext
from talik.cache.feature_store import FeatureStore
from talik.errors import MissingItemError
from talik.extract.media.augment_settings import drawn_view
from talik.extract.stage.extract import extract

VIEWS = 'fit = "stretch"\nviews = 2\naugment = { crop = [0.3, 0.9], flip = 0.5 }\n'


@pytest.fixture(scope="module")
def with_views(extracted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extracted experiment with views beside its states."""
    folder = tmp_path_factory.mktemp("views")
    shutil.copytree(extracted.parent / "features.zarr", folder / "features.zarr")
    path = folder / "exp.toml"
    path.write_text(extracted.read_text(encoding="utf-8").replace('fit = "stretch"\n', VIEWS), encoding="utf-8")
    report = extract(path, progress=False)
    assert len(report.items) == 4
    assert {name.split("/")[0] for name in report.items} == {"visual"}
    return path


@pytest.fixture
def place(with_views: Path, tmp_path: Path) -> Path:
    """The experiment in a folder of its own, the store shared."""
    store = f'dtype = "float32"\npath = "{with_views.parent / "features.zarr"}"'
    path = tmp_path / "exp.toml"
    path.write_text(with_views.read_text(encoding="utf-8").replace('dtype = "float32"', store), encoding="utf-8")
    return path


def plain(path: Path) -> Path:
    other = path.with_name("plain.toml")
    other.write_text(path.read_text(encoding="utf-8").replace(VIEWS, 'fit = "stretch"\n'), encoding="utf-8")
    return other


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_batch_holds_the_view_drawn_for_each_item(place: Path) -> None:
    settings = load_experiment(place).extraction.encoders.visual
    assert settings is not None
    store = FeatureStore.open(load_experiment(place).extraction.store_path)
    (spec,) = [s for s in store.boundaries() if (s.modality, s.boundary) == ("visual", 1) and "view" not in s.identity]
    readers = view_readers(store, store.reader("visual", 1, key=spec.key), settings)
    keys = [item.key for item in readers[0].items]
    batches = [[keys[3], keys[0], keys[3]], keys[::-1], [keys[1]]]
    for seed in range(3):
        for asked, batch in zip(batches, mixed_views(readers, batches, view_seed=seed), strict=True):
            assert len(batch.hidden) == len(asked)
            for key, hidden in zip(asked, batch.hidden, strict=True):
                view = drawn_view(seed, "visual", key, 2)
                np.testing.assert_array_equal(hidden, readers[view].read([key]).hidden[0])


def test_training_draws_views_by_seed_and_evaluation_sees_the_plain_one(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load_experiment(place)
    context = ExperimentContext(experiment)
    run = adapt(experiment, variant="probe", progress=False, context=context)
    kept = place.parent / "kept"
    shutil.move(run.folder, kept)
    without = adapt(plain(place), variant="probe", progress=False)
    assert not same(weights(kept), weights(without.folder))

    real = Checkpointer.save

    def dies(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            adapt(experiment, variant="probe", progress=False, context=context)
    resumed = adapt(experiment, variant="probe", resume=True, progress=False, context=context)
    assert same(weights(kept), weights(resumed.folder))
    from_store, live = (evaluate(resumed.folder, live=live, save=False) for live in (False, True))
    assert from_store.scores == live.scores
    assert (resumed.folder / "predictions.jsonl").read_text() == (kept / "predictions.jsonl").read_text()


def test_epochs_and_seeds_draw_differently(place: Path) -> None:
    context = ExperimentContext(load_experiment(place))
    model = context.build(context.experiment.variant("probe"), seed=0)
    source, questions = context.cached(model), context.questions("train")

    def states(view_seed: int | None) -> torch.Tensor:
        (batch,) = source.batches([questions], view_seed=view_seed)
        return batch.states["visual"].hidden

    assert torch.equal(states(1), states(1))
    assert not torch.equal(states(1), states(2))
    assert not torch.equal(states(1), states(None))
    (by_default,) = source.batches([questions])
    assert torch.equal(by_default.states["visual"].hidden, states(None))


def test_views_that_were_not_extracted_are_named(place: Path) -> None:
    text = place.read_text(encoding="utf-8").replace("views = 2", "views = 3")
    place.write_text(text, encoding="utf-8")
    with pytest.raises(MissingItemError, match=r"view 3 of visual/b0.* is not stored with these augment settings"):
        adapt(place, variant="probe", progress=False)
    config = json.dumps(sorted(p.name for p in place.parent.glob("runs/exp/probe/seed0/*")))
    assert "result.json" not in config
