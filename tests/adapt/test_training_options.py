"""What [train] offers beside the plain loop: accumulation, averages, recomputed and compiled units; and older runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from talik.adapt.config.experiment import Experiment, TrainSettings, VariantSettings, load_experiment
from talik.adapt.sweep.sweep import sweep
from talik.adapt.training.adapt import adapt, open_trainer
from talik.adapt.training.checkpoint import Checkpointer
from talik.adapt.training.experiment_context import ExperimentContext
from talik.adapt.training.lockstep_group import SharedBatches
from talik.adapt.training.optimizer import Averages
from talik.adapt.training.trainer import Trainer
from talik.errors import RunError, SettingsError
from talik.extract.encoders.pretrained_encoder import PretrainedEncoder
from talik.extract.trunk.state import State


@pytest.fixture(scope="module")
def context(extracted: Path) -> Iterator[ExperimentContext]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield ExperimentContext(load_experiment(extracted))
    torch.set_num_threads(threads)


@pytest.fixture
def write(in_few_steps: Callable[..., Path], tmp_path: Path) -> Callable[..., Experiment]:
    def written(name: str, *, task: str = "", tables: str = "", **train: Any) -> Experiment:
        path = in_few_steps(tmp_path / name / "exp.toml", ("[task]\n", f"[task]\n{task}\n"), more=tables)
        text = path.read_text(encoding="utf-8")
        for key, value in train.items():
            text = re.sub(rf"(?m)^{key} = .*\n", "", text)
            text = text.replace("[train]\n", f"[train]\n{key} = {json.dumps(value)}\n")
        path.write_text(text, encoding="utf-8")
        return load_experiment(path)

    return written


def trained(experiment: Experiment, context: ExperimentContext, variant: str = "trimodal", **how: Any) -> Path:
    own = ExperimentContext(experiment)
    own.encoders = context.encoders
    return adapt(experiment, variant=variant, progress=False, context=own, **how).folder


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records]


def same_weights(one: Path, other: Path) -> bool:
    a, b = load_file(one / "adapter.safetensors"), load_file(other / "adapter.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_accumulated_steps_are_those_of_one_large_batch(write: Any, context: ExperimentContext) -> None:
    count = len(context.questions("train"))
    size = next(s for s in range(8, 16) if count % (2 * s) > s)  # the last step takes a whole and a smaller batch
    large = trained(write("large", task="dropout = 0.0", batch_size=2 * size), context)
    parts = trained(write("parts", task="dropout = 0.0", batch_size=size, accumulate=2), context)
    for one, other in zip(epochs_of(parts), epochs_of(large), strict=True):
        assert one.get("step") == other.get("step")
        if one["event"] == "epoch":
            assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
            assert one["val_loss"] == pytest.approx(other["val_loss"], abs=1e-4)
    ours, theirs = (load_file(f / "adapter.safetensors") for f in (parts, large))
    gap = sum(float((ours[n] - theirs[n]).square().sum()) for n in theirs) ** 0.5
    assert gap < 1e-3 * sum(float(t.square().sum()) for t in theirs.values()) ** 0.5


def test_the_gradient_of_accumulated_batches_is_that_of_their_questions(write: Any, context: ExperimentContext) -> None:
    count = len(context.questions("train"))
    size = next(s for s in range(16, 24) if count % s)
    made: list[dict[str, torch.Tensor]] = []
    for batch_size, accumulate in ((size, count), (count, 1)):  # the epoch is one step, its last batch a smaller one
        experiment = write(
            f"by-{batch_size}", task="dropout = 0.0", batch_size=batch_size, accumulate=accumulate, clip_norm=0.0
        )
        own = ExperimentContext(experiment)
        own.encoders = context.encoders
        opened = open_trainer(own, "trimodal", 0)
        assert isinstance(opened, Trainer)
        opened.begin_epoch()
        with opened.own_random_stream():
            for batch in opened.source.batches(opened.data.train_batches(0)):
                opened.step(batch)
        assert opened.progress.step == opened.data.steps_per_epoch == 1
        made.append({n: p.grad for n, p in opened.model.named_parameters() if p.grad is not None})
    assert made[0].keys() == made[1].keys()
    for name, expected in made[1].items():
        torch.testing.assert_close(made[0][name], expected, rtol=1e-4, atol=1e-6 * float(1 + expected.abs().max()))


def test_members_of_a_group_accumulate_each_its_own(write: Any, context: ExperimentContext) -> None:
    more = '\n[[variants]]\nname = "slow"\nadapter = { kind = "probe" }\ntrain = { accumulate = 3 }\n'
    alone, together = write("alone", tables=more), write("together", tables=more)
    solo = trained(alone, context, "slow")
    runs = sweep(together, variants=["probe", "slow"], progress=False).runs
    assert json.loads((runs[1].folder / "result.json").read_text())["together"] == 2
    assert same_weights(runs[1].folder, solo)
    assert epochs_of(runs[1].folder) == epochs_of(solo)
    assert epochs_of(solo)[0]["step"] < epochs_of(runs[0].folder)[0]["step"]


def test_a_run_with_every_option_resumes_exactly(
    write: Any, context: ExperimentContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 3, "accumulate": 3, "group_by_clip": True, "checkpoint_units": True, "ema": 0.8}
    whole, broken = trained(write("whole", **options), context), write("broken", **options)
    real, calls = Checkpointer.save, iter(range(9))

    def dies(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        if next(calls) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            trained(broken, context)
    torch.manual_seed(99)
    resumed = trained(broken, context, resume=True)
    assert epochs_of(resumed) == epochs_of(whole)
    assert same_weights(resumed, whole)
    plain = trained(write("plain"), context)
    assert epochs_of(plain)[0]["train_loss"] != epochs_of(whole)[0]["train_loss"]


def test_averages_are_those_of_torch() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    ours = Averages(model, 0.9)
    assert ours.state() == {}
    for _ in range(4):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        ours.update()
        theirs.update_parameters(model)
    trained = model.weight.detach().clone()
    with ours.in_place():
        assert torch.equal(model.weight, theirs.module.weight)
        assert model.weight.requires_grad
    assert torch.equal(model.weight, trained)
    again = Averages(model, 0.9)
    again.load(ours.state())
    with again.in_place():
        assert torch.equal(model.weight, theirs.module.weight)


def test_what_is_evaluated_and_saved_is_the_average(write: Any, context: ExperimentContext) -> None:
    experiment = write("ema", ema=0.5)
    kept: list[dict[str, torch.Tensor]] = []
    real = Averages.update

    def update(self: Averages) -> None:
        real(self)
        kept.append({n: t.clone() for n, t in self.state().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Averages, "update", update)
        folder = trained(experiment, context, "probe")
    result = json.loads((folder / "result.json").read_text())
    steps = epochs_of(folder)[result["best_epoch"] - 1]["step"]
    saved = load_file(folder / "adapter.safetensors")
    assert all(torch.equal(saved[name], mean) for name, mean in kept[steps - 1].items())
    plain = load_file(trained(write("plain"), context, "probe") / "adapter.safetensors")
    assert any(not torch.equal(saved[name], plain[name]) for name in saved)


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("kind", ["bottleneck", "peft:lora"])
def test_recomputed_units_give_the_same_gradients_from_fewer_bytes(context: ExperimentContext, kind: str) -> None:
    own = {"d_bottleneck": 4} if kind == "bottleneck" else {"r": 2, "lora_dropout": 0.3}
    insertion = {"visual": (0,), "audio": (0,), "text": (0,)}
    variant = VariantSettings(name="v", adapter={"kind": kind, **own}, insertion=insertion)
    model = context.build(variant, seed=0).train()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = next(iter(context.live(model).batches([context.questions("train")[:4]])))
    gradients, sizes = [], []
    for recompute in (False, True):
        model.recompute_units = recompute
        model.zero_grad()
        torch.manual_seed(5)
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = model(batch).square().mean()
        loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        sizes.append(sum(kept.values()))
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert sizes[1] < 0.7 * sizes[0]


def test_compiled_units_give_the_same_states_and_are_shared(context: ExperimentContext) -> None:
    encoder = context.encoders["text"]
    made: Any = {}
    compiled = encoder.compiled(made, backend="eager")
    assert len(made) == encoder.num_units
    again = encoder.compiled(made, backend="eager")
    assert [id(u) for u in again.units] == [id(u) for u in compiled.units] != [id(u) for u in encoder.units]
    state = encoder.embed(encoder.preprocess(["how many violin ?", "first"]))
    for ours, theirs in ((compiled, encoder), (again, encoder)):
        assert torch.equal(ours.run(state, 0, 3).hidden, theirs.run(state, 0, 3).hidden)
    torch.compiler.reset()


def test_compile_off_cuda_says_what_to_do(write: Any, context: ExperimentContext) -> None:
    with pytest.raises(SettingsError, match="compile: is for CUDA, found device cpu; remove it, or add --device cuda"):
        trained(write("compiled", compile=True), context, "probe")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and a torch built for it")
def test_a_compiled_run_on_a_gpu(write: Any) -> None:
    experiment = write("compiled", compile=True, precision="float32")
    plain = write("plain", precision="float32")
    ours = epochs_of(adapt(experiment, variant="trimodal", device="cuda", progress=False).folder)
    theirs = epochs_of(adapt(plain, variant="trimodal", device="cuda", progress=False).folder)
    assert ours[0]["train_loss"] == pytest.approx(theirs[0]["train_loss"], rel=1e-3)


def test_a_run_of_before_these_settings_still_counts_as_done(write: Any, context: ExperimentContext) -> None:
    folder = trained(write("old"), context, "probe")
    config = folder / "config.toml"
    new = ("accumulate", "group_by_clip", "checkpoint_units", "ema", "compile", "read_path")
    lines = config.read_text().splitlines()
    older = "\n".join(line for line in lines if line.split(" = ")[0] not in new)
    assert len(older.splitlines()) == len(lines) - len(new)
    config.write_text(older)
    experiment = load_experiment(folder.parents[3] / "exp.toml")
    assert adapt(experiment, variant="probe", progress=False).skipped
    shutil.rmtree(folder)
    trained(experiment, context, "probe")
    config.write_text(older)
    path = folder.parents[3] / "exp.toml"
    path.write_text(path.read_text().replace("[train]\n", "[train]\naccumulate = 2\n"))
    with pytest.raises(RunError, match=r"train\.accumulate: requested 2, stored 1"):
        adapt(load_experiment(path), variant="probe", progress=False)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("accumulate", 0, "accumulate: found 0, expected at least 1"),
        ("ema", 1.0, "ema: found 1.0, expected at least 0 and less than 1"),
    ],
)
def test_options_out_of_range_are_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TrainSettings(**{key: value})


def test_units_that_nothing_trained_has_entered_run_once_for_a_group(
    write: Any, context: ExperimentContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    run = PretrainedEncoder.run

    def counted(self: PretrainedEncoder, state: State, start: int, stop: int) -> State:
        rows.append(state.hidden.shape[0] * (stop - start))
        return run(self, state, start, stop)

    monkeypatch.setattr(PretrainedEncoder, "run", counted)
    monkeypatch.setattr(Trainer, "count_flops", lambda *_: None)  # it runs units for each variant by itself
    more = "".join(
        f'\n[[variants]]\nname = "beside{i}"\ninsertion = "last 1"\nplacement = "parallel"\n'
        f'adapter = {{ kind = "lavish", reduction = 2, groups = 1, num_latents = 2 }}\ntrain = {{ lr = {i + 1}e-3 }}\n'
        for i in range(3)
    )
    solo = trained(write("alone", tables=more), context, "beside1")
    alone = sum(rows)
    rows.clear()
    runs = sweep(write("together", tables=more), variants=["beside0", "beside1", "beside2"], progress=False).runs
    assert sum(rows) == alone > 0  # the unit that the adapters stand beside is the last
    assert same_weights(runs[1].folder, solo)
    assert not same_weights(runs[1].folder, runs[0].folder)


def test_variants_of_equal_boundaries_share_one_source(write: Any, context: ExperimentContext) -> None:
    more = '\n[[variants]]\nname = "gentle"\nadapter = { kind = "probe" }\ntrain = { lr = 1e-4 }\n'
    own = ExperimentContext(write("shared", tables=more))
    own.encoders = context.encoders
    opened = [open_trainer(own, name, 0) for name in ("probe", "gentle")]
    trainings = [t for t in opened if isinstance(t, Trainer)]
    assert trainings[0].source is trainings[1].source
    for together in (trainings[:1], trainings):
        assert SharedBatches(own, together).source is trainings[0].source
    other = open_trainer(own, "trimodal", 0)
    assert isinstance(other, Trainer)
    assert other.source is not trainings[0].source
