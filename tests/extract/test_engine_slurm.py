"""submitit: an array's elements fill a store to the same bytes; one that is begun again goes on; lost ones are told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("submitit", reason="submitit is not installed: pip install 'talik[slurm]'")

from talik.errors import BackendError
from talik.extract.executors.settings import EngineSettings
from talik.extract.executors.slurm import Share, SlurmExecutor
from talik.extract.executors.tasks import Task
from talik.extract.stage.extract import extract

sys.path.insert(0, str(Path(__file__).parent))

from light_jobs import Touch


def slurm_runs() -> bool:
    """Whether a Slurm answers and has a node."""
    if not shutil.which("sinfo"):
        return False
    told = subprocess.run(
        ["sinfo", "--noheader", "--states=idle,mix,alloc"], capture_output=True, text=True, check=False
    )
    return told.returncode == 0 and bool(told.stdout.strip())


def tree(store: Path) -> dict[str, bytes]:
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # submitit leaves its processes' pipes to the collector
def test_an_array_fills_the_store_that_one_process_fills(write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    path, store = (
        write_experiment(('dtype = "float32"', 'dtype = "float32"\nshard_items = 4')),
        tmp_path / "features.zarr",
    )
    extract(path, progress=False, engine=EngineSettings(threads=1))
    expected = tree(store)
    shutil.rmtree(store)
    engine = EngineSettings(kind="submitit", address="local", jobs=1, threads=1)
    report = extract(path, progress=False, engine=engine)
    assert tree(store) == expected
    assert report.retried == ()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_lost_element_costs_the_task_that_it_was_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    tasks = [
        Task(name=name, given={"path": str(tmp_path / name), "dies": name in dying})
        for dying in [("second",)]
        for name in ("first", "second", "third")
    ]
    settings = EngineSettings(kind="submitit", address="local", jobs=1, threads=1)
    with SlurmExecutor(settings, device="cpu", folder=tmp_path / "engine") as engine:
        found = {receipt.task: receipt for receipt in engine.run(Touch(), tasks)}
    assert {name: receipt.attempts for name, receipt in found.items()} == {"first": 1, "second": 2, "third": 1}
    assert not any(receipt.error for receipt in found.values())
    assert "job" in found["second"].lost[0]


def test_a_share_that_is_begun_again_goes_on(tmp_path: Path) -> None:
    tasks = [Task(name=str(i), given={"path": str(tmp_path / f"out{i}")}) for i in range(3)]
    share = Share(Touch(), [(task, tmp_path / f"receipt{task.name}") for task in tasks], threads=1)
    (tmp_path / "receipt1").write_text("{}")
    assert share() == 2
    assert not (tmp_path / "out1").exists()
    assert json.loads((tmp_path / "receipt2").read_text())["result"] == {"path": str(tmp_path / "out2")}
    assert share() == 0
    assert share.checkpoint().function is share


@pytest.mark.slow  # Slurm waits two minutes before it begins a requeued job
@pytest.mark.skipif(not slurm_runs(), reason="no Slurm here: sinfo finds no node (docs/cluster.md says how to try one)")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::UserWarning:submitit")
def test_slurm_itself_does_an_array_and_one_element_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    given = [{"path": str(tmp_path / str(i)), "seconds": 8.0 * (i == 2)} for i in range(4)]
    tasks = [Task(name=str(i), given=what) for i, what in enumerate(given)]
    settings = EngineSettings(kind="submitit", jobs=2, threads=1, slurm={"time": 5})
    with SlurmExecutor(settings, device="cpu", folder=tmp_path / "engine") as engine:
        found = engine.run(Touch(), tasks)
        receipts = [next(found)]
        while not (tmp_path / "0").exists():
            receipts.append(next(found))
        subprocess.run(["scontrol", "requeue", engine.running[0].job_id], check=True)  # it is at the third task
        receipts += list(found)
    assert sorted(receipt.task for receipt in receipts) == ["0", "1", "2", "3"]
    assert not any(receipt.error for receipt in receipts)
    assert [Path(what["path"]).read_text() for what in given] == ["x", "x", "x", "x"]  # none was done twice


def test_without_slurm_it_is_said_in_one_line(tmp_path: Path) -> None:
    if shutil.which("srun"):
        pytest.skip("Slurm is installed, so its absence cannot be seen; remove srun from PATH")
    with pytest.raises(BackendError, match="submitit: ") as caught:
        SlurmExecutor(EngineSettings(kind="submitit"), device="cpu", folder=tmp_path)
    assert "\n" not in str(caught.value)
