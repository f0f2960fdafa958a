"""What holds in float32 holds in bfloat16, each within its own rounding; what is trained stays float32."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from talik.adapt.adapters.unit_tuner import UnitTuner
from talik.adapt.config.experiment import load_experiment
from talik.adapt.evaluation.evaluate import evaluate
from talik.adapt.model.joint_model import JointModel
from talik.adapt.model.precision import Precision
from talik.adapt.training.adapt import adapt, open_trainer
from talik.adapt.training.checkpoint import Checkpointer
from talik.adapt.training.experiment_context import ExperimentContext
from talik.adapt.training.lockstep_group import train_together
from talik.adapt.training.trainer import Trainer
from talik.errors import SettingsError

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 3e-2}  # of the largest number
NARROW = Precision(torch.bfloat16)
SMALL = "d_model = 8, d_state = 4, num_latents = 2, num_heads = 2"
MORE = f"""
[[variants]]
name = "bottleneck"
insertion = "last 2"
adapter = {{ kind = "bottleneck", d_bottleneck = 4 }}

[[variants]]
name = "beside"
insertion = "last 1"
placement = "parallel"
adapter = {{ kind = "lavish", reduction = 2, groups = 1, num_latents = 2 }}

[[variants]]
name = "halves"
insertion = "last 1"
placement = "parallel"
adapter = {{ kind = "lavish", reduction = 2, groups = 1, num_latents = 2, after_attention = true }}

[[variants]]
name = "side"
insertion = "last 2"
adapter = {{ kind = "side", reduction = 4, num_heads = 2 }}

[[variants]]
name = "norm"
insertion = {{ visual = [1], audio = [1], text = [1] }}
adapter = {{ kind = "norm" }}

[[variants]]
name = "lora"
insertion = "last 2"
adapter = {{ kind = "peft:lora", r = 2 }}

[[variants]]
name = "dora"
insertion = "last 1"
adapter = {{ kind = "peft:dora", r = 2 }}

[[variants]]
name = "bitfit"
insertion = "last 1"
adapter = {{ kind = "bitfit" }}

[[variants]]
name = "finetune"
insertion = "last 1"
adapter = {{ kind = "finetune" }}

[[variants]]
name = "early"
insertion = {{ visual = [2], audio = [2], text = [2] }}
adapter = {{ kind = "trimodal", interaction = "none", {SMALL} }}
"""
NAMES = ["probe", "trimodal", "bottleneck", "beside", "halves", "side", "norm", "bitfit", "lora", "dora", "finetune"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


@pytest.fixture
def write(on_store: Callable[..., Path], tmp_path: Path) -> Callable[[str, str], Path]:
    def written(name: str, precision: str) -> Path:
        changes = ("batch_size = 8", "batch_size = 24"), ("[train]\n", f'[train]\nprecision = "{precision}"\n')
        return on_store(tmp_path / name / "exp.toml", *changes, more=MORE)

    return written


@pytest.fixture(scope="module")
def context(on_store: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExperimentContext]:
    path = on_store(tmp_path_factory.mktemp("precision") / "exp.toml", more=MORE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield ExperimentContext(load_experiment(path))
    torch.set_num_threads(threads)


def built(context: ExperimentContext, name: str, precision: Precision) -> JointModel:
    """A variant's model away from its start, so that its adapter says something."""
    model = context.build(context.experiment.variant(name), seed=0, precision=precision).eval()
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def assert_near(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    found, expected = found.detach().double(), expected.detach().double()
    gap = float((found - expected).abs().max())
    assert gap <= ROUNDING[dtype] * float(expected.abs().max()), gap


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("name", NAMES)
def test_states_from_the_store_answer_as_those_of_the_media(
    context: ExperimentContext, name: str, dtype: torch.dtype
) -> None:
    model = built(context, name, Precision(dtype))
    questions = context.questions("train")[:3]
    gradients, logits = [], []
    for source in (context.cached(model), context.live(model)):
        (batch,) = source.batches([questions])
        model.zero_grad()
        logits.append(model(batch))
        logits[-1].square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert logits[0].dtype == torch.float32
    assert_near(logits[0], logits[1], dtype)
    assert gradients[0].keys() == gradients[1].keys() != set()
    largest = max(float(g.abs().max()) for g in gradients[1].values())
    for parameter, gradient in gradients[1].items():
        assert gradient.dtype == torch.float32, parameter
        gap = float((gradients[0][parameter] - gradient).abs().max())
        assert gap <= ROUNDING[dtype] * largest, parameter
    if dtype == torch.bfloat16:  # and it answers as float32 does, but not with the same numbers
        wide = built(context, name, Precision())
        (batch,) = context.cached(wide).batches([questions])
        expected = wide(batch)
        assert_near(logits[0], expected, dtype)
        assert not torch.equal(logits[0], expected)


def test_frozen_units_are_held_narrow_and_nothing_else_is(context: ExperimentContext) -> None:
    model, other = (built(context, name, NARROW) for name in ("bottleneck", "trimodal"))
    (batch,) = context.cached(model).batches([context.questions("train")[:3]])
    for modality, state in batch.states.items():
        encoder = model.encoders[modality]
        assert state.hidden.dtype == torch.bfloat16
        assert encoder.run(state, 1, 3).hidden.dtype == torch.bfloat16
        held = {p.dtype for unit in encoder.units[1:] for p in unit.parameters()}
        assert held == {torch.bfloat16}
        assert {p.dtype for p in context.encoders[modality].model.parameters()} == {torch.float32}
        assert encoder.units[2] is other.encoders[modality].units[2]
        assert encoder.identity(1) == context.encoders[modality].identity(1)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["norm", "lora", "finetune"])
