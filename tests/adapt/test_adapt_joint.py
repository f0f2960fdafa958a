"""Cached equals live, an untrained adapter changes nothing, padding and batch mates do not matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from talik.adapt.config.experiment import VariantSettings, load_experiment
from talik.adapt.data.batch import Batch
from talik.adapt.model.joint_model import JointModel
from talik.adapt.training.experiment_context import ExperimentContext

SIZES = {"d_model": 8, "d_state": 4, "num_latents": 2, "num_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "ssm": {},
    "audio-centred": {"center": "audio", "window": 0},
    "no-selection": {"selection": "none"},
    "attention": {"selection": "attention", "interaction": "none"},
}
INSERTIONS: dict[str, Any] = {
    "last": "last 1",
    "two": {"visual": (1, 2), "audio": (1, 1), "text": (1, 2)},
    "apart": {"visual": (1, 2), "audio": (1, 2), "text": (1, 2)},
    "end": {"visual": (3,), "audio": (3,), "text": (3,)},
}
PROBE = VariantSettings(name="probe", adapter={"kind": "probe"})


def variant(kind: str = "ssm", insertion: str = "last", placement: str = "between") -> VariantSettings:
    adapter = {"kind": "trimodal", **SIZES, **KINDS[kind]}
    return VariantSettings(name="v", adapter=adapter, insertion=INSERTIONS[insertion], placement=placement)


@pytest.fixture(scope="module")
def context(extracted: Path) -> ExperimentContext:
    """The tiny encoders and their filled store, shared: nothing here changes them."""
    return ExperimentContext(load_experiment(extracted))


def shaken(model: JointModel) -> JointModel:
    """Give every trainable parameter, the zero ones too, a value of its own."""
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def gradients(model: JointModel, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(batch)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("insertion", "placement"), [("last", "between"), ("apart", "parallel"), ("end", "between")])
def test_cached_equals_live(context: ExperimentContext, kind: str, insertion: str, placement: str) -> None:
    model = shaken(context.build(variant(kind, insertion, placement), seed=0))
    questions = list(context.questions("train"))[:7]
    cached = next(iter(context.cached(model).batches([questions])))
    live = next(iter(context.live(model).batches([questions])))
    from_store, store_grads = gradients(model, cached)
    from_media, media_grads = gradients(model, live)
    torch.testing.assert_close(from_store, from_media, rtol=1e-5, atol=1e-5 * float(from_media.abs().max()))
    assert store_grads.keys() == media_grads.keys() == {n for n, _ in model.named_parameters()}
    largest = max(float(grad.abs().max()) for grad in media_grads.values())
    for name, grad in media_grads.items():
        own = float(grad.abs().max())
        assert own > 0, name
        # The smallest gradients are what is left of much larger terms: their rounding is on those terms' scale.
        scale = max(own, 0.01 * largest)
        torch.testing.assert_close(
            store_grads[name], grad, rtol=1e-5, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("insertion", "placement"), [("last", "between"), ("two", "between"), ("apart", "parallel")])
def test_untrained_adapter_is_the_frozen_model_to_the_bit(
    context: ExperimentContext, kind: str, insertion: str, placement: str
) -> None:
    with_adapter = context.build(variant(kind, insertion, placement), seed=0).eval()
    without = context.build(PROBE, seed=0).eval()
    batch = next(iter(context.cached(with_adapter).batches([list(context.questions("train"))[:5]])))
    adapted = with_adapter.features(batch)
    frozen = without.features(batch)
    for modality in ("visual", "audio", "text"):
        assert torch.equal(adapted[modality], frozen[modality]), modality
    for name, weight in without.head.state_dict().items():
        assert torch.equal(weight, with_adapter.head.state_dict()[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_parameter_learns_by_the_second_step(context: ExperimentContext, kind: str) -> None:
    model = context.build(variant(kind), seed=0).train()
    batch = next(iter(context.cached(model).batches([list(context.questions("train"))[:8]])))
    frozen = {m: [p.clone() for p in e.model.parameters()] for m, e in context.encoders.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        _, grads = gradients(model, batch)
        optimizer.step()
    unmoved = [n for n, p in model.named_parameters() if n not in grads or not grads[n].abs().any()]
    assert unmoved == []
    for modality, before in frozen.items():
        after = list(context.encoders[modality].model.parameters())
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), modality


def test_a_question_alone_equals_the_question_in_a_padded_batch(context: ExperimentContext) -> None:
    model = shaken(context.build(variant(), seed=0))
    questions = sorted(context.questions("train"), key=lambda q: len(q.text))
    mixed = [questions[0], questions[-1], questions[len(questions) // 2]]
    source = context.cached(model)
    with torch.no_grad():
        together = model(next(iter(source.batches([mixed]))))
        back = model(next(iter(source.batches([mixed[::-1]]))))
        for i, question in enumerate(mixed):
            alone = model(next(iter(source.batches([[question]]))))[0]
            torch.testing.assert_close(alone, together[i], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(alone, back[len(mixed) - 1 - i], rtol=1e-5, atol=1e-5)
    lengths = next(iter(source.batches([mixed]))).states["text"].lengths
    assert lengths is not None
    assert lengths.unique().numel() > 1


def test_what_stands_in_padding_does_not_matter(context: ExperimentContext) -> None:
    model = shaken(context.build(variant(), seed=0))
    questions = sorted(context.questions("train"), key=lambda q: len(q.text))
    batch = next(iter(context.cached(model).batches([[questions[0], questions[-1]]])))
    text = batch.states["text"]
    assert text.lengths is not None
    spoiled = text.hidden.clone()
    spoiled[0, int(text.lengths[0]) :] = 1e3
    changed = replace(batch, states={**batch.states, "text": text.replace(hidden=spoiled)})
    with torch.no_grad():
        assert torch.equal(model(batch), model(changed))


def test_nothing_below_the_first_insertion_builds_a_graph(context: ExperimentContext) -> None:
    model = context.build(variant(), seed=0)
    batch = next(iter(context.live(context.build(variant(), seed=0)).batches([list(context.questions("train"))[:2]])))
    assert not any(s.hidden.requires_grad for s in batch.states.values())
    features = model.features(batch)
    assert all(f.requires_grad for f in features.values())
    probe = context.build(PROBE, seed=0)
    assert not any(f.requires_grad for f in probe.features(batch).values())
