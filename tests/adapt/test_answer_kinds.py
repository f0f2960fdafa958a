"""Answers of each kind from a manifest to predictions and a report: several right ones, all labels that are true."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from talik.adapt.evaluation.evaluate import evaluate
from talik.adapt.evaluation.export_run import export_run
from talik.adapt.evaluation.predict import predict
from talik.adapt.model.heads import TaskSettings
from talik.adapt.model.targets import labels_of, loss_of
from talik.adapt.report.read_runs import read_run
from talik.adapt.report.write import report
from talik.adapt.scoring.multi_label import average_precision
from talik.adapt.scoring.predictions import predictions_of
from talik.adapt.sweep.halving import best_until
from talik.adapt.sweep.run_list import list_runs
from talik.adapt.sweep.sweep import sweep
from talik.adapt.training.adapt import adapt
from talik.adapt.training.run_folder import RunFolder
from talik.adapt.training.trainer import Trainer
from talik.errors import ManifestError, RunError, SettingsError
from talik.extract.datasets.describe import blind_baseline, describe, fraction_correct
from talik.extract.datasets.load import load_manifest
from talik.extract.datasets.types import Question
from talik.extract.stage.extract import extract

from .test_fused import assert_same, outcome
from .test_tasks import lines, make_clip, write_tables

DATA = 'dataset = "manifest"\nroot = "set"\nannotations = "{}.jsonl"'


def tables(path: Path, encoders: dict[str, Path], manifest: str, task: str, *, epochs: int = 3) -> Path:
    """Write an experiment without text; `task` are further lines of [task]."""
    kind, _, more = task.partition("\n")
    write_tables(path, encoders, DATA.format(manifest), kind=kind, text=False, epochs=epochs)
    path.write_text(path.read_text().replace("d_head = 16", f"d_head = 16\n{more}"))
    return path


def write_manifest(folder: Path, name: str, of_clip: list[dict[str, Any]]) -> None:
    """Write a record for each of 16 clips, of which 8 are of train, 4 of val and 4 of test."""
    split = ["train"] * 8 + ["val"] * 4 + ["test"] * 4
    records = [
        {"clip": f"clip{i:02d}.mp4", "type": "ab"[i % 2], "split": split[i], "id": f"q{i}", **of_clip[i % len(of_clip)]}
        for i in range(16)
    ]
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_encoders: dict[str, Path]) -> Path:
    """A folder with 16 clips of four looks, a manifest of each kind of answers, and the clips' states."""
    folder = tmp_path_factory.mktemp("kinds")
    for i in range(16):
        dark, low = i & 1, i & 2
        levels, pitches = (40, 60) if dark else (180, 220), (300, 300) if low else (2300, 2300)
        clip = make_clip(folder / "set" / f"clip{i:02d}.mp4", levels=levels, pitches=pitches)
        clip.write_bytes(clip.read_bytes() + bytes([0] * 8 + [i]))
    people = [["dark"] * 3 + ["black"], ["light", "bright", "bright"], ["dark", "black"], ["light"] * 5]
    write_manifest(folder / "set", "several", [{"answers": given} for given in people])
    labels = [["dark", "low"], ["light", "high"], ["dark"], []]
    write_manifest(folder / "set", "labels", [{"answers": given} for given in labels])
    extract(tables(folder / "exp.toml", tiny_encoders, "set/several", "classes"), progress=False)
    return folder


def settings(world: Path, manifest: str) -> dict[str, Any]:
    return {
        "dataset": "manifest",
        "root": str(world / "set"),
        "annotations": str(world / "set" / f"{manifest}.jsonl"),
        "segments": 2,
    }


def placed(world: Path, folder: Path, encoders: dict[str, Path], manifest: str, task: str, epochs: int = 3) -> Path:
    """Write an experiment in a folder of its own on the world's clips and store."""
    path = tables(folder / "exp.toml", encoders, str(world / "set" / manifest), task, epochs=epochs)
    text = path.read_text().replace('root = "set"', f'root = "{world / "set"}"')
    path.write_text(text.replace("[store]", f'[store]\npath = "{world / "features.zarr"}"'))
    return path


def trained_in_company(folder: Path, world: Path, encoders: dict[str, Path], manifest: str, task: str) -> Path:
    """Train both variants in lockstep, and one of them alone and in two calls; return the sweep's experiment."""
    path = placed(world, folder / "sweep", encoders, manifest, task)
    assert len(sweep(path, progress=False).runs) == 2
    solo = placed(world, folder / "solo", encoders, manifest, task)
    adapt(solo, variant="trimodal", progress=False)
    assert_same(outcome(path, "trimodal"), outcome(solo, "trimodal"))
    return path


