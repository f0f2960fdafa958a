"""`talik demo` tells the whole story, keeps what is done, and refuses a folder of another story."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
from pathlib import Path

import pytest

import talik.demo.experiment as story
from talik.adapt.config.experiment import load_experiment
from talik.demo import sizes
from talik.demo.experiment import demo
from talik.errors import RunError


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tiny_encoders: dict[str, Path]) -> None:
    """The demo's own experiment with tiny encoders in place of the pretrained ones, and two epochs."""
    text = sizes.EXPERIMENT
    for name, modality, part in (
        ("dinov2-small", "visual", ""),
        ("whisper-tiny.en", "audio", "#encoder"),
        ("minilm-l6", "text", ""),
    ):
        text = text.replace(f"pip:{name}", f"hf:{tiny_encoders[modality]}{part}")
    text = text.replace("image_size = 98", "image_size = 28").replace("window_seconds = 1.0", "window_seconds = 0.4")
    text = re.sub(r"cut = (12|4) ", "cut = 3 ", text).replace("cut = 4\n", "cut = 3\n")
    text = text.replace("cut = [5, 6]", "cut = [2, 3]")
    monkeypatch.setattr(sizes, "EXPERIMENT", text)
    for name in ("TASTE", "FULL"):
        size = getattr(story, name)
        text = size.variants.replace("visual = [12], audio = [4]", "visual = [3], audio = [3]")
        text = text.replace("text = [5]", "text = [2]")
        text = text.replace('{ kind = "lavish" }', '{ kind = "lavish", reduction = 2, groups = 2 }')
        monkeypatch.setattr(story, name, dataclasses.replace(size, epochs=2, variants=text))


@pytest.mark.usefixtures("small")
def test_the_story_is_told_and_kept(demo_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(demo_set / "videos", folder / "set" / "videos")
    files = demo(folder, num_clips=8, progress=False)
    said = capsys.readouterr().out
    assert "about" in said.splitlines()[0]
    assert "most frequent answer of each template" in said
    names = ("blind", "probe-question", "probe-picture", "probe-sound", "probe", "trimodal")
    for name in names:
        assert story.LABELS[name] in files.text
    for worse, better in itertools.pairwise(("blind", "probe-question", "probe-sound", "probe", "trimodal")):
        assert re.search(rf"^{better} − {worse}: [+-]", said, re.MULTILINE)
    page = files.html.read_text(encoding="utf-8")
    assert page.count("<svg") >= 3
    assert page.count("data:video/mp4;base64") >= 1
    assert page.count("Gates of the selection") == 1
    (first, *_) = re.findall(r'<table class="gates".*?</table>', page, re.DOTALL)
    assert first.count('<img src="data:image/jpeg;base64') == 4  # a clip's four segments, above their gates
    assert len(page) < 3_000_000
    assert "so training and evaluating 5 variants x 1 seed(s) takes about" in said
    costs = files.costs.variants
    assert len(costs) == 5
    assert all(c.predicted and c.without_cache for c in costs) or "do not cache" in said
    results = {p: p.stat().st_mtime_ns for p in folder.rglob("result.json")}
    assert len(results) == 5
    planned = (folder / "demo.plan.json").stat().st_mtime_ns
    demo(folder, num_clips=8, progress=False)
    assert "next, on clips and questions of your own: talik init manifest" in said.splitlines()[-2]
    assert f"the same with plots and clips: {files.html}" in said.splitlines()
    assert "saved: filling the store took" in said or files.costs.without_cache is None
    said = capsys.readouterr().out
    assert "nothing to do" in said
    assert "the plan made before them stays" in said
    assert (folder / "demo.plan.json").stat().st_mtime_ns == planned
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("result.json")} == results
    with pytest.raises(RunError, match=r"demo.toml: differs from what this demo would write"):
        demo(folder, num_clips=8, num_seeds=2, progress=False)


def test_the_full_size_adds_ablations_to_the_taste(tmp_path: Path) -> None:
    found = {}
    for size in (sizes.TASTE, sizes.FULL):
        path = tmp_path / f"{size.set_kind}.toml"
        path.write_text(sizes.experiment_text(size, seeds=range(size.num_seeds)), encoding="utf-8")
        experiment = load_experiment(path)
        assert len(experiment.sweep.seeds) == size.num_seeds
        names = [v.name for v in experiment.variants]
        assert {name for pair in size.comparisons for name in pair} == {*names, "blind"} <= sizes.LABELS.keys()
        found[size.set_kind] = names
    assert set(found["taste"]) < set(found["demo"]) == sizes.LABELS.keys() - {"blind"}
