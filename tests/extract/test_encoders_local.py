"""load_encoder on small random models from local folders and from timm: states, identity, errors."""

from __future__ import annotations

import json
import os
import shutil
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import (
    AutoConfig,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

import talik.extract.encoders.known_weights as known_weights
from talik.errors import EncoderError, SettingsError, TrunkError
from talik.extract.encoders.load import load_encoder
from talik.extract.trunk.state import State

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "how", "many", "instruments", "play", "in", "the", "room", "?"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TALIK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=56, patch_size=14, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(folder)
    settings = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}, "do_center_crop": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def text(bert_folder):
    return load_encoder(f"hf:{bert_folder}", modality="text")


@pytest.fixture(scope="module")
def visual(dinov2_folder):
    return load_encoder(f"hf:{dinov2_folder}", modality="visual")


def test_texts_padded_and_alone(text):
    inputs = text.preprocess(["how many instruments play", "how"])
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    state = text.run(text.embed(inputs), 0, 2)
    assert state.lengths.tolist() == [4, 1]
    alone = text.run(text.embed(text.preprocess(["how"])), 0, 2)
    torch.testing.assert_close(state.hidden[1:, :1], alone.hidden, rtol=1e-5, atol=1e-6)


def test_pieces_equal_the_whole_for_every_cut_and_after_restoring(text, visual):
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)
    for encoder, raw in ((text, ["how many", "how many instruments play", "the room ?"]), (visual, frames)):
        inputs = encoder.preprocess(raw)
        whole = encoder(inputs)
        n = encoder.num_units
        for k in range(n + 1):
            state = encoder.run(encoder.embed(inputs), 0, k)
            stored = {name: t.clone() for name, t in encoder.context_inputs(inputs).items()}
            restored = encoder.restore(state.hidden.clone(), k, stored, state.lengths)
            for start in (state, restored):
                output = encoder.finish(encoder.run(start, k, n))
                assert torch.equal(output.last_hidden_state, whole.last_hidden_state)
                assert torch.equal(output.pooler_output, whole.pooler_output)


def test_split_and_concat_are_exact_up_to_batch_noise(text):
    inputs = text.preprocess(["how many", "how many instruments play", "the room ?"])
    state = text.run(text.embed(inputs), 0, 1)
    parts = state.split([1, 2])
    joined = State.concat(parts)
    whole = text.run(state, 1, 3).hidden
    assert torch.equal(text.run(joined, 1, 3).hidden, whole)
    pieces = torch.cat([text.run(part, 1, 3).hidden for part in parts])
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_state_and_no_weight(visual):
    frames = np.zeros((2, 56, 56, 3), dtype=np.uint8)
    state = visual.run(visual.embed(visual.preprocess(frames)), 0, 2)
    live = state.replace(hidden=state.hidden.clone().requires_grad_())
    visual.features(visual.finish(visual.run(live, 2, 3))).square().sum().backward()
    assert live.hidden.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in visual.model.parameters())


def test_layout_and_prefix_tokens(visual):
    state = visual.embed(visual.preprocess(np.zeros((1, 70, 56, 3), dtype=np.uint8)))
    assert (state.layout, state.num_prefix_tokens, state.tokens().shape) == ("NLC", 1, (1, 17, 32))
    assert visual.features(visual(visual.preprocess(np.zeros((1, 56, 56, 3), dtype=np.uint8)))).shape == (1, 17, 32)


def test_other_image_size_and_fit_are_part_of_the_identity(dinov2_folder, visual):
    wide = load_encoder(f"hf:{dinov2_folder}", modality="visual", image_size=112, fit="stretch")
    assert wide.embed(wide.preprocess(np.zeros((1, 40, 60, 3), dtype=np.uint8))).hidden.shape == (1, 65, 32)
    assert wide.identity(1) != visual.identity(1)
    assert wide.identity(1)["preprocess"]["fit"] == "stretch"
    assert json.loads(json.dumps(wide.identity(1))) == wide.identity(1)


