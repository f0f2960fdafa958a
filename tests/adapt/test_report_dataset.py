"""The blind baseline and the leaks between splits, found from nothing but a folder of runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from talik.adapt.report.dataset import find_data_set
from talik.adapt.report.read_runs import read_run
from talik.adapt.report.write import report
from talik.cli import app

QUESTIONS = [("q1", "c1", "A-count", "two"), ("q2", "c1", "V-loc", "left"), ("q3", "c2", "V-loc", "right")]
TRAIN = [("c9", "A-count", "two"), ("c9", "V-loc", "left"), ("c1", "V-loc", "left")]


def write_data(base: Path, *, answer: str = "two") -> None:
    """A manifest that asks the runs' questions; the clip c1 is in train too."""
    records = [
        {"id": name, "clip": clip, "type": kind, "answer": given, "question": kind, "template": kind, "split": "test"}
        for name, clip, kind, given in [("q1", "c1", "A-count", answer), *QUESTIONS[1:]]
    ]
    records += [
        {"id": f"t{i}", "clip": clip, "type": kind, "answer": given, "question": kind, "template": kind}
        for i, (clip, kind, given) in enumerate(TRAIN)
    ]
    (base / "set").mkdir(exist_ok=True)
    lines = "".join(json.dumps(record | {"split": record.get("split", "train")}) + "\n" for record in records)
    (base / "set" / "manifest.jsonl").write_text(lines)


def write_run(base: Path, variant: str = "probe", *, right: tuple[bool, ...] = (True, False, True)) -> Path:
    """A finished run of those questions, on the data set in `base`/set."""
    folder = base / "runs" / "exp" / variant / "seed0"
    folder.mkdir(parents=True)
    config = {"experiment": "exp", "variant": variant, "seed": 0, "train": {}, "task": {"kind": "answers"}}
    data = {"dataset": "manifest", "root": "set", "segments": 2}
    (folder / "config.toml").write_text(tomli_w.dumps(config | {"data": data}))
    lines = [
        {"question_id": name, "clip_id": clip, "type": kind, "template": kind, "question": kind, "answer": answer}
        | {"prediction": answer if ok else "none", "probability": 0.5, "correct": ok}
        for (name, clip, kind, answer), ok in zip(QUESTIONS, right, strict=True)
    ]
    (folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "metrics.jsonl").write_text(json.dumps({"event": "done", "best_epoch": 1, "seconds": 4.5}))
    result = {"split": "test", "accuracy": sum(right) / 3, "trainable_params": 10}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_the_baseline_and_the_leak_come_from_the_data_set_that_the_runs_name(tmp_path: Path) -> None:
    write_data(tmp_path)  # the media are not there, and not needed
    write_run(tmp_path)
    files = report([tmp_path / "runs"], out=tmp_path / "out")
    row = files.table.rows[0]
    assert row.name == "blind"
    assert row.overall.mean == pytest.approx(200 / 3)  # two, left: right; left for right: wrong
    leak = "Leak between splits. Shared: 1 of the 2 clips of train are also in test: "
    assert files.notes[0].startswith(leak)
    for path in (files.html, files.markdown, files.json):
        assert leak in path.read_text()
    assert str(tmp_path) not in files.html.read_text()


def test_answers_that_training_never_had_are_counted(tmp_path: Path) -> None:
    write_data(tmp_path)
    write_run(tmp_path)
    files = report([tmp_path / "runs"], out=tmp_path / "out")
    said = "the true answers of 1 of 3 test questions (33 %) are in no training question"
    for path in (files.html, files.markdown, files.json):
        assert said in path.read_text()
    TRAIN.append(("c9", "V-loc", "right"))
    try:
        write_data(tmp_path)
    finally:
        TRAIN.pop()
    assert "training never had" not in "".join(report([tmp_path / "runs"], out=tmp_path / "out").notes)


def test_a_data_set_out_of_reach_is_told_in_one_line(tmp_path: Path) -> None:
    write_run(tmp_path)
    files = report([tmp_path / "runs"], out=tmp_path / "out")
    assert [row.name for row in files.table.rows] == ["probe"]
    assert files.notes[0].startswith("No blind baseline, and no look for clips shared between splits: ")
    assert "\n" not in files.notes[0]
    assert str(tmp_path) not in files.notes[0]
    folder = write_run(tmp_path / "elsewhere")
    (folder / "config.toml").write_text('experiment = "exp"\nvariant = "probe"\nseed = 0\n')
    assert find_data_set(read_run(folder)).notes[0].endswith("config.toml names none.")


def test_a_data_set_that_changed_since_gives_no_baseline(tmp_path: Path) -> None:
    write_data(tmp_path, answer="three")
    run = read_run(write_run(tmp_path))
    found = find_data_set(run)
    assert found.blind is None
    assert "the data set in set no longer asks these questions with these answers" in found.notes[0]


def test_the_command_compares_with_the_named_baseline_and_prints_what_is_on_top(tmp_path: Path) -> None:
    write_data(tmp_path)
    write_run(tmp_path, "probe")
    write_run(tmp_path, "other", right=(True, True, True))
    (write_run(tmp_path, "third") / "result.json").unlink()
    command = ["report", str(tmp_path / "runs"), "--baseline", "probe", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*command, "--skip-unfinished"], catch_exceptions=False)
    assert result.exit_code == 0
    for said in ("Leak between splits", "The blind baseline answers", "against probe", "What this cost: training"):
        assert said in result.output
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["baseline"] == "probe"
    assert [(c["a"], c["b"]) for c in found["comparisons"] if c["by_type"]] == [("other", "probe")]
    assert found["costs"]["training"] == pytest.approx(9.0)
