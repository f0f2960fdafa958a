"""Answers of each kind from a manifest to predictions and a report: several right ones, as people gave them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from talik.adapt.evaluation.evaluate import evaluate
from talik.adapt.model.targets import loss_of
from talik.adapt.report.read_runs import read_run
from talik.adapt.report.write import report
from talik.adapt.scoring.predictions import predictions_of
from talik.adapt.sweep.sweep import sweep
from talik.adapt.training.adapt import adapt
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
    found = loss_of(logits, questions, classes, label_smoothing=0.1, scoring="vqa")
    torch.testing.assert_close(found, F.cross_entropy(logits, shares, label_smoothing=0.1))
    even = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]])
    torch.testing.assert_close(
        loss_of(logits, questions, classes, label_smoothing=0.0), F.cross_entropy(logits, even, label_smoothing=0.0)
    )
    predictions = predictions_of(logits, questions, list(classes), scoring="vqa")
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
        ("m.jsonl", '{"clip": "a", "answers": []}', r"m\.jsonl:1: 'answers' holds no answer, expected one answer at"),
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
    with pytest.raises(SettingsError, match="scoring: 'vqa' is of questions, not of events; remove it"):
        adapt(path, variant="probe", progress=False)
