"""Run folders: which are begun, gone on with, left alone or refused; what each refusal says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from talik.adapt.training.run_folder import RunFolder
from talik.errors import RunError

CONFIG: dict[str, Any] = {"variant": "probe", "seed": 0, "train": {"lr": 0.1, "epochs": 2}}
OTHER: dict[str, Any] = {"variant": "probe", "seed": 0, "train": {"lr": 0.2, "epochs": 2}}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "exp" / "probe" / "seed0")


def test_a_folder_that_does_not_exist_is_made_with_its_configuration(folder: RunFolder) -> None:
    assert folder.prepare(CONFIG) == "new"
    assert folder.config() == CONFIG


def test_a_run_without_checkpoint_and_result_gives_way_to_other_settings(folder: RunFolder) -> None:
    folder.prepare(CONFIG)
    assert folder.prepare(OTHER) == "new"
    assert folder.config() == OTHER


@pytest.mark.parametrize("name", ["checkpoint", "checkpoint.old"])
def test_an_unfinished_run_goes_on_with_its_settings_alone(folder: RunFolder, name: str) -> None:
    folder.prepare(CONFIG)
    (folder.path / name).mkdir()
    assert folder.status == "unfinished"
    assert folder.prepare(CONFIG) == "unfinished"
    with pytest.raises(RunError, match=r"other settings \(train\.lr: .*0\.2.*0\.1.*\); rename the variant"):
        folder.prepare(OTHER)
    assert folder.config() == CONFIG
    with pytest.raises(RunError, match=r"found an unfinished run, expected a finished one; train it with talik adapt$"):
        folder.check_done()


def test_a_finished_run_is_left_alone_and_refused_to_other_settings(folder: RunFolder) -> None:
    folder.prepare(CONFIG)
    with pytest.raises(RunError, match="found no trained run"):
        folder.check_done()
    folder.write_json("result.json", {"accuracy": 0.5})
    before = (folder.path / "config.toml").stat().st_mtime_ns
    assert folder.prepare(CONFIG) == "done"
    assert (folder.path / "config.toml").stat().st_mtime_ns == before
    folder.check_done()
    with pytest.raises(RunError, match="other settings"):
        folder.prepare(OTHER)
