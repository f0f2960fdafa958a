"""The cost table: what runs and extraction took, beside what a plan predicted and what it costs without the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from talik.adapt.report.costs import CostTable, make_cost_table
from talik.adapt.report.figures import cost_over_depth
from talik.adapt.report.runs import Epoch, Run
from talik.adapt.report.tables_text import cells_to_markdown, cost_table_cells
from talik.adapt.scoring.metrics import score
from talik.extract.stage.run_records import record_cost

OLDER = json.dumps(
    {
        "machine": "m",
        "cuts": {},
        "extraction": 1.0,
        "groups": [],
        "group_seconds": [],
        "variants": [{"name": "a", "seconds": 1.0, "seconds_live": 2.0}],
    }
)
EVIL = """<script>alert("1")</script>"""


def made_run(base: Path, variant: str, seconds: float, *, seed: int = 0, epochs: int = 4, **given: Any) -> Run:
    """A run of an experiment in `base` that was to train 4 epochs and reads features.zarr."""
    epoch = {"step": 1, "train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5, "seconds": 1.0}
    return Run(
        path=base / "runs" / "exp" / variant / f"seed{seed}",
        experiment="exp",
        variant=variant,
        seed=seed,
        config={"store": {"path": "features.zarr"}, "train": {"epochs": 4}},
        epochs=tuple(Epoch(epoch=e + 1, **epoch) for e in range(epochs)),
        predictions=(),
        scores=score(["t"], [True]),
        split="test",
        best_epoch=1,
        train_seconds=seconds,
        trainable_params=1,
        **given,
    )


def write_plan(base: Path, **changes: Any) -> None:
    """A plan of two variants and two seeds that train together at 0.8 of what they take apart."""
    plan = {
        "machine": "a machine",
        "cuts": {"visual": [12]},
        "extraction": 50.0,
        "groups": [["a", "b"]],
        "group_seconds": [240.0],
        "variants": [
            {"name": "a", "num_seeds": 2, "epochs": 4, "seconds": 200.0, "seconds_live": 2000.0},
            {"name": "b", "num_seeds": 2, "epochs": 4, "seconds": 100.0, "seconds_live": 1600.0},
        ],
    }
    (base / "exp.plan.json").write_text(json.dumps(plan | changes))


def sweep(base: Path, together: int = 2) -> dict[str, tuple[Run, ...]]:
    """Both variants with both seeds."""
    return {
        name: tuple(made_run(base, name, seconds, seed=s, together=together) for s in range(2))
        for name, seconds in (("a", 90.0), ("b", 40.0))
    }


def test_seconds_of_runs_and_of_extraction_add_up(tmp_path: Path) -> None:
    for seconds in (30.0, 12.0):
        record_cost(tmp_path / "features.zarr", seconds=seconds, device="cpu", size_bytes=1, items={"visual/b12": 3})
    write_plan(tmp_path)
    costs = make_cost_table(sweep(tmp_path))
    assert (costs.training, costs.extraction) == (260.0, 42.0)
    assert costs.predicted_extraction == 50.0
    assert costs.predicted_training == pytest.approx(240.0)
    assert costs.without_cache == pytest.approx(3600.0)
    assert costs.saved_ratio == pytest.approx(3600.0 / 302.0)
    assert [cost.predicted for cost in costs.variants] == pytest.approx([160.0, 80.0])
    assert costs.rows()[-1] == ("in all", 302.0, pytest.approx(290.0), pytest.approx(3600.0))
    assert costs.lines()[0] == (
        "What this cost: extraction 42 s; training 4.33 min; predicted 4.83 min in all; without the cache 60 min "
        "(11.9 times as long). Energy was not measured."
    )
    assert "measured on a few clips on a machine" in costs.lines()[1]
    printed = cells_to_markdown(cost_table_cells(costs, {"a": "x|y"}))
    assert "| extraction | 42 s | 50 s | – |" in printed
    assert r"| x\|y | 3 min | 2.67 min | 33.3 min |" in printed


def test_runs_trained_apart_are_compared_with_the_prediction_for_apart(tmp_path: Path) -> None:
    write_plan(tmp_path)
    assert make_cost_table(sweep(tmp_path, together=1)).predicted_training == pytest.approx(300.0)


def test_a_run_that_stopped_early_is_compared_with_as_many_epochs(tmp_path: Path) -> None:
    write_plan(tmp_path)
    costs = make_cost_table({"a": (made_run(tmp_path, "a", 50.0, epochs=1, together=2),)})
    assert costs.predicted_training == pytest.approx(0.25 * 0.8 * 100)
    assert costs.without_cache == pytest.approx(0.25 * 1000)
    plan = json.loads((tmp_path / "exp.plan.json").read_text())
    write_plan(tmp_path, variants=[{**variant, "epochs": 2} for variant in plan["variants"]])
    costs = make_cost_table({"a": (made_run(tmp_path, "a", 50.0, epochs=1, together=2),)})
    assert costs.without_cache == pytest.approx(0.5 * 1000)  # the plan was made for two epochs


def test_what_nothing_measured_is_told_and_not_guessed(tmp_path: Path) -> None:
    costs = make_cost_table(sweep(tmp_path))
    assert costs.training == 260.0
    assert (costs.extraction, costs.predicted_training, costs.without_cache, costs.saved_ratio) == (None,) * 4
    assert "was not measured: talik plan exp.toml measures it" in costs.notes[0]
    assert costs.notes[1] == "What extraction took is not recorded beside features.zarr."
    assert "in all | – | – | – |" in cells_to_markdown(cost_table_cells(costs, {}))


def test_a_variant_that_the_plan_does_not_know_leaves_the_totals_open(tmp_path: Path) -> None:
    write_plan(tmp_path)
    costs = make_cost_table({"a": sweep(tmp_path)["a"], "new": (made_run(tmp_path, "new", 1.0),)})
    assert costs.variants[0].without_cache == pytest.approx(2000.0)
    assert (costs.variants[1].without_cache, costs.without_cache, costs.predicted) == (None, None, None)


@pytest.mark.parametrize("text", ["[]", "{", '{"machine": "m"}', '{"cuts": 1}', OLDER])
def test_a_plan_that_is_none_is_passed_over_with_a_note(text: str, tmp_path: Path) -> None:
    write_plan(tmp_path)
    (tmp_path / "exp.plan.json").write_text(text)
    costs = make_cost_table(sweep(tmp_path))
    assert costs.without_cache is None
    assert costs.notes[0] == "exp.plan.json is damaged or an older version's: run talik plan exp.toml again."


def test_live_runs_need_no_extraction_and_are_told(tmp_path: Path) -> None:
    write_plan(tmp_path, cuts={}, group_seconds=[])
    costs = make_cost_table({"a": (made_run(tmp_path, "a", 900.0, live=True),)})
    assert (costs.extraction, costs.predicted_training) == (0.0, 1000.0)
    assert "exp.plan.json advises not to cache; it predicts live runs only." in costs.notes
    assert "Trained live, without the cache: 1 of 1 run." in costs.notes


def test_cost_is_drawn_over_depth_where_the_runs_say_it(tmp_path: Path) -> None:
    write_plan(tmp_path)
    runs = {"a": (made_run(tmp_path, "a", 50.0, depth=0.75),), "b": (made_run(tmp_path, "b", 40.0),)}
    figure = cost_over_depth({"a": EVIL, "b": "b"}, runs, make_cost_table(runs))
    assert figure is not None
    drawn = figure.inline
    assert "<script" not in drawn
    assert ", depth 0.75: 50 s" in drawn
    assert "without the cache: 16.7 min" in drawn
    assert drawn.count("<title>") == 2  # b does not say where it sits
    assert cost_over_depth({"b": "b"}, {"b": runs["b"]}, make_cost_table({"b": runs["b"]})) is None


def test_an_empty_table_costs_nothing() -> None:
    assert CostTable(variants=()).training == 0
