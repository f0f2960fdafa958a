"""The side network never runs what is cached and never runs a unit backward; the second adapter after the attention
stands where it should; every published adapter trains from one line of TOML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from talik.adapt.config.experiment import VariantSettings, load_experiment
from talik.adapt.model.after_attention import place_after_attention, run_with_second
from talik.adapt.model.joint_model import JointModel
from talik.adapt.training.experiment_context import ExperimentContext
from talik.cli import app
from talik.errors import SettingsError
from talik.extract.encoders.load import load_encoder

SIDE: dict[str, Any] = {"kind": "side", "reduction": 4, "num_heads": 2}
LINES = {
    "lavish": 'adapter = { kind = "lavish", reduction = 4, groups = 2 }',
    "lavish-published": 'placement = "parallel"\n'
    'adapter = { kind = "lavish", reduction = 4, groups = 2, cross_gate = 0.0, after_attention = true }',
    "lstta": 'adapter = { kind = "lstta", d_model = 8 }',
    "dgsct": 'placement = "parallel"\nadapter = { kind = "dgsct", reduction = 4, groups = 2 }',
    "bottleneck": 'adapter = { kind = "bottleneck" }',
    "parallel": 'placement = "parallel"\nadapter = { kind = "parallel" }',
    "side": 'adapter = { kind = "side", reduction = 4, num_heads = 2 }',
}


@pytest.fixture(scope="module")
def context(extracted: Path) -> ExperimentContext:
    return ExperimentContext(load_experiment(extracted))


def variant(adapter: dict[str, Any], *boundaries: int, placement: Any = "between") -> VariantSettings:
    insertion = dict.fromkeys(("visual", "audio", "text"), tuple(boundaries))
    return VariantSettings(name="v", adapter=adapter, insertion=insertion, placement=placement)  # type: ignore[arg-type]


def shaken(model: JointModel) -> JointModel:
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


class Units:
    """Counts the units that run, and those that run backward."""

    def __init__(self, context: ExperimentContext) -> None:
        self.forward: list[tuple[str, int]] = []
        self.backward: list[tuple[str, int]] = []
        self.handles = []
        for modality, encoder in context.encoders.items():
            for k, unit in enumerate(encoder.units):
                place = (modality, k)
                # A part of the unit: the unit itself is also called, and skipped, where only its neighbours are wanted.
                part = next(m for m in unit.modules() if isinstance(m, torch.nn.Linear))
                self.handles += [
                    part.register_forward_hook(lambda *_, place=place: self.forward.append(place)),
                    part.register_full_backward_hook(lambda *_, place=place: self.backward.append(place)),
                ]

    def __enter__(self) -> Units:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize(
    ("rungs", "residual", "expected"), [((1, 3), True, []), ((1, 3), False, []), ((1, 2), True, [1]), ((1,), True, [])]
)
def test_cached_states_spare_every_unit(
    context: ExperimentContext, rungs: tuple[int, ...], residual: bool, expected: list[int]
) -> None:
    model = shaken(context.build(variant({**SIDE, "residual": residual}, *rungs), seed=0))
    questions = list(context.questions("train"))[:5]
    cached = next(iter(context.cached(model).batches([questions])))  # boundaries 1 and 3 are in the store
    live = next(iter(context.live(model).batches([questions])))
    with Units(context) as units:
        logits = model(cached)
        logits.sum().backward()
    assert units.forward == [(m, k) for m in ("visual", "audio", "text") for k in expected]
    assert units.backward == []
    assert all(p.grad is not None for p in model.parameters())
    again = model(live).detach()
    torch.testing.assert_close(logits.detach(), again, rtol=1e-4, atol=1e-5 * float(again.abs().max()))


def test_without_the_ends_the_head_reads_the_ladder_alone(context: ExperimentContext) -> None:
    model = shaken(context.build(variant({**SIDE, "residual": False, "text": False}, 1, 2), seed=0))
    features = model.features(next(iter(context.cached(model).batches([list(context.questions("train"))[:3]]))))
    assert features["visual"].shape == (3, context.sampling.num_segments, 5, 24)
    assert features["visual"].requires_grad
    assert not features["text"].requires_grad
    assert model.reads() == {"visual": (1, 2), "audio": (1, 2), "text": (3,)}


def test_a_ladder_that_heads_do_not_divide_is_refused(context: ExperimentContext) -> None:
    with pytest.raises(SettingsError, match="leave a ladder of 6, expected a multiple of num_heads = 4"):
        context.build(variant({**SIDE, "num_heads": 4}, 1, 2), seed=0)


AFTER = {"kind": "lavish", "reduction": 4, "groups": 2, "after_attention": True}


def test_after_attention_untrained_changes_no_bit_and_learns(context: ExperimentContext) -> None:
    model = context.build(variant(AFTER, 1, 2, placement="parallel"), seed=0)
    batch = next(iter(context.cached(model).batches([list(context.questions("train"))[:4]])))
    probe = context.build(VariantSettings(name="p", adapter={"kind": "probe"}), seed=0).eval()
    with torch.no_grad():
        adapted, frozen = (m.eval().features(batch) for m in (model, probe))
    assert all(torch.equal(adapted[m], frozen[m]) for m in frozen)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        logits = model(batch)
        (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
        optimizer.step()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()] == []


def test_after_attention_needs_a_unit_to_stand_in(context: ExperimentContext) -> None:
    with pytest.raises(SettingsError, match='after_attention: found placement = "between", expected "parallel"'):
        context.build(variant(AFTER, 1), seed=0)


def test_the_place_after_the_attention_is_where_the_sum_is(context: ExperimentContext) -> None:
    """Each encoder's own modules, put together by hand: norms ahead, scaled branches, norms behind."""
    torch.manual_seed(4)
    vit = load_encoder("timm:test_vit", modality="visual", weights="random")
    block = vit.units[1]
    state = vit.run(vit.embed(vit.probe()), 0, 1)
    delta = torch.randn(state.tokens().shape)
    middle, after = run_with_second(vit, state, place_after_attention(vit, state), delta)
    with torch.no_grad():
        summed = state.hidden + block.drop_path1(block.ls1(block.attn(block.norm1(state.hidden)))) + delta
        torch.testing.assert_close(middle.hidden, summed)
        torch.testing.assert_close(after.hidden, summed + block.ls2(block.mlp(block.norm2(summed))))
    bert = context.encoders["text"]
    state = bert.run(bert.embed(bert.preprocess(["is the violin in the video ?"])), 0, 1)
    delta = torch.randn(state.tokens().shape)
    middle, after = run_with_second(bert, state, place_after_attention(bert, state), delta)
    layer: Any = bert.units[1]
    with torch.no_grad():
        normed = layer.attention.output.LayerNorm(middle.hidden)
        plain = layer.attention.output.dense(layer.attention.self(state.hidden)[0]) + state.hidden
        torch.testing.assert_close(middle.hidden, plain + delta)
        torch.testing.assert_close(after.hidden, layer.output(layer.intermediate(normed), normed))
    for modality in ("visual", "audio"):  # DINOv2 scales its branches, Whisper does not
        encoder = context.encoders[modality]
        state = encoder.run(encoder.embed(encoder.probe()), 0, 1)
        middle, after = run_with_second(encoder, state, place_after_attention(encoder, state), None)
        assert torch.equal(after.hidden, encoder.run(state, 1, 2).hidden)
        assert not torch.equal(middle.hidden, after.hidden)


