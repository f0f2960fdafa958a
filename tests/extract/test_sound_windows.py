"""Windows of sound: short ones for spectrogram transformers and CLAP, masks of whole windows, sound as pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf

from talik.cache.feature_store import FeatureStore
from talik.errors import SettingsError, TrunkError
from talik.extract.encoders.load import load_encoder
from talik.extract.encoders.options import PictureSettings
from talik.extract.encoders.spectrogram import SpectrogramPreprocess
from talik.extract.stage.extract import extract

_SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TALIK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a tiny AST (1 s), CLAP (1 s, 48 kHz) and wav2vec 2.0 whose extractor returns masks."""
    root = tmp_path_factory.mktemp("sound")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        ast = hf.ASTModel(hf.ASTConfig(**_SIZES, max_length=98, num_mel_bins=32, patch_size=8, time_stride=5,
                                       frequency_stride=5))  # fmt: skip
        torch.nn.init.normal_(ast.embeddings.position_embeddings)
        clap = hf.ClapAudioModel(hf.ClapAudioConfig(
            patch_embeds_hidden_size=16, hidden_size=64, depths=[1, 2, 2], num_attention_heads=[1, 2, 4], spec_size=64,
            num_mel_bins=16, window_size=4, enable_fusion=True, patch_size=4, patch_stride=[4, 4]))  # fmt: skip
        wave = hf.Wav2Vec2Model(hf.Wav2Vec2Config(
            **_SIZES, conv_dim=(16, 16), conv_kernel=(10, 4), conv_stride=(20, 8), num_feat_extract_layers=2,
            num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, feat_extract_norm="layer"))  # fmt: skip
    for name, model in (("ast", ast), ("clap", clap), ("wave", wave)):
        model.save_pretrained(root / name)
    hf.ASTFeatureExtractor(max_length=98, num_mel_bins=32).save_pretrained(root / "ast")
    hf.ClapFeatureExtractor(feature_size=16, max_length_s=1, fft_window_size=512).save_pretrained(root / "clap")
    hf.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(root / "wave")
    return root


def _noise(num, samples, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal((num, samples))).astype(np.float32)


def _replays(encoder, raw):
    inputs = encoder.preprocess(raw)
    whole = encoder(inputs)
    for k in range(encoder.num_units + 1):
        state = encoder.run(encoder.embed(inputs), 0, k)
        restored = encoder.restore(state.hidden.clone(), k, encoder.context_inputs(inputs))
        output = encoder.finish(encoder.run(restored, k, encoder.num_units))
        assert torch.equal(output.last_hidden_state, whole.last_hidden_state)
    return inputs


def test_a_spectrogram_transformer_keeps_the_middle_of_its_positions(folders):
    long = load_encoder(f"hf:{folders / 'ast'}", modality="audio")
    short = load_encoder(f"hf:{folders / 'ast'}", modality="audio", window_seconds=0.5)
    inputs = _replays(short, _noise(3, 8000))
    assert inputs["input_values"].shape == (3, 48, 32)  # 1 + (8000 − 400) // 160 frames
    assert short.provenance()["notes"] == ["positions: 9 of 19 in time, from 5 (the middle)"]
    rows = (32 - 8) // 5 + 1
    before = long.model.embeddings.position_embeddings[0]
    after = short.model.embeddings.position_embeddings[0]
    assert torch.equal(after[:2], before[:2])
    assert torch.equal(after[2:].view(rows, 9, 32), before[2:].view(rows, 19, 32)[:, 5:14])
    assert long.provenance()["notes"] == []
    assert short.identity(1) != long.identity(1)
    with pytest.raises(SettingsError, match=r"at most 0\.995"):
        load_encoder(f"hf:{folders / 'ast'}", modality="audio", window_seconds=2)
    with pytest.raises(SettingsError, match=r"expected at least 0\.095, one patch"):
        load_encoder(f"hf:{folders / 'ast'}", modality="audio", window_seconds=0.05)


def test_clap_fills_short_windows_itself_and_leaves_nothing_to_chance(folders):
    encoder = load_encoder(f"hf:{folders / 'clap'}", modality="audio", window_seconds=0.3)
    assert encoder.sample_rate_hz == 48000
    assert encoder.provenance()["notes"] == ["windows of 0.3 s are filled up to 1 s (repeatpad)"]
    raw = _noise(3, 14400)
    inputs = _replays(encoder, raw)
    again = encoder.preprocess(raw)
    assert all(torch.equal(again[name], tensor) for name, tensor in inputs.items())
    assert not inputs["is_longer"].any()
    assert encoder.context_inputs(inputs) == {}
    with pytest.raises(SettingsError, match="at most 1"):
        load_encoder(f"hf:{folders / 'clap'}", modality="audio", window_seconds=1.5)


