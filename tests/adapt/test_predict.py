"""`talik predict`: what evaluation says of a clip, from the file alone; bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from talik.adapt.evaluation.predict import predict
from talik.adapt.training.adapt import adapt
from talik.cli import app
from talik.errors import MediaError, MissingMediaError, RunError, SettingsError


@pytest.fixture(scope="module")
def run(on_store: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = on_store(tmp_path_factory.mktemp("predict") / "exp.toml")
    return adapt(path, variant="trimodal", progress=False).folder


def test_a_clip_is_answered_as_in_the_evaluation(run: Path, demo_set: Path, tmp_path: Path) -> None:
    lines = (run / "predictions.jsonl").read_text().splitlines()
    for record in [json.loads(line) for line in lines[:3]]:
        (found,) = demo_set.rglob(f"{record['clip_id']}.mp4")
        video = tmp_path / "elsewhere.mp4"
        shutil.copy(found, video)
        said = predict(run, video=video, question=record["question"], top=3)
        assert said.answers[0].answer == record["prediction"]
        assert said.answers[0].probability == pytest.approx(record["probability"], abs=1e-4)
        assert len(said.answers) == 3
        assert [a.probability for a in said.answers] == sorted((a.probability for a in said.answers), reverse=True)
        assert len(said.gates) == 1
        assert len(said.gates[0]["visual"]) == 3


def test_neither_store_nor_data_set_is_needed(run: Path, demo_set: Path, tmp_path: Path) -> None:
    config = (run / "config.toml").read_text()
    moved = tmp_path / "runs" / "exp" / "trimodal" / "seed0"
    shutil.copytree(run, moved)
    (moved / "config.toml").write_text(config.replace(str(demo_set), "/nowhere").replace("features.zarr", "gone.zarr"))
    video = next(demo_set.rglob("*.mp4"))
    shown = CliRunner().invoke(
        app,
        ["predict", str(moved), "--video", str(video), "--question", "is the piano first ?"],
        catch_exceptions=False,
    )
    assert shown.exit_code == 0
    assert shown.output.count(" %  ") == 5
    assert "gates, insertion 0, visual:" in shown.output


def test_bad_input_is_named(run: Path, demo_set: Path, tmp_path: Path) -> None:
    video = next(demo_set.rglob("*.mp4"))
    with pytest.raises(MissingMediaError, match=r"gone\.mp4: no such file"):
        predict(run, video=tmp_path / "gone.mp4", question="a ?")
    (tmp_path / "torn.mp4").write_bytes(video.read_bytes()[:2000])
    with pytest.raises(MediaError, match=r"torn\.mp4"):
        predict(run, video=tmp_path / "torn.mp4", question="a ?")
    with pytest.raises(SettingsError, match="question: missing"):
        predict(run, video=video)
    with pytest.raises(SettingsError, match="top"):
        predict(run, video=video, question="a ?", top=0)
    with pytest.raises(RunError, match=r"config\.toml"):
        predict(tmp_path, video=video, question="a ?")
