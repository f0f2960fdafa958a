"""Stage 1 plans once, plans a shard whose clip failed anew alone, and needs nothing of stage 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import talik.extract.stage.items as items
import talik.extract.stage.plan as planning
from talik.cache.folder_store import FolderStore
from talik.cache.maintenance.verify import verify
from talik.cache.open import open_store
from talik.cache.write.shard_writer import ShardStream
from talik.errors import MediaError, SettingsError
from talik.extract.stage.extract import extract
from talik.extract.stage.run_records import read_failed_clips
from talik.extract.stage.settings import read_settings

WriteExperiment = Callable[..., Path]
SMALL_SHARDS = ('dtype = "float32"', 'dtype = "float32"\nshard_items = 3')
UNKNOWN_ADAPTER = (
    'adapter = { kind = "probe" }',
    'adapter = { kind = "of_a_package_not_installed", rank = 4 }',
)


@pytest.fixture
def own_set(demo_set: Path, tmp_path: Path) -> Path:
    """A copy of the made set in which two clips of one shard, and one of another, are no films."""
    copy = Path(shutil.copytree(demo_set, tmp_path / "set"))
    videos = sorted((copy / "videos").glob("*.mp4"))
    for number in (0, 1, 4):
        videos[number].write_bytes(b"no film" * (number + 1))
    return copy


def tree(store: Path) -> dict[str, bytes]:
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def test_rows_are_planned_and_prefixes_measured_once_though_clips_fail(
    write_experiment: WriteExperiment, own_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    measured: list[str] = []
    real_writer, real_measure = FolderStore.open_writer, planning.measure_prefix

    def open_writer(self: FolderStore, request: Any, *, commit: bool) -> Any:
        opened.append(request.spec.path)
        return real_writer(self, request, commit=commit)

    def measure_prefix(encoder: Any, raw: Any, cuts: Any) -> Any:
        measured.append(encoder.modality)
        return real_measure(encoder, raw, cuts)

    monkeypatch.setattr(FolderStore, "open_writer", open_writer)
    monkeypatch.setattr(planning, "measure_prefix", measure_prefix)
    with pytest.raises(MediaError, match="3 of 8 clips"):
        extract(write_experiment(SMALL_SHARDS, root=own_set), progress=False)
    assert len(opened) == len(set(opened)) == len(open_store(tmp_path / "features.zarr").boundaries())
    assert sorted(measured) == ["audio", "text", "visual"]


def test_the_number_of_decoding_processes_changes_no_byte(
    write_experiment: WriteExperiment, own_set: Path, tmp_path: Path
) -> None:
    store, trees = tmp_path / "features.zarr", []
    for workers in (0, 2):  # one process: test_decode_pool
        with pytest.raises(MediaError, match="3 of 8 clips"):
            extract(write_experiment(SMALL_SHARDS, root=own_set), progress=False, workers=workers)
        trees.append(tree(store))
        shutil.rmtree(store)
        store.with_name("features.zarr.left-out.jsonl").unlink()
    assert any("hidden" in name for name in trees[0])
    assert trees[0] == trees[1]


def dies(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_run_that_is_killed_after_a_clip_failed_leaves_the_store_of_one_that_is_not(
    write_experiment: WriteExperiment, own_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = write_experiment(SMALL_SHARDS, root=own_set), tmp_path / "features.zarr"
    with pytest.raises(MediaError, match="3 of 8 clips"):
        extract(path, progress=False)
    expected, failed = tree(store), read_failed_clips(store)
    assert len(failed) == 3
    shutil.rmtree(store)
    store.with_name("features.zarr.left-out.jsonl").unlink()
    for _ in range(2):  # rows of the first shard's two are given up, none of its states is written
        with monkeypatch.context() as patch:
            patch.setattr(ShardStream, "finish", dies)
            with pytest.raises(KeyboardInterrupt):
                extract(path, progress=False)
        assert len(read_failed_clips(store)) in (2, 3)
        assert not list(store.glob("*/*/hidden/c.*"))
    with pytest.raises(MediaError, match="3 of 8 clips"):
        extract(path, progress=False)
    assert tree(store) == expected
    assert read_failed_clips(store) == failed
    assert verify(open_store(store)) == []


def test_stage_1_reads_its_own_settings_without_entering_the_room_of_stage_2(
    write_experiment: WriteExperiment, tmp_path: Path
) -> None:
    path, store = write_experiment(UNKNOWN_ADAPTER), str(tmp_path / "features.zarr")
    commands = (
        ["data", str(path)],
        ["extract", str(path), "--quiet"],
        ["store", "why", store, str(path), "--quiet"],
        ["store", "gc", store, str(path), "--quiet", "--yes"],
        ["store", "repair", store, str(path), "--quiet"],
    )
    code = (
        "import json, sys; from typer.testing import CliRunner; from talik.cli import app\n"
        "out = [CliRunner().invoke(app, command) for command in json.loads(sys.argv[1])]\n"
        "entered = sorted(name for name in sys.modules if name.startswith('talik.adapt'))\n"
        "print(json.dumps([[r.exit_code, r.output, repr(r.exception)] for r in out] + [entered]))"
    )
    ended = subprocess.run([sys.executable, "-c", code, json.dumps(commands)], capture_output=True, text=True)
    *outcomes, entered = json.loads(ended.stdout.splitlines()[-1])
    for command, (exit_code, output, error) in zip(commands, outcomes, strict=True):
        assert exit_code == 0, (command, output, error)
    assert "8 items computed" in outcomes[1][1]
    assert "nothing to delete" in outcomes[3][1]
    assert entered == []


def test_an_automatic_cut_comes_from_the_plan_or_says_what_it_needs(
    write_experiment: WriteExperiment, tmp_path: Path
) -> None:
    text = write_experiment(UNKNOWN_ADAPTER).read_text()
    path = tmp_path / "auto.toml"
    path.write_text(text.replace("cut = [1, 3]", 'cut = "auto"'))
    with pytest.raises(SettingsError, match=r"run talik plan first .* or name the boundaries, .* cut = \[-1\]"):
        extract(path, progress=False)
    (tmp_path / "auto.plan.json").write_text(json.dumps({"cuts": {"visual": [3], "audio": [3], "text": [3]}}))
    report = extract(path, progress=False)
    assert {name.split("-")[0] for name in report.items} == {"visual/b03", "audio/b03", "text/b03"}


def test_missing_clips_may_be_allowed_by_the_command(write_experiment: WriteExperiment) -> None:
    path = write_experiment()
    assert not read_settings(path).data.allow_missing
    assert read_settings(path, allow_missing=True).data.allow_missing


def test_digests_that_were_taken_are_kept_when_planning_is_interrupted(
    write_experiment: WriteExperiment, demo_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, digested = items.digest_media, []

    def interrupted(media: Any) -> str:
        if len(digested) == 3:
            raise KeyboardInterrupt
        digested.append(media.name)
        return real(media)

    path = write_experiment()
    with monkeypatch.context() as patch:
        patch.setattr(items, "digest_media", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(path, progress=False)
    (table,) = open_store(tmp_path / "features.zarr").dataset_files()
    assert sorted(Path(file.source).name for file in table.clips.values()) == sorted(digested)
