"""Fused equals solo, bit for bit on a CPU: mixed kinds, any company, any order, early leavers, failures, resumption."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from talik.adapt.config.experiment import load_experiment
from talik.adapt.evaluation.evaluate import evaluate
from talik.adapt.sweep.sweep import sweep
from talik.adapt.training import lockstep_group as fused
from talik.adapt.training.adapt import adapt
from talik.adapt.training.experiment_context import ExperimentContext
from talik.adapt.training.trainer import Trainer
from talik.errors import RunError
from talik.extract.encoders.encoder import Encoder
from talik.extract.trunk.state import State

SMALL = "d_model = 8, d_state = 4, num_latents = 2, num_heads = 2"
MORE = f"""
[[variants]]
name = "early"
insertion = {{ visual = [1], audio = [1], text = [1] }}
adapter = {{ kind = "trimodal", interaction = "none", {SMALL} }}
train = {{ epochs = 1, lr = 5e-3 }}

[[variants]]
name = "sound"
adapter = {{ kind = "probe", modalities = ["audio", "text"] }}

[[variants]]
name = "lavish"
insertion = "last 1"
placement = "parallel"
adapter = {{ kind = "lavish", reduction = 2, groups = 1, num_latents = 2 }}

[[variants]]
name = "norm"
insertion = "last 2"
adapter = {{ kind = "norm" }}

[[variants]]
name = "side"
insertion = "last 2"
adapter = {{ kind = "side", reduction = 4, num_heads = 2 }}

[[variants]]
name = "wide"
insertion = "last 2"
adapter = {{ kind = "trimodal", center = "audio", {SMALL} }}
train = {{ batch_size = 16 }}
"""
NAMES = ("probe", "trimodal", "early", "sound", "lavish", "norm", "side", "wide")


@pytest.fixture
def experiment(in_few_steps: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Write an experiment of its own name and run folders on the store that is there."""
    return lambda name, more=MORE: in_few_steps(tmp_path / name / "exp.toml", more=more)


