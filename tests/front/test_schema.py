"""`talik schema`: the JSON Schema takes every experiment that talik takes, and refuses mistakes that talik refuses."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from talik.adapt.adapters.registry import BUILT_IN, known_adapters
from talik.adapt.config.experiment import experiment_from_tables
from talik.adapt.config.experiment_schema import experiment_schema
from talik.errors import SettingsError
from talik.extract.presets.write_experiment import init

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = experiment_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.fixture
def experiment(write_experiment: Callable[..., Path]) -> dict[str, Any]:
    return tomllib.loads(write_experiment().read_text(encoding="utf-8"))


def test_the_command_prints_it(talik: Run) -> None:
    code, out, err = talik("schema")
    assert (code, err) == (0, "")
    assert json.loads(out) == experiment_schema()


@pytest.mark.parametrize("preset", ["lavish", "trimodal", "small"])
@pytest.mark.parametrize("dataset", ["music-avqa", "ave", "avqa", "manifest", "demo"])
def test_it_takes_what_init_writes(validator: Draft202012Validator, dataset: str, preset: str, tmp_path: Path) -> None:
    try:
        init(dataset, tmp_path, preset=preset)
    except SettingsError as error:
        pytest.fail(f"{dataset}, {preset}: {error}")
    tables = tomllib.loads((tmp_path / "experiment.toml").read_text(encoding="utf-8"))
    assert tables["variants"]
    assert [error.message for error in validator.iter_errors(tables)] == []


def test_every_adapter_kind_is_in_it(validator: Draft202012Validator, experiment: dict[str, Any]) -> None:
    built_in = [k for k in known_adapters() if k in BUILT_IN or k.startswith("peft:")]
    for kind in built_in:
        experiment["variants"] = [{"name": "one", "adapter": {"kind": kind}}]
        assert validator.is_valid(experiment), kind
        experiment["variants"][0]["adapter"]["no_such_key"] = 1
        assert not validator.is_valid(experiment), kind
    assert len(built_in) > 30


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("train", "epochs"), 0),
        (("train", "lr"), "1e-3"),
        (("train", "epoch"), 3),
        (("encoders", "visual", "fit"), "shrink"),
        (("data", "dataset"), "musik"),
        (("data", "segments"), 1.5),
        (("store", "dtype"), "float64"),
        (("variants", 0, "adapter", "kind"), "prob"),
        (("variants", 1, "adapter", "d_model"), True),
        (("trian",), {}),
    ],
)
def test_it_refuses_what_talik_refuses(
    validator: Draft202012Validator, experiment: dict[str, Any], place: tuple[str | int, ...], value: Any
) -> None:
    assert validator.is_valid(experiment)
    inner: Any = experiment
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert not validator.is_valid(experiment)
    if place != ("trian",):  # tables' names are compared when the file is read
        with pytest.raises(SettingsError):
            experiment_from_tables(experiment, path=Path("exp.toml"))


def test_it_takes_what_stands_above_the_tables_and_code_of_ones_own(
    validator: Draft202012Validator, experiment: dict[str, Any]
) -> None:
    own = {"kind": "mine:Film", "gain": 1.0}
    more = {"import": ["mine"], "name": "x", "variants": [{"name": "one", "adapter": own, "encoders": {"text": {}}}]}
    assert validator.is_valid({**experiment, **more})
    assert validator.is_valid({"extends": "base.toml", "train": {"epochs": 3}})
    assert not validator.is_valid({"train": {"epochs": 3}})
    assert not validator.is_valid({**experiment, "import": "mine"})


def test_it_says_what_keys_mean(validator: Draft202012Validator) -> None:
    for name in ("DataSettings", "EncoderSettings", "StoreSettings", "TrainSettings", "EngineSettings"):
        described = validator.schema["$defs"][name]["properties"]
        missing = [key for key, one in described.items() if not one.get("description")]
        assert len(missing) < len(described) / 4, (name, missing)
