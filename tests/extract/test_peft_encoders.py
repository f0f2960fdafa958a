"""Encoders with PEFT's adapters in them: from a folder, handed over wrapped, merged; what they are known by."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
import transformers as hf

from talik.errors import EncoderError, SettingsError
from talik.extract.encoders.load import load_encoder

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'talik[peft]'")

TEXTS = ["how many instruments", "how", "many instruments how many"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TALIK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def _wrapped(base, seed=0, **settings):
    """The model in `base` with random LoRA weights, of which none are zero."""
    chosen = {"r": 2, "lora_alpha": 4, "target_modules": ["query", "value"], **settings}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the two libraries say about each other
        torch.manual_seed(seed)
        model = peft.get_peft_model(hf.AutoModel.from_pretrained(base), peft.LoraConfig(**chosen))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def base(tiny_encoders):
    return tiny_encoders["text"]


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    _wrapped(base).save_pretrained(folder)
    return folder


def _marks(encoder):
    return [encoder.fingerprint(k) for k in range(encoder.num_units + 1)]


def _equal_to_the_whole(encoder, model):
    inputs = encoder.preprocess(TEXTS)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
    for k in range(encoder.num_units + 1):
        state = encoder.run(encoder.embed(inputs), 0, k)
        stored = encoder.context_inputs(inputs)
        restored = encoder.restore(state.hidden.clone(), k, stored, state.lengths)
        output = encoder.finish(encoder.run(restored, k, encoder.num_units))
        assert torch.equal(output.last_hidden_state, expected)


def test_a_folder_that_peft_saved_is_put_on_the_models_own_weights(base, adapter):
    encoder = load_encoder(f"hf:{base}", modality="text", weights=adapter)
    assert encoder.num_units == 3
    _equal_to_the_whole(encoder, _wrapped(base))
    plain = load_encoder(f"hf:{base}", modality="text")
    inputs = encoder.preprocess(TEXTS)
    assert not torch.equal(encoder(inputs).last_hidden_state, plain(inputs).last_hidden_state)
    assert _marks(load_encoder(f"hf:{base}", modality="text", weights=str(adapter))) == _marks(encoder)


def test_a_wrapped_model_and_a_merged_one_may_be_handed_over(base, adapter):
    wrapped = load_encoder(f"hf:{base}", modality="text", model=_wrapped(base))
    assert _marks(wrapped) == _marks(load_encoder(f"hf:{base}", modality="text", weights=adapter))
    _equal_to_the_whole(wrapped, _wrapped(base))
    merged = _wrapped(base).merge_and_unload()
    _equal_to_the_whole(load_encoder(f"hf:{base}", modality="text", model=merged), merged)
    inputs = wrapped.preprocess(TEXTS)
    torch.testing.assert_close(wrapped(inputs).last_hidden_state, merged(**inputs).last_hidden_state)


def test_the_fingerprint_follows_the_adapters_of_the_prefix_only(base):
    plain = _marks(load_encoder(f"hf:{base}", modality="text"))
    upper = _wrapped(base, layers_to_transform=[1])
    marks = _marks(load_encoder(f"hf:{base}", modality="text", model=upper))
    assert [a == b for a, b in zip(marks, plain, strict=True)] == [True, True, False, False]
    changed = _wrapped(base, layers_to_transform=[1])
    with torch.no_grad():
        next(p for n, p in changed.named_parameters() if "lora_B" in n)[0, 0] += 1e-6
    other = _marks(load_encoder(f"hf:{base}", modality="text", model=changed))
    assert [a == b for a, b in zip(other, marks, strict=True)] == [True, True, False, False]
    loud = _wrapped(base, lora_alpha=6, layers_to_transform=[1])
    louder = _marks(load_encoder(f"hf:{base}", modality="text", model=loud))
    assert [a == b for a, b in zip(louder, marks, strict=True)] == [True, True, False, False]


def test_a_timm_model_wrapped_by_peft():
    import timm

    torch.manual_seed(0)
    lora = peft.LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)
    model = peft.get_peft_model(timm.create_model("test_vit", num_classes=0), lora).eval()
    encoder = load_encoder("timm:test_vit", modality="visual", model=model)
    inputs = encoder.preprocess(np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8))
    state = encoder.run(encoder.embed(inputs), 0, encoder.num_units)
    with torch.no_grad():
        assert torch.equal(encoder.finish(state), model(inputs["pixel_values"]))


def test_adapters_that_do_not_fit_are_refused(base, adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    short = tmp_path / "short"
    shutil.copytree(adapter, short)
    state = load_file(short / "adapter_model.safetensors")
    dropped = sorted(state)[0]
    save_file({name: t for name, t in state.items() if name != dropped}, short / "adapter_model.safetensors")
    with pytest.raises(EncoderError, match="1 weights do not fit the model"):
        load_encoder(f"hf:{base}", modality="text", weights=short)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens = peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=2)
        prompts = peft.get_peft_model(hf.AutoModel.from_pretrained(base), tokens)
    with pytest.raises(EncoderError, match="PROMPT_TUNING adds tokens to the inputs"):
        load_encoder(f"hf:{base}", modality="text", model=prompts)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(adapter, elsewhere)
    config = json.loads((elsewhere / "adapter_config.json").read_text())
    (elsewhere / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["no_such"]}))
    with pytest.raises(EncoderError, match="does not fit the model"):
        load_encoder(f"hf:{base}", modality="text", weights=elsewhere)
    with pytest.raises(SettingsError, match="expected a model with its own weights"):
        load_encoder(f"hf:{base}", modality="text", model=_wrapped(base), weights=adapter)
