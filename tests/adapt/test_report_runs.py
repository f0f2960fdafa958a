"""Reading run folders: what is finished is read whole, what is not is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from talik.adapt.report.read_runs import find_runs, read_run
from talik.adapt.report.runs import Run, group_by_variant
from talik.errors import RunError, TalikError

QUESTIONS = [("q1", "c1", "A-count", "two"), ("q2", "c1", "V-loc", "left"), ("q3", "c2", "V-loc", "right")]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_run(root: Path, variant: str = "probe", seed: int = 0, right: tuple[bool, ...] = (True, False, True)) -> Path:
    """Write a finished run of three questions, two of them right."""
    folder = root / "exp" / variant / f"seed{seed}"
    folder.mkdir(parents=True)
    config = {"experiment": "exp", "variant": variant, "seed": seed, "train": {"lr": 0.001}}
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    epoch = {"event": "epoch", "step": 5, "train_loss": 1.5, "val_loss": 1.25, "val_accuracy": 0.5, "seconds": 2.0}
    done = {"event": "done", "best_epoch": 2, "seconds": 4.5, "trainable_params": 10, "all_params": 100}
    write_lines(folder / "metrics.jsonl", [epoch | {"epoch": 1}, epoch | {"epoch": 2, "train_loss": 1}, done])
    lines, by_type = [], {}
    for (name, clip, kind, answer), ok in zip(QUESTIONS, right, strict=True):
        given = answer if ok else "none"
        line = {"question_id": name, "clip_id": clip, "type": kind, "template": "t", "question": "What?"}
        lines.append(line | {"answer": answer, "prediction": given, "probability": 0.5, "correct": ok})
        tally = by_type.setdefault(kind, {"correct": 0, "total": 0})
        tally["total"] += 1
        tally["correct"] += ok
    write_lines(folder / "predictions.jsonl", lines)
    result = {"split": "test", "accuracy": sum(right) / 3, "by_type": by_type, "seconds": 0.5, "trainable_params": 10}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def edit(path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Change the parsed lines of a file in place."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    write_lines(path, lines)


def test_a_finished_run_is_read_whole(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, seed=3))
    assert run.name == "exp/probe/seed3"
    assert [epoch.train_loss for epoch in run.epochs] == [1.5, 1.0]
    assert run.epochs[0].val_accuracy == 0.5
    assert (run.best_epoch, run.train_seconds, run.trainable_params, run.split) == (2, 4.5, 10, "test")
    assert [p.correct for p in run.predictions] == [True, False, True]
    assert run.predictions[0].probability == 0.5
    assert run.scores.by_type["V-loc"].accuracy == 0.5
    assert run.config["train"] == {"lr": 0.001}


def test_an_unfinished_run_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    (folder / "result.json").unlink()
    with pytest.raises(RunError, match=r"seed0: unfinished \(no result.json\); resume") as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        read_run(tmp_path)
    with pytest.raises(RunError, match="no run in it"):
        find_runs([tmp_path])
    with pytest.raises(RunError, match="no such folder"):
        find_runs([tmp_path / "absent"])


MALFORMED = {
    "a torn last line": ("predictions.jsonl", lambda text: text[:-20], r"predictions.jsonl:3: not JSON"),
    "an array": ("result.json", lambda _: "[]", "expected a JSON object, found list"),
    "no end": ("metrics.jsonl", lambda text: "\n".join(text.split("\n")[:2]), "no line with the event 'done'"),
    "nothing": ("predictions.jsonl", lambda _: "\n", "no prediction in it"),
    "another accuracy": ("result.json", lambda text: text.replace("0.666", "0.777"), "counts 0.666667"),
    "another count": ("result.json", lambda text: text.replace('"total": 2', '"total": 5'), "by_type differs"),
    "a missing key": ("config.toml", lambda text: text.replace("seed", "sed"), "config.toml: no 'seed'"),
    "a wrong type": (
        "config.toml",
        lambda text: text.replace("seed = 0", 'seed = "0"'),
        "seed: Input should be a valid int",
    ),
    "bytes": ("config.toml", lambda _: "\udcff", "cannot be read"),
    "a lie": ("predictions.jsonl", lambda text: text.replace('"correct": false', '"correct": true'), "contradicts"),
    "a question twice": ("predictions.jsonl", lambda text: text.replace('"q2"', '"q1"'), "'q1' is there twice"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused_with_their_place(case: str, tmp_path: Path) -> None:
    name, change, message = MALFORMED[case]
    folder = write_run(tmp_path)
    path = folder / name
    path.write_bytes(change(path.read_text(encoding="utf-8")).encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match=message) as caught:
        read_run(folder)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_of_a_finished_run_is_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match=r"metrics.jsonl: missing, though the run has a result.json"):
        read_run(folder)


def test_an_epoch_that_was_run_again_counts_as_last_written(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    edit(folder / "metrics.jsonl", lambda lines: lines.insert(2, lines[0] | {"train_loss": 9.0, "val_accuracy": None}))
    run = read_run(folder)
    assert [(e.epoch, e.train_loss) for e in run.epochs] == [(1, 9.0), (2, 1.0)]
    assert run.epochs[0].val_accuracy is None


def test_runs_are_found_below_any_folder_in_natural_order(tmp_path: Path) -> None:
    made = [write_run(tmp_path, "probe", seed) for seed in (10, 2, 0)] + [write_run(tmp_path, "adapter", 1)]
    inner = made[0] / "checkpoint"
    inner.mkdir()
    (inner / "config.toml").write_text("{}")  # what a run keeps for itself is no run
    found = find_runs([made[0], tmp_path])
    assert [f.relative_to(tmp_path / "exp").as_posix() for f in found] == [
        "probe/seed10",
        "adapter/seed1",
        "probe/seed0",
        "probe/seed2",
    ]


def test_runs_are_grouped_by_variant_with_seeds_ascending(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path, name, seed)) for name, seed in (("b", 1), ("a", 0), ("b", 0))]
    grouped = group_by_variant(runs)
    assert {name: [run.seed for run in members] for name, members in grouped.items()} == {"b": [0, 1], "a": [0]}
    assert list(grouped) == ["b", "a"]


def changed(folder: Path, old: str, new: str) -> Run:
    for name in ("predictions.jsonl", "result.json"):
        path = folder / name
        path.write_text(path.read_text().replace(old, new))
    return read_run(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"q3"', '"q4"', "answer different questions"),
        ('"c2"', '"c9"', "answer different questions"),
        ('"test"', '"val"', "split 'val'"),
    ],
)
def test_runs_on_other_questions_are_not_put_in_one_table(old: str, new: str, message: str, tmp_path: Path) -> None:
    one = read_run(write_run(tmp_path, "a"))
    other = changed(write_run(tmp_path, "b"), old, new)
    with pytest.raises(RunError, match=message):
        group_by_variant([one, other])


def test_one_variant_and_seed_from_two_places_is_refused(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / place)) for place in ("x", "y")]
    with pytest.raises(TalikError, match="with seed 0 twice"):
        group_by_variant(runs)


def test_how_deep_the_first_insertion_sits_is_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    assert read_run(folder).depth is None
    encoders = {"visual": {"num_units": 12}, "audio": {"num_units": 4}, "text": {"num_units": 6}}
    insertions = [{"visual": 9, "audio": 3}, {"visual": 12, "audio": 4}]
    (folder / "adapter.json").write_text(json.dumps({"encoders": encoders, "insertions": insertions}))
    run = read_run(folder)
    assert run.depth == pytest.approx((9 / 12 + 3 / 4) / 2)
    assert (run.insertions, run.num_units) == (2, 12)
    (folder / "adapter.json").write_text(json.dumps({"encoders": encoders, "insertions": []}))
    assert read_run(folder).depth == 1.0
    (folder / "adapter.json").write_text("{}")
    with pytest.raises(RunError, match=r"adapter\.json: not as training writes it"):
        read_run(folder)


def test_what_a_run_was_trained_on_is_read_where_it_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    run = read_run(folder)
    assert (run.device, run.live, run.together, run.flops, run.flops_trained) == (None, False, None, None, None)
    more = {"device": "cuda", "live": True, "together": 3, "flops": 20, "flops_trained": 10}
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | more))
    run = read_run(folder)
    assert (run.device, run.live, run.together, run.flops, run.flops_trained) == ("cuda", True, 3, 20, 10)
