"""Training on imported features: no media, no encoder of that modality, the same runs and refusals as any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.torch import load_file

from talik.adapt.config.experiment import load_experiment
from talik.adapt.evaluation.evaluate import evaluate
from talik.adapt.training.adapt import adapt
from talik.adapt.training.experiment_context import ExperimentContext
from talik.cache.feature_store import FeatureStore
from talik.errors import MissingItemError, MissingMediaError, RunError, SettingsError, StoreMismatchError
from talik.extract.importers.import_features import import_any
from talik.extract.stage.extract import extract

EXPERIMENT = """
[data]
dataset = "demo"
root = "set"
segments = 3

[encoders.visual]
model = "features:resnet"

[encoders.audio]
model = "features:vggish"

[encoders.text]
model = "hf:{text}"
cut = [2, 3]

[store]
dtype = "float16"

[task]
d_head = 16
num_heads = 2

[train]
epochs = 2
batch_size = 8
num_threads = 1

[[variants]]
name = "probe"
adapter = {{ kind = "probe" }}

[[variants]]
name = "trimodal"
insertion = {{ visual = [0], audio = [0], text = [2] }}
adapter = {{ kind = "trimodal", d_model = 8, d_state = 4, num_latents = 2, num_heads = 2 }}

[[variants]]
name = "last"
insertion = "last 1"
adapter = {{ kind = "trimodal", d_model = 8, d_state = 4, num_latents = 2, num_heads = 2 }}
"""


@pytest.fixture
def place(tmp_path: Path, demo_set: Path, tiny_encoders: dict[str, Path]) -> Path:
    """The made set without its videos, features of its clips in a store, and an experiment on them."""
    shutil.copytree(demo_set, tmp_path / "set", ignore=shutil.ignore_patterns("*.mp4"))
    clips = sorted({r["video_id"] for p in (tmp_path / "set").rglob("avqa-*.json") for r in json.loads(p.read_text())})
    random = np.random.default_rng(0)
    (tmp_path / "vggish").mkdir()
    for clip in clips:
        np.save(tmp_path / "vggish" / f"{clip}.npy", random.standard_normal((18, 20)).astype(np.float32))
    with h5py.File(tmp_path / "resnet.h5", "w") as file:
        file["avadataset"] = random.standard_normal((len(clips), 3, 2, 2, 12)).astype(np.float32)
    rows = "\n".join(f"piano&{clip}&good&0&10" for clip in clips)
    (tmp_path / "Annotations.txt").write_text(rows, encoding="utf-8")
    store = tmp_path / "features.zarr"
    import_any(tmp_path / "vggish", store, layout="music-avqa", changes={"modality": "audio"})
    import_any(tmp_path / "resnet.h5", store, layout="ave", changes={"modality": "visual"})
    path = tmp_path / "exp.toml"
    path.write_text(EXPERIMENT.format(**tiny_encoders), encoding="utf-8")
    return path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_probe_and_trimodal_train_and_evaluate_on_imported_features(place: Path) -> None:
    report = extract(place, progress=False)
    assert [name.split("/")[0] for name in report.items] == ["text", "text"]
    context = ExperimentContext(load_experiment(place))
    starts = {}
    for variant in ("probe", "trimodal"):
        run = adapt(load_experiment(place), variant=variant, progress=False, context=context)
        described = json.loads((run.folder / "adapter.json").read_text())
        starts[variant] = described["cached_boundaries"]
        assert described["encoders"]["audio"]["model"] == "features:vggish"
    assert evaluate(run.folder, split="test", save=False).scores.overall.accuracy == run.accuracy
    with pytest.raises(SettingsError, match="imported features cannot be computed live"):
        evaluate(run.folder, split="test", live=True, save=False)
    assert starts["probe"] == {"visual": 0, "audio": 0, "text": 3}
    assert starts["trimodal"] == {"visual": 0, "audio": 0, "text": 2}
    (last,) = context.insertions(context.experiment.variant("last")).insertions
    assert dict(last.boundaries) == {"visual": 0, "audio": 0, "text": 2}
    weights = load_file(place.parent / "runs" / "exp" / "trimodal" / "seed0" / "adapter.safetensors")
    moved = [n for n, w in weights.items() if "visual" in n and n.startswith("adapter.") and w.abs().sum() > 0]
    assert moved


def test_what_the_head_reads_is_what_was_imported(place: Path) -> None:
    extract(place, progress=False)
    context = ExperimentContext(load_experiment(place))
    model = context.build(context.experiment.variant("probe"), seed=0)
    questions = context.questions("train")[:5]
    (batch,) = context.cached(model).batches([questions])
    features = model.features(batch)
    assert {m: tuple(f.shape) for m, f in features.items() if m != "text"} == {
        "visual": (5, 3, 4, 12),
        "audio": (5, 3, 1, 20),
    }
    for question, audio in zip(questions, features["audio"], strict=True):
        made = np.load(place.parent / "vggish" / f"{question.clip_id}.npy")
        np.testing.assert_array_equal(audio[:, 0].numpy(), made[::6])


def test_a_run_knows_which_features_it_was_trained_on(place: Path) -> None:
    extract(place, progress=False)
    run = adapt(place, variant="probe", progress=False)
    shutil.rmtree(place.parent / "features.zarr" / "visual")
    with h5py.File(place.parent / "resnet.h5", "a") as file:
        file["avadataset"][0] += 1
    import_any(place.parent / "resnet.h5", place.parent / "features.zarr", layout="ave", changes={"modality": "visual"})
    with pytest.raises(RunError, match="trained on another visual encoder"):
        evaluate(run.folder)


def test_refusals(place: Path) -> None:
    def fails(error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            _ = ExperimentContext(load_experiment(place)).encoders

    change(place, "segments = 3", "segments = 10")
    fails(StoreMismatchError, "'resnet' have 3 time steps, data.segments is 10")
    change(place, "segments = 10", "segments = 3")
    change(place, "features:vggish", "features:vgish")
    fails(MissingItemError, "unknown features 'vgish'; did you mean 'vggish'")
    change(place, "features:vgish", "features:vggish")
    with h5py.File(place.parent / "resnet.h5", "a") as file:
        file["avadataset"][0] += 1
    changes = {"modality": "visual"}
    import_any(place.parent / "resnet.h5", place.parent / "features.zarr", layout="ave", changes=changes)
    fails(StoreMismatchError, "'resnet' are stored 2 times; name one: features:resnet#")
    key = FeatureStore.open(place.parent / "features.zarr").boundaries()[-1].key
    change(place, "features:resnet", f"features:resnet#{key}")
    assert ExperimentContext(load_experiment(place)).encoders["visual"].identity(0)["imported"]["name"] == "resnet"
    change(place, 'vggish"', 'vggish"\ncut = [-1]')
    fails(SettingsError, "whose only boundary is 0")
    change(place, "cut = [-1]", "image_size = 28")
    fails(SettingsError, "imported features, which have none")


def test_media_are_asked_for_where_an_encoder_would_decode_them(place: Path, tiny_encoders: dict[str, Path]) -> None:
    change(place, 'model = "features:resnet"', f'model = "hf:{tiny_encoders["visual"]}"\ncut = [3]')
    with pytest.raises(MissingMediaError, match="8 of 8 clips are not in"):
        extract(place, progress=False)


def test_a_clip_without_features_is_named(place: Path) -> None:
    extract(place, progress=False)
    gone = ExperimentContext(load_experiment(place)).questions("train")[0].clip_id
    shutil.rmtree(place.parent / "features.zarr" / "audio")
    (place.parent / "vggish" / f"{gone}.npy").unlink()
    import_any(
        place.parent / "vggish", place.parent / "features.zarr", layout="music-avqa", changes={"modality": "audio"}
    )
    with pytest.raises(MissingItemError, match=f"states that are not in the store: clip '{gone}'"):
        adapt(place, variant="probe", progress=False)
