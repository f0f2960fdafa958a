"""A variant that raises anything, anywhere, ends alone, with its traceback in its folder; the others end as alone."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import talik
from talik.adapt.training import stack_size
from talik.adapt.training.run_folder import RunFolder
from talik.adapt.training.trainer import Trainer
from talik.errors import RunError, RunLockedError, TalikError
from talik.extract.executors.settings import EngineSettings

sys.path.insert(0, str(Path(__file__).parents[1]))

from talik.cli import main

PLUG_IN = """
from dataclasses import dataclass
import torch
from torch import nn
import talik
from talik.adapt.adapters.base import Deltas

class Odd(Exception):
    def __str__(self):
        raise RuntimeError("no message either")

ERRORS = {
    "value": ValueError("first line\\nsecond line \\u2014 \\U0001f3bb \\udce9"), "key": KeyError("gain"),
    "memory": torch.OutOfMemoryError("CUDA out of memory"), "odd": Odd(), "assert": AssertionError(),
    "stop": StopIteration("none left"),
}

@dataclass(frozen=True, kw_only=True)
class Settings:
    place: str
    error: str = "value"
    modalities: tuple[str, ...] = ("audio",)

class InBackward(torch.autograd.Function):
    @staticmethod
    def forward(context, x, adapter):
        context.adapter = adapter
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        context.adapter.fail("backward")
        return gradient, None

class Bad(nn.Module):
    def __init__(self, settings, dims):
        super().__init__()
        self.settings, self.calls = settings, 0
        self.fail("init")
        self.linear = nn.Linear(dims[0]["audio"], dims[0]["audio"])

    def fail(self, place):
        if getattr(self, "settings", None) is not None and self.settings.place == place:
            raise ERRORS[self.settings.error]

    def at(self, index):
        def delta(tokens):
            self.calls += self.training
            self.fail("forward")
            if self.calls > 2:
                self.fail("later forward")
            if not self.training:
                self.fail("evaluation")
            return Deltas(audio=InBackward.apply(self.linear(tokens.audio), self))
        return delta

    def named_modules(self, *args, **options):
        self.fail("named_parameters")
        return super().named_modules(*args, **options)

    def state_dict(self, *args, **options):
        self.fail("saving")
        return super().state_dict(*args, **options)

    def _load_from_state_dict(self, *args, **options):
        self.fail("best weights")
        return super()._load_from_state_dict(*args, **options)

    def train(self, mode=True):
        self.fail("mode")
        if not mode:
            self.fail("eval mode")
        return super().train(mode)

    def begin_training(self, total_steps):
        self.fail("begin_training")

    def extra_loss(self):
        self.fail("extra_loss")

    def after_step(self, step):
        self.fail("after_step")

    def export(self, folder):
        self.fail("export")

class BadLoss(nn.Module):
    def __init__(self, settings):
        super().__init__()

    def forward(self, logits, labels):
        raise ValueError("a loss of its own")

@dataclass(frozen=True, kw_only=True)
class LossSettings:
    pass

