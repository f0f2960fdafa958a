"""The longest text is what the model takes; padded is alone; tokenizers without a token for padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

import talik
from talik.errors import EncoderError

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = [
    "[UNK]",
    "<s>",
    "</s>",
    "which",
    "sound",
    "comes",
    "first",
    "from",
    "the",
    "left",
    "of",
    "stage",
    "?",
    "a",
    "b",
    "c",
    "d",
]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
}  # fmt: skip
OFFSET = {**SMALL, "max_position_embeddings": 44, "pad_token_id": 3}
LIMITS: dict[str, tuple[type[Any], dict[str, Any], int | None]] = {
    "roberta": (hf.RobertaConfig, OFFSET, 40),
    "xlm-roberta": (hf.XLMRobertaConfig, OFFSET, 40),
    "mpnet": (hf.MPNetConfig, {**OFFSET, "pad_token_id": 1}, 42),
    "camembert": (hf.CamembertConfig, OFFSET, 40),
    "esm": (hf.EsmConfig, OFFSET, 40),
    "bert": (hf.BertConfig, {**SMALL, "max_position_embeddings": 44}, 44),
    "deberta": (hf.DebertaV2Config, {**SMALL, "max_position_embeddings": 44, "relative_attention": True}, 44),
    "electra": (hf.ElectraConfig, {**SMALL, "embedding_size": 16, "max_position_embeddings": 44}, 44),
    "gpt2": (hf.GPT2Config, {**GPT2, "n_positions": 44}, 44),
    "llama": (hf.LlamaConfig, {**SMALL, "max_position_embeddings": 44}, 44),
    "bart": (hf.BartConfig, {**BART, "max_position_embeddings": 44}, 44),
    "t5": (hf.T5Config, T5, None),
    "mamba2": (
        hf.Mamba2Config,
        {"hidden_size": 16, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1},
        None,
    ),
}


def saved(folder: Path, kind: str, *, vocab_size: int = 300) -> str:
    """Write a configuration; return the encoder's name."""
    config_class, settings, _ = LIMITS[kind]
    config = config_class(vocab_size=vocab_size, **settings)
    config.architectures = [config_class.__name__.replace("Config", "Model")]
    config.save_pretrained(folder)
    return f"hf:{folder}" + ("#encoder" if config.is_encoder_decoder else "")


def tokenizer(**settings: Any) -> hf.PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", **settings)


@pytest.mark.parametrize("kind", LIMITS)
def test_the_longest_text_runs_and_longer_ones_are_cut_to_it(kind: str, tmp_path: Path) -> None:
    limit = LIMITS[kind][2]
    encoder = talik.load_encoder(saved(tmp_path, kind), modality="text", weights="random")
    for letters in (3, 39, 40, 41, 43, 44, 45, 46, 700):
        state = encoder.embed(encoder.preprocess(["x" * letters]))
        assert state.hidden.shape[1] == min(letters, limit or letters)
        encoder.finish(encoder.run(state, 0, encoder.num_units))


@pytest.mark.parametrize("kind", LIMITS)
def test_a_short_text_beside_the_longest_one_is_what_it_is_alone(kind: str, tmp_path: Path) -> None:
    encoder = talik.load_encoder(saved(tmp_path, kind), modality="text", weights="random")

    def run(texts: list[str]) -> torch.Tensor:
        return encoder.run(encoder.embed(encoder.preprocess(texts)), 0, encoder.num_units).hidden

    with torch.no_grad():
        torch.testing.assert_close(run(["short", "long" * 30])[:1, :5], run(["short"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"eos_token": "</s>"}, {"pad_token": "<s>"}, {"pad_token": "[ADDED]"}])
@pytest.mark.parametrize("kind", ["gpt2", "roberta", "bert", "t5"])
def test_tokenizers_with_and_without_a_token_for_padding(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    name = saved(tmp_path, kind, vocab_size=len(WORDS))
    tokenizer(model_max_length=10**30, **settings).save_pretrained(tmp_path)
    encoder = talik.load_encoder(name, modality="text", weights="random")
    texts = ["which sound ?", "which sound comes first from the left of stage ? " * 9]
    inputs = encoder.preprocess(texts)
    limit = LIMITS[kind][2] or 90
    assert inputs["attention_mask"].sum(1).tolist() == [3, limit]
    assert inputs["input_ids"].max() < len(WORDS)
    with torch.no_grad():
        both = encoder.run(encoder.embed(inputs), 0, encoder.num_units).hidden[:1, :3]
        alone = encoder.run(encoder.embed(encoder.preprocess(texts[:1])), 0, encoder.num_units).hidden
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("given", "expected"), [(12, 12), (40, 40), (512, 40), (10**30, 40), (None, 40)])
def test_the_smaller_of_the_models_limit_and_its_tokenizers(given: int | None, expected: int, tmp_path: Path) -> None:
    name = saved(tmp_path, "roberta", vocab_size=len(WORDS))
    tokenizer(pad_token="<s>", model_max_length=given).save_pretrained(tmp_path)
    encoder = talik.load_encoder(name, modality="text", weights="random")
    assert encoder.preprocess(["a b c d " * 60])["input_ids"].shape == (1, expected)


def test_a_store_of_shorter_texts_keeps_its_key(tmp_path: Path) -> None:
    """Texts between the declared and the real limit never ran, so states under the declared one are right."""
    name = saved(tmp_path, "roberta", vocab_size=len(WORDS))
    tokenizer(pad_token="<s>", model_max_length=10**30).save_pretrained(tmp_path)
    encoder = talik.load_encoder(name, modality="text", weights="random")
    assert encoder.identity(0)["preprocess"]["max_length"] == 44


def test_a_model_that_mixes_padding_into_its_tokens_is_refused(tmp_path: Path) -> None:
    hf.FNetConfig(vocab_size=300, **{k: v for k, v in SMALL.items() if "heads" not in k}).save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="a text's result depends on its padding"):
        talik.load_encoder(f"hf:{tmp_path}", modality="text", weights="random")
