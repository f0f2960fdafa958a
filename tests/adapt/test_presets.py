"""Presets: every file that `talik init` writes parses strictly, and runs with tiny random encoders in its places."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest

from talik.adapt.config.experiment import experiment_from_tables, load_experiment
from talik.adapt.model.insertion import resolve_insertions
from talik.adapt.training.adapt import adapt
from talik.errors import SettingsError
from talik.extract.presets.datasets import DATA
from talik.extract.presets.encoders import PRESETS
from talik.extract.presets.write_experiment import init, preset_text
from talik.extract.stage.extract import extract

UNITS = {"visual": 24, "audio": 12, "text": 12}


@pytest.mark.parametrize("dataset", DATA)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_parses_strictly(dataset: str, preset: str) -> None:
    text = preset_text(dataset, preset)
    experiment = experiment_from_tables(tomllib.loads(text), path=Path("experiment.toml"))
    units = {"lavish": (24, 24, 12), "trimodal": (24, 12, 12), "small": (12, 4, 6)}[preset]
    there = [m for m, _ in experiment.extraction.encoders.items()]
    assert there == (["visual", "audio", "text"] if DATA[dataset].asks else ["visual", "audio"])
    num_units = dict(zip(("visual", "audio", "text"), units, strict=True))
    for variant in experiment.variants:
        used = {m: num_units[m] for m in there}
        insertions = resolve_insertions(variant.insertion, used, placement=variant.placement)
        for modality, settings in experiment.extraction.encoders.items():  # each start is cached
            assert insertions.first(modality, used[modality]) in settings.cuts, (variant.name, modality)
    assert "disk:" in text
    assert "time of stage 1:" in text
    assert max(map(len, text.splitlines())) < 200
    if preset == "lavish":
        assert "only decoding and the embedding can be cached" in text
    assert experiment.task.kind == DATA[dataset].kind


def test_segments_of_ave_are_seconds_of_the_clip() -> None:
    for preset in PRESETS:
        data = tomllib.loads(preset_text("ave", preset))["data"]
        assert (data["segments"], data["stride_seconds"]) == (10, 1.0)


def test_what_is_estimated_is_counted_by_hand() -> None:
    line = next(line for line in preset_text("music-avqa", "lavish").splitlines() if "disk:" in line)
    embedding = 9288 * 10 * 48 * 48 * 192 * 2 / 1e9
    assert f"visual 0: {embedding:.3g}" in line
    assert f"disk: {2 * embedding * (1 + 1 / 4 + 1 / 8):.3g} GB" in line


def test_init_writes_once_and_names_what_it_does_not_know(tmp_path: Path) -> None:
    said = init("ave", tmp_path / "new" / "place", preset="trimodal")
    assert said[0].endswith("experiment.toml: ave, preset trimodal")
    assert load_experiment(tmp_path / "new" / "place" / "experiment.toml").task.kind == "events"
    with pytest.raises(SettingsError, match="is there already"):
        init("ave", tmp_path / "new" / "place")
    with pytest.raises(SettingsError, match="unknown data set 'avr'; did you mean 'ave'"):
        init("avr", tmp_path)
    with pytest.raises(SettingsError, match="unknown preset 'lavis'; did you mean 'lavish'"):
        init("ave", tmp_path, preset="lavis")


@pytest.mark.parametrize(
    ("dataset", "preset"),
    [("ave", "trimodal"), ("manifest", "trimodal"), ("demo", "small")],  # "music-avqa" in test_music_avqa
)
def test_a_preset_runs_with_tiny_random_encoders(
    tmp_path: Path, demo_set: Path, stand_ins: dict[str, str], dataset: str, preset: str
) -> None:
    init(dataset, tmp_path, preset=preset)
    path = tmp_path / "experiment.toml"
    text = path.read_text()
    for model, stand_in in stand_ins.items():
        weights = '\nweights = "random"' if stand_in.startswith("timm:") else ""
        text = text.replace(f'model = "{model}"', f'model = "{stand_in}"{weights}\n')
    text = re.sub(r"\nsegments = \d+", "\nsegments = 2", text)
    text = re.sub(r"\nepochs = \d+", "\nepochs = 1\nnum_threads = 1", text)
    text = re.sub(r"\nwindow_seconds = [\d.]+", "\nwindow_seconds = 1.0", text)
    path.write_text(re.sub(r'root = "[^"]*"', 'root = "set"', text))
    _link_clips(tmp_path / "set", demo_set, dataset)
    extract(path, progress=False)
    for variant in load_experiment(path).variants:
        if not variant.name.startswith("no-"):
            assert 0 <= adapt(path, variant=variant.name, progress=False).accuracy <= 1


def _link_clips(root: Path, demo_set: Path, dataset: str) -> None:
    """A small set of that kind on the made clips."""
    videos = sorted((demo_set / "videos").glob("*.mp4"))[:6]
    (root / "AVE").mkdir(parents=True)
    for video in videos:
        (root / "AVE" / video.name).symlink_to(video)
    ids = [video.stem for video in videos]
    for number, split in enumerate(("train", "val", "test")):
        mine = ids[2 * number : 2 * number + 2]
        (root / f"{split}Set.txt").write_text("".join(f"Bark&{i}&good&0&5\n" for i in mine))
        record = {"type": '["Visual", "Counting"]', "question_content": "how many ?", "anser": "two"}
        (root / f"avqa-{split}.json").write_text(json.dumps([{"video_id": i, **record} for i in mine]))
        with (root / "manifest.jsonl").open("a") as file:
            for i in mine:
                line = {"clip": i, "question": "is the violin first ?", "answer": "yes", "split": split}
                file.write(json.dumps(line) + "\n")
    if dataset == "demo":
        (root / "annotations").mkdir()
        (root / "videos").symlink_to(root / "AVE")
        for path in root.glob("*.json"):
            shutil.move(path, root / "annotations")
