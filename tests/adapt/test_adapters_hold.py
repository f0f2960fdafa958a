"""What every registered adapter must hold: identity when untrained, all of it learns, the frozen stays frozen, and
neither padding nor batch mates matter. On trunks of three layouts; the registry says which adapters there are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from talik.adapt.adapters.peft_settings import TUNERS
from talik.adapt.adapters.registry import adapter_kind, known_adapters
from talik.adapt.config.experiment import VariantSettings, load_experiment
from talik.adapt.data.live_source import LiveSource
from talik.adapt.model.joint_model import JointModel, forward
from talik.adapt.training.experiment_context import ExperimentContext
from talik.errors import SettingsError
from talik.extract.encoders.load import load_encoder
from talik.extract.trunk.state import State

sys.path.insert(0, str(Path(__file__).parent))

from adapter_sizes import SETTINGS

KINDS = [k for k in known_adapters() if k != "probe"]
MORE: dict[str, dict[str, Any]] = {  # other choices of the adapters above
    "lavish-text": {"kind": "lavish", **SETTINGS["lavish"], "text": True, "latents": "random"},
    "dgsct-text": {"kind": "dgsct", **SETTINGS["dgsct"], "text": True, "latents": "random", "pre_norm": False},
    "lstta-softmax": {"kind": "lstta", **SETTINGS["lstta"], "importance": "softmax", "window": 0},
    "lstta-filtering": {"kind": "lstta", **SETTINGS["lstta"], "interaction": False},
    "lstta-head": {"kind": "lstta", **SETTINGS["lstta"], "filtering": False, "text": False},
    "bottleneck-norm": {"kind": "bottleneck", "d_bottleneck": 4, "pre_norm": True, "activation": "relu", "text": False},
    "side-mlp": {"kind": "side", **SETTINGS["side"], "attention": False, "text": False},
}
ADAPTERS = {**{k: {"kind": k, **SETTINGS.get(k, {})} for k in KINDS}, **MORE}
LAYOUTS = {"NLC": None, "NHWC": "timm:test_mambaout", "NCHW": "timm:test_convnext"}
# PEFT's tuners are many and enter all trunks alike: one of them is tried everywhere, the others on one layout, and how
# they learn elsewhere (test_unit_tuners).
PEFT = {n for n in ADAPTERS if n.startswith("peft:")} - {"peft:lora"}
PEFTS_OWN = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "FutureWarning")]


def of(name: str, *rest: Any) -> Any:
    return pytest.param(name, *rest, marks=PEFTS_OWN if name.startswith("peft:") else [])


PLACES = [of(n, layout) for n in ADAPTERS for layout in LAYOUTS if layout == "NLC" or n not in PEFT]


class Room:
    """A context on one visual trunk, and one batch of states at boundary 0."""

    def __init__(self, experiment: Path, layout: str) -> None:
        self.context = ExperimentContext(load_experiment(experiment))
        name = LAYOUTS[layout]
        if name is not None:
            with torch.random.fork_rng():
                torch.manual_seed(3)
                visual = load_encoder(name, modality="visual", weights="random", image_size=96)
            made = ExperimentContext(load_experiment(experiment))
            made.__dict__["encoders"] = {**self.context.encoders, "visual": visual}
            self.context = made
        trunk = self.context.encoders["visual"].trunk
        shapes = trunk.hidden_shapes
        # A unit that keeps the shape, so that an adapter may stand beside it, and that is not the last.
        self.unit = max(k for k in range(trunk.num_units - 1) if shapes[k] == shapes[k + 1])
        assert self.context.encoders["visual"]._layouts[self.unit][0] == layout
        source = LiveSource(
            self.context.manifest, self.context.encoders, dict.fromkeys(self.context.encoders, 0), self.context.sampling
        )
        questions = sorted(self.context.questions("train"), key=lambda q: len(q.text))
        self.batch = next(iter(source.batches([[questions[0], questions[-1], questions[len(questions) // 2]]])))

    def build(self, adapter: dict[str, Any], placement: str = "between") -> JointModel:
        count = 2 if placement == "between" else 1
        lists = {"visual": self.unit, "audio": 1, "text": 1}
        insertion = {m: tuple(range(k, k + count)) for m, k in lists.items()}
        if adapter["kind"] == "probe":
            return self.context.build(VariantSettings(name="v", adapter=adapter), seed=0)
        made = VariantSettings(name="v", adapter=adapter, insertion=insertion, placement=placement)  # type: ignore[arg-type]
        return self.context.build(made, seed=0)

    def logits(self, model: JointModel, states: dict[str, State] | None = None) -> torch.Tensor:
        batch = self.batch if states is None else replace(self.batch, states={**self.batch.states, **states})
        return forward(model, batch, amp="off")


@pytest.fixture(scope="module")
def rooms(extracted: Path) -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made: dict[str, Room] = {}

    def room(layout: str) -> Room:
        if layout not in made:
            made[layout] = Room(extracted, layout)
        return made[layout]

    yield room
    torch.set_num_threads(threads)


def shaken(model: JointModel) -> JointModel:
    """Give every trainable parameter, the zero ones too, a value of its own."""
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("placement", ["between", "parallel"])
@pytest.mark.parametrize(("name", "layout"), PLACES)
def test_untrained_it_changes_no_bit(rooms: Any, name: str, layout: str, placement: str) -> None:
    room = rooms(layout)
    module = adapter_kind(ADAPTERS[name]["kind"]).module
    if placement == "parallel" and (module.beside or module.tunes_units):
        with pytest.raises(SettingsError, match="remove placement"):  # it stands beside the encoders, or inside units
            room.build(ADAPTERS[name], placement)
        return
    model = room.build(ADAPTERS[name], placement).eval()
    with torch.no_grad():
        adapted = model.features(room)
        frozen = room.build({"kind": "probe"}).eval().features(room.batch)
    start = TUNERS[name.removeprefix("peft:")].starts_as if name.startswith("peft:") else "bits"
    for modality in ("visual", "audio", "text"):
        same = torch.equal(adapted[modality], frozen[modality])
        assert same == (start == "bits"), modality
        if start == "rounding":
            torch.testing.assert_close(adapted[modality], frozen[modality], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "layout"), [p for p in PLACES if p.values[0] not in PEFT])
def test_all_of_it_learns_by_the_second_step_and_the_frozen_stays(rooms: Any, name: str, layout: str) -> None:
    room = rooms(layout)
    frozen = {m: [p.clone() for p in e.model.parameters()] for m, e in room.context.encoders.items()}
    model = room.build(ADAPTERS[name]).train()
    torch.manual_seed(7)
    aim = None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        logits = room.logits(model)
        aim = torch.randn_like(logits) if aim is None else aim
        (logits * aim).sum().backward()
        optimizer.step()
    still = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().any())]
    assert still == []
    for modality, before in frozen.items():
        after = list(room.context.encoders[modality].model.parameters())
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), modality
        assert all(p.grad is None for p in after), modality


@pytest.mark.parametrize("name", [of(n) for n in ADAPTERS])
def test_what_stands_in_padding_does_not_matter(rooms: Any, name: str) -> None:
    room = rooms("NLC")
    model = shaken(room.build(ADAPTERS[name]))
    text = room.batch.states["text"]
    spoiled = text.hidden.clone()
    for row, length in enumerate(text.lengths.tolist()):
        spoiled[row, length:] = 1e3
    assert not torch.equal(spoiled, text.hidden)
    with torch.no_grad():
        clean = room.logits(model)
        assert torch.equal(clean, room.logits(model, {"text": text.replace(hidden=spoiled)}))
        spoiled[0, 0] = 5.0
        assert not torch.equal(clean, room.logits(model, {"text": text.replace(hidden=spoiled)}))


@pytest.mark.parametrize(("name", "layout"), PLACES)
def test_permuting_the_batch_permutes_the_result(rooms: Any, name: str, layout: str) -> None:
    room = rooms(layout)
    model = shaken(room.build(ADAPTERS[name]))
    order = [2, 0, 1]
    permuted = {}
    for modality, state in room.batch.states.items():
        parts = state.split(1 if modality == "text" else room.batch.num_segments)
        permuted[modality] = State.concat([parts[i] for i in order])
    with torch.no_grad():
        straight, turned = room.logits(model), room.logits(model, permuted)
    assert not torch.allclose(straight, straight[order], atol=1e-4)
    torch.testing.assert_close(turned, straight[order], rtol=1e-5, atol=1e-5 * float(straight.abs().max()))
