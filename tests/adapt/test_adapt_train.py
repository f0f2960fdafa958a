"""Training: deterministic by seed, resumed equals uninterrupted, the best epoch is kept, folders are not mixed up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from talik.adapt.config.experiment import Experiment, load_experiment
from talik.adapt.evaluation.evaluate import evaluate
from talik.adapt.sweep.sweep import sweep
from talik.adapt.training.adapt import adapt
from talik.adapt.training.checkpoint import Checkpointer
from talik.adapt.training.experiment_context import ExperimentContext
from talik.adapt.training.optimizer import learning_rate_scale
from talik.errors import MissingItemError, RunError, SettingsError, StoreMismatchError


@pytest.fixture
def place(in_few_steps: Callable[..., Path], tmp_path: Path) -> Path:
    """The extracted experiment in a folder of its own, the store shared."""
    return in_few_steps(tmp_path / "exp.toml")


@pytest.fixture(scope="module")
def encoders(extracted: Path) -> dict[str, Any]:
    """The tiny encoders, opened once."""
    return ExperimentContext(load_experiment(extracted)).encoders


@pytest.fixture
def context(place: Path, encoders: dict[str, Any]) -> Callable[[Experiment], ExperimentContext]:
    def make(experiment: Experiment) -> ExperimentContext:
        made = ExperimentContext(experiment)
        made.encoders = encoders
        return made

    return make


def changed(path: Path, *changes: tuple[str, str]) -> Experiment:
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return load_experiment(path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_seconds(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines(folder / "metrics.jsonl")]


def test_a_run_leaves_its_folder_complete_and_is_not_run_twice(place: Path, context: Any) -> None:
    experiment = load_experiment(place)
    first = adapt(experiment, variant="trimodal", progress=False, context=context(experiment))
    assert first.folder == place.parent / "runs" / "exp" / "trimodal" / "seed0"
    assert {p.name for p in first.folder.iterdir()} == {
        "config.toml",
        "data.json",
        "metrics.jsonl",
        "predictions.jsonl",
        "result.json",
        "adapter.safetensors",
        "adapter.json",
    }
    described = json.loads((first.folder / "adapter.json").read_text())
    assert described["insertions"] == [{"visual": 2, "audio": 2, "text": 2}]
    assert described["cached_boundaries"] == {"visual": 1, "audio": 1, "text": 1}
    predictions = lines(first.folder / "predictions.jsonl")
    assert first.accuracy == sum(p["correct"] for p in predictions) / len(predictions)
    stamp = (first.folder / "adapter.safetensors").stat().st_mtime_ns
    second = adapt(experiment, variant="trimodal", progress=False, context=context(experiment))
    assert second.skipped
    assert second.accuracy == first.accuracy
    assert (first.folder / "adapter.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("variant", ["trimodal", "probe"])
def test_a_killed_and_resumed_run_equals_one_never_killed(
    place: Path, context: Any, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = changed(place, ("epochs = 2", "epochs = 4"))
    whole = adapt(experiment, variant=variant, progress=False, context=context(experiment))
    kept = place.parent / "kept"
    shutil.move(whole.folder, kept)

    real, calls = Checkpointer.save, iter(range(100))

    def dies(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        if next(calls) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            adapt(experiment, variant=variant, progress=False, context=context(experiment))
    torch.manual_seed(99)  # whatever another process drew in between
    resumed = adapt(experiment, variant=variant, progress=False, context=context(experiment))
    assert resumed.how == "resumed"
    assert without_seconds(resumed.folder) == without_seconds(kept)
    assert lines(resumed.folder / "predictions.jsonl") == lines(kept / "predictions.jsonl")
    ours, theirs = load_file(resumed.folder / "adapter.safetensors"), load_file(kept / "adapter.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_number_of_threads_that_a_run_sets_is_restored(place: Path, context: Any) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        experiment = load_experiment(place)
        assert experiment.train_settings(experiment.variant("probe")).num_threads == 1
        run = adapt(experiment, variant="probe", progress=False, context=context(experiment))
        assert torch.get_num_threads() == 3
        evaluate(run.folder, save=False)
        assert torch.get_num_threads() == 3
        sweep(experiment, variants=["trimodal"], progress=False)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_seed_decides(place: Path, context: Any) -> None:
    experiment = load_experiment(place)
    runs = [adapt(experiment, variant="probe", seed=s, progress=False, context=context(experiment)) for s in (0, 1)]
    weights = [load_file(r.folder / "adapter.safetensors") for r in runs]
    assert any(not torch.equal(weights[0][n], weights[1][n]) for n in weights[0])


def test_training_learns_what_it_is_shown(place: Path, context: Any) -> None:
    experiment = changed(place, ("epochs = 2", "epochs = 40\nlr = 2e-2\nweight_decay = 0.0"))
    run = adapt(experiment, variant="trimodal", progress=False, context=context(experiment))
    losses = [line["train_loss"] for line in lines(run.folder / "metrics.jsonl") if line["event"] == "epoch"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("patience", "num_epochs"), [(2, 3), (0, 6)])
def test_training_stops_when_validation_no_longer_improves(
    place: Path, context: Any, patience: int, num_epochs: int
) -> None:
    experiment = changed(place, ("epochs = 2", f"epochs = 6\npatience = {patience}\nlr = 0.0"))  # nothing improves
    run = adapt(experiment, variant="probe", progress=False, context=context(experiment))
    epochs = [line["epoch"] for line in lines(run.folder / "metrics.jsonl") if line["event"] == "epoch"]
    assert epochs == list(range(1, num_epochs + 1))
    assert json.loads((run.folder / "result.json").read_text())["best_epoch"] == 1


def test_the_best_epochs_weights_are_kept(place: Path, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = changed(place, ("epochs = 2", "epochs = 4\nlr = 0.1"))
    after: list[dict[str, torch.Tensor]] = []  # each epoch's weights
    save = Checkpointer.save

    def keeping(self: Checkpointer, *args: Any, **others: Any) -> None:
        after.append({name: weight.clone() for name, weight in self.model.state_dict().items()})
        save(self, *args, **others)

    monkeypatch.setattr(Checkpointer, "save", keeping)
    run = adapt(experiment, variant="probe", progress=False, context=context(experiment))
    epochs = [line for line in lines(run.folder / "metrics.jsonl") if line["event"] == "epoch"]
    best = max(epochs, key=lambda e: (e["val_accuracy"], -e["val_loss"]))
    assert json.loads((run.folder / "result.json").read_text())["best_epoch"] == best["epoch"]
    kept = load_file(run.folder / "adapter.safetensors")
    equal = [all(torch.equal(kept[name], weights[name]) for name in kept) for weights in after]
    assert equal == [epoch == best["epoch"] for epoch in range(1, 5)]
    again = evaluate(run.folder, split="val", save=False)
    assert again.scores.overall.accuracy == pytest.approx(best["val_accuracy"])


def test_evaluate_gives_what_training_wrote_from_store_and_from_the_files(place: Path, context: Any) -> None:
    experiment = load_experiment(place)
    run = adapt(experiment, variant="trimodal", progress=False, context=context(experiment))
    wrote = {p["question_id"]: p for p in lines(run.folder / "predictions.jsonl")}
    for live in (False, True):
        evaluation = evaluate(run.folder, live=live)
        assert evaluation.scores.overall.accuracy == run.accuracy
        again = lines(run.folder / "predictions-test.jsonl")
        assert [p["question_id"] for p in again] == list(wrote)
        for p in again:
            assert p["prediction"] == wrote[p["question_id"]]["prediction"]
            assert p["probability"] == pytest.approx(wrote[p["question_id"]]["probability"], abs=1e-5)
    with pytest.raises(Exception, match="dev"):
        evaluate(run.folder, split="dev")


def test_another_encoder_is_refused(place: Path, context: Any) -> None:
    experiment = load_experiment(place)
    run = adapt(experiment, variant="probe", progress=False, context=context(experiment))
    described = json.loads((run.folder / "adapter.json").read_text())
    described["encoders"]["audio"]["digest"] = "0" * 64
    (run.folder / "adapter.json").write_text(json.dumps(described))
    with pytest.raises(RunError, match="another audio encoder"):
        evaluate(run.folder)


def test_a_folder_of_other_settings_is_refused(place: Path, context: Any) -> None:
    experiment = load_experiment(place)
    adapt(experiment, variant="probe", progress=False, context=context(experiment))
    other = changed(place, ("batch_size = 24\neval", "batch_size = 4\neval"))
    with pytest.raises(RunError, match=r"train\.batch_size: requested 4, stored 24"):
        adapt(other, variant="probe", progress=False, context=context(other))


def test_a_sweep_goes_on_past_a_failure(place: Path, context: Any) -> None:
    bad = '[[variants]]\nname = "bad"\ninsertion = "last 1"\nadapter = { kind = "probe" }\n'
    experiment = changed(place, ('[[variants]]\nname = "trimodal"', bad + '\n[[variants]]\nname = "trimodal"'))
    result = sweep(experiment, progress=False)
    assert [r.folder.parent.name for r in result.runs] == ["probe", "trimodal"]
    assert [name for name, _ in result.failures] == ["bad/seed0"]
    assert "has no insertion" in result.failures[0][1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "probe"', 'kind = "prob"', "unknown adapter kind 'prob'; did you mean 'probe'"),
        ("d_state = 4", "dstate = 4", "adapter.dstate: unknown key 'dstate'; did you mean 'd_state'"),
        ('insertion = "last 1"', 'insertion = "final 1"', "found 'final 1', expected \"last K\""),
        ('insertion = "last 1"', "insertion = { visual = [7], audio = [1], text = [1] }", "insertion.visual: found 7"),
        ('insertion = "last 1"', "insertion = { visual = [1, 2], audio = [1], text = [1] }", "lists of one length"),
        ("epochs = 2", "epochs = 0", "train.epochs: found 0, expected at least 1"),
        ('name = "trimodal"', 'name = "probe"', "the name 'probe' stands twice"),
    ],
)
def test_a_mistake_in_a_variant_is_named(place: Path, context: Any, old: str, new: str, message: str) -> None:
    def build() -> None:
        experiment = changed(place, (old, new))
        context(experiment).build(experiment.variants[-1], seed=0)

    with pytest.raises(SettingsError, match=message.replace("[", r"\[")) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_states_that_are_not_stored_are_named(place: Path, context: Any) -> None:
    experiment = changed(place, ("segments = 3", "segments = 2"))
    with pytest.raises(StoreMismatchError, match=r"num_segments: requested 2, stored 3"):
        adapt(experiment, variant="probe", progress=False, context=context(experiment))
    half = changed(place, ("segments = 2", "segments = 3"), ('dtype = "float32"', 'dtype = "float16"'))
    with pytest.raises(MissingItemError, match="as float16; add a cut there"):
        adapt(half, variant="trimodal", progress=False, context=context(half))


def test_a_full_disk_ends_a_run_in_one_line_and_it_goes_on(
    place: Path, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load_experiment(place)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("talik.adapt.training.adapter_files.save_file", full)
        with pytest.raises(RunError, match=r"adapter.safetensors: the disk is full") as caught:
            adapt(experiment, variant="probe", progress=False, context=context(experiment))
    assert "\n" not in str(caught.value)
    run = adapt(experiment, variant="probe", resume=True, progress=False, context=context(experiment))
    assert (run.folder / "result.json").is_file()


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate_scale(step, total=100, warmup=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[-1] < 0.001
