"""Every command, given each kind of bad input, ends in one line and non-zero, and keeps what was finished."""

from __future__ import annotations

import json
import shutil
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Run = Callable[..., tuple[int, str, str]]

EXPERIMENT = """
[data]
dataset = "manifest"
root = "set"
segments = 2

[encoders.audio]
model = "timm:test_vit"
weights = "random"
window_seconds = 0.5
cut = [3, 6]

[store]
dtype = "float32"

[task]
kind = "classes"
d_head = 16
num_heads = 2

[train]
epochs = 1
batch_size = 2
num_threads = 1

[[variants]]
name = "probe"
adapter = { kind = "probe", modalities = ["audio"] }

[[variants]]
name = "deep"
insertion = { audio = [3] }
adapter = { kind = "bottleneck", d_bottleneck = 4 }
"""
ROWS = [
    {"clip": f"{i}.wav", "question": "is it ?", "answer": "ab"[i % 2], "split": s}
    for i, s in enumerate(("train", "train", "val", "test"))
]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the experiment, its store and one finished run."""
    import talik

    folder = tmp_path_factory.mktemp("finished")
    (folder / "set").mkdir()
    for i in range(4):
        with wave.open(str(folder / "set" / f"{i}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes((8000 * np.sin(np.arange(16000) * (i + 1) / 20)).astype("<i2").tobytes())
    (folder / "set" / "manifest.jsonl").write_bytes(lines(ROWS))
    (folder / "exp.toml").write_text(EXPERIMENT, encoding="utf-8")
    talik.extract(folder / "exp.toml", progress=False)
    talik.adapt(folder / "exp.toml", variant="probe", progress=False)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "here")
    return tmp_path / "here"


STAGE_1 = ("data", "extract")
BOTH = (*STAGE_1, "adapt", "sweep", "plan")
MANIFESTS: dict[str, tuple[bytes, str]] = {
    "an empty answer": (lines([*ROWS, {**ROWS[0], "answer": ""}]), "manifest.jsonl:5: 'answer' is empty"),
    "no question in one": (lines([*ROWS, {"clip": "0.wav", "answer": "a"}]), "manifest.jsonl:5: no question"),
    "another field": (lines([*ROWS, {**ROWS[0], "antwort": "a"}]), "manifest.jsonl:5: unknown column 'antwort'"),
    "a row twice": (lines([*ROWS, ROWS[1]]), "manifest.jsonl:5: says the same as manifest.jsonl:2"),
    "an id twice": (lines([{**r, "id": "x"} for r in ROWS]), "manifest.jsonl:2: id 'x' is also that of"),
    "not JSON": (lines(ROWS) + b"\n{", "manifest.jsonl: line 5"),
    "not UTF-8": (lines(ROWS) + b"\n\xff", "manifest.jsonl: not UTF-8"),
    "no record": (b"", "manifest.jsonl: no record"),
    "a clip outside": (lines([{**ROWS[0], "clip": "../x.wav"}]), "points outside"),
    "a clip that is not there": (lines([*ROWS, {**ROWS[0], "clip": "9.wav"}]), "'9.wav'"),
    "a capital split": (lines([*ROWS, {**ROWS[0], "split": "Train"}]), "manifest.jsonl:5: 'split' is 'Train'"),
}


def assert_one_line(talik: Run, command: tuple[object, ...], expected: str) -> None:
    code, out, err = talik(*command)
    assert code != 0, (command, out, err)
    told = err.strip()
    assert expected in told, command
    assert "\n" not in told, command
    assert "Traceback" not in out + err


def call(command: str, path: Path) -> tuple[object, ...]:
    more: dict[str, tuple[str, ...]] = {
        "extract": ("--quiet",),
        "adapt": ("--variant", "deep", "--quiet"),
        "sweep": ("--variants", "deep", "--quiet"),
        "plan": ("--quiet",),
    }
    return (command, path, *more.get(command, ()))


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_bad_manifest_ends_every_command(talik: Run, folder: Path, kind: str) -> None:
    text, expected = MANIFESTS[kind]
    result = (folder / "runs" / "exp" / "probe" / "seed0" / "result.json").read_bytes()
    (folder / "set" / "manifest.jsonl").write_bytes(text)
    for command in BOTH:
        assert_one_line(talik, call(command, folder / "exp.toml"), expected)
    assert (folder / "runs" / "exp" / "probe" / "seed0" / "result.json").read_bytes() == result
    assert talik("store", "verify", folder / "features.zarr")[0] == 0


SETTINGS = {
    "no cut": ("cut = [3, 6]", "cut = []", BOTH, "encoders.audio.cut: found []"),
    "a cut beyond": ("cut = [3, 6]", "cut = [99]", ("extract",), "99"),
    "a seed without effect": ("segments = 2", "segments = 2\nseed = 3", BOTH, 'data.seed: is of split = "by-video"'),
    "an unknown key": ("segments = 2", "segmens = 2", BOTH, "unknown key 'segmens'; did you mean 'segments'"),
    "not TOML": ("[data]", "[data", BOTH, "not valid TOML"),
    "no root": ('root = "set"', 'root = "elsewhere"', BOTH, "elsewhere: no such folder"),
    "an unknown model": ("timm:test_vit", "timm:test_vitt", ("extract", "adapt", "plan"), "test_vitt"),
    "beyond all units": ("{ audio = [3] }", '"last 99"', ("adapt", "sweep"), "'last 99' of 6 units (audio)"),
    "an insertion of nothing": ("{ audio = [3] }", "{ audio = [] }", ("adapt", "sweep"), "insertion"),
    "an unknown modality": ("{ audio = [3] }", "{ visual = [3] }", ("adapt", "sweep"), "unknown modality 'visual'"),
    "an unknown adapter": ('"bottleneck"', '"bottlenek"', ("adapt", "sweep"), "did you mean 'bottleneck'"),
    "no seed": ("[[variants]]", "[sweep]\nseeds = []\n\n[[variants]]", ("adapt", "sweep"), "sweep.seeds: found []"),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_bad_settings_end_the_commands_that_read_them(talik: Run, folder: Path, kind: str) -> None:
    old, new, commands, expected = SETTINGS[kind]
    text = EXPERIMENT.replace(old, new, 1)
    assert text != EXPERIMENT
    (folder / "exp.toml").write_text(text, encoding="utf-8")
    for command in commands:
        assert_one_line(talik, call(command, folder / "exp.toml"), expected)
    assert (folder / "runs" / "exp" / "probe" / "seed0" / "result.json").is_file()


def test_no_variants_and_no_validation_split(talik: Run, folder: Path) -> None:
    path = folder / "exp.toml"
    path.write_text(EXPERIMENT.split("[[variants]]")[0], encoding="utf-8")
    for command in (("adapt", path, "--variant", "x"), ("sweep", path, "--quiet"), ("plan", path, "--quiet")):
        assert_one_line(talik, command, "no [[variants]]")
    path.write_text(EXPERIMENT, encoding="utf-8")
    (folder / "set" / "manifest.jsonl").write_bytes(lines([r for r in ROWS if r["split"] != "val"]))
    for command in ("adapt", "sweep"):
        assert_one_line(talik, call(command, path), "no split 'val' (it has: train, test)")


def test_two_manifests(talik: Run, folder: Path) -> None:
    (folder / "set" / "manifest.csv").write_text("clip,answer\n0.wav,a\n", encoding="utf-8")
    for command in BOTH:
        assert_one_line(talik, call(command, folder / "exp.toml"), "found manifest.jsonl and manifest.csv")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("evaluate", "runs/exp/probe/seed0", "--split", "dev"), "dev"),
        (("evaluate", "runs/exp/deep/seed0"), "no config.toml"),
        (("evaluate", "nowhere"), "nowhere"),
        (("predict", "runs/exp/probe/seed0", "--video", "nowhere.wav"), "nowhere.wav"),
        (("predict", "nowhere", "--video", "set/0.wav"), "nowhere"),
        (("report", "nowhere", "--out", "r"), "nowhere"),
        (("store", "ls", "nowhere.zarr"), "nowhere.zarr"),
        (("store", "verify", "set"), "set"),
        (("store", "why", "features.zarr", "nowhere.toml"), "nowhere.toml"),
        (("adapt", "exp.toml", "--variant", "prob"), "did you mean 'probe'"),
        (("sweep", "exp.toml", "--variants", ","), "no [[variants]]"),
    ],
)
def test_what_is_not_there_is_named(
    talik: Run, folder: Path, command: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert_one_line(talik, command, expected)