def test_a_unit_without_such_a_place_is_refused() -> None:
    encoder = load_encoder("timm:test_convnext", modality="visual", weights="random", image_size=96)
    state = encoder.embed(encoder.probe())
    with pytest.raises(SettingsError, match="leave after_attention out") as caught:
        place_after_attention(encoder, state)
    assert "\n" not in str(caught.value)


def test_nothing_stands_beside_a_unit_that_changes_its_tokens(context: ExperimentContext, extracted: Path) -> None:
    made = ExperimentContext(load_experiment(extracted))
    visual = load_encoder("timm:test_convnext", modality="visual", weights="random", image_size=96)
    made.encoders = {**context.encoders, "visual": visual}
    shapes = visual.trunk.hidden_shapes
    unit = next(k for k in range(visual.num_units) if shapes[k] != shapes[k + 1])
    insertion = {"visual": (unit,), "audio": (1,), "text": (1,)}
    chosen = VariantSettings(name="v", adapter={"kind": "parallel"}, insertion=insertion, placement="parallel")
    model = made.build(chosen, seed=0)
    batch = next(iter(made.live(model).batches([list(made.questions("train"))[:1]])))
    with pytest.raises(SettingsError, match=f"unit {unit} of the visual encoder changes its tokens"):
        model(batch)


@pytest.mark.parametrize("name", LINES)
def test_it_trains_from_a_line_of_toml(on_store: Callable[..., Path], tmp_path: Path, name: str) -> None:
    variant = f'\n[[variants]]\nname = "{name}"\ninsertion = "last 2"\n{LINES[name]}\n'
    path = on_store(tmp_path / "exp.toml", ("epochs = 2", "epochs = 1"), more=variant)
    done = CliRunner().invoke(app, ["adapt", str(path), "--variant", name, "--quiet"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "accuracy" in done.output
    assert (tmp_path / "runs" / "exp" / name / "seed0" / "adapter.safetensors").is_file()
