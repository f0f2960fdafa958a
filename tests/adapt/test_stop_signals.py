"""A training that signals or kills end in the middle of an epoch goes on as if never stopped: alone and in groups."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from talik.adapt.config.experiment import Experiment, load_experiment
from talik.adapt.sweep.sweep import sweep
from talik.adapt.training.adapt import adapt
from talik.adapt.training.experiment_context import ExperimentContext
from talik.adapt.training.stop_signals import StopSignals
from talik.adapt.training.trainer import Trainer

Acts = dict[int, Callable[[], object]]

SLOW = """
[[variants]]
name = "slow"
adapter = { kind = "probe" }
train = { accumulate = 3 }
"""


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """Let Ctrl-C interrupt, which a program that was begun in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def context(extracted: Path) -> Iterator[ExperimentContext]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield ExperimentContext(load_experiment(extracted))
    torch.set_num_threads(threads)


@pytest.fixture
def write(extracted: Path, tmp_path: Path) -> Callable[..., Experiment]:
    """Write an experiment with dropout on the filled store, in a folder of its own."""

    def written(name: str, **train: Any) -> Experiment:
        text = extracted.read_text(encoding="utf-8")
        text = text.replace('dtype = "float32"', f'dtype = "float32"\npath = "{extracted.parent / "features.zarr"}"')
        for key, value in {"batch_size": 16, **train}.items():
            text = re.sub(rf"(?m)^{key} = .*\n", "", text)
            text = text.replace("[train]\n", f"[train]\n{key} = {json.dumps(value)}\n")
        path = tmp_path / name / "exp.toml"
        path.parent.mkdir()
        path.write_text(text.replace("[task]\n", "[task]\ndropout = 0.2\n") + SLOW, encoding="utf-8")
        return load_experiment(path)

    return written


@pytest.fixture
def on_call(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Acts], None]:
    """Have `Trainer`'s method act after its n-th call from now on, from 0."""

    def patched(name: str, acts: Acts) -> None:
        real, calls = getattr(Trainer, name), count()

        def called(self: Trainer, *args: Any, **how: Any) -> Any:
            found = real(self, *args, **how)
            acts.get(next(calls), lambda: None)()
            return found

        monkeypatch.setattr(Trainer, name, called)

    return patched


def raised(signum: int) -> Callable[[], None]:
    return lambda: signal.raise_signal(signum)


def trained(experiment: Experiment, context: ExperimentContext, variant: str = "trimodal") -> Path:
    own = ExperimentContext(experiment)
    own.encoders = context.encoders
    torch.manual_seed(99)  # whatever another process drew in between
    return adapt(experiment, variant=variant, progress=False, context=own).folder


def outcome(folder: Path) -> tuple[list[dict[str, Any]], str, dict[str, torch.Tensor]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    return metrics, (folder / "predictions.jsonl").read_text(), load_file(folder / "adapter.safetensors")


def assert_same(found: Path, expected: Path) -> None:
    (metrics, answers, weights), (metrics_then, answers_then, weights_then) = outcome(found), outcome(expected)
    assert metrics == metrics_then
    assert answers == answers_then
    assert weights.keys() == weights_then.keys()
    assert all(torch.equal(weights[name], weights_then[name]) for name in weights)


def position(experiment: Experiment, variant: str = "trimodal") -> tuple[int, int]:
    found = json.loads((experiment.runs / variant / "seed0" / "checkpoint" / "progress.json").read_text())
    return found["epoch"], found["batch"]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"accumulate": 3, "group_by_clip": True, "checkpoint_units": True, "ema": 0.8},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "every option"])
