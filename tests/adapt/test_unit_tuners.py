"""What trains inside units: the frozen encoders stay as they are, what is named is trained, and PEFT's formats hold."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from talik.adapt.adapters.peft_settings import TUNERS, PeftSettings
from talik.adapt.adapters.registry import adapter_kind, adapter_settings
from talik.adapt.adapters.unit_tuner import UnitTuner
from talik.errors import SettingsError
from talik.extract.encoders.encoder import Encoder
from talik.extract.encoders.load import load_encoder

sys.path.insert(0, str(Path(__file__).parent))

from adapter_sizes import SETTINGS

ROWS = ("bitfit", "norm", "finetune")
PEFT = tuple(f"peft:{name}" for name in TUNERS)
UNITS = {"visual": (2,), "text": (1, 2)}
ROUNDING = 1e-6
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # PEFT's own


@pytest.fixture(scope="module")
def encoders(tiny_encoders: dict[str, Path]) -> dict[str, Encoder]:
    """The tiny picture and text encoders, opened once: nothing here may change them."""
    return {
        "visual": load_encoder(f"hf:{tiny_encoders['visual']}", modality="visual", image_size=28),
        "text": load_encoder(f"hf:{tiny_encoders['text']}", modality="text"),
    }


def build(kind: str, encoders: Mapping[str, Encoder], units: Mapping[str, tuple[int, ...]] = UNITS) -> UnitTuner:
    table = {"kind": kind, **SETTINGS.get(kind, {})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: Any = adapter_kind(kind).module
        return module(adapter_settings(table), encoders, units)


def ends(encoders: Mapping[str, Encoder]) -> dict[str, Tensor]:
    out = {}
    for modality, encoder in encoders.items():
        state = encoder.embed(encoder.probe())
        out[modality] = encoder.run(state, 0, encoder.num_units).hidden
    return out


def train(adapter: UnitTuner, steps: int = 2) -> None:
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        hidden = ends(adapter.encoders).values()
        torch.stack([(h * torch.linspace(-1, 1, h.numel()).view_as(h)).sum() for h in hidden]).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ROWS + PEFT)
def test_an_adapter_in_units_trains_its_own_and_nothing_else(
    kind: str, encoders: dict[str, Encoder], tmp_path: Path, tiny_encoders: dict[str, Path]
) -> None:
    frozen = {m: {n: t.clone() for n, t in e.model.state_dict().items()} for m, e in encoders.items()}
    with torch.no_grad():
        before = ends(encoders)
    torch.manual_seed(0)
    adapter = build(kind, encoders).train()
    starts_as = "bits" if kind in ROWS else TUNERS[kind.removeprefix("peft:")].starts_as
    with torch.no_grad():
        untrained = ends(adapter.encoders)
    for modality in UNITS:
        gap = float((untrained[modality] - before[modality]).abs().max())
        assert {"bits": gap == 0, "rounding": 0 < gap < ROUNDING, "changed": gap > ROUNDING}[starts_as], gap
    train(adapter)
    still = [n for n, p in adapter.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert still == []
    assert all(p.requires_grad for p in adapter.parameters())
    with torch.no_grad():
        trained = ends(adapter.eval().encoders)
        assert all(not torch.equal(trained[m], untrained[m]) for m in UNITS)
        assert all(torch.equal(after, before[m]) for m, after in ends(encoders).items())
    for modality, encoder in encoders.items():
        assert all(torch.equal(t, frozen[modality][n]) for n, t in encoder.model.state_dict().items())

    torch.manual_seed(1)  # what is drawn anew must not matter to what is loaded
    other = build(kind, encoders).eval()
    other.load_state_dict(adapter.state_dict())
    with torch.no_grad():
        again = ends(other.encoders)
    assert all(torch.equal(again[m], trained[m]) for m in UNITS)
    if kind in PEFT:
        adapter.export(tmp_path)  # type: ignore[operator]
        equals_peft_alone(adapter, tmp_path, tiny_encoders)


def equals_peft_alone(adapter: UnitTuner, folder: Path, tiny_encoders: dict[str, Path]) -> None:
    """What was exported, loaded by PEFT onto the whole text encoder, gives the same."""
    import peft
    import transformers

    plain = transformers.BertModel.from_pretrained(tiny_encoders["text"]).eval()
    loaded = peft.PeftModel.from_pretrained(plain, folder / "peft" / "text").eval()
    ours = adapter.encoders["text"]
    with torch.no_grad():
        state = ours.embed(ours.probe())
        expected = ours.features(ours.finish(ours.run(state, 0, ours.num_units)))
        found = loaded(**ours.probe()).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_rows_train_what_they_say(encoders: dict[str, Encoder]) -> None:
    every = build("finetune", encoders)
    names = {n for n, _ in every.named_parameters()}
    assert {n for n, _ in build("bitfit", encoders).named_parameters()} == {n for n in names if n.endswith("bias")}
    norms = {n for n, _ in build("norm", encoders).named_parameters()}
    assert norms == {n for n in names if "norm" in n.lower()}
    inside = sum(p.numel() for p in encoders["text"].units[1].parameters())
    assert sum(p.numel() for n, p in every.named_parameters() if n.startswith("text.encoder.layer.1.")) == inside
    assert every.num_replaced == sum(p.numel() for p in every.parameters())


def test_frozen_modules_stay_in_eval_mode_and_pefts_follow(encoders: dict[str, Encoder]) -> None:
    module: Any = adapter_kind("peft:lora").module
    settings = adapter_settings({"kind": "peft:lora", "lora_dropout": 0.5})
    adapter = module(settings, encoders, UNITS).train()
    modules = dict(adapter.copies["text"].tree.named_modules())
    dropouts = {n: m.training for n, m in modules.items() if isinstance(m, torch.nn.Dropout)}
    assert any("lora_dropout" in n for n in dropouts)
    assert all(training == ("lora_dropout" in n) for n, training in dropouts.items())
    assert not any(m.training for m in adapter.eval().copies["text"].tree.modules())


def test_target_modules_by_name_and_by_modality(encoders: dict[str, Encoder], tmp_path: Path) -> None:
    table = {"kind": "peft:lora", "r": 2, "target_modules": {"visual": ["q_proj", "v_proj"], "text": ["query"]}}
    module: Any = adapter_kind("peft:lora").module
    adapter = module(adapter_settings(table), encoders, UNITS)
    touched = {n.partition(".lora")[0] for n, _ in adapter.named_parameters()}
    assert touched == {
        "visual.encoder.layer.2.attention.q_proj",
        "visual.encoder.layer.2.attention.v_proj",
        "text.encoder.layer.1.attention.self.query",
        "text.encoder.layer.2.attention.self.query",
    }
    adapter.export(tmp_path)
    config = json.loads((tmp_path / "peft" / "text" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == 2
    assert config["target_modules"] == sorted(n.removeprefix("text.") for n in touched if n.startswith("text."))
    with pytest.raises(SettingsError, match=r"peft:lora on the visual encoder: .*nowhere.* not found"):
        module(adapter_settings({"kind": "peft:lora", "target_modules": ["nowhere"]}), encoders, UNITS)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "peft:lra"}, "did you mean 'peft:.*lora'"),
        ({"kind": "peft:lora", "lora_alfa": 3}, "unknown key 'lora_alfa'; did you mean 'lora_alpha'"),
        ({"kind": "peft:lora", "r": "8"}, "adapter.r: found '8', expected a whole number"),
        ({"kind": "peft:dora", "use_dora": False}, "unknown key 'use_dora'"),
        ({"kind": "peft:lora", "modules_to_save": ["x"]}, "unknown key 'modules_to_save'"),
        ({"kind": "peft:lora", "target_modules": {"sound": ["q"]}}, "unknown modality 'sound'"),
        ({"kind": "peft:ia3", "feedforward_modules": ["q"], "target_modules": ["v"]}, "PEFT refuses these settings"),
        ({"kind": "norm", "gain": True}, "unknown key 'gain'"),
    ],
)
def test_mistakes_are_named_in_one_line(table: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        adapter_settings(table)
    assert "\n" not in str(caught.value)


def test_units_without_what_is_to_be_trained_are_named(encoders: dict[str, Encoder]) -> None:
    bare = torch.nn.Linear(2, 2, bias=False)
    copies: Any = type("Copies", (), {"tree": bare, "units": (0, 1)})()
    adapter = build("bitfit", encoders)
    with pytest.raises(SettingsError, match="text: no bias in units 0, 1; leave text out"):
        adapter.prepare("text", copies)


def test_adalora_allots_its_ranks_while_it_is_trained(encoders: dict[str, Encoder]) -> None:
    table = {"kind": "peft:adalora", "init_r": 4, "target_r": 1, "tinit": 1, "tfinal": 2, "deltaT": 1}
    settings: PeftSettings = adapter_settings(table)
    module: Any = adapter_kind("peft:adalora").module
    adapter = module(settings, encoders, {"text": (2,)})
    adapter.begin_training(10)
    assert float(adapter.extra_loss().detach()) > 0
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    for step in range(10):
        optimizer.zero_grad()
        hidden = ends({"text": adapter.encoders["text"]})["text"]
        ((hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum() + adapter.extra_loss()).backward()
        optimizer.step()
        adapter.after_step(step)
    config = adapter.models["text"].peft_config["default"]
    ranks = {n: sum(kept) for n, kept in config.rank_pattern.items()}
    assert len(ranks) == 6  # the linear layers of a unit
    assert sum(ranks.values()) == 6 * 1
    left = {n: int(p.ne(0).sum()) for n, p in adapter.named_parameters() if "lora_E" in n}
    assert sum(left.values()) == sum(ranks.values())
    state = adapter.training_state()
    fresh = module(settings, encoders, {"text": (2,)})
    fresh.load_training_state(state)
    assert fresh.models["text"].peft_config["default"].rank_pattern == config.rank_pattern
    with pytest.raises(SettingsError, match="leave nothing of 3 training steps"):
        adapter.begin_training(3)
