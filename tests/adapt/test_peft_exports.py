"""What PEFT loads from an export is the model that was trained, whatever the tuner's start was and drew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from talik.adapt.adapters.registry import adapter_kind, adapter_settings
from talik.adapt.adapters.unit_tuner import UnitTuner
from talik.extract.encoders.encoder import Encoder
from talik.extract.encoders.load import load_encoder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # PEFT's own

NAMES = "encoder.layer.1.attention.self.query"
STARTS: list[dict[str, Any]] = [
    {"init_lora_weights": False},
    {"init_lora_weights": "gaussian"},
    {"init_lora_weights": "orthogonal"},
    {"init_lora_weights": "mica"},
    {"init_lora_weights": "olora", "r": 3},
    {"init_lora_weights": "pissa", "lora_alpha": 5},
    {"init_lora_weights": "pissa_niter_2"},
    {"init_lora_weights": "pissa_niter_16", "r": 4, "use_rslora": True, "lora_dropout": 0.3},
    {"init_lora_weights": "pissa_niter_4", "r": 2, "rank_pattern": {NAMES: 5}, "alpha_pattern": {"value": 3}},
    {"init_lora_weights": "pissa_niter_3", "use_dora": True},
    {"init_lora_weights": "olora", "use_dora": True, "use_rslora": True},
]


@pytest.fixture(scope="module")
def text(tiny_encoders: dict[str, Path]) -> Encoder:
    return load_encoder(f"hf:{tiny_encoders['text']}", modality="text")


def build(text: Encoder, start: dict[str, Any]) -> UnitTuner:
    kind = "peft:dora" if start.get("use_dora") else "peft:lora"
    table = {"target_modules": ["query", "value", "dense"], **{k: v for k, v in start.items() if k != "use_dora"}}
    module: Any = adapter_kind(kind).module
    return module(adapter_settings({"kind": kind, **table}), {"text": text}, {"text": (1, 2)})


def answer(adapter: UnitTuner, text: Encoder) -> Tensor:
    ours = adapter.encoders["text"]
    return text.features(text.finish(ours.run(ours.embed(ours.probe()), 0, ours.num_units)))


def trained(text: Encoder, start: dict[str, Any]) -> UnitTuner:
    torch.manual_seed(0)
    adapter = build(text, start).train()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=3e-2)
    for _ in range(3):
        optimizer.zero_grad()
        hidden = answer(adapter, text)
        (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
        optimizer.step()
    return adapter.eval()


@pytest.mark.parametrize("start", STARTS, ids=lambda s: "-".join(map(str, s.values()))[:40])
def test_an_export_is_the_trained_model_wherever_it_is_loaded(
    start: dict[str, Any], text: Encoder, tiny_encoders: dict[str, Path], tmp_path: Path
) -> None:
    import peft
    import transformers

    adapter = trained(text, start)
    with torch.no_grad():
        expected = answer(adapter, text)
        frozen = text.features(text.finish(text.run(text.embed(text.probe()), 0, text.num_units)))
    assert not torch.allclose(expected, frozen, atol=1e-2)
    adapter.export(tmp_path)  # type: ignore[operator]
    for seed in (1, 2):
        torch.manual_seed(seed)
        base = transformers.BertModel.from_pretrained(tiny_encoders["text"])
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "peft" / "text").eval()
        with torch.no_grad():
            found = loaded(**text.probe()).last_hidden_state
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    again = peft.PeftModel.from_pretrained(loaded.unload(), tmp_path / "peft" / "text").eval()  # on the same base
    with torch.no_grad():
        torch.testing.assert_close(again(**text.probe()).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
        merged = again.merge_and_unload()(**text.probe()).last_hidden_state
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("start", STARTS, ids=lambda s: "-".join(map(str, s.values()))[:40])
def test_weights_load_into_a_model_whose_start_was_another(start: dict[str, Any], text: Encoder) -> None:
    adapter = trained(text, start)
    state = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    torch.manual_seed(7)
    other = build(text, start).eval()
    for name, buffer in other.named_buffers():  # as where the start was computed by other libraries
        assert name in state
        buffer.neg_()
    other.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(answer(other, text), answer(adapter, text))


def test_weights_that_an_earlier_version_saved_still_load(text: Encoder) -> None:
    adapter = trained(text, {"init_lora_weights": "pissa_niter_2"})
    buffers = dict(adapter.named_buffers())
    assert buffers
    torch.manual_seed(0)  # a run's own seed, as it was built with
    other = build(text, {"init_lora_weights": "pissa_niter_2"}).eval()
    other.load_state_dict({n: t for n, t in adapter.state_dict().items() if n not in buffers})
    with torch.no_grad():
        assert torch.equal(answer(other, text), answer(adapter, text))


def test_an_exported_start_from_the_weights_is_a_plain_lora_of_twice_the_rank(text: Encoder, tmp_path: Path) -> None:
    trained(text, {"init_lora_weights": "pissa_niter_2", "r": 3, "lora_alpha": 7}).export(tmp_path)  # type: ignore[operator]
    config = json.loads((tmp_path / "peft" / "text" / "adapter_config.json").read_text())
    assert (config["init_lora_weights"], config["r"], config["lora_alpha"]) == (True, 6, 6)