def test_each_of_several_answers_is_right(world: Path, tiny_encoders: dict[str, Path], tmp_path: Path) -> None:
    path = trained_in_company(tmp_path, world, tiny_encoders, "several", "classes")
    folder = path.parent / "runs" / "exp" / "probe" / "seed0"
    records = lines(folder / "predictions.jsonl")
    assert all(r["correct"] is (r["prediction"] in r["answers"]) and "score" not in r for r in records)
    assert {r["answer"] for r in records} == {"dark", "bright", "light"}  # what most gave, or the first
    result = json.loads((folder / "result.json").read_text())
    assert result["accuracy"] == sum(r["correct"] for r in records) / 4
    assert evaluate(folder, live=True).scores.overall.accuracy == result["accuracy"]
    manifest = load_manifest(settings(world, "several"))
    blind = blind_baseline(manifest, "test")
    assert set(blind.values()) == {"dark"}
    assert fraction_correct(manifest.split("test"), blind) == 0.5
    assert "test 50.00 %" in describe(manifest)[-1]
    table = report([folder], out=tmp_path / "report").table
    assert [row.overall.mean for row in table.rows] == [50.0, 100 * result["accuracy"]]


def test_answers_score_by_how_many_people_gave_them(
    world: Path, tiny_encoders: dict[str, Path], tmp_path: Path
) -> None:
    path = trained_in_company(tmp_path, world, tiny_encoders, "several", 'classes\nscoring = "vqa"')
    folder = path.parent / "runs" / "exp" / "probe" / "seed0"
    records = lines(folder / "predictions.jsonl")
    expected = [min(r["answers"].count(r["prediction"]) / 3, 1.0) for r in records]
    assert [r["score"] for r in records] == expected
    result = json.loads((folder / "result.json").read_text())
    assert result["accuracy"] == pytest.approx(sum(expected) / 4)
    assert evaluate(folder, live=True).scores.overall.accuracy == pytest.approx(result["accuracy"])
    table = report([folder], out=tmp_path / "report").table
    assert table.rows[0].overall.mean == pytest.approx(100 * (1 + 1 / 3) / 4)  # blind: "dark", given by 3, 0, 1 and 0
    assert table.rows[1].overall.mean == pytest.approx(100 * result["accuracy"])
    assert table.comparisons[0].difference.points == pytest.approx(table.rows[1].overall.mean - 100 / 3)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    wrong = [{**r, "score": 0.25} for r in records]
    (copy / "predictions.jsonl").write_text("\n".join(map(json.dumps, wrong)))
    with pytest.raises(RunError, match=r"predictions\.jsonl:1: 'score' contradicts 'prediction' and 'answers'"):
        read_run(copy)