talik.register_adapter("bad", Settings, Bad)
talik.register_loss("bad", LossSettings, BadLoss)
"""
POINTS = "[talik.adapters]\nbad = bad_plug_in\nbroken = broken_plug_in\n[talik.losses]\nbad = bad_plug_in\n"
PLACES = [
    "init", "forward", "later forward", "evaluation", "backward", "named_parameters", "saving", "best weights",
    "mode", "eval mode", "begin_training", "extra_loss", "after_step", "export",
]  # fmt: skip
APART = ["backward", "eval mode"]  # a stack is then run one by one, where nothing else of its batch could fail stacked
BAD = '\n[[variants]]\nname = "bad"\ninsertion = {{ audio = [3] }}\nadapter = {{ kind = "bad", place = "{}" {} }}\n'
WAYS: dict[str, dict[str, Any]] = {
    "group": {},
    "stacked": {},
    "apart": {"fuse": False},
    "workers": {"engine": EngineSettings(jobs=2, threads=1)},
}


@pytest.fixture
def write(tmp_path: Path, in_few_steps: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write an experiment on the filled store, with variants of a plug-in that any process can import."""
    packages = tmp_path / "packages"
    (packages / "bad-1.0.dist-info").mkdir(parents=True)
    (packages / "bad-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    (packages / "bad-1.0.dist-info" / "entry_points.txt").write_text(POINTS)
    (packages / "bad_plug_in.py").write_text(PLUG_IN, encoding="utf-8")
    (packages / "broken_plug_in.py").write_text("import nowhere_at_all\n")
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")]))

    def made(more: str, name: str = "exp", stack: bool = False) -> Path:
        return in_few_steps(tmp_path / f"{name}.toml", more=f"\n[sweep]\nstack = {str(stack).lower()}\n{more}")

    return made


def losses(path: Path, variant: str) -> list[float]:
    lines = (path.parent / "runs" / path.stem / variant / "seed0" / "metrics.jsonl").read_text().splitlines()
    return [e["train_loss"] for e in map(json.loads, lines) if e["event"] == "epoch"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, in_few_steps: Callable[..., Path]) -> list[float]:
    """The losses of the sound variant, trained without company."""
    path = in_few_steps(tmp_path_factory.mktemp("alone") / "exp.toml")
    talik.adapt(path, variant="probe", progress=False)
    return losses(path, "probe")


@pytest.mark.parametrize("places", [[p for p in PLACES if p not in APART], APART], ids=["most", "apart"])
@pytest.mark.parametrize("way", ["group", "stacked"])
def test_a_sweep_goes_on_wherever_variants_raise(
    write: Callable[..., Path], alone: list[float], places: list[str], way: str
) -> None:
    named = {place: f"bad-{place.replace(' ', '-')}" for place in places}
    more = [BAD.format(place, "").replace('name = "bad"', f'name = "{name}"') for place, name in named.items()]
    path = write("".join(more), stack=way == "stacked")
    result = talik.sweep(path, variants=[*named.values(), "probe"], progress=False, **WAYS[way])
    assert sorted(name for name, _ in result.failures) == sorted(f"{name}/seed0" for name in named.values())
    assert [run.folder.parent.name for run in result.runs] == ["probe"]
    assert losses(path, "probe") == pytest.approx(alone, abs=0 if way == "group" else 1e-5)
    reasons = dict(result.failures)
    for place, name in named.items():
        assert reasons[f"{name}/seed0"].startswith("ValueError: first line second line"), place
        told = RunFolder(path.parent / "runs" / "exp" / name / "seed0")
        text = told.error_file.read_text(encoding="utf-8")
        assert text.startswith("ValueError: first line"), place
        assert "Traceback (most recent call last)" in text
        assert "bad_plug_in.py" in text
        assert not told.done


@pytest.mark.parametrize(
    "error", ["key", "memory", *(pytest.param(e, marks=pytest.mark.slow) for e in ("odd", "assert", "stop"))]
)
def test_whatever_is_raised(write: Callable[..., Path], error: str) -> None:
    path = write(BAD.format("later forward", f', error = "{error}"'), stack=True)
    result = talik.sweep(path, variants=["trimodal", "bad", "probe"], progress=False)
    ((_, reason),) = result.failures
    assert "\n" not in reason
    assert reason.split(":")[0] in ("KeyError", "OutOfMemoryError", "Odd", "AssertionError", "StopIteration")
    assert len(result.runs) == 2


@pytest.mark.parametrize("way", ["apart", "workers"])
@pytest.mark.parametrize("place", ["init", pytest.param("later forward", marks=pytest.mark.slow)])
def test_every_engine_goes_on(write: Callable[..., Path], alone: list[float], place: str, way: str) -> None:
    path = write(BAD.format(place, ""))
    result = talik.sweep(path, variants=["bad", "probe"], progress=False, **WAYS[way])
    assert [name for name, _ in result.failures] == ["bad/seed0"]
    assert losses(path, "probe") == alone
    assert RunFolder(path.parent / "runs" / "exp" / "bad" / "seed0").error_file.is_file()


def test_a_loss_of_ones_own(write: Callable[..., Path], alone: list[float]) -> None:
    own = '\n[[variants]]\nname = "own"\nadapter = { kind = "probe" }\ntrain = { loss = { kind = "bad" } }\n'
    path = write(own)
    result = talik.sweep(path, variants=["own", "probe"], progress=False)
    assert result.failures == (("own/seed0", "ValueError: a loss of its own"),)
    assert losses(path, "probe") == alone


def test_a_plug_in_that_cannot_be_imported_ends_its_variant_alone(
    write: Callable[..., Path], alone: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write('\n[[variants]]\nname = "lost"\ninsertion = "last 1"\nadapter = { kind = "broken" }\n')
    result = talik.sweep(path, variants=["lost", "probe"], progress=False)
    ((name, reason),) = result.failures
    assert name == "lost/seed0"
    assert "entry point 'broken_plug_in'" in reason
    assert "ModuleNotFoundError" in reason
    assert losses(path, "probe") == alone
    with pytest.raises(TalikError, match=r"'broken_plug_in' .* cannot be loaded: ModuleNotFoundError"):
        talik.adapt(path, variant="lost", progress=False)


@pytest.mark.parametrize("place", ["init", "later forward", "saving", "export"])
def test_adapt_ends_in_one_line_and_the_corrected_experiment_trains(
    write: Callable[..., Path], place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(BAD.format(place, ""))
    monkeypatch.setattr(sys, "argv", ["talik", "adapt", str(path), "--variant", "bad", "--quiet"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code not in (0, None)
    told = capsys.readouterr().err.strip()
    assert "\n" not in told
    assert "ValueError: first line second line" in told
    assert "error.txt" in told
    write(BAD.format("nowhere", ""))  # the plug-in is mended
    folder = path.parent / "runs" / "exp" / "bad" / "seed0"
    if RunFolder(folder).status == "unfinished":
        with pytest.raises(RunError, match="rename the variant"):
            talik.adapt(path, variant="bad", progress=False)
        return
    run = talik.adapt(path, variant="bad", progress=False)
    assert len(losses(path, "bad")) == 2
    assert not (run.folder / "error.txt").exists()


def test_evaluation_ends_in_one_line_and_the_finished_run_is_kept(write: Callable[..., Path]) -> None:
    path = write(BAD.format("nowhere", ""))
    run = talik.adapt(path, variant="bad", progress=False)
    before = (run.folder / "result.json").read_bytes()
    config = run.folder / "config.toml"
    config.write_text(config.read_text().replace("nowhere", "evaluation"))
    with pytest.raises(RunError, match=r"ValueError: first line second line .*error\.txt"):
        talik.evaluate(run.folder)
    assert (run.folder / "result.json").read_bytes() == before


@pytest.mark.parametrize("way", ["group", "stacked"])
def test_an_interrupt_stops_everything(write: Callable[..., Path], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Trainer, *args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "weighted_loss", interrupted)
    path = write("", stack=way == "stacked")
    with pytest.raises(KeyboardInterrupt):
        talik.sweep(path, variants=["trimodal", "probe"], progress=False)
    assert not list((path.parent / "runs").rglob("error.txt"))


@pytest.mark.parametrize("where", ["forward", "evaluation", pytest.param("backward", marks=pytest.mark.slow)])
def test_a_stack_that_memory_does_not_hold_is_halved(
    write: Callable[..., Path], where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    more = "".join(
        f'\n[[variants]]\nname = "b{i}"\ninsertion = "last 1"\n'
        f'adapter = {{ kind = "bottleneck", d_bottleneck = {i + 2} }}\n'
        for i in range(5)
    )
    names = [f"b{i}" for i in range(5)]
    apart, path = write(more, "apart"), write(more, "together", stack=True)
    talik.sweep(apart, variants=names, fuse=False, progress=False)
    real, sizes = stack_size.run_stacked, []

    def limited(passes: Any, modules: Any) -> Any:
        sizes.append(len(passes))
        training = passes[0].model.training
        found = real(passes, modules)
        if len(passes) > 2 and training is (where != "evaluation"):
            if where != "backward":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            found[0] = TooLarge.apply(found[0])
        return found

    monkeypatch.setattr(stack_size, "run_stacked", limited)
    result = talik.sweep(path, variants=names, progress=False)
    assert not result.failures
    assert 5 in sizes
    assert set(sizes) == {5, 2}
    assert max(sizes[sizes.index(2) :]) == 2  # for good
    assert "memory does not hold 5 stacked variants; 2 from here on" in caplog.text
    for name in names:
        assert losses(path, name) == pytest.approx(losses(apart, name), abs=1e-5)


class TooLarge(torch.autograd.Function):
    """The identity; its backward pass finds no memory."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_a_run_that_another_process_has_is_a_failure_and_the_others_are_trained(write: Callable[..., Path]) -> None:
    path = write("")
    runs = path.parent / "runs" / "exp"
    with RunFolder(runs / "trimodal" / "seed0").locked():
        result = talik.sweep(path, progress=False)
        assert [name for name, _ in result.failures] == ["trimodal/seed0"]
        with pytest.raises(RunLockedError):
            talik.adapt(path, variant="trimodal", progress=False)
    assert [run.folder.parent.name for run in result.runs] == ["probe"]
    with RunFolder(runs / "probe" / "seed0").locked():
        with pytest.raises(RunLockedError, match="is training this run or evaluating it"):
            talik.evaluate(runs / "probe" / "seed0")
        assert talik.evaluate(runs / "probe" / "seed0", save=False).scores.overall.total > 0