def test_units_that_are_trained_keep_float32_weights(context: ExperimentContext, name: str) -> None:
    model = built(context, name, NARROW)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert isinstance(model.adapter, UnitTuner)
    for own in model.adapter.copies.values():  # what is frozen beside them is held as in frozen units
        frozen = [p.dtype for p in own.tree.parameters() if not p.requires_grad]
        assert frozen.count(torch.bfloat16) >= 0.8 * len(frozen)
    (batch,) = context.cached(model).batches([context.questions("train")[:3]])
    model(batch).square().mean().backward()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    torch.optim.AdamW(model.parameters(), lr=1e-5).step()  # a step that bfloat16 would lose
    moved = [n for n, p in model.named_parameters() if p.grad is not None and not torch.equal(p, before[n])]
    assert any(not n.startswith("head") for n in moved)


def test_padding_says_nothing_in_either_precision(context: ExperimentContext) -> None:
    questions = sorted(context.questions("train"), key=lambda q: len(q.text))
    for dtype in ROUNDING:
        model = built(context, "trimodal", Precision(dtype))
        source = context.cached(model)
        together, alone = (model(next(iter(source.batches([asked])))) for asked in (
            [questions[0], questions[-1]], [questions[0]]
        ))  # fmt: skip
        assert_near(together[0], alone[0], dtype)