def outcome(path: Path, variant: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Everything that a run leaves that must not depend on its company."""
    folder = path.parent / "runs" / "exp" / variant / f"seed{seed}"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    numbers = {
        f"{line['event']}{i}.{k}": torch.tensor(float(v))
        for i, line in enumerate(lines)
        for k, v in line.items()
        if k not in ("seconds", "event")
    }
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    probabilities = torch.tensor([p["probability"] for p in predictions])
    return {**numbers, "probabilities": probabilities, **load_file(folder / "adapter.safetensors")}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert len(expected["probabilities"]) > 0
    assert sum(name.startswith("epoch") for name in expected) > 0
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_every_variant_of_a_group_ends_as_it_does_alone(experiment: Callable[[str], Path]) -> None:
    alone, together, company = experiment("alone"), experiment("together"), experiment("company")
    for name in NAMES:
        adapt(alone, variant=name, progress=False)
    assert len(sweep(together, progress=False).runs) == len(NAMES)
    sweep(company, variants=["lavish", "early", "trimodal"], progress=False)  # other company, another order
    for name in NAMES:
        expected = outcome(alone, name)
        assert_same(outcome(together, name), expected)
        if name in ("lavish", "early", "trimodal"):
            assert_same(outcome(company, name), expected)


def test_dropout_is_drawn_from_each_variants_own_stream(experiment: Callable[[str], Path]) -> None:
    alone, together = experiment("alone"), experiment("together")
    for path in (alone, together):
        path.write_text(path.read_text().replace("num_heads = 2\n\n[train]", "num_heads = 2\ndropout = 0.4\n\n[train]"))
    adapt(alone, variant="trimodal", progress=False)
    sweep(together, variants=["sound", "trimodal", "probe"], progress=False)
    assert_same(outcome(together, "trimodal"), outcome(alone, "trimodal"))


def test_the_shared_prefix_runs_once_for_the_group(
    experiment: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = fused.states_at, 0

    def counted(encoder: Encoder, at_hand: list[State], wanted: list[int]) -> dict[int, State]:
        nonlocal count
        rows = at_hand[0].hidden.shape[0]
        lowest = min(state.boundary for state in at_hand)
        count += rows * (max(wanted) - lowest) if encoder.modality == "visual" else 0
        return real(encoder, at_hand, wanted)

    for module in ("training.lockstep_group", "model.flops"):
        monkeypatch.setattr(f"talik.adapt.{module}.states_at", counted)
    # The store has boundaries 1 and 3; "last 1" starts at 2, so that unit 1 is the prefix to share.
    more = "".join(
        f'\n[[variants]]\nname = "t{i}"\ninsertion = "last 1"\n'
        f'adapter = {{ kind = "trimodal", {SMALL} }}\ntrain = {{ lr = {i + 1}e-3 }}\n'
        for i in range(3)
    )
    costs = []
    for name, chosen, fuse in (
        ("solo", ["t0"], True),
        ("fused", ["t0", "t1", "t2"], True),
        ("apart", ["t0", "t1", "t2"], False),
    ):
        count = 0
        sweep(experiment(name, more), variants=chosen, fuse=fuse, progress=False)
        costs.append(count)
    solo, together, apart = costs
    assert solo > 0
    assert together == solo
    assert apart == 3 * solo


def test_a_failing_variant_leaves_and_the_others_end_as_alone(experiment: Callable[[str], Path]) -> None:
    more = f"""
[[variants]]
name = "diverges"
insertion = "last 1"
adapter = {{ kind = "trimodal", {SMALL} }}
train = {{ lr = 1e30, head_lr = 1e30, clip_norm = 0.0 }}
"""
    alone, together = experiment("alone", more), experiment("together", more)
    adapt(alone, variant="probe", progress=False)
    result = sweep(together, variants=["diverges", "probe"], progress=False)
    assert [name for name, _ in result.failures] == ["diverges/seed0"]
    assert "loss is" in result.failures[0][1]
    assert_same(outcome(together, "probe"), outcome(alone, "probe"))
    with pytest.raises(RunError, match="loss is"):
        adapt(alone, variant="diverges", progress=False)


def test_bfloat16_is_one_precision_alone_in_a_group_and_in_evaluation(experiment: Callable[[str], Path]) -> None:
    alone, together = experiment("alone"), experiment("together")
    for path in (alone, together):  # units between the stored boundary and the adapters run in training as well
        text = path.read_text()
        assert text.count("num_threads = 1\n") == 1
        path.write_text(text.replace("num_threads = 1\n", 'num_threads = 1\namp = "bf16"\n'))
    folder = adapt(alone, variant="trimodal", progress=False).folder
    sweep(together, variants=["probe", "trimodal"], progress=False)
    assert_same(outcome(together, "trimodal"), outcome(alone, "trimodal"))
    evaluate(folder)
    assert (folder / "predictions-test.jsonl").read_text() == (folder / "predictions.jsonl").read_text()


@pytest.mark.parametrize("killed", ["in an epoch", "between checkpoints", "between the last checkpoints"])
def test_an_interrupted_group_ends_as_an_uninterrupted_one(
    experiment: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    whole, broken = experiment("whole"), experiment("broken")
    names = ["probe", "trimodal", "early"]
    sweep(whole, variants=names, progress=False)
    count, steps = 0, -(-len(ExperimentContext(load_experiment(whole)).questions("train")) // 24)
    first = 3 * (steps + 1)  # an epoch of all three; "early" has ended with it
    places = {"in an epoch": 3, "between checkpoints": first - 1}
    killed_at = {**places, "between the last checkpoints": first + 2 * (steps + 1)}[killed]
    step, end_epoch = Trainer.step, Trainer.end_epoch

    def dies(real: Callable[..., object]) -> Callable[..., object]:
        def wrapped(self: Trainer, *args: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == killed_at:
                raise KeyboardInterrupt
            return real(self, *args, **options)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dies(step))
        patch.setattr(Trainer, "end_epoch", dies(end_epoch))  # so that some have their checkpoint and others not
        with pytest.raises(KeyboardInterrupt):
            sweep(broken, variants=names, progress=False)
    sweep(broken, variants=names, progress=False)
    for name in names:
        assert_same(outcome(broken, name), outcome(whole, name))


def test_live_trains_as_the_store_does(experiment: Callable[[str], Path], tmp_path: Path) -> None:
    cached, live = experiment("cached"), experiment("live")
    sweep(cached, variants=["probe", "trimodal"], progress=False)
    live.write_text(live.read_text().replace("features.zarr", "nowhere.zarr"))
    sweep(live, variants=["probe", "trimodal"], live=True, progress=False)
    for name in ("probe", "trimodal"):
        # Weights are not compared: where a gradient is rounding only (the bias of keys), Adam makes steps of it.
        found, expected = outcome(live, name), outcome(cached, name)
        for key in ("epoch0.train_loss", "epoch1.train_loss", "epoch1.val_loss", "probabilities"):
            assert torch.allclose(found[key], expected[key], rtol=1e-3, atol=1e-4), (name, key)


def test_variants_of_other_batches_are_another_group(experiment: Callable[[str], Path]) -> None:
    from talik.adapt.config.experiment import load_experiment
    from talik.adapt.training.experiment_context import ExperimentContext
    from talik.adapt.training.run_folder import RunFolder

    loaded = load_experiment(experiment("groups"))
    context = ExperimentContext(loaded)
    made = {
        n: Trainer(context, v, loaded.train_settings(v), 0, RunFolder(loaded.runs / n))
        for n in ("probe", "trimodal", "wide")
        for v in [loaded.variant(n)]
    }
    assert fused.group_key(made["probe"]) == fused.group_key(made["trimodal"])
    assert fused.group_key(made["probe"]) != fused.group_key(made["wide"])
