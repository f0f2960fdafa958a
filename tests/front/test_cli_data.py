"""The command line on data sets: a file to start from, what a set holds, and going on without some of its clips."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., tuple[int, str, str]]


def test_a_file_to_start_from(talik: Run, tmp_path: Path) -> None:
    code, out, _ = talik("init", "music-avqa", tmp_path / "mine", "--preset", "lavish")
    assert code == 0
    assert "disk: " in out
    code, _, err = talik("init", "music-avqa", tmp_path / "mine")
    assert (code, err.count("\n")) == (1, 1)
    assert "is there already" in err
    code, _, err = talik("data", tmp_path / "mine" / "experiment.toml")
    assert (code, "no such folder; data.root" in err) == (1, True)


def test_what_a_set_holds(talik: Run, write_experiment: Callable[..., Path]) -> None:
    code, out, _ = talik("data", write_experiment())
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("demo: ")
    assert any(line.startswith("  test: ") and "A-count" in line for line in lines)
    assert lines[-1].startswith("  blind baseline (most frequent answer of each template in train): val ")


def test_a_run_says_what_it_works_on(talik: Run, write_experiment: Callable[..., Path]) -> None:
    _, out, err = talik("extract", write_experiment())
    assert "blind baseline" in err
    assert "blind baseline" not in out


def test_going_on_without_clips(
    talik: Run, write_experiment: Callable[..., Path], demo_set: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(demo_set, tmp_path / "set"))
    asked = dict.fromkeys(r["video_id"] for r in json.loads((root / "annotations" / "avqa-train.json").read_text()))
    videos = [root / "videos" / f"{clip_id}.mp4" for clip_id in asked]
    videos[0].unlink()
    path = write_experiment(root=root)
    code, _, err = talik("extract", path, "--quiet")
    assert (code, f"1 of 8 clips are not in {root}: '{videos[0].stem}'" in err) == (1, True)
    videos[1].write_bytes(b"no video")
    code, out, err = talik("extract", path, "--quiet", "--allow-missing")
    assert (code, err) == (0, "")
    assert f"left out {videos[0].stem}: the file is missing" in out
    assert f"left out videos/{videos[1].name}: " in out
    code, out, _ = talik("data", path, "--allow-missing")
    assert f"  missing: 1 clip without a file: {videos[0].stem}" in out.splitlines()
    code, out, _ = talik("adapt", path, "--variant", "probe", "--allow-missing", "--quiet")
    assert code == 0
    assert talik("evaluate", tmp_path / "runs" / "exp" / "probe" / "seed0", "--split", "val")[0] == 0
