"""A Ray cluster of several nodes, of which some are killed, leaves the store and the runs that one process leaves."""

from __future__ import annotations

import importlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed: pip install 'talik[ray]'")

from talik.adapt.sweep.sweep import sweep
from talik.errors import BackendError
from talik.extract.executors.ray import RayExecutor
from talik.extract.executors.settings import EngineSettings
from talik.extract.executors.tasks import Task
from talik.extract.stage.extract import extract
from talik.extract.stage.run_records import receipts_path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of two working nodes (`ray_nodes.Nodes`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        found = importlib.import_module("ray_nodes").Nodes()
    yield found
    found.end()


def ray_engine(nodes: Any) -> EngineSettings:
    return EngineSettings(kind="ray", address=nodes.address, threads=1)


@pytest.fixture
def one_is_killed(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As soon as both nodes have a task, one of them is killed; another joins. Returns the tasks in order of begin."""
    begun: list[str] = []
    give = RayExecutor.begin

    def give_and_kill(self: RayExecutor, worker: Any, task: Task) -> None:
        give(self, worker, task)
        begun.append(task.name)
        if len(begun) == 2:
            nodes.replace_one()

    monkeypatch.setattr(RayExecutor, "begin", give_and_kill)
    return begun


def test_a_store_is_the_same_bytes_though_a_node_is_killed(
    nodes: Any, one_is_killed: list[str], write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    path, store = write_experiment(('dtype = "float32"', 'dtype = "int8"\nshard_items = 2')), tmp_path / "features.zarr"
    extract(path, progress=False, engine=EngineSettings(threads=1))
    expected = tree(store)
    shutil.rmtree(store)
    report = extract(path, progress=False, engine=ray_engine(nodes))
    assert tree(store) == expected
    assert len(report.retried) == 1
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # Ray's handler is gone with the cluster
    assert len(one_is_killed) == len(set(one_is_killed)) + 1  # the one that was lost, and no other, was begun twice
    receipts = [json.loads(line) for line in receipts_path(store).read_text().splitlines()]
    assert [r["task"] for r in receipts if r["attempts"] == 2] == [report.retried[0][0]]
    assert len(receipts) == len(set(one_is_killed))


def test_runs_and_report_are_the_same_though_a_node_is_killed(
    nodes: Any,
    one_is_killed: list[str],
    in_few_steps: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    compare = importlib.import_module("sweep_kills")
    sweep(in_few_steps(tmp_path / "alone" / "exp.toml"), progress=False)
    result = sweep(in_few_steps(tmp_path / "together" / "exp.toml"), progress=False, engine=ray_engine(nodes))
    assert len(result.runs) == 2
    assert len(result.retried) == 1
    assert len(one_is_killed) == 3
    found, expected = (tmp_path / name / "runs" / "exp" for name in ("together", "alone"))
    assert compare.outcome(found) == compare.outcome(expected)
    assert compare.report_of(found) == compare.report_of(expected)


def test_no_cluster_at_an_address_is_said_in_one_line() -> None:
    with pytest.raises(BackendError, match=r"no Ray cluster at 127.0.0.1:1: ") as caught:
        RayExecutor(EngineSettings(kind="ray", address="127.0.0.1:1"), device="cpu")
    assert "\n" not in str(caught.value)


def tree(store: Path) -> dict[str, bytes]:
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}
