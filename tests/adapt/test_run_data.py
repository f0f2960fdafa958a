"""A run is its settings and its data: what differs is refused in numbers, what is the same stays, wherever it lies."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from talik.adapt.config.experiment import load_experiment
from talik.adapt.evaluation.evaluate import evaluate
from talik.adapt.report.write import report
from talik.adapt.sweep.sweep import sweep
from talik.adapt.training.adapt import RunResult, adapt
from talik.adapt.training.checkpoint import Checkpointer
from talik.adapt.training.run_data import RunData, data_differences, in_recorded_order, question_digest
from talik.adapt.training.run_folder import RunFolder
from talik.adapt.training.trainer import Trainer
from talik.errors import RunDiffersError, RunError
from talik.extract.datasets.types import Question
from talik.extract.importers.import_features import import_any

EXPERIMENT = """
[data]
dataset = "manifest"
root = "set"
segments = 2

[encoders.visual]
model = "features:flat"

[task]
kind = "{kind}"
d_head = 8
num_heads = 2

[train]
epochs = 4
batch_size = 3
lr = 0.02
num_threads = 1

[[variants]]
name = "probe"
adapter = {{ kind = "probe", modalities = ["visual"] }}

[[variants]]
name = "calm"
adapter = {{ kind = "probe", modalities = ["visual"] }}
[variants.train]
lr = 0.001
"""
NAMES = ("zebra", "ant", "mole")
Rows = list[dict[str, Any]]


@pytest.fixture
def rows() -> Rows:
    """Sixteen records without ids, whose answers first appear in another order than that of the alphabet."""
    return [
        {"clip": f"c{i:02d}", "answer": NAMES[i % 3], "split": "train" if i < 10 else "val" if i < 13 else "test"}
        for i in range(16)
    ]


@pytest.fixture
def place(tmp_path: Path, rows: Rows) -> Path:
    """An experiment on imported features, in a folder of its own."""
    return made(tmp_path / "here", rows)


def made(folder: Path, rows: Rows, *, kind: str = "classes") -> Path:
    (folder / "npy").mkdir(parents=True)
    (folder / "set").mkdir()
    draw = np.random.default_rng(3)
    for i in range(16):
        values = draw.normal(size=(2, 8)).astype(np.float32)
        values[:, i % 3] += 2
        np.save(folder / "npy" / f"c{i:02d}.npy", values)
    (folder / "flat.toml").write_text('name = "flat"\nmodality = "visual"\naxes = "TD"\n', encoding="utf-8")
    import_any(folder / "npy", folder / "features.zarr", mapping=folder / "flat.toml")
    write(folder, rows)
    path = folder / "exp.toml"
    path.write_text(EXPERIMENT.format(kind=kind), encoding="utf-8")
    return path


def write(folder: Path, rows: Rows) -> None:
    (folder / "set" / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def shuffled(rows: Rows) -> Rows:
    return random.Random(1).sample(rows, len(rows))


def train(path: Path, variant: str = "probe", **how: Any) -> RunResult:
    return adapt(path, variant=variant, progress=False, **how)


def losses(run: Path) -> list[tuple[float, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    found = [(line["train_loss"], line["val_loss"]) for line in lines if line["event"] == "epoch"]
    assert found
    return found


def predictions(run: Path, name: str = "predictions.jsonl") -> dict[str, tuple[str, str, float]]:
    lines = map(json.loads, (run / name).read_text(encoding="utf-8").splitlines())
    return {p["clip_id"]: (p["answer"], p["prediction"], p["probability"]) for p in lines}


def interrupted(path: Path, monkeypatch: pytest.MonkeyPatch, **how: Any) -> None:
    real = Checkpointer.save

    def dies(self: Checkpointer, *given: Any, **others: Any) -> None:
        real(self, *given, **others)
        if given[0].epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            train(path, **how)


# the order of lines


@pytest.mark.parametrize("kind", ["classes", "events"])
def test_the_order_of_lines_does_not_change_the_training(tmp_path: Path, rows: Rows, kind: str) -> None:
    if kind == "events":
        rows = [{**row, "labels": [row["answer"], "background"]} for row in rows]
    one = train(made(tmp_path / "one", rows, kind=kind)).folder
    other = train(made(tmp_path / "other", shuffled(rows), kind=kind)).folder
    assert losses(one) == losses(other)
    assert predictions(one) == predictions(other)


def test_a_finished_run_keeps_its_classes_when_lines_change_their_order(place: Path, rows: Rows) -> None:
    run = train(place).folder
    before = evaluate(run, split="train")
    assert before.scores.overall.correct > 5
    scored = predictions(run, "predictions-train.jsonl")
    write(place.parent, shuffled(rows))
    after = evaluate(run, split="train")
    assert (after.scores, after.notes) == (before.scores, ())
    assert predictions(run, "predictions-train.jsonl") == scored
    assert train(place).skipped


def test_an_interrupted_run_goes_on_in_its_own_order(
    place: Path, tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(made(tmp_path / "whole", rows)).folder
    interrupted(place, monkeypatch)
    write(place.parent, shuffled(rows))
    resumed = train(place, resume=True)
    assert resumed.how == "resumed"
    assert losses(resumed.folder) == losses(whole)
    assert predictions(resumed.folder) == predictions(whole)


def test_an_unfinished_run_without_record_goes_on_with_the_classes_of_the_files(
    place: Path, tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(place, monkeypatch)
    run = place.parent / "runs" / "exp" / "probe" / "seed0"
    (run / "data.json").unlink()  # as a version before left it
    train(place, resume=True)
    assert "labels, clips and states not compared" in caplog.text
    assert json.loads((run / "adapter.json").read_text())["answers"] == list(NAMES)  # by first appearance
    assert RunFolder(run).data() is not None


def test_seeds_are_averaged_though_lines_changed_their_order_between_them(place: Path, rows: Rows) -> None:
    first = train(place, seed=0).folder
    write(place.parent, shuffled(rows))
    second = train(place, seed=1).folder
    table = report([first, second], out=place.parent / "report", resamples=100).table
    (row,) = table.trained
    right = [sum(a == p for a, p, _ in predictions(run).values()) for run in (first, second)]
    assert (row.num_seeds, row.overall.mean) == (2, pytest.approx(100 * sum(right) / 6))


# other data


def swapped(rows: Rows, *places: int) -> Rows:
    return [{**row, "answer": NAMES[(i + 1) % 3]} if i in places else row for i, row in enumerate(rows)]


def renamed_clip(rows: Rows) -> Rows:
    return [*rows[:9], {**rows[9], "clip": "c15"}, *rows[10:]]


CHANGES: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "labels": (lambda rows: swapped(rows, 0, 4), "2 of 10 training labels"),
    "labels of validation": (lambda rows: swapped(rows, 12), "1 of 3 validation labels"),
    "labels of test": (lambda rows: swapped(rows, 13), r"1 of 3 test labels\).*talik evaluate --split test"),
    "types of test": (lambda r: [*r[:-1], {**r[-1], "type": "x"}], "the types or templates of 1 of 3 test questions"),
    "a record less": (lambda rows: rows[1:], "1 of 10 training questions gone"),
    "a record more": (lambda rows: [*rows, {**rows[0], "split": "val"}], "1 validation questions new, beside 3"),
    "another clip": (renamed_clip, "1 of 10 training questions gone; 1 training questions new"),
    "a new answer": (
        lambda r: [*r[:5], {**r[5], "answer": "bee"}, *r[6:]],
        "the vocabulary of 3 answers: 1 new .*'bee'",
    ),
    "another split": (lambda r: [{**r[0], "split": "val"}, *r[1:]], "1 of 10 training questions gone; 1 validation"),
}


def test_what_differs_is_said_in_numbers(place: Path, rows: Rows) -> None:
    train(place)
    assert CHANGES
    for change, (edit, said) in CHANGES.items():
        write(place.parent, edit(rows))
        with pytest.raises(RunDiffersError, match=rf"holds a finished run on other data \(.*: {said}") as caught:
            train(place)
        assert "rename the variant, or train it anew with --retrain" in str(caught.value)
        assert ("talik evaluate" in str(caught.value)) == ("test" in change)
    write(place.parent, rows)
    assert train(place).skipped


def test_adapt_and_sweep_refuse_in_the_same_words_and_other_runs_go_on(place: Path, rows: Rows) -> None:
    sweep(place, variants=["probe"], progress=False)
    write(place.parent, swapped(rows, 0))
    with pytest.raises(RunDiffersError, match="1 of 10 training labels") as alone:
        train(place)
    result = sweep(place, variants=["probe", "calm"], progress=False)
    assert result.failures == (("probe/seed0", str(alone.value)),)
    assert [run.how for run in result.runs] == ["trained"]


def test_what_is_trained_does_not_depend_on_the_types_of_its_questions(place: Path, rows: Rows) -> None:
    train(place)
    write(place.parent, [{**row, "type": "x", "id": f"q{i}"} if i < 10 else row for i, row in enumerate(rows)])
    assert train(place).skipped


def test_an_unfinished_run_on_other_data_is_not_gone_on_with(
    place: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(place, monkeypatch)
    write(place.parent, swapped(rows, 3))
    with pytest.raises(
        RunDiffersError, match=r"an unfinished run on other data \(what differs: 1 of 10 training labels"
    ):
        train(place, resume=True)
    run = train(place, retrain=True)
    assert (run.how, RunFolder(run.folder).status) == ("trained anew", "done")
    assert not (run.folder / "checkpoint").exists()


def test_a_clip_of_other_content_is_other_data(place: Path) -> None:
    train(place)
    np.save(place.parent / "npy" / "c03.npy", np.zeros((2, 8), np.float32))
    shutil.rmtree(place.parent / "features.zarr")
    import_any(place.parent / "npy", place.parent / "features.zarr", mapping=place.parent / "flat.toml")
    with pytest.raises(RunDiffersError, match="what differs: the content of 1 of 16 clips"):
        train(place)


def test_a_run_whose_store_is_gone_stays_done_and_says_what_was_not_compared(place: Path, rows: Rows) -> None:
    train(place)
    (place.parent / "features.zarr").rename(place.parent / "away.zarr")
    kept = train(place)
    assert kept.skipped
    assert len(kept.notes) == 1
    assert "not compared" in kept.notes[0]


def test_scores_on_changed_labels_say_so_and_unknown_answers_are_refused(place: Path, rows: Rows) -> None:
    run = train(place).folder
    write(place.parent, swapped(rows, 13, 14))
    (note,) = evaluate(run, save=False).notes
    assert note.endswith("scored on other data than the run knew (what differs: 2 of 3 test labels)")
    write(place.parent, [*rows[:-1], {**rows[-1], "answer": "bee"}])
    with pytest.raises(RunError, match="1 of 3 test questions have an answer that is none of the run's 3 classes"):
        evaluate(run)
    assert evaluate(run, split="val", save=False).scores.overall.total == 3


@pytest.mark.parametrize("what", ["labels", "settings"])
def test_seeds_of_different_runs_are_not_averaged(place: Path, rows: Rows, what: str) -> None:
    runs = [train(place, seed=0).folder]
    if what == "labels":
        write(place.parent, swapped(rows, 0, 1, 2))
    else:
        place.write_text(place.read_text().replace("epochs = 4", "epochs = 3"))
    runs.append(train(place, seed=1).folder)
    said = {"labels": "3 of 10 training labels", "settings": r"train.epochs \(3 and 4\)"}[what]
    with pytest.raises(RunError, match=f"seeds of one variant with other settings or data .what differs: {said}"):
        report(runs, out=place.parent / "report", resamples=100)


def test_variants_on_other_data_are_told_apart_in_the_report(place: Path, rows: Rows) -> None:
    runs = [train(place).folder]
    write(place.parent, swapped(rows, 0, 1, 2))
    runs.append(train(place, "calm").folder)
    notes = " ".join(report(runs, out=place.parent / "report", resamples=100).notes)
    assert "Not trained on the data of probe. What differs, of calm: 3 of 10 training labels." in notes


def test_variants_that_read_other_modalities_are_on_the_same_data(
    on_store: Callable[..., Path], tmp_path: Path
) -> None:
    words = '\n[[variants]]\nname = "words"\nadapter = { kind = "probe", modalities = ["text"] }\n'
    path = on_store(tmp_path / "exp.toml", ("epochs = 2", "epochs = 1"), more=words)
    runs = [train(path, name).folder for name in ("words", "probe")]
    notes = " ".join(report(runs, out=tmp_path / "report", resamples=100).notes)
    assert "blind baseline" in notes
    assert "Not trained on the data of" not in notes


# training anew


def test_the_old_run_stays_until_the_new_one_has_ended(
    place: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(place).folder
    evaluate(run, split="val")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    write(place.parent, swapped(rows, 0))
    interrupted(place, monkeypatch, retrain=True)
    assert {path: path.read_bytes() for path in before} == before
    assert RunFolder(run).status == "done"
    retrained = train(place, retrain=True, resume=True)
    assert (retrained.how, retrained.folder) == ("resumed", run)
    assert len(losses(run)) == 4
    names = {path.name for path in run.iterdir()} - {".lock"}
    assert names == {path.name for path in before if path.parent == run} - {
        "predictions-val.jsonl",
        "result-val.json",
        ".lock",
    }
    assert train(place).skipped


def test_a_training_in_place_that_fails_leaves_the_old_run(
    place: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(place).folder
    old = losses(run)
    write(place.parent, swapped(rows, 0))

    def fails(self: Trainer, *_: Any, **__: Any) -> None:
        raise RunError("the loss is nan")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "begin_epoch", fails)
        with pytest.raises(RunError, match="nan"):
            train(place, retrain=True)
        with pytest.raises(RunError, match="nan"):
            sweep(place, variants=["probe"], retrain=True, progress=False)
    write(place.parent, rows)
    assert train(place).skipped
    assert losses(run) == old


def test_adapt_trains_anew_whatever_is_there_and_sweep_what_differs(place: Path, rows: Rows) -> None:
    first = sweep(place, progress=False)
    assert [run.how for run in first.runs] == ["trained", "trained"]
    stamps = [(run.folder / "result.json").stat().st_mtime_ns for run in first.runs]
    again = train(place, "calm", retrain=True)
    assert again.how == "trained anew"
    assert losses(again.folder) == losses(first.runs[1].folder)
    place.write_text(place.read_text().replace("lr = 0.001", "lr = 0.003"))
    second = sweep(place, retrain=True, progress=False)
    assert [run.how for run in second.runs] == ["kept", "trained anew"]
    assert (second.runs[0].folder / "result.json").stat().st_mtime_ns == stamps[0]
    assert [run.how for run in sweep(place, progress=False).runs] == ["kept", "kept"]


@pytest.mark.parametrize("num_moved", [0, 1, 6, 7])
def test_a_kill_while_the_new_run_takes_its_place_is_completed(
    place: Path, rows: Rows, num_moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(place)
    write(place.parent, swapped(rows, 0))
    real, calls = os.replace, iter(range(100))

    def dies(source: Any, target: Any) -> None:
        moves = Path(source).parent.name == "retrain" and not Path(source).name.startswith(".")
        if moves and next(calls) == num_moved:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("talik.adapt.training.run_folder.os.replace", dies)
        try:
            run = train(place, retrain=True).folder
        except KeyboardInterrupt:
            assert num_moved < 7
            run = train(place).folder
    assert {path.name for path in run.iterdir()} - {".lock"} == {
        "config.toml",
        "data.json",
        "metrics.jsonl",
        "predictions.jsonl",
        "result.json",
        "adapter.safetensors",
        "adapter.json",
    }
    assert train(place).skipped
    assert report([run], out=place.parent / "report", resamples=100).table.trained


# other places


def test_a_run_is_evaluated_where_it_was_copied_to(place: Path, tmp_path: Path) -> None:
    run = train(place).folder
    expected = evaluate(run, save=False).scores
    copied = Path(shutil.copytree(run, tmp_path / "somewhere" / "else"))
    assert evaluate(copied, save=False).scores == expected
    tree = Path(shutil.copytree(place.parent / "runs", tmp_path / "backup" / "runs"))
    assert evaluate(tree / "exp" / "probe" / "seed0", save=False).scores == expected


def test_a_whole_experiment_is_moved(place: Path, tmp_path: Path, rows: Rows) -> None:
    run = train(place).folder
    expected = evaluate(run, save=False).scores
    moved = Path(shutil.move(place.parent, tmp_path / "there"))
    again = moved / "runs" / "exp" / "probe" / "seed0"
    assert evaluate(again, save=False).scores == expected
    assert train(moved / "exp.toml").skipped


def test_a_store_and_a_data_set_elsewhere_are_named_by_an_experiment(place: Path, tmp_path: Path) -> None:
    run = train(place).folder
    expected = evaluate(run, save=False).scores
    other = tmp_path / "other"
    (other / "deep").mkdir(parents=True)
    shutil.move(place.parent / "features.zarr", other / "states.zarr")
    shutil.move(place.parent / "set", other / "annotations")
    text = place.read_text().replace('root = "set"', 'root = "../annotations"')
    text = text.replace("[task]", '[store]\npath = "../states.zarr"\n\n[task]')
    (other / "deep" / "new.toml").write_text(text)
    copied = Path(shutil.copytree(run, other / "run"))
    with pytest.raises(RunError, match=r"its data set .* and its store .* cannot be found; .* with --experiment"):
        evaluate(copied)
    assert evaluate(copied, save=False, experiment=other / "deep" / "new.toml").scores == expected
    shutil.copytree(place.parent / "runs" / "exp", other / "deep" / "runs" / "new")
    assert train(other / "deep" / "new.toml").skipped


# in parts


def question(name: str, text: str = "", answer: str = "a", **more: Any) -> Question:
    given = {"id": name, "clip_id": name, "type": "t", "template": text, "split": "train"} | more
    return Question(text=text, answer=answer, **given)


def data(*questions: Question, **more: Any) -> RunData:
    given = {"answers": ("a", "b"), "encoders": {"visual": "1" * 64}, "scored": "test"} | more
    return RunData(splits={"train": tuple(map(question_digest, questions))}, **given)


def test_data_come_back_from_their_file_as_they_were() -> None:
    one = data(question("x"), question("y"), clips={"x": "0" * 16}, boundaries={"visual": "visual/b03-ab"}, base="/b")
    assert RunData.from_json(json.loads(json.dumps(one.to_json())), where="data.json") == one
    with pytest.raises(RunError, match=r"data\.json: found format 2, expected 1"):
        RunData.from_json({**one.to_json(), "format": 2}, where="data.json")


def test_equal_questions_are_counted_as_often_as_they_are_there() -> None:
    twice = data(question("x"), question("x", answer="b"), question("x", answer="b"))
    once = data(question("x", answer="b"), question("x"), question("x"))
    assert data_differences(once, twice) == ["1 of 3 training labels"]
    assert data_differences(twice, twice) == []


def test_names_in_another_unicode_form_are_the_same() -> None:
    assert data_differences(data(question("caf\u00e9")), data(question("cafe\u0301"))) == []


def test_labels_of_segments_and_choices_are_labels() -> None:
    segments = [question("x", labels=("a", "b")), question("x", labels=("b", "b"))]
    assert data_differences(data(segments[0]), data(segments[1])) == ["1 of 1 training labels"]
    choices = [question("x", choices=c) for c in (("a", "b"), ("b", "a"), ("a", "c"))]
    assert data_differences(data(choices[0]), data(choices[1])) == []
    assert data_differences(data(choices[0]), data(choices[2])) == ["1 of 1 training labels"]


def test_clips_boundaries_and_encoders_are_compared_where_both_are_known() -> None:
    then = data(clips={"x": "0", "y": "1"}, boundaries={"visual": "visual/b03-ab"})
    now = data(clips={"x": "9", "y": "1", "z": "2"}, boundaries={"visual": "visual/b01-cd"})
    assert data_differences(now, then) == [
        "the content of 1 of 2 clips (for one 'x')",
        "the stored visual states (visual/b03-ab then, visual/b01-cd now)",
    ]
    assert data_differences(now, then, stored=["visual/b03-ab"]) == ["the content of 1 of 2 clips (for one 'x')"]
    live = dataclasses.replace(now, clips={}, boundaries={})
    assert data_differences(live, then) == data_differences(then, live) == []
    other = dataclasses.replace(live, encoders={"visual": "2" * 64, "audio": "3" * 64})
    assert data_differences(other, then) == [
        "the visual encoder, its weights or preprocessing (digest 111111111111 then, 222222222222 now)"
    ]


def test_questions_come_in_the_order_that_was_recorded() -> None:
    asked = [question("x"), question("y"), question("x"), question("z")]
    recorded = [question_digest(asked[i]) for i in (3, 0, 1, 0)]
    assert [q.clip_id for q in in_recorded_order(asked, recorded)] == ["z", "x", "y", "x"]


def test_a_copied_folder_counts_paths_from_where_it_was_made(place: Path, tmp_path: Path) -> None:
    run = train(place).folder
    assert RunFolder(run).base == place.parent == load_experiment(place).base
    copied = Path(shutil.copytree(run, tmp_path / "a" / "b"))
    assert RunFolder(copied).base == place.parent