@pytest.mark.parametrize("modality", ["visual", "audio", "text"])
def test_the_end_is_held_narrow_or_runs_under_autocast(
    context: ExperimentContext, modality: str, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = context.encoders[modality]
    state = encoder.run(encoder.embed(encoder.probe()), 0, encoder.num_units)
    expected = encoder.features(encoder.finish(state))
    norms = [m for m in encoder.model.modules() if isinstance(m, torch.nn.LayerNorm)]

    def refuse(module: torch.nn.Module, given: Any) -> None:
        if module.weight.dtype == torch.bfloat16:
            raise TypeError("float32 only")

    for refuses in (False, True):
        handles = [norm.register_forward_pre_hook(refuse) for norm in norms] if refuses else []
        held = encoder.held_in(torch.bfloat16)
        with caplog.at_level("INFO"):
            found = held.features(held.finish(state))
        for handle in handles:
            handle.remove()
        assert ("the end of" in caplog.text) == (refuses and modality != "text")  # BERT's has no norm
        assert_near(found, expected, torch.bfloat16)
        assert not torch.equal(found, expected)
    assert {p.dtype for p in encoder.model.parameters()} == {torch.float32}
    assert torch.equal(encoder.features(encoder.finish(state)), expected)


def test_a_unit_that_cannot_be_held_runs_under_autocast(
    context: ExperimentContext, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = context.encoders["visual"]

    def refuse(module: torch.nn.Module, given: Any) -> None:
        if next(module.parameters()).dtype == torch.bfloat16:
            raise TypeError("float32 only")

    state = encoder.embed(encoder.probe())
    handle = encoder.units[1].register_forward_pre_hook(refuse)
    try:
        held = encoder.held_in(torch.bfloat16)
        with caplog.at_level("INFO"):
            found = held.run(state, 0, 3)
    finally:
        handle.remove()
    assert "unit 1 of" in caplog.text
    assert "float32 only" in caplog.text
    dtypes = [{p.dtype for p in unit.parameters()} for unit in held.units]
    assert dtypes == [{torch.bfloat16}, {torch.float32}, {torch.bfloat16}]
    assert found.hidden.dtype == torch.bfloat16
    assert_near(found.hidden, encoder.run(state, 0, 3).hidden, torch.bfloat16)
    assert held.held_in(torch.bfloat16) is held
    assert encoder.held_in(torch.float32) is encoder


def outcome(path: Path, variant: str) -> dict[str, Any]:
    folder = path.parent / "runs" / "exp" / variant / "seed0"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds")
    return {
        "metrics": lines,
        "predictions": (folder / "predictions.jsonl").read_text(),
        "weights": {n: t.tolist() for n, t in load_file(folder / "adapter.safetensors").items()},
    }


def train(path: Path, names: list[str], context: ExperimentContext) -> None:
    """Train variants in lockstep on encoders that are open already."""
    own = ExperimentContext(load_experiment(path))
    own.encoders = context.encoders
    opened = [open_trainer(own, name, 0) for name in names]
    assert not train_together([t for t in opened if isinstance(t, Trainer)], progress=False).failures


def test_a_narrow_run_ends_the_same_alone_in_company_resumed_and_evaluated(
    write: Any, context: ExperimentContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["early", "bottleneck", "norm"]  # the first has a frozen unit between its states and its start
    alone, together, broken = (write(name, "bfloat16") for name in ("alone", "together", "broken"))
    for name in names:
        train(alone, [name], context)
    train(together, names, context)
    for name in names:
        assert outcome(together, name) == outcome(alone, name)
    real, calls = Checkpointer.save, iter(range(9))

    def dies(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        if next(calls) == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            train(broken, ["bottleneck"], context)
    own = ExperimentContext(load_experiment(broken))
    own.encoders = context.encoders
    assert adapt(own.experiment, variant="bottleneck", resume=True, progress=False, context=own).how == "resumed"
    assert outcome(broken, "bottleneck") == outcome(alone, "bottleneck")
    folder = alone.parent / "runs" / "exp" / "bottleneck" / "seed0"
    evaluate(folder, split=json.loads((folder / "result.json").read_text())["split"])
    (evaluated,) = folder.glob("predictions-*.jsonl")
    assert evaluated.read_text() == (folder / "predictions.jsonl").read_text()


def test_stacked_units_give_the_same_within_rounding(write: Any, context: ExperimentContext) -> None:
    names = ["trimodal", "bottleneck"]
    alone, together = write("alone", "bfloat16"), write("together", "bfloat16")
    for path, stack in ((alone, "false"), (together, "true")):
        path.write_text(path.read_text().replace("epochs = 2", "epochs = 1") + f"\n[sweep]\nstack = {stack}\n")
        train(path, names, context)
    for name in names:
        ours, theirs = (outcome(p, name)["metrics"][0]["train_loss"] for p in (together, alone))
        assert ours == pytest.approx(theirs, rel=ROUNDING[torch.bfloat16])


def test_auto_is_narrow_where_the_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert Precision.of("auto", "cuda:1") == Precision(torch.bfloat16 if has else torch.float32)
        assert Precision.of("auto", "cpu") == Precision.of("float32", "cuda") == Precision(torch.float32)
        assert Precision.of("bfloat16", "cpu") == Precision(torch.bfloat16)


def test_the_earlier_name_of_the_setting_is_read(write: Any) -> None:
    path = write("earlier", "float32")
    text = path.read_text()
    for amp, precision in (("bf16", "bfloat16"), ("off", "float32"), ("auto", "auto")):
        path.write_text(text.replace('precision = "float32"', f'amp = "{amp}"'))
        assert load_experiment(path).train.precision == precision
    path.write_text(text.replace('kind = "probe" }', 'kind = "probe" }\ntrain = { amp = "bf16" }'))
    loaded = load_experiment(path)
    assert loaded.train_settings(loaded.variant("probe")).precision == "bfloat16"
    assert loaded.train_settings(loaded.variant("side")).precision == "float32"
    path.write_text(text.replace("[train]\n", '[train]\namp = "off"\n'))
    with pytest.raises(SettingsError, match=r"exp.toml: train.amp: stands beside precision"):
        load_experiment(path)
    path.write_text(text.replace('precision = "float32"', 'amp = "fp16"'))
    with pytest.raises(SettingsError, match=r"train.amp: found 'fp16'; write precision = one of \"auto\", \"float32\""):
        load_experiment(path)


def test_a_run_of_the_earlier_setting_counts_as_done(write: Any, context: ExperimentContext) -> None:
    path = write("run", "float32")
    train(path, ["probe"], context)
    folder = path.parent / "runs" / "exp" / "probe" / "seed0"
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('precision = "float32"', 'amp = "off"'))
    assert 'amp = "off"' in config.read_text()
    assert adapt(path, variant="probe", progress=False).skipped
    assert evaluate(folder, split="val").scores.overall.total > 0
