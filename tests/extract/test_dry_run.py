"""`talik extract --dry-run` says what the run then does, and writes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from talik.cli import app
from talik.errors import MediaError, MissingMediaError
from talik.extract.executors.device import machine_name
from talik.extract.stage.dry_run import ExtractOutline, outline
from talik.extract.stage.extract import extract
from talik.extract.stage.run_records import ExtractionCost, costs_path, read_costs

WriteExperiment = Callable[..., Path]
SHARDS = ('dtype = "float32"', 'dtype = "float32"\nshard_items = 3')  # without it their size is timed


def files(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*")}


def counts(outlined: ExtractOutline) -> dict[str, tuple[int, int, int]]:
    """By modality and boundary: items asked for, stored, missing."""
    found = {}
    for one in outlined.boundaries:
        found[f"{one.spec.modality} {one.spec.boundary}"] = (one.num_items, one.num_stored, len(one.missing))
    return found


def test_it_says_what_the_run_then_computes_and_writes_nothing(
    write_experiment: WriteExperiment, tmp_path: Path
) -> None:
    path = write_experiment(("cut = [1, 3]", "cut = [3]"), SHARDS)
    before = files(tmp_path)
    planned = outline(path, progress=False)
    assert files(tmp_path) == before
    assert (planned.num_clips, planned.unread, planned.expected) == (8, 8, None)
    assert planned.free_bytes is not None
    assert planned.fits
    assert counts(planned)["visual 3"] == counts(planned)["audio 3"] == (8, 0, 8)
    made = extract(path, progress=False)
    missing = {one.spec.path: len(one.missing) for one in planned.boundaries}
    assert (missing, planned.size_bytes) == (made.items, made.bytes_written)
    assert planned.num_texts == next(n for name, n in made.items.items() if name.startswith("text"))

    before = files(tmp_path)
    nothing = outline(path, progress=False)
    assert (nothing.size_bytes, nothing.num_clips, nothing.num_texts, nothing.unread) == (0, 0, 0, 0)
    assert nothing.lines()[-1] == "nothing to do: every state is in the store"

    path = write_experiment(SHARDS)
    before = files(tmp_path)
    more = outline(path, progress=False)
    assert files(tmp_path) == before
    assert counts(more)["visual 1"] == (8, 0, 8)
    assert counts(more)["visual 3"] == (8, 8, 0)
    assert (more.num_clips, more.expected) == (8, None)  # no earlier run stored boundary 1


def test_a_copy_counts_as_missing_until_files_are_read(
    write_experiment: WriteExperiment, demo_set: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(demo_set, tmp_path / "set"))
    extract(write_experiment(), progress=False)
    path = write_experiment(root=copy)
    assert outline(path, progress=False).num_clips == 8
    assert outline(path, progress=False, deep=True).size_bytes == 0


def test_what_extract_refuses_is_refused(write_experiment: WriteExperiment, demo_set: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(demo_set, tmp_path / "set"))
    gone = min((copy / "videos").glob("*.mp4"))
    gone.unlink()
    with pytest.raises(MissingMediaError, match=gone.stem):
        outline(write_experiment(root=copy), progress=False)
    allowed = outline(
        write_experiment(("segments = 3", "segments = 3\nallow_missing = true"), root=copy), progress=False
    )
    assert allowed.num_clips == 7
    assert [source for source, _ in allowed.skipped] == [gone.stem]


def test_time_is_that_of_an_earlier_run_of_these_boundaries_on_this_machine(
    write_experiment: WriteExperiment, tmp_path: Path
) -> None:
    path, store = write_experiment(), tmp_path / "features.zarr"
    extract(path, progress=False)
    (cost,) = read_costs(store)
    assert cost.machine == machine_name("cpu")
    shutil.rmtree(store)
    expected = outline(path, progress=False).expected
    assert expected is not None
    assert expected.seconds == pytest.approx(cost.seconds)
    assert expected.basis == "an extraction of 8 clips on this machine"
    other = ExtractionCost(**{**vars(cost), "machine": "another", "seconds": 1.0})
    costs_path(store).write_text(json.dumps(vars(other)))
    assert outline(path, progress=False).expected is None


def test_time_by_a_plan_adds_up_what_it_measured(write_experiment: WriteExperiment, tmp_path: Path) -> None:
    path = write_experiment(SHARDS)
    first = outline(path, progress=False)
    units = {"embed": 0.5, "forward": [1.0, 2.0, 4.0]}  # boundary 3 is above all three
    plan = {
        "machine": machine_name("cpu"),
        "opening": 100.0,
        "machine_costs": {"decode": {"visual+audio": 10.0}, "write": 1e-6},
        "encoder_costs": {"visual": units, "audio": units, "text": {"embed": 0.25, "forward": [0.0, 0.0, 0.25]}},
    }
    path.with_name("exp.plan.json").write_text(json.dumps(plan))
    expected = outline(path, progress=False).expected
    assert expected is not None
    below = 8 * (10.0 + 2 * 7.5) + first.num_texts * 0.5
    assert expected.seconds == pytest.approx(100.0 + below + first.size_bytes * 1e-6)
    assert "talik plan" in expected.basis
    path.with_name("exp.plan.json").write_text(json.dumps({**plan, "machine": "another"}))
    assert outline(path, progress=False).expected is None


def test_what_variants_share_is_counted_once(write_experiment: WriteExperiment, tmp_path: Path) -> None:
    plain = outline(write_experiment(SHARDS), progress=False)
    own = ('name = "probe"\n', 'name = "probe"\nencoders = { visual = { cut = [1, 2] } }\n')
    both = outline(write_experiment(own, SHARDS), progress=False)
    at = {(one.spec.modality, one.spec.boundary, len(one.missing)) for one in both.boundaries}
    assert {("visual", 2, 8), ("audio", 1, 8), ("audio", 1, 0), ("visual", 1, 0)} <= at
    (second,) = (one for one in both.boundaries if (one.spec.modality, one.spec.boundary) == ("visual", 2))
    assert both.size_bytes == plain.size_bytes + second.size_bytes


def test_the_command_prints_lines_and_json(write_experiment: WriteExperiment, tmp_path: Path) -> None:
    path = write_experiment()
    said = CliRunner().invoke(app, ["extract", str(path), "--dry-run", "--quiet"])
    assert said.exit_code == 0, said.output
    assert "8 clips asked for, 0 stored, 8 missing" in said.output
    assert "no time is known: talik plan EXPERIMENT.toml" in said.output
    asked = CliRunner().invoke(app, ["extract", str(path), "--dry-run", "--quiet", "--json"])
    value = json.loads(asked.stdout)
    assert value["clips"] == 8
    assert value["size_bytes"] == sum(one["size_bytes"] for one in value["boundaries"])
    assert not (tmp_path / "features.zarr").exists()


def test_a_clip_that_cannot_be_decoded_is_not_counted_again(
    write_experiment: WriteExperiment, demo_set: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(demo_set, tmp_path / "set"))
    bad = min((copy / "videos").glob("*.mp4"))
    bad.write_bytes(b"no film")
    path = write_experiment(root=copy)
    with pytest.raises(MediaError, match=bad.name):
        extract(path, progress=False)
    outlined = outline(path, progress=False)
    assert outlined.size_bytes == 0
    assert [source for source, _ in outlined.skipped] == [f"videos/{bad.name}"]