def test_whole_frames_are_kept_by_stretch_and_margins_lost_by_crop(dinov2_folder, visual):
    wide = np.zeros((1, 60, 120, 3), dtype=np.uint8)
    wide[:, :, :15] = 255  # a white left margin
    stretched = load_encoder(f"hf:{dinov2_folder}", modality="visual", fit="stretch")
    cropped, kept = visual.preprocess(wide)["pixel_values"], stretched.preprocess(wide)["pixel_values"]
    assert torch.equal(cropped[0, 0, :, :4], torch.full((56, 4), cropped.min()))
    assert (kept[0, 0, :, :4] > cropped.max()).all()


def test_fingerprint_follows_the_prefix_only(bert_folder, text, tmp_path):
    marks = [text.fingerprint(k) for k in range(4)]
    assert len(set(marks)) == 4
    copy = tmp_path / "elsewhere"
    shutil.copytree(bert_folder, copy)
    assert [load_encoder(f"hf:{copy}", modality="text").fingerprint(k) for k in range(4)] == marks
    model = BertModel.from_pretrained(copy)
    with torch.no_grad():
        model.encoder.layer[1].output.dense.bias[3] += 1e-7
    model.save_pretrained(copy)
    changed = load_encoder(f"hf:{copy}", modality="text")
    assert [changed.fingerprint(k) == marks[k] for k in range(4)] == [True, True, False, False]


