"""A run that has nothing to do opens no model; whatever may have changed since, or is damaged, has it opened again."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import pytest
import safetensors.torch

import talik.extract.stage.plan as planning
from talik.cache.open import open_store
from talik.errors import MissingMediaError
from talik.extract.datasets.load import load_manifest
from talik.extract.datasets.types import Manifest
from talik.extract.encoders.file_stamps import FileStamps
from talik.extract.encoders.hf import open_hf
from talik.extract.encoders.model_sources import register_model_source
from talik.extract.stage.extract import extract
from talik.extract.stage.settings import read_settings

WriteExperiment = Callable[..., Path]
UP_TO_DATE = "nothing to do: every state is in the store"
_SETTLE_SECONDS = 0.2  # files that were made just now have no stamps


class Opened:
    """What `opened` counts."""

    def __init__(self) -> None:
        self.modalities: list[str] = []

    def during(self, path: Path, manifest: Manifest | None = None) -> list[str]:
        """Extract and return the modalities whose models that opened."""
        self.modalities.clear()
        self.report = extract(path, progress=False, manifest=manifest)
        return list(self.modalities)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Counts the models that planning opens."""
    counted, real = Opened(), planning.open_encoder

    def watched(*args: object, modality: str, **more: object) -> object:
        counted.modalities.append(modality)
        return real(*args, modality=modality, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(planning, "open_encoder", watched)
    return counted


@pytest.fixture
def models(tiny_encoders: dict[str, Path], tmp_path: Path) -> Path:
    """Copies of the tiny encoders that a test may change."""
    shutil.copytree(tiny_encoders["visual"].parent, tmp_path / "models")
    time.sleep(_SETTLE_SECONDS)
    return tmp_path / "models"


@pytest.fixture
def filled(
    write_experiment: WriteExperiment,
    extracted: Path,
    tiny_encoders: dict[str, Path],
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """An experiment whose store is full, with models and a cache folder of its own."""
    monkeypatch.setenv("TALIK_CACHE", str(tmp_path / "cache"))
    shutil.copytree(extracted.parent / "features.zarr", tmp_path / "features.zarr")
    path = write_experiment((f"{tiny_encoders['visual'].parent}/", f"{models}/"))
    assert extract(path, progress=False).up_to_date
    return path


def records(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "boundaries").glob("*.json"))


def test_a_second_run_opens_no_model_and_says_the_same(filled: Path, opened: Opened) -> None:
    assert opened.during(filled) == []
    assert opened.report.lines() == [UP_TO_DATE]
    assert [spec.path for spec in opened.report.boundaries] == [
        boundary.path
        for modality in ("visual", "audio", "text")
        for boundary in open_store(filled.parent / "features.zarr").boundaries()
        if boundary.modality == modality
    ]


def test_a_second_run_imports_no_network_library_and_takes_little(filled: Path) -> None:
    code = (
        "import sys, talik; print(talik.extract(sys.argv[1], progress=False).lines()[-1]); "
        "print(sorted({'torch', 'transformers', 'timm', 'torchvision', 'scipy', 'pandas'} & sys.modules.keys()))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, str(filled)], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines() == [UP_TO_DATE, "[]"]
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_changed_weights_of_the_same_size_and_time_give_another_boundary(
    filled: Path, models: Path, opened: Opened
) -> None:
    file = models / "visual" / "model.safetensors"
    before, weights = file.stat(), safetensors.torch.load_file(file)
    name = next(name for name in weights if "layer.0" in name and weights[name].ndim == 2)
    weights[name] = -weights[name]
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert opened.during(filled) == ["visual", "audio", "text"]
    assert {name.partition("-")[0] for name in opened.report.items} == {"visual/b01", "visual/b03"}


def test_a_file_that_appears_in_a_model_s_folder_is_noticed(filled: Path, models: Path, opened: Opened) -> None:
    (models / "text" / "added_tokens.json").write_text("{}")
    assert len(opened.during(filled)) == 3


def test_what_holds_no_other_content_has_models_opened_once_more(filled: Path, models: Path, opened: Opened) -> None:
    os.utime(models / "audio" / "model.safetensors")
    time.sleep(_SETTLE_SECONDS)
    assert len(opened.during(filled)) == 3
    assert opened.report.up_to_date
    assert opened.during(filled) == []


def test_a_damaged_record_is_made_again(filled: Path, tmp_path: Path, opened: Opened) -> None:
    (record,) = records(tmp_path)
    text = record.read_text()
    less = json.loads(text)
    del less["record"]["boundaries"]["clips"][1:]
    for damaged in (text[:-90], json.dumps(less), "[]", "{}"):
        record.write_text(damaged)
        assert len(opened.during(filled)) == 3
        assert opened.report.up_to_date
        assert record.read_text() == text


def test_other_versions_have_models_opened(filled: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("talik.extract.encoders.software.version", lambda name: "0.0.1")
    assert len(opened.during(filled)) == 3


def test_other_settings_have_models_opened(filled: Path, opened: Opened) -> None:
    filled.write_text(filled.read_text().replace("cut = [1, 3]", "cut = [1, 2, 3]", 1))
    assert len(opened.during(filled)) == 3
    assert {name.partition("-")[0] for name in opened.report.items} == {"visual/b02"}


def test_a_link_that_leads_to_another_model_is_followed(
    filled: Path, models: Path, tmp_path: Path, opened: Opened
) -> None:
    (tmp_path / "current").symlink_to(models / "visual")
    text = filled.read_text()
    filled.write_text(text.replace(f"hf:{models / 'visual'}", "hf:current"))
    assert filled.read_text() != text
    assert len(opened.during(filled)) == 3
    assert opened.during(filled) == []
    shutil.copytree(models / "visual", tmp_path / "next")
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to(tmp_path / "next")
    assert len(opened.during(filled)) == 3


def test_a_missing_shard_is_computed(filled: Path, opened: Opened) -> None:
    receipt = next((filled.parent / "features.zarr" / "text").rglob("receipts/c.0*"))
    receipt.unlink()
    assert len(opened.during(filled)) == 3
    assert not opened.report.up_to_date


def own_set(filled: Path, demo_set: Path, *more: str) -> Path:
    """Give the experiment a copy of its data set, and lines of [data]."""
    folder = Path(shutil.copytree(demo_set, filled.parent / "set"))
    text = filled.read_text()
    lines = [f'root = "{folder}"', *more]
    filled.write_text(text.replace(f'root = "{demo_set}"', "\n".join(lines)))
    return folder


def test_clips_that_changed_or_are_new_are_computed(filled: Path, demo_set: Path, opened: Opened) -> None:
    videos = own_set(filled, demo_set) / "videos"
    assert len(opened.during(filled)) == 3  # digests are taken
    assert opened.report.up_to_date
    assert opened.during(filled) == []
    first = min(videos.glob("*.mp4"))
    first.write_bytes(first.read_bytes() + b"\0" * 8)
    assert len(opened.during(filled)) == 3
    assert set(opened.report.items.values()) == {1}


def test_clips_that_are_not_here(filled: Path, demo_set: Path, opened: Opened) -> None:
    videos = own_set(filled, demo_set, "allow_missing = true") / "videos"
    min(videos.glob("*.mp4")).unlink()
    assert len(opened.during(filled)) == 3
    said = opened.report.lines()
    assert opened.report.up_to_date
    assert len(said) == 2
    assert opened.during(filled) == []
    assert opened.report.lines() == said
    filled.write_text(filled.read_text().replace("allow_missing = true", ""))
    with pytest.raises(MissingMediaError):
        extract(filled, progress=False)


def test_clips_of_other_names_are_noted_before_nothing_is_to_do(filled: Path, opened: Opened) -> None:
    manifest = load_manifest(read_settings(filled).data)
    clips = {f"film {id_}": replace(clip, id=f"film {id_}") for id_, clip in manifest.clips.items()}
    questions = tuple(replace(one, clip_id=f"film {one.clip_id}") for one in manifest.questions)
    renamed = replace(manifest, clips=clips, questions=questions)
    assert len(opened.during(filled, renamed)) == 3
    assert opened.report.up_to_date
    assert opened.during(filled, renamed) == []
    known = {name for table in open_store(filled.parent / "features.zarr").dataset_files() for name in table.clips}
    assert clips.keys() <= known


def test_films_without_sound_have_the_items_of_their_stand_in(filled: Path, demo_set: Path, opened: Opened) -> None:
    videos = own_set(filled, demo_set, 'missing_sound = "silence"') / "videos"
    first = min(videos.glob("*.mp4"))
    with av.open(str(first)) as film, av.open(str(videos / "mute.mp4"), "w") as mute:
        stream = mute.add_stream_from_template(film.streams.video[0])
        for packet in film.demux(film.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                mute.mux(packet)
    (videos / "mute.mp4").replace(first)
    assert len(opened.during(filled)) == 3
    assert {name.partition("/")[0]: count for name, count in opened.report.items.items()} == {"visual": 1, "audio": 1}
    assert opened.during(filled) == []
    assert opened.report.lines() == [UP_TO_DATE]


def test_nothing_is_remembered_of_models_that_other_packages_open(
    filled: Path, models: Path, tmp_path: Path, opened: Opened
) -> None:
    def source(options: object) -> object:
        return open_hf(options)  # type: ignore[arg-type]

    register_model_source("mine", source)  # type: ignore[arg-type]
    filled.write_text(filled.read_text().replace("hf:", "mine:", 1))
    before = records(tmp_path)
    for _ in range(2):
        assert len(opened.during(filled)) == 3
    assert records(tmp_path) == before
    filled.write_text(filled.read_text().replace("mine:", "hf:"))
    assert opened.during(filled) == []
    try:
        register_model_source("hf", source)  # type: ignore[arg-type]
        assert len(opened.during(filled)) == 3
    finally:
        register_model_source("hf", open_hf)


def test_stamps_of_files(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"1")
    assert FileStamps.of([tmp_path / "weights"]) is None  # changed just now
    time.sleep(_SETTLE_SECONDS)
    found = FileStamps.of([tmp_path])
    assert found is not None
    assert found.still_hold()
    assert FileStamps.from_json(json.loads(json.dumps(found.to_json()))) == found
    (tmp_path / "weights").unlink()
    assert not found.still_hold()
    assert FileStamps.of([tmp_path / "weights"]) is None