def test_the_target_is_shared_by_the_right_answers() -> None:
    def asked(*answers: str, choices: tuple[str, ...] = ()) -> Question:
        shared = {"id": "q", "clip_id": "c", "text": "", "type": "all", "template": "", "split": "train"}
        return Question(answer=answers[0], answers=answers, choices=choices, **shared)

    classes = {"a": 0, "b": 1, "c": 2}
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    questions = [asked("a", "b"), asked("c"), asked("b", "b", "b", "a")]
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.25, 0.75, 0.0]])
    found = loss_of(logits, questions, classes, label_smoothing=0.1, task=TaskSettings(scoring="vqa"))
    torch.testing.assert_close(found, F.cross_entropy(logits, shares, label_smoothing=0.1))
    even = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]])
    torch.testing.assert_close(
        loss_of(logits, questions, classes, label_smoothing=0.0), F.cross_entropy(logits, even, label_smoothing=0.0)
    )
    predictions = predictions_of(logits, questions, list(classes), task=TaskSettings(scoring="vqa"))
    likelihoods = torch.tensor([p.log_likelihood for p in predictions])
    torch.testing.assert_close(likelihoods, (shares * logits.log_softmax(-1)).sum(-1))
    chosen = [asked("a", "b", choices=("a", "b")), asked("c", choices=("b", "c"))]
    two = [
        F.cross_entropy(logits[:1, :2], torch.tensor([[0.5, 0.5]])),
        F.cross_entropy(logits[1:2, 1:], torch.tensor([1])),
    ]
    torch.testing.assert_close(loss_of(logits[:2], chosen, classes, label_smoothing=0.0), torch.stack(two).mean())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.jsonl", '{"clip": "a", "answer": ["x", " "]}', r"m\.jsonl:1: 'answer' holds an empty one"),
        ("m.jsonl", '{"clip": "a", "answers": ["x", 2]}', r"m\.jsonl:1: 'answers' is .*expected a list of strings"),
        (
            "m.jsonl",
            '{"clip": "a", "answer": "z", "answers": ["x"]}',
            r"m\.jsonl:1: 'answer' is 'z', which is not among",
        ),
        ("m.jsonl", '{"clip": "a", "answer": ["z"], "answers": ["z"]}', r"'answer' is a list, and there are 'answers'"),
        ("m.csv", "clip,answers\na,x|\n", r"m\.csv:2: 'answers' holds an empty one"),
    ],
)
def test_lists_of_answers_are_refused_by_line_and_key(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(ManifestError, match=message):
        load_manifest({"dataset": "manifest", "root": str(tmp_path), "annotations": str(tmp_path / name)})


def test_lists_of_answers_are_read_from_json_and_csv(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "m.csv").write_text('clip,question,answers\na,q,red | red|dark red\na,r,"[""a|b""]"\n')
    (tmp_path / "m.jsonl").write_text(
        '{"clip": "a", "question": "q", "answer": ["red", "red", "dark red"]}\n'
        '{"clip": "a", "question": "r", "answer": "a|b", "answers": ["a|b"]}'
    )
    for name in ("m.csv", "m.jsonl"):
        manifest = load_manifest({"dataset": "manifest", "root": str(tmp_path), "annotations": str(tmp_path / name)})
        assert manifest.answers == ("red", "dark red", "a|b")
        assert [q.answers for q in manifest.questions] == [("red", "red", "dark red"), ("a|b",)]
        assert [q.answer for q in manifest.questions] == ["red", "a|b"]
    with pytest.raises(ManifestError, match=r"m\.csv:2: 'answers': unknown answer 'dark red'"):
        load_manifest(
            {
                "dataset": "manifest",
                "root": str(tmp_path),
                "annotations": str(tmp_path / "m.csv"),
                "answers": ["red", "a|b"],
            }
        )


def test_a_manner_of_scoring_is_of_questions(tmp_path: Path, tiny_encoders: dict[str, Path]) -> None:
    path = tables(tmp_path / "exp.toml", tiny_encoders, "several", 'events\nscoring = "vqa"')
    with pytest.raises(SettingsError, match="scoring: 'vqa' is not of kind 'events'; remove it"):
        adapt(path, variant="probe", progress=False)


def test_labels_are_learnt_scored_and_reported(world: Path, tiny_encoders: dict[str, Path], tmp_path: Path) -> None:
    path = trained_in_company(tmp_path, world, tiny_encoders, "labels", "multi-label\nthreshold = 0.4")
    folder = path.parent / "runs" / "exp" / "probe" / "seed0"
    records = lines(folder / "predictions.jsonl")
    assert [r["labels"] for r in records] == [["dark", "low"], ["light", "high"], ["dark"], []]
    assert [r["answer"] for r in records] == ["dark, low", "high, light", "dark", "(none)"]
    classes = json.loads((folder / "data.json").read_text())["answers"]
    for r in records:
        assert r["given"] == [c for c, p in zip(classes, r["probabilities"], strict=True) if p >= 0.4]
    true = np.array([[c in r["labels"] for c in classes] for r in records])
    scores = np.array([r["probabilities"] for r in records])
    expected = np.mean([average_precision(true[:, c], scores[:, c]) for c in range(4)])
    result = json.loads((folder / "result.json").read_text())
    assert result["map"] == pytest.approx(expected)
    assert result["by_type"]["a"]["total"] == 2
    assert {name: found["questions"] for name, found in result["by_label"].items()} == {
        "dark": 2,
        "low": 1,
        "light": 1,
        "high": 1,
    }
    assert np.mean([found["average_precision"] for found in result["by_label"].values()]) == pytest.approx(expected)
    assert np.mean([found["f1"] for found in result["by_label"].values()]) == pytest.approx(result["macro_f1"])
    last = lines(folder / "metrics.jsonl")[-2]
    assert 0 <= last["val_map"] <= 1
    assert "val_accuracy" not in last
    validated = [line["val_map"] for line in lines(folder / "metrics.jsonl")[:-1]]
    assert validated[result["best_epoch"] - 1] == max(validated)
    best = best_until(RunFolder(folder), len(validated))
    assert best is not None
    assert best[0] == max(validated)
    assert next(line.best_accuracy for line in list_runs(folder)) == max(validated)
    live = evaluate(folder, live=True)
    assert live.scores.overall.accuracy == pytest.approx(result["map"])
    assert (live.micro_f1, live.macro_f1) == (result["micro_f1"], result["macro_f1"])
    assert f"mAP {100 * expected:.2f} % of 4 test questions" in repr(live)
    written = report([path.parent / "runs"], out=tmp_path / "report", columns=["a", "b", "Avg", "macro-f1", "micro-f1"])
    blind, *rows = written.table.rows
    assert blind.overall.mean == pytest.approx(100 * np.mean([true[:, c].mean() for c in range(4)]))
    row = next(row for row in rows if row.name == "probe")
    assert row.overall.mean == pytest.approx(100 * expected)
    assert row.by_type["a"].mean == pytest.approx(100 * result["by_type"]["a"]["value"])
    assert row.micro_f1 == pytest.approx(100 * result["micro_f1"])
    assert "mAP (\\%) by question type" in written.latex.read_text()
    assert "<h2>mAP by question type</h2>" in written.html.read_text()
    assert "micro_f1" in written.csv.read_text().splitlines()[0]
    assert any("as probable as it is among the template" in note for note in written.notes)
    shown = predict(folder, video=world / "set" / "clip12.mp4", top=4)
    assert [a.probability for a in shown.answers] == pytest.approx(
        sorted(records[0]["probabilities"], reverse=True), abs=1e-4
    )
    card = (export_run(folder, tmp_path / "export") / "README.md").read_text()
    assert "| type | mAP | of |" in card
    assert predict(tmp_path / "export", video=world / "set" / "clip12.mp4", top=4) == shown
    text = (folder / "predictions.jsonl").read_text()
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "predictions.jsonl").write_text(text.replace('"labels": ["dark"]', '"labels": ["low"]'))
    with pytest.raises(RunError, match=r"jsonl:3: 'answer' and 'prediction' contradict 'labels' and 'given'"):
        read_run(copy)


