"""The benchmarks of training in small: every way sees the same states, and the sum of the grid is that of its parts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import epoch
import group
import sweep
from sweep_sample import NOTHING, Taken, quartiles
from sweep_ways import WAYS, Round, Ways

from talik.adapt.config.experiment import load_experiment
from talik.adapt.training.experiment_context import ExperimentContext
from talik.extract.stage.extract import extract

GRID = sweep.Grid(depths=(1, 2), batch_sizes=(4,), rates=(1e-3,), epochs=2)
TABLES = GRID.tables().replace('kind = "bottleneck"', 'kind = "bottleneck", d_bottleneck = 8')


def test_the_grid_is_of_24_variants_in_two_orders_of_data(tmp_path: Path) -> None:
    for at, last in (("before", '"last 4"'), ("behind", "{ visual = [9, 10, 11, 12], audio = [1, 2, 3, 4]")):
        grid = sweep.Grid(at=at)
        assert grid.insertion(4).startswith(last)
        sweep.write_experiment(tmp_path / "grid.toml", grid, precision="float32")
        experiment = load_experiment(tmp_path / "grid.toml")
        assert len(experiment.variants) == grid.num_variants == 24
        orders = [experiment.train_settings(v).data_order for v in experiment.variants]
        assert sorted(orders.count(o) for o in set(orders)) == [12, 12]
        assert {experiment.train_settings(v).lr for v in experiment.variants} == set(grid.rates)


def test_the_sum_over_the_grid_is_that_of_its_parts() -> None:
    grid = sweep.Grid(depths=(1, 2), batch_sizes=(8,), rates=(0.1, 0.2, 0.3), epochs=5)
    a_second = Taken(1.0, 10.0)
    measured = Round(
        train={(w, 8, k): a_second.times(k) for w in WAYS for k in (1, 2)},
        answer={(w, k): a_second.times(0.5) for w in WAYS for k in (1, 2)},
        end={k: a_second.times(7) for k in (1, 2)},
        shared_train={8: a_second.times(0.25)},
        shared_answer=a_second.times(0.125),
    )
    extraction = {w: NOTHING if w == "naive" else Taken(1000.0, 2000.0) for w in WAYS}
    found = sweep.totals(grid, measured, extraction, {"train": 100, "val": 10, "test": 4})
    own = 3 * sum(5 * 100 * k + (5 * 10 + 4) * 0.5 for k in (1, 2))
    ends = 3 * 2 * 5 * 7
    assert found["naive"].wall == pytest.approx(own + ends)
    assert found["solo"].cpu == pytest.approx(10 * (own + ends) + 2000)
    assert found["bound"].wall == pytest.approx(own + 1000)
    once = 5 * 100 * 0.25 + (5 * 10 + 4) * 0.125  # once a batch, for however many variants
    assert found["fused"].wall == pytest.approx(own + ends + 1000 + once)


def test_every_way_takes_the_same_batch(write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    path = write_experiment(('dtype = "float32"', 'dtype = "float16"'), ("cut = [1, 3]", "cut = [1, 2]"))
    path.write_text(path.read_text(encoding="utf-8") + TABLES, encoding="utf-8")
    extract(path, progress=False)
    ways = Ways(ExperimentContext(load_experiment(path)), GRID, work=tmp_path / "work")
    training = ways.cached[4, 2]
    questions = next(iter(training.data.train_batches(0)))
    ways.save(questions, 4)
    stored = ways.batch(training, questions)
    for given, tolerance in (
        (ways.given("npy", training, questions, stored, False)(), 0.0),
        (ways.given("naive", ways.live[4, 2], questions, stored, True)(), 2e-3),  # of float16, relative
    ):
        for modality, state in stored.states.items():
            assert state.boundary == given.states[modality].boundary
            lengths = [None] * len(questions) if state.lengths is None else state.lengths.tolist()
            for found, expected, n in zip(
                given.states[modality].hidden, state.hidden, lengths, strict=False
            ):  # not the padding
                assert torch.allclose(found[:n], expected[:n], rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        logits = [
            training.model.eval()(batch)
            for batch in (stored, ways.load(training, questions), ways.batch(training, questions, by_clip=True))
        ]
    assert torch.equal(logits[0], logits[1])
    assert torch.allclose(logits[0], logits[2], rtol=1e-5, atol=1e-6)

    found = ways.round(0, answers=2)
    assert set(found.train) == {(w, 4, k) for w in WAYS for k in GRID.depths}
    assert set(found.answer) == {(w, k) for w in WAYS for k in GRID.depths}
    assert all(t.wall > 0 for t in (*found.train.values(), *found.answer.values(), *found.end.values()))
    assert found.shared_train[4].wall > 0
    parts = ways.extraction_parts(2, 0)
    assert parts.computed.wall > 0
    assert parts.saved.wall > 0


def test_pages_say_whether_a_bar_is_met() -> None:
    where = {"command": "c", "cpu": "x", "num_threads": 1, "num_cpus": 2, "load": [0.0], "versions": {"torch": "2"}}
    where |= {"commit": "abc", "seed": 0}
    for ratio, word in ((0.6, "met"), (1.2, "not met")):
        cases = {case: {"solo": [[10.0, 9.0]], "fused": [[10.0 * ratio, 9.0]]} for case in group.CASES}
        facts = {"environment": where, "members": 8, "batch_size": 4, "questions": 8, "rounds": 1, "cases": cases}
        assert group.page(facts, clock="wall").count(f"| {word} |") == 2
    for times, planned, word in ((1.04, 12.0, "met"), (1.06, 13.0, "not met")):
        plan = {f"{a}{b}": 5.0 for a in ("planned", "actual") for b in (" extraction", " training")}
        plan |= {"planned": planned, "actual": 10.0, "planning": 1.0, "actual cpu": 9.0}
        epochs = {"probe": {"memory": [[1.0, 1.0]], "cached": [[times, 1.0]]}}
        facts = {"environment": where, "epochs": epochs, "plan": plan, "clips": 2, "num_epochs": 1}
        text = epoch.page({**facts, "batches": 1, "rounds": 1}, clock="wall")
        assert f"| {word} |" in text
        assert f"shared CPUs: {word}." in text
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert quartiles([1.0, 2.0, 3.0]) == (1.5, 2.0, 2.5)