def test_masks_of_whole_windows_are_known_and_not_stored(folders):
    encoder = load_encoder(f"hf:{folders / 'wave'}", modality="audio", window_seconds=0.2)
    inputs = _replays(encoder, _noise(3, 3200))
    assert "attention_mask" in inputs
    assert encoder.context_inputs(inputs) == {}
    inputs["attention_mask"][1, 2000:] = 0
    if "attention_mask" in encoder.trunk.context_names:
        with pytest.raises(TrunkError, match="unlike that of whole windows"):
            encoder.context_inputs(inputs)


def test_pictures_of_sound_with_settings_of_their_own():
    front = PictureSettings(num_mel_bins=192, num_frames=192)
    made = SpectrogramPreprocess(height=192, width=192, window_seconds=1.95, settings=front)
    times = np.arange(31200) / 16000
    tone = np.stack([np.sin(2 * np.pi * 440 * times), np.zeros(31200)]).astype(np.float32)
    pictures = made(tone)["pixel_values"]
    assert pictures.shape == (2, 3, 192, 192)
    assert torch.equal(pictures[:, 0], pictures[:, 2])
    silence = (np.log(1e-10) + 4.2677393) / (2 * 4.5689974)
    torch.testing.assert_close(pictures[1], torch.full((3, 192, 192), silence, dtype=torch.float32))
    row = int(pictures[0, 0].mean(dim=1).argmax())
    centre = made.filters[191 - row].argmax() * 16000 / 512
    assert abs(float(centre) - 440) <= 16000 / 512
    plain = PictureSettings(num_mel_bins=192, num_frames=192, mean=0, std=1)
    shifted = SpectrogramPreprocess(height=192, width=192, window_seconds=1.95, settings=plain)
    torch.testing.assert_close(
        shifted(tone)["pixel_values"], pictures * 2 * 4.5689974 - 4.2677393, rtol=1e-4, atol=1e-3
    )
    for name in ("num_mel_bins", "std", "num_frames"):
        with pytest.raises(SettingsError, match=f"^{name}: found 0"):
            PictureSettings(**{name: 0})
    for wrong in ({"max_hz": 9000.0}, {"min_hz": 8000.0}):
        with pytest.raises(SettingsError, match=r"^min_hz, max_hz: found .* expected 0 ≤ min_hz < max_hz ≤ 8000"):
            PictureSettings(**wrong)
    with pytest.raises(SettingsError, match="at least a frame"):
        SpectrogramPreprocess(height=8, width=8, window_seconds=0.01)


_PICTURES = """[encoders.audio]
model = "timm:test_vit"
weights = "random"
image_size = 64
window_seconds = 0.4
cut = [1, 3]

[encoders.audio.picture]
num_mel_bins = 64
hop_seconds = 0.005
"""


def test_an_image_model_hears_from_clips_to_a_variant(write_experiment, tiny_encoders):
    from talik.adapt.training.adapt import adapt

    old = f'[encoders.audio]\nmodel = "hf:{tiny_encoders["audio"]}#encoder"\nwindow_seconds = 0.4\ncut = [1, 3]\n'
    path = write_experiment((old, _PICTURES))
    assert not extract(path, progress=False).up_to_date
    specs = FeatureStore.open(path.parent / "features.zarr", mode="r").boundaries()
    audio = next(s for s in specs if s.modality == "audio")
    settings = audio.identity["encoder"]["preprocess"]["settings"]
    assert (settings["num_mel_bins"], settings["hop_seconds"]) == (64, 0.005)
    assert audio.shape == (3, 17, 64)
    assert adapt(path, variant="trimodal", progress=False).folder.is_dir()
    with pytest.raises(SettingsError, match=r"unknown .*num_mels"):
        extract(write_experiment((old, _PICTURES.replace("num_mel_bins", "num_mels"))), progress=False)


def test_sound_encoders_with_masks_go_from_clips_to_the_store(folders, write_experiment, tiny_encoders):
    model = f'model = "hf:{tiny_encoders["audio"]}#encoder"'
    path = write_experiment((model, f'model = "hf:{folders / "wave"}"'))
    assert not extract(path, progress=False).up_to_date
    assert extract(path, progress=False).up_to_date
