"""`compute`: the type that a prefix is computed in, in the identity of its states; equal to the model in that type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers as hf

from talik.errors import EncoderError, SettingsError
from talik.extract.encoders.encoder import Encoder
from talik.extract.encoders.load import load_encoder
from talik.extract.encoders.narrow_weights import hold_in_bfloat16
from talik.extract.encoders.options import EncoderOptions
from talik.extract.stage.extract import extract
from talik.extract.stage.features import features
from talik.extract.stage.settings import EncoderSettings
from talik.extract.trunk.exact_float32 import exact_float32, tf32

WriteExperiment = Callable[..., Path]
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def vision(**changes: Any) -> Encoder:
    return load_encoder("timm:test_vit", modality="visual", weights="random", image_size=32, **changes)


@pytest.fixture(scope="module")
def by_compute() -> dict[str, Encoder]:
    """The same weights in float32, tf32 and bfloat16."""
    return {compute: vision(compute=compute) for compute in ("float32", "tf32", "bfloat16")}


def test_the_identity_names_all_but_float32(by_compute: dict[str, Encoder]) -> None:
    plain = by_compute["float32"]
    assert plain.identity(2) == vision().identity(2)
    assert "compute" not in plain.identity(2)
    assert "compute" not in plain.provenance()
    for compute in ("tf32", "bfloat16"):
        other = by_compute[compute]
        assert other.identity(2)["compute"] == other.provenance()["compute"] == compute
        assert other.identity(2)["weights"] == plain.identity(2)["weights"]  # as they were loaded
        assert other.fingerprint(2) != plain.fingerprint(2)
    assert len({encoder.fingerprint(2) for encoder in by_compute.values()}) == 3


def test_an_encoder_above_such_states_has_their_identity_and_its_own_units(by_compute: dict[str, Encoder]) -> None:
    plain = vision()
    for compute, encoder in by_compute.items():
        above = plain.above(compute)
        assert above.identity(3) == encoder.identity(3)
        assert above.fingerprint(3) == encoder.fingerprint(3)
        assert all(ours is theirs for ours, theirs in zip(above.units, plain.units, strict=True))
    assert plain.identity(3) == by_compute["float32"].identity(3)


def test_tf32_is_float32_on_a_cpu(by_compute: dict[str, Encoder]) -> None:
    states = [e.run(e.embed(e.preprocess(PICTURES)), 0, 4) for e in (by_compute["tf32"], by_compute["float32"])]
    assert torch.equal(states[0].hidden, states[1].hidden)


def test_bfloat16_is_the_model_in_bfloat16(by_compute: dict[str, Encoder]) -> None:
    encoder, plain = by_compute["bfloat16"], by_compute["float32"]
    state = encoder.embed(encoder.preprocess(PICTURES))
    model = timm.create_model("test_vit", pretrained=False, img_size=32, num_classes=0).eval()
    model.load_state_dict(plain.model.state_dict())
    model = model.to(torch.bfloat16)
    inputs = plain.preprocess(PICTURES)["pixel_values"].to(torch.bfloat16)
    with torch.no_grad():
        tokens, layers = model.forward_intermediates(inputs, indices=6, output_fmt="NLC", return_prefix_tokens=True)
    del tokens
    for k, (patches, prefix) in enumerate(layers):
        state = encoder.run(state, k, k + 1)
        assert state.hidden.dtype == torch.bfloat16
        assert torch.equal(state.hidden, torch.cat([prefix, patches], dim=1))


def test_a_transformers_model_in_bfloat16(tiny_encoders: dict[str, Path]) -> None:
    spec, texts = f"hf:{tiny_encoders['text']}", ["how many", "is the violin in the video ?"]
    encoder = load_encoder(spec, modality="text", compute="bfloat16")
    inputs = encoder.preprocess(texts)
    state = encoder.run(encoder.embed(inputs), 0, 2)
    model = hf.BertModel.from_pretrained(tiny_encoders["text"], dtype=torch.bfloat16).eval()
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True).hidden_states[2]
    assert torch.equal(state.hidden, expected)
    assert state.lengths is not None


def test_tables_that_are_not_saved_stay_in_float32() -> None:
    """As where transformers loads a model in bfloat16, which cannot tell the angles of far positions apart."""
    config = hf.ModernBertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, attn_implementation="eager",
    )  # fmt: skip
    model = hf.ModernBertModel(config).eval()
    ids = torch.arange(3, 13)[None]
    hold_in_bfloat16(model, lambda: model(input_ids=ids), spec="made")
    made = {name: buffer.dtype for name, buffer in model.named_buffers() if "inv_freq" in name}
    assert made
    assert set(made.values()) == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


class _Kept(torch.nn.Module):
    """A model with a part that is to stay in float32, and a table that its code can use in one type only."""

    _keep_in_fp32_modules_strict = ("exact",)

    def __init__(self) -> None:
        super().__init__()
        self.exact = torch.nn.Linear(4, 4)
        self.narrow = torch.nn.Linear(4, 4)
        self.register_buffer("table", torch.eye(4), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(self.exact(x.float()).to(x.dtype)) @ self.table


def test_what_has_to_stay_stays_and_what_cannot_is_converted() -> None:
    model, x = _Kept().eval(), torch.ones(1, 4, dtype=torch.bfloat16)
    hold_in_bfloat16(model, lambda: model(x), spec="made")
    assert model.exact.weight.dtype == torch.float32
    assert model.narrow.weight.dtype == model.get_buffer("table").dtype == torch.bfloat16
    assert model(x).dtype == torch.bfloat16


def test_a_model_that_cannot_is_refused() -> None:
    model = torch.nn.Linear(4, 4)
    with pytest.raises(
        EncoderError, match=r'made: it cannot run in bfloat16 \(RuntimeError.*choose compute = "float32"'
    ):
        hold_in_bfloat16(model, lambda: model(torch.ones(1, 4)), spec="made")


def test_what_is_unknown_or_contradicts_itself_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"compute: unknown type 'bf16'; did you mean 'bfloat16'"):
        EncoderOptions(spec="timm:test_vit", modality="visual", compute="bf16")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"compute: found 'tf32' with weights of torch\.float16"):
        vision(compute="tf32", dtype=torch.float16)
    with pytest.raises(SettingsError, match="compute"):
        EncoderSettings(model="timm:test_vit", compute="half")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="compute: 'features:x' are imported features"):
        EncoderSettings(model="features:x", compute="bfloat16")


def test_tensorfloat_is_on_in_its_block_alone() -> None:
    conv, products = torch.backends.cudnn, torch.backends.cuda.matmul
    with exact_float32():
        with tf32(), tf32():
            assert (conv.allow_tf32, products.allow_tf32) == (True, True)
            assert (conv.conv.fp32_precision, products.fp32_precision) == ("tf32", "tf32")
        assert (conv.allow_tf32, products.allow_tf32) == (False, False)
        assert torch.get_float32_matmul_precision() == "highest"


def test_an_encoder_switches_it_on_for_itself(by_compute: dict[str, Encoder]) -> None:
    seen: dict[str, set[bool]] = {}
    for compute, encoder in by_compute.items():
        at: list[bool] = []
        handles = [unit.register_forward_hook(lambda *_, at=at: at.append(products())) for unit in encoder.units]
        with exact_float32():
            encoder.run(encoder.embed(encoder.preprocess(PICTURES)), 0, 2)
            assert not products()
        for handle in handles:
            handle.remove()
        seen[compute] = set(at)
    assert seen == {"float32": {False}, "tf32": {True}, "bfloat16": {False}}


def products() -> bool:
    return torch.backends.cuda.matmul.allow_tf32


def test_states_of_another_compute_are_other_states(write_experiment: WriteExperiment) -> None:
    plain = extract(write_experiment(), progress=False)
    narrow = write_experiment(("[encoders.audio]", '[encoders.audio]\ncompute = "bfloat16"'))
    first, again = extract(narrow, progress=False), extract(narrow, progress=False)
    made = {name.partition("/")[0] for name, count in first.items.items() if count}
    assert made == {"audio"}
    assert again.up_to_date
    assert {s.path for s in plain.boundaries} & {s.path for s in first.boundaries} == {
        s.path for s in plain.boundaries if s.modality != "audio"
    }


def test_features_in_bfloat16(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("how many", encoding="utf-8")
    chosen = {"encoder": "pip:minilm-l6", "layer": 1, "progress": False}
    with features(path, **chosen) as plain, features(path, **chosen, compute="bfloat16") as narrow:
        gap = np.abs(plain["text.txt"] - narrow["text.txt"]).max() / np.abs(plain["text.txt"]).max()
        assert 0 < gap < 0.03
        assert narrow.spec.identity["encoder"]["compute"] == "bfloat16"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and a torch built for it")
def test_on_a_gpu_each_is_computed_as_it_says(by_compute: dict[str, Encoder]) -> None:
    torch.backends.cudnn.allow_tf32 = True  # what a program may have set is not what counts
    gaps = {}
    with exact_float32():
        cpu = vision(device="cpu")
        expected = cpu.run(cpu.embed(cpu.preprocess(PICTURES)), 0, 6).hidden
    for compute in by_compute:
        encoder = vision(compute=compute, device="cuda")
        assert encoder.identity(6) == by_compute[compute].identity(6)
        found = encoder.run(encoder.embed(encoder.preprocess(PICTURES)), 0, 6).hidden.float().cpu()
        gaps[compute] = float((found - expected).norm() / expected.norm())
    assert gaps["float32"] < 1e-5 < gaps["tf32"] < gaps["bfloat16"] < 3e-2, gaps
