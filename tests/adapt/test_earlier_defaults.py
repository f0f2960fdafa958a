"""Runs made under earlier defaults keep them; new ones have those of today."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from talik.adapt.config.earlier_defaults import with_earlier_defaults
from talik.adapt.config.experiment import Experiment, load_experiment
from talik.adapt.config.run_config import experiment_from_config, run_config
from talik.adapt.training.run_folder import RunFolder


def experiment(base: Path, **adapter: Any) -> Experiment:
    tables = {
        "data": {"dataset": "manifest", "root": "clips"},
        "encoders": {"visual": {"model": "timm:vit_tiny_patch16_224", "cut": -1}},
        "store": {"path": "features.zarr"},
        "variants": [{"name": "tri", "insertion": "last 1", "adapter": {"kind": "trimodal", **adapter}}],
    }
    (base / "exp.toml").write_text(tomli_w.dumps(tables))
    return load_experiment(base / "exp.toml")


def config(found: Experiment) -> dict[str, Any]:
    (variant,) = found.variants
    return run_config(found, variant, found.train_settings(variant), 0)


def made_before(folder: Path, settings: dict[str, Any], **adapter: Any) -> RunFolder:
    """A run folder with the config that the first versions wrote: the adapter as given, no word on defaults."""
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    before = {key: value for key, value in settings.items() if key != "defaults"}
    before["adapter"] = {"kind": "trimodal", **adapter}
    (run.path / "config.toml").write_text(tomli_w.dumps(before))
    (run.path / "result.json").write_text("{}")
    return run


def test_a_run_of_an_earlier_version_is_read_with_its_defaults(tmp_path: Path) -> None:
    now = experiment(tmp_path)
    run = made_before(tmp_path / "runs" / "exp" / "tri" / "seed0", config(now))
    (variant,) = run.experiment()[0].variants
    assert variant.adapter == {"kind": "trimodal", "scale": 1.0}
    assert experiment_from_config(config(now), base=tmp_path)[1].adapter == {"kind": "trimodal"}


def test_an_experiment_whose_runs_are_older_goes_on_with_their_defaults(tmp_path: Path) -> None:
    run = made_before(tmp_path / "runs" / "exp" / "tri" / "seed0", config(experiment(tmp_path)))
    found = experiment(tmp_path)
    assert found.variants[0].adapter["scale"] == 1.0
    assert "has runs made with scale = 1.0" in found.notes[0]
    assert not run.differences(config(found))

    (run.path / "config.toml").write_text(tomli_w.dumps(config(found)))  # as a version of today writes it
    assert experiment(tmp_path).variants[0].adapter["scale"] == 1.0


@pytest.mark.parametrize("given", [{"scale": 0.5}, {"selection_scale": 0.5}])
def test_what_the_file_gives_stands(given: dict[str, float], tmp_path: Path) -> None:
    run = made_before(tmp_path / "runs" / "exp" / "tri" / "seed0", config(experiment(tmp_path)))
    found = experiment(tmp_path, **given)
    assert found.variants[0].adapter == {"kind": "trimodal", **given}
    assert "adapter.scale" in " ".join(d.field for d in run.differences(config(found)))


def test_a_folder_without_a_trained_run_decides_nothing(tmp_path: Path) -> None:
    run = made_before(tmp_path / "runs" / "exp" / "tri" / "seed0", config(experiment(tmp_path)))
    (run.path / "result.json").unlink()
    assert experiment(tmp_path).variants[0].adapter == {"kind": "trimodal"}


def test_other_adapters_have_no_earlier_defaults() -> None:
    assert with_earlier_defaults({"kind": "lavish"}) == {"kind": "lavish"}
