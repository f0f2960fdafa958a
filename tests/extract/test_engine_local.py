"""The local engine: several processes fill a store to the same bytes; killed workers, bad clips, the memory budget."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from talik.errors import BackendError, MediaError, NumericsError, SettingsError
from talik.extract.executors.base import InProcessExecutor
from talik.extract.executors.local import LocalExecutor
from talik.extract.executors.open import open_executor
from talik.extract.executors.settings import EngineSettings, with_engine
from talik.extract.executors.tasks import Receipt, Task, TaskQueue
from talik.extract.executors.worker_pool import MemoryBudget
from talik.extract.stage.extract import extract
from talik.extract.stage.run_records import receipts_path

sys.path.insert(0, str(Path(__file__).parent))

from light_jobs import Sleeper

WriteExperiment = Callable[..., Path]
SMALL_SHARDS = ('dtype = "float32"', 'dtype = "int8"\nshard_items = 2')  # int8: its error is summed in a fixed order


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are other processes: they find `Sleeper` by its module's name."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


def tree(store: Path) -> dict[str, bytes]:
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def engine(jobs: int = 2, **more: Any) -> EngineSettings:
    return EngineSettings(jobs=jobs, threads=1, **more)


def test_a_store_is_the_same_bytes_whoever_fills_it_though_workers_are_killed(
    write_experiment: WriteExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_experiment(SMALL_SHARDS)
    store = tmp_path / "features.zarr"
    alone = extract(path, progress=False, engine=EngineSettings(threads=1))
    expected = tree(store)
    shutil.rmtree(store)
    killed, real = [], LocalExecutor.begin

    def give(self: LocalExecutor, worker: Any, task: Task) -> None:
        real(self, worker, task)
        if len(killed) < 2:
            killed.append(task.name)
            worker.process.kill()

    monkeypatch.setattr(LocalExecutor, "begin", give)
    together = extract(path, progress=False, engine=engine())
    assert len(killed) == 2
    assert tree(store) == expected
    assert (together.items, together.bytes_written) == (alone.items, alone.bytes_written)
    assert sorted(name for name, _ in together.retried) == sorted(set(killed))
    assert all("SIGKILL" in reason for _, reason in together.retried)
    assert any("was begun again" in line for line in together.lines())
    receipts = [json.loads(line) for line in receipts_path(store).read_text().splitlines()]
    assert len(receipts) == 5  # four shards of clips, one of texts
    assert sum(r["attempts"] for r in receipts) == 7
    assert all(r["seconds"] > 0 and not r["error"] for r in receipts)
    assert all(w["size_bytes"] > 0 for r in receipts for w in r["result"]["written"])
    assert extract(path, progress=False, engine=engine()).up_to_date


def test_bad_clips_leave_the_same_store_whoever_finds_them(
    write_experiment: WriteExperiment, demo_set: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(demo_set, tmp_path / "set"))
    videos = sorted((own / "videos").glob("*.mp4"))
    for number in (1, 2, 6):
        videos[number].write_bytes(b"no film" * (number + 1))
    float32 = (SMALL_SHARDS[0], SMALL_SHARDS[1].replace("int8", "float32"))  # int8 adds its error up as shards come
    path, store = write_experiment(float32, root=own), tmp_path / "features.zarr"
    with pytest.raises(MediaError, match="3 of 8 clips"):
        extract(path, progress=False, engine=EngineSettings(threads=1))
    expected = tree(store)
    shutil.rmtree(store)
    store.with_name("features.zarr.left-out.jsonl").unlink()
    with pytest.raises(MediaError, match="3 of 8 clips"):
        extract(path, progress=False, engine=engine())
    assert tree(store) == expected


def receipts(tasks: list[Task], settings: EngineSettings) -> Iterator[Receipt]:
    with open_executor(settings, device="cpu", base=Path()) as opened:
        yield from opened.run(Sleeper(), tasks)


@pytest.mark.usefixtures("importable")
def test_what_fails_is_told_and_the_rest_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tasks = [
        Task(name="always", given={"always": True}),
        Task(name="once", given={"die": str(tmp_path / "died")}),
        Task(name="error", given={"error": "a state\nis NaN"}),
        Task(name="bug", given={"bug": "by zero"}),
        Task(name="good", given={}),
    ]
    found = {r.task: r for r in receipts(tasks, engine(attempts=2))}
    assert set(found) == {task.name for task in tasks}
    assert found["good"].result["threads"] == "1"
    assert (found["once"].attempts, found["once"].error, len(found["once"].lost)) == (2, "", 1)
    assert found["always"].attempts == 2
    assert "begun 2 times, and its worker was lost each time" in found["always"].error
    assert isinstance(found["always"].exception(), BackendError)
    assert isinstance(found["error"].exception(), NumericsError)
    assert found["error"].error == "a state is NaN"
    assert found["bug"].error == "ZeroDivisionError: by zero"
    assert "Traceback" in capfd.readouterr().err  # a bug's is seen


@pytest.mark.usefixtures("importable")
def test_a_worker_serves_many_tasks_and_dies_with_its_engine() -> None:
    with open_executor(engine(jobs=2), device="cpu", base=Path()) as opened:
        job = Sleeper()
        pids = [
            {r.result["pid"] for r in opened.run(job, [Task(name=str(i), given={}) for i in range(6)])} for _ in "ab"
        ]
    assert len(pids[0] | pids[1]) <= 2
    for pid in pids[0] | pids[1]:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.usefixtures("importable")
def test_tasks_wait_for_memory(caplog: pytest.LogCaptureFixture) -> None:
    at_once, most = 0, 0
    lock = threading.Lock()

    class Watched(LocalExecutor):
        def begin(self, worker: Any, task: Task) -> None:
            nonlocal at_once, most
            with lock:
                at_once += 1
                most = max(most, at_once)
            super().begin(worker, task)

        def poll(self, seconds: float) -> Any:
            nonlocal at_once
            news = super().poll(seconds)
            at_once -= len(news)
            return news

    tasks = [Task(name=str(i), given={}, memory_bytes=600_000_000) for i in range(3)]
    tasks.append(Task(name="huge", given={}, memory_bytes=5_000_000_000))
    with Watched(engine(jobs=3, memory_gb=1.0), device="cpu") as opened:
        assert {r.task for r in opened.run(Sleeper(), tasks)} == {"0", "1", "2", "huge"}
    assert most == 1
    assert "huge: needs about 5.0 GB, more than memory_gb = 1; it runs alone" in caplog.text


def test_the_first_of_unknown_need_is_measured_alone() -> None:
    budget = MemoryBudget(10_000)
    one, two, three = (Task(name=n, given=None) for n in "abc")
    assert budget.admits(one, [])
    assert not budget.admits(two, [one])
    budget.learn(one, Receipt(task="a", peak_bytes=4_000))
    assert budget.admits(two, [one])
    assert not budget.admits(three, [one, two])


def test_what_another_process_holds_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    waiting = TaskQueue([Task(name="a", given=None)], attempts=2)
    held = {"error": "process 5 is writing shard 1", "kind": "StoreLockedError"}
    waiting.begin(waiting.ready()[0])
    assert waiting.ended("a", held) is None
    assert waiting.ready() == []
    now[0] += 60.0
    waiting.begin(waiting.ready()[0])
    receipt = waiting.ended("a", held)
    assert receipt is not None
    assert (receipt.attempts, receipt.error, receipt.lost) == (2, held["error"], (held["error"],))


def test_settings_name_the_engine(write_experiment: WriteExperiment) -> None:
    assert isinstance(open_executor(EngineSettings(), device="cpu", base=Path()), InProcessExecutor)
    asked = with_engine(EngineSettings(jobs=4), "ray:auto", None)
    assert (asked.kind, asked.address, asked.jobs) == ("ray", "auto", None)
    assert with_engine(asked, None, 3).jobs == 3
    with pytest.raises(SettingsError, match="unknown engine 'rya'; did you mean 'ray'"):
        with_engine(EngineSettings(), "rya", None)
    with pytest.raises(SettingsError, match="the local engine has none"):
        with_engine(EngineSettings(), "local:here", None)
    path = write_experiment(("[store]", '[engine]\nkind = "local"\njbos = 2\n\n[store]'))
    with pytest.raises(SettingsError, match=r"exp.toml: engine.jbos: unknown key 'jbos'; did you mean 'jobs'"):
        extract(path, progress=False)