def test_a_killed_run_on_labels_goes_on_as_if_never_killed(
    world: Path, tiny_encoders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = placed(world, tmp_path / "whole", tiny_encoders, "labels", "multi-label")
    adapt(whole, variant="probe", progress=False)
    killed = placed(world, tmp_path / "killed", tiny_encoders, "labels", "multi-label")
    end_epoch, ended = Trainer.end_epoch, []

    def dies(self: Trainer, *given: Any, **named: Any) -> None:
        end_epoch(self, *given, **named)
        ended.append(self.progress.epoch)
        if len(ended) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "end_epoch", dies)
    with pytest.raises(KeyboardInterrupt):
        adapt(killed, variant="probe", progress=False)
    monkeypatch.undo()
    assert adapt(killed, variant="probe", progress=False).how == "resumed"
    assert_same(outcome(killed, "probe"), outcome(whole, "probe"))


def test_the_loss_of_labels_is_the_binary_cross_entropy() -> None:
    def asked(*answers: str) -> Question:
        shared = {"id": "q", "clip_id": "c", "text": "", "type": "all", "template": "", "split": "train"}
        return Question(answer=answers[0] if answers else "", answers=answers, **shared)

    classes, task = {"a": 0, "b": 1, "c": 2}, TaskSettings(kind="multi-label")
    questions = [asked("a", "c"), asked(), asked("b")]
    hot = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(labels_of(questions, classes, logits, kind="multi-label"), hot)
    found = loss_of(logits, questions, classes, label_smoothing=0.2, task=task)
    smooth = hot * 0.8 + 0.1
    torch.testing.assert_close(
        found, -(smooth * logits.sigmoid().log() + (1 - smooth) * (-logits).sigmoid().log()).mean()
    )
    predictions = predictions_of(logits, questions, list(classes), task=task)
    assert -predictions[1].log_likelihood == pytest.approx(F.softplus(logits[1]).mean().item())
    sure = [p if p >= 0.5 else 1 - p for p in predictions[0].probabilities]
    assert predictions[0].probability == pytest.approx(sure[0] * sure[1] * sure[2])
    with pytest.raises(SettingsError, match=r"task.head: gives logits of shape \(3, 2, 3\)"):
        loss_of(logits[:, None].expand(3, 2, 3), questions, classes, label_smoothing=0.0, task=task)


def test_data_without_labels_or_with_choices_are_refused(
    world: Path, tiny_encoders: dict[str, Path], tmp_path: Path
) -> None:
    path = placed(world, tmp_path / "one", tiny_encoders, "labels", "classes")
    with pytest.raises(ManifestError, match=r"4 of 16 records have no answer .*task\.kind = 'classes' needs"):
        adapt(path, variant="probe", progress=False)
