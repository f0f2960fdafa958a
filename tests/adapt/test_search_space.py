"""Grids and random searches of [sweep]: which variants they make, what they are called, what is refused."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from talik.adapt.config.experiment import Experiment, experiment_from_tables
from talik.adapt.config.experiment_schema import experiment_schema
from talik.errors import SettingsError

TABLES = """
[data]
dataset = "demo"
root = "set"
[encoders.text]
model = "timm:test_vit"
[train]
epochs = 8
[[variants]]
name = "probe"
adapter = { kind = "probe" }
[[variants]]
name = "trimodal"
insertion = "last 1"
adapter = { kind = "trimodal", d_model = 16 }
train = { warmup = 0.2 }
[sweep]
"""


def read(sweep: str) -> Experiment:
    return experiment_from_tables(tomllib.loads(TABLES + sweep), path=Path("exp.toml"))


def names(sweep: str) -> list[str]:
    return [v.name for v in read(sweep).variants]


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    return Draft202012Validator(experiment_schema())


def test_a_grid_takes_the_place_of_its_variant() -> None:
    found = read('grid = { variant = "trimodal", "adapter.window" = [0, 1], "train.lr" = [1e-4, 3e-4] }')
    assert [v.name for v in found.variants] == [
        "probe",
        "trimodal+window=0+lr=0.0001",
        "trimodal+window=0+lr=0.0003",
        "trimodal+window=1+lr=0.0001",
        "trimodal+window=1+lr=0.0003",
    ]
    last = found.variants[-1]
    assert last.adapter == {"kind": "trimodal", "d_model": 16, "window": 1}
    assert (found.train_settings(last).lr, found.train_settings(last).warmup, last.insertion) == (3e-4, 0.2, "last 1")
    point = found.points[last.name]
    assert (point.base, point.search, dict(point.values)) == (
        "trimodal",
        "grid",
        {"adapter.window": 1, "train.lr": 3e-4},
    )
    with pytest.raises(
        SettingsError, match=r"'trimodal' is what a grid .* starts from; name one of its 4 points, 'tri"
    ):
        found.variant("trimodal")


@pytest.mark.parametrize(
    "sweep",
    [
        'grid = { variant = "trimodal", adapter.window = [0, 1] }',
        'grid = { variant = ["trimodal"], adapter = { window = [0, 1] } }',
        '[[sweep.grid]]\nvariant = "trimodal"\nadapter.window = [0, 1]',
        '[[sweep.grid]]\nvariant = "trimodal"\n[sweep.grid.adapter]\nwindow = [0, 1]',
    ],
)
def test_keys_may_be_written_in_any_way_that_toml_has(sweep: str, schema: Draft202012Validator) -> None:
    assert names(sweep) == ["probe", "trimodal+window=0", "trimodal+window=1"]
    assert [e.message for e in schema.iter_errors(tomllib.loads(TABLES + sweep))] == []


def test_a_grid_changes_the_encoders_of_its_points(schema: Draft202012Validator) -> None:
    sweep = 'grid = { variant = "trimodal", encoders.text.cut = [1, 2], "data.segments" = [4] }'
    found = read(sweep)
    names_ = [v.name for v in found.variants]
    assert names_ == ["probe", "trimodal+cut=1+segments=4", "trimodal+cut=2+segments=4"]
    cuts = {name: dict(found.extraction_of(name).encoders.items())["text"].cut for name in names_[1:]}
    assert list(cuts.values()) == [1, 2]
    assert {found.extraction_of(name).data.segments for name in names_[1:]} == {4}
    assert [e.message for e in schema.iter_errors(tomllib.loads(TABLES + sweep))] == []
    with pytest.raises(SettingsError, match=r"unknown key 'cot'; did you mean 'cut'"):
        read('grid = { variant = "trimodal", "encoders.text.cot" = [1] }')


def test_without_a_name_a_grid_is_of_every_variant() -> None:
    found = names('grid = { "train.lr" = [1e-4, 1e-3] }')
    assert found == ["probe+lr=0.0001", "probe+lr=0.001", "trimodal+lr=0.0001", "trimodal+lr=0.001"]


def test_a_point_of_two_grids_is_trained_once_and_equal_settings_are_told() -> None:
    found = read(
        '[[sweep.grid]]\nvariant = "trimodal"\n"train.lr" = [1e-4, 1e-3]\n'
        '[[sweep.grid]]\nvariant = "trimodal"\n"train.lr" = [1e-4, 1e-2]\n'
        '[[sweep.grid]]\nvariant = "trimodal"\n"adapter.window" = [1]\n"train.lr" = [1e-3]\n'
    )
    assert [v.name for v in found.variants[1:]] == [
        "trimodal+lr=0.0001",
        "trimodal+lr=0.001",
        "trimodal+lr=0.01",
        "trimodal+window=1+lr=0.001",
    ]
    assert found.notes == (
        "sweep.grid[1]: trimodal+lr=0.0001 stands there twice; it is trained once",
        "trimodal+window=1+lr=0.001 has the settings of trimodal+lr=0.001: both are trained, and differ in name only",
    )


def test_more_trials_add_to_those_of_fewer_and_the_seed_changes_them() -> None:
    search = (
        'random = {{ variant = "trimodal", trials = {}, seed = {}, '
        '"train.lr" = {{ low = 1e-5, high = 1e-3, log = true }}, '
        '"adapter.d_model" = {{ low = 32, high = 256, step = 32 }}, "adapter.center" = ["visual", "audio"] }}'
    )
    few, more, other = (names(search.format(*numbers))[1:] for numbers in ((5, 0), (12, 0), (5, 1)))
    assert (len(few), len(set(more))) == (5, 12)
    assert more[:5] == few
    assert not set(other) & set(few)
    assert few[0] == "trimodal+lr=0.000488+d_model=224+center=visual"  # the same on every machine
    found = read(search.format(12, 7))
    for variant in found.variants[1:]:
        assert 1e-5 <= found.train_settings(variant).lr <= 1e-3
        assert variant.adapter["d_model"] in range(32, 257, 32)
        assert found.points[variant.name].seed == 7
    below = sum(found.train_settings(v).lr < 1e-4 for v in read(search.format(200, 3)).variants[1:])
    assert 70 < below < 130  # on a logarithmic scale half of them


def test_names_are_safe_as_folders_and_tell_points_apart() -> None:
    wide = '"insertion" = ["last 2", { visual = [1, 2, 3, 4], audio = [1, 2, 3, 4] }, { visual = [1] }]'
    found = names(f'grid = {{ variant = "trimodal", {wide} }}')[1:]
    assert found == ["trimodal+insertion=last-2", "trimodal+insertion=no2", "trimodal+insertion=visual-1"]
    keys = ", ".join(f'"train.{k}" = [{v}]' for k, v in [("lr", 1e-4), ("weight_decay", 0.5), ("clip_norm", 0.25)])
    many = (
        f'grid = {{ variant = "trimodal", {keys}, "train.label_smoothing" = [0.1, 0.2], "adapter.num_latents" = [2] }}'
    )
    long = names(many)[1:]
    assert all(len(name) <= 100 for name in long)
    assert len(set(long)) == 2


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ('grid = { "train.lrr" = [1] }', r'sweep.grid."train.lrr": unknown key .lrr.; did you mean .lr.\?'),
        ('grid = { "tain.lr" = [1] }', r"sweep.grid: unknown key 'tain.lr'; did you mean 'train"),
        ('grid = { variant = "trimodal", "adapter.windw" = [1] }', r"unknown key 'windw'; did you mean 'window'\?"),
        ('grid = { "adapter.window" = [1] }', r"variant 'probe' .*unknown key 'window'.*; name with variant = "),
        ('grid = { variant = "trimodal", "adapter.window" = [0, -1] }', r"adapter.window = -1: .*at least 0"),
        ('grid = { "train.lr" = [1e-3, "fast"] }', r"found 'fast', expected a number"),
        ('grid = { variant = "trimodl", "train.lr" = [1] }', r"did you mean 'trimodal'\?"),
        ('grid = { "train.lr" = 1e-3 }', r"found 0.001, expected a list of values"),
        ('grid = { "train.lr" = [1e-3, 0.001] }', r"the value 0.001 stands twice"),
        ('grid = { "train.lr" = [1], train.lr = [2] }', r"'train.lr' stands twice"),
        ("grid = 3", r"sweep.grid: found 3, expected a table or a list of a table"),
        ('grid = { variant = "trimodal" }', r"no key of a variant"),
        ('random = { "train.lr" = [1, 2] }', r"sweep.random.trials: missing"),
        ('random = { trials = 3, "train.lr" = { low = 1, high = 1 } }', r"found 1 to 1, expected .*low below high"),
        ('random = { trials = 3, "train.lr" = { low = 0, high = 1, log = true } }', r"more than 0 on a logarithmic"),
        ('random = { trials = 9, "train.epochs" = { low = 2, high = 4 } }', r"hardly more than 3 different"),
        ('early_stop = "halvin"', r"sweep.early_stop: .*did you mean 'halving'\?"),
        ("early_stop = { kep = 0.3 }", r"sweep.early_stop.kep: unknown key 'kep'; did you mean 'keep'\?"),
        ("early_stop = { keep = 1.0 }", r"sweep.early_stop.keep: found 1.0, expected more than 0 and less than 1"),
        ("early_stop = { rungs = [2, 2] }", r"sweep.early_stop: rungs: found \[2, 2\], expected ascending epochs"),
    ],
)
def test_mistakes_are_told_with_their_place(sweep: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as found:
        read(sweep)
    assert str(found.value).startswith("exp.toml: sweep")


def test_the_schema_knows_searches(schema: Draft202012Validator) -> None:
    def takes(sweep: str) -> bool:
        tables: dict[str, Any] = tomllib.loads(TABLES + sweep)
        return not list(schema.iter_errors(tables))

    assert takes('random = { trials = 2, "train.lr" = { low = 1, high = 2.5 }, "adapter.center" = ["visual"] }')
    assert takes('early_stop = { keep = 0.25, rungs = [1, 4] }\ngrid = [{ placement = ["between"] }]')
    refused = [
        'grid = { "train.lrr" = [1] }',
        'grid = { "train.lr" = ["x"] }',
        'grid = { "train.lr" = { low = 1, high = 2 } }',
        'random = { "train.lr" = [1] }',
        'random = { trials = 2, "train.lr" = { low = 1, hig = 2 } }',
        'early_stop = "halvin"',
        "early_stop = { kep = 0.5 }",
    ]
    assert [sweep for sweep in refused if takes(sweep)] == []


def test_without_a_search_nothing_is_changed() -> None:
    found: Callable[[str], Experiment] = read
    assert (names(""), found("").points, found("").notes) == (["probe", "trimodal"], {}, ())