def test_a_shallower_model_with_the_same_early_units_has_the_same_prefix(bert_folder, text, tmp_path):
    shallow = tmp_path / "shallow"
    shutil.copytree(bert_folder, shallow)
    config = json.loads((shallow / "config.json").read_text())
    (shallow / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    assert load_encoder(f"hf:{shallow}", modality="text").identity(2) == text.identity(2)


def test_dropped_units_are_refused_and_the_prefix_still_runs(bert_folder, text):
    encoder = load_encoder(f"hf:{bert_folder}", modality="text")
    before = sum(p.numel() for p in encoder.model.parameters() if not p.is_meta)
    encoder.drop_above(-2)
    assert sum(p.numel() for p in encoder.model.parameters() if not p.is_meta) < before
    inputs = encoder.preprocess(["how many instruments play", "how"])
    state = encoder.run(encoder.embed(inputs), 0, 1)
    assert torch.equal(state.hidden, text.run(text.embed(inputs), 0, 1).hidden)
    with pytest.raises(TrunkError, match="dropped"):
        encoder.run(state, 1, 2)
    with pytest.raises(TrunkError, match="dropped"):
        encoder.finish(state.replace(boundary=3))
    assert encoder.fingerprint(1) == text.fingerprint(1)


def test_boundaries_count_from_both_ends(text):
    assert [text.boundary(k) for k in (0, 3, -1, -3)] == [0, 3, 2, 0]
    for k in (4, -4):
        with pytest.raises(SettingsError, match=r"expected -3 … 3"):
            text.boundary(k)


def test_states_at_the_wrong_place_are_refused(text):
    state = text.embed(text.preprocess(["how"]))
    with pytest.raises(TrunkError, match="found a state at boundary 0, expected 1"):
        text.run(state, 1, 2)
    with pytest.raises(TrunkError, match="expected 3"):
        text.finish(state)
    with pytest.raises(SettingsError):
        text.run(state, 0, 9)
    with pytest.raises(TrunkError, match="needs the input"):
        text.restore(state.hidden, 0, {"input_ids": torch.ones(1, 1, dtype=torch.long)})


def test_a_proof_is_kept_and_used_again(bert_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TALIK_CACHE", str(tmp_path))
    first = load_encoder(f"hf:{bert_folder}", modality="text")
    assert len(list((tmp_path / "proofs").iterdir())) == 1

    def never(*args, **kwargs):
        raise AssertionError("proven again")

    monkeypatch.setattr("talik.extract.encoders.verification_cache.find_trunk", never)
    again = load_encoder(f"hf:{bert_folder}", modality="text")
    assert again.proof == first.proof
    assert again.num_units == first.num_units


def test_weights_are_digested_once_a_file(bert_folder, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(bert_folder, folder)
    monkeypatch.setenv("TALIK_CACHE", str(tmp_path / "cache"))
    digested, real = [], known_weights.weight_digests

    def counted(model):
        digested.append(1)
        return real(model)

    def opened(num_digested):
        time.sleep(0.2)  # files that were made just now have no stamps
        encoder = load_encoder(f"hf:{folder}", modality="text")
        assert len(digested) == num_digested
        return [encoder.fingerprint(k) for k in range(encoder.num_units + 1)]

    monkeypatch.setattr(known_weights, "weight_digests", counted)
    first = opened(1)
    assert opened(1) == first
    (record,) = (tmp_path / "cache" / "weights").iterdir()
    record.write_text(record.read_text().replace("torch", "touch"))
    assert opened(2) == first
    file = folder / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    before = file.stat()
    name = next(name for name in weights if "layer.1" in name and weights[name].any())
    safetensors.torch.save_file({**weights, name: -weights[name]}, file, metadata={"format": "pt"})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = opened(3)
    assert changed[:2] == first[:2]
    assert not set(changed[2:]) & set(first)


def test_a_part_of_a_two_sided_model(tmp_path):
    side = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = CLIPConfig(
        text_config={**side, "vocab_size": 99}, vision_config={**side, "image_size": 32, "patch_size": 8}
    )
    CLIPModel(config).save_pretrained(tmp_path)
    vision = load_encoder(f"hf:{tmp_path}#vision", modality="visual")
    assert vision.num_units == 2
    assert vision.embed(vision.preprocess(np.zeros((2, 32, 32, 3), dtype=np.uint8))).hidden.shape == (2, 17, 32)
    words = load_encoder(f"hf:{tmp_path}#text", modality="text", weights="random")
    assert words.num_units == 2
    with pytest.raises(EncoderError, match="no part 'sound'"):
        load_encoder(f"hf:{tmp_path}#sound", modality="audio")


def test_short_windows_of_an_encoder_with_long_positions(tmp_path):
    config = WhisperConfig(
        vocab_size=60, num_mel_bins=16, d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=64, max_source_positions=100, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = WhisperModel(config)
    model.save_pretrained(tmp_path)
    WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(tmp_path)
    encoder = load_encoder(f"hf:{tmp_path}#encoder", modality="audio", window_seconds=0.5)
    assert (encoder.sample_rate_hz, encoder.window_seconds) == (16000, 0.5)
    inputs = encoder.preprocess(np.zeros((2, 8000), dtype=np.float32))
    assert inputs["input_features"].shape == (2, 16, 50)
    state = encoder.embed(inputs)
    assert state.hidden.shape == (2, 25, 32)
    assert encoder.model.embed_positions.weight.shape[0] == 25
    assert encoder.provenance()["notes"] == ["positions: the first 25 of 100"]
    with pytest.raises(SettingsError, match="at most 2"):
        load_encoder(f"hf:{tmp_path}#encoder", modality="audio", window_seconds=3)


@pytest.mark.parametrize(("name", "layout", "grid"), [("test_vit", "NLC", None), ("test_convnext", "NCHW", (20, 20))])
def test_timm_models_with_random_weights(name, layout, grid):
    encoder = load_encoder(f"timm:{name}", modality="visual", weights="random", image_size=80)
    inputs = encoder.preprocess(np.zeros((2, 60, 90, 3), dtype=np.uint8))
    assert inputs["pixel_values"].shape == (2, 3, 80, 80)
    state = encoder.embed(inputs)
    assert (state.layout, state.grid) == (layout, grid)
    last = encoder.run(state, 0, encoder.num_units)
    assert torch.equal(encoder.finish(last), encoder(inputs))
    assert encoder.features(encoder.finish(last)).shape[:2] == (2, 1)


def test_names_that_cannot_be_opened(tmp_path):
    with pytest.raises(SettingsError, match="expected timm:NAME"):
        load_encoder("vit", modality="visual")
    with pytest.raises(SettingsError, match="modality"):
        load_encoder("timm:test_vit", modality="video")
    with pytest.raises(EncoderError, match="cannot be opened"):
        load_encoder("timm:no_such_model", modality="visual", weights="random")
    with pytest.raises(EncoderError, match="cannot be opened"):
        load_encoder(f"hf:{tmp_path / 'nothing'}", modality="text")
    with pytest.raises(EncoderError, match="unknown packaged encoder 'dinov2-smal'; did you mean 'dinov2-small'"):
        load_encoder("pip:dinov2-smal", modality="visual")


def test_weights_that_do_not_fit_are_refused(bert_folder, tmp_path):
    copy = tmp_path / "deeper"
    shutil.copytree(bert_folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(EncoderError, match="weights are not in the file"):
        load_encoder(f"hf:{copy}", modality="text")


def test_weights_from_a_named_file(bert_folder, text, tmp_path):
    model = BertModel.from_pretrained(bert_folder)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "plain.pt")
    encoder = load_encoder(f"hf:{bert_folder}", modality="text", weights=tmp_path / "plain.pt")
    assert encoder.identity(3) == text.identity(3)
    torch.save(model, tmp_path / "pickled.pt")
    with pytest.raises(EncoderError, match="not plain weights"):
        load_encoder(f"hf:{bert_folder}", modality="text", weights=tmp_path / "pickled.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(EncoderError, match="weights of the model are missing"):
        load_encoder(f"hf:{bert_folder}", modality="text", weights=tmp_path / "other.pt")
    with pytest.raises(EncoderError, match="no such file"):
        load_encoder("timm:test_vit", modality="visual", weights=tmp_path / "none.pt")


def test_timm_weights_from_a_file_with_a_classifier(tmp_path):
    import timm

    torch.manual_seed(3)
    model = timm.create_model("test_vit", num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "vit.pt")
    encoder = load_encoder("timm:test_vit", modality="visual", weights=tmp_path / "vit.pt")
    inputs = encoder.preprocess(np.zeros((2, 60, 90, 3), dtype=np.uint8))
    expected = model.forward_head(model.forward_features(inputs["pixel_values"]), pre_logits=True)
    assert torch.equal(encoder(inputs), expected)


def test_an_image_model_hears_pictures_of_sound():
    encoder = load_encoder("timm:test_vit", modality="audio", weights="random", window_seconds=0.5)
    times = np.arange(8000) / 16000
    low, high = (np.sin(2 * np.pi * pitch * times).astype(np.float32) for pitch in (300, 3000))
    inputs = encoder.preprocess(np.stack([low, high]))
    assert inputs["pixel_values"].shape == (2, 3, 160, 160)
    rows = inputs["pixel_values"][:, 0].mean(dim=2).argmax(dim=1)
    assert rows[0] > rows[1] + 40  # high notes are further up
    assert encoder.run(encoder.embed(inputs), 0, encoder.num_units).boundary == encoder.num_units
    assert encoder.identity(0)["preprocess"]["window_seconds"] == 0.5


def test_random_weights_need_a_configuration_only(tmp_path):
    AutoConfig.for_model("bert", vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                         intermediate_size=64).save_pretrained(tmp_path)  # fmt: skip
    encoder = load_encoder(f"hf:{tmp_path}", modality="text", weights="random")
    inputs = encoder.preprocess(["ab", "c"])
    assert inputs["input_ids"].tolist() == [[3 + 97, 3 + 98], [3 + 99, 0]]
    assert encoder.num_units == 2


def test_wrong_raw_items_are_refused(text, visual):
    with pytest.raises(SettingsError, match=r"expected \(N, H, W, 3\) uint8"):
        visual.preprocess(np.zeros((2, 56, 56, 3), dtype=np.float32))
    with pytest.raises(SettingsError, match="expected a list"):
        text.preprocess("one text")