def test_a_run_stopped_in_the_middle_three_times_equals_one_never_stopped(
    write: Any,
    context: ExperimentContext,
    options: dict[str, Any],
    on_call: Any,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = trained(write("whole", **options), context)
    broken = write("broken", **options)
    caplog.set_level("INFO", logger="talik")
    on_call("step", {1: raised(signal.SIGTERM), 3: raised(signal.SIGINT)})  # after the 2nd and the 4th batch
    on_call("answers", {1: raised(signal.SIGUSR1)})  # in the validation of the first epoch
    with pytest.raises(SystemExit) as ended:
        trained(broken, context)
    assert ended.value.code == 143
    assert position(broken) == (0, 2)
    said = capsys.readouterr().err
    assert re.search(r"seed0: stopped by SIGTERM in epoch 1 after batch 2 of \d+; a checkpoint is kept", said)
    with pytest.raises(KeyboardInterrupt):
        trained(broken, context)
    assert position(broken) == (0, 4)
    assert "goes on from the checkpoint in epoch 1 after batch 2" in caplog.text
    with pytest.raises(SystemExit) as ended:
        trained(broken, context)
    assert ended.value.code == 138
    assert position(broken)[1] > 4
    assert_same(trained(broken, context), whole)


def test_a_group_stopped_in_the_middle_equals_one_never_stopped(
    write: Any, on_call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = write("whole", checkpoint_minutes=0), write("broken", checkpoint_minutes=1e-9)
    names = ["probe", "trimodal", "slow"]
    sweep(whole, variants=names, progress=False)
    with monkeypatch.context():
        on_call("step", {4: raised(signal.SIGTERM), 3 * 3 + 1: raised(signal.SIGTERM)})
        on_call("answers", {3: raised(signal.SIGTERM)})
        for _ in range(3):
            with pytest.raises(SystemExit):
                sweep(broken, variants=names, progress=False)
    assert {position(broken, name) for name in names} == {position(broken)}
    assert position(broken)[1] > 3

    def killed() -> None:
        raise KeyboardInterrupt  # as a kill: nothing is saved

    on_call("save_position", {7: killed})  # some have this batch in their checkpoint and others not
    with pytest.raises(KeyboardInterrupt):
        sweep(broken, variants=names, progress=False)
    assert len({position(broken, name) for name in names}) == 2
    result = sweep(broken, variants=names, progress=False)
    assert result.failures == ()
    for name in names:
        assert_same(broken.runs / name / "seed0", whole.runs / name / "seed0")


def test_a_signal_that_another_program_handles_reaches_it_after_the_checkpoint(
    write: Any, context: ExperimentContext, on_call: Any
) -> None:
    whole, handled = trained(write("whole"), context), write("handled")
    seen: list[tuple[int, int]] = []
    former = signal.signal(signal.SIGUSR2, lambda signum, frame: seen.append(position(handled)))
    try:
        on_call("step", {2: raised(signal.SIGUSR2)})
        on_call("answers", {0: raised(signal.SIGUSR2)})
        run = trained(handled, context)
    finally:
        signal.signal(signal.SIGUSR2, former)
    assert seen[0] == (0, 3)
    assert len(seen) == 2
    assert_same(run, whole)


def test_a_second_ctrl_c_does_not_wait_and_ignored_signals_stay_so() -> None:
    former = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with StopSignals().caught():
            signal.raise_signal(signal.SIGUSR1)  # is not noted, so that nothing is left to do at the end
    finally:
        signal.signal(signal.SIGUSR1, former)
    stop = StopSignals()
    with stop.caught():
        signal.raise_signal(signal.SIGINT)
        assert stop.name == "SIGINT"
        signal.raise_signal(signal.SIGTERM)  # torchrun's, of the same Ctrl-C
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        stop.signum = 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(SystemExit) as ended, StopSignals().caught():
        signal.raise_signal(signal.SIGTERM)  # after the last batch
    assert ended.value.code == 143


DRIVER = """
import os, signal, sys
import talik
from talik.adapt.training.trainer import Trainer
step, steps = Trainer.step, iter(range(99))
def dying(self, batch):
    if next(steps) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, batch)
Trainer.step = dying
talik.adapt(sys.argv[1], variant="trimodal", progress=False)
"""


def test_a_kill_costs_what_came_after_the_last_checkpoint(write: Any, context: ExperimentContext) -> None:
    whole, killed = trained(write("whole"), context), write("killed", checkpoint_minutes=1e-9)
    path = str(killed.base / "exp.toml")
    ran = subprocess.run([sys.executable, "-c", DRIVER, path], capture_output=True, timeout=300, check=False)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert position(killed) == (0, 4)
    assert_same(trained(killed, context), whole)


def test_worker_processes_of_a_sweep_keep_the_middle_of_their_epochs(write: Any) -> None:
    """SIGTERM to the command alone, whose two workers each train a run."""
    stopped, whole = write("stopped", epochs=4, checkpoint_minutes=1e-9), write("whole", epochs=4)
    names = ["probe", "trimodal"]
    command = [sys.executable, "-m", "talik", "sweep", str(stopped.base / "exp.toml"), "--quiet", "--jobs", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--variants", ",".join(names)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env
    ) as running:
        until = time.monotonic() + 200
        while not all((stopped.runs / name / "seed0" / "checkpoint").exists() for name in names):
            assert time.monotonic() < until
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        said = running.communicate(timeout=120)[1]
    assert running.returncode == 143, said
    assert "seed0: stopped by SIGTERM in epoch" in said
    sweep(stopped, variants=names, progress=False)
    sweep(whole, variants=names, progress=False)
    for name in names:
        assert_same(stopped.runs / name / "seed0", whole.runs / name / "seed0")
