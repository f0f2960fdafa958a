"""CLAP's inputs beside those of transformers' own extractor and of the published code, with fusion and without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from talik.errors import EncoderError, SettingsError
from talik.extract.encoders.encoder import Encoder
from talik.extract.encoders.load import load_encoder

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 48_000
KINDS = {"fused": ("fusion", True), "unfused": ("rand_trunc", False)}


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALIK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


def save(folder: Path, *, truncation: str, fused: bool, padding: str = "repeatpad") -> Path:
    """A tiny CLAP of 1 s with random weights, and its extractor."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        config = hf.ClapAudioConfig(
            patch_embeds_hidden_size=16, hidden_size=64, depths=[1, 2, 2], num_attention_heads=[1, 2, 4], spec_size=64,
            num_mel_bins=16, window_size=4, enable_fusion=fused, patch_size=4, patch_stride=[4, 4],
        )  # fmt: skip
        hf.ClapAudioModel(config).save_pretrained(folder)
    extractor = hf.ClapFeatureExtractor(
        feature_size=16, max_length_s=1, fft_window_size=512, truncation=truncation, padding=padding
    )
    extractor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Encoder]:
    truncation, fused = KINDS[request.param]
    folder = save(tmp_path_factory.mktemp("clap"), truncation=truncation, fused=fused)
    return folder, load_encoder(f"hf:{folder}", modality="audio", window_seconds=0.2)


def published(wave: np.ndarray, truncation: str) -> np.ndarray:
    """One mel picture of the sound repeated as often as it fits whole and padded to 1 s, (frames, bands).

    LAION-AI/CLAP, src/laion_clap/training/data.py, `get_audio_features`: "repeatpad", and `get_mel`: torchaudio's HTK
    bands with fusion; librosa's Slaney bands without, as transformers has it.
    """
    filled = np.zeros(RATE)
    repeated = np.tile(wave, RATE // len(wave))
    filled[: len(repeated)] = repeated
    scale = (None, "htk") if truncation == "fusion" else ("slaney", "slaney")
    bank = mel_filter_bank(257, 16, 0, 14_000, RATE, norm=scale[0], mel_scale=scale[1])
    found = spectrogram(filled, window_function(512, "hann"), 512, 480, power=2.0, mel_filters=bank, log_mel="dB")
    return np.asarray(found.T)


@pytest.mark.parametrize("seconds", [0.01, 0.2, 1 / 3, 0.5, 0.70001, 1.0])
def test_inputs_are_those_of_the_extractor(kind: tuple[Path, Encoder], seconds: float) -> None:
    folder, encoder = kind
    own = hf.AutoFeatureExtractor.from_pretrained(folder)
    waves = (0.1 * np.random.default_rng(1).standard_normal((3, round(seconds * RATE)))).astype(np.float32)
    found = encoder.preprocess(waves)
    theirs = own(list(waves), sampling_rate=RATE, return_tensors="pt")
    assert torch.equal(found["input_features"], theirs["input_features"])
    expected = np.stack([published(wave.astype(np.float64), own.truncation) for wave in waves])[:, None]
    pictures = 4 if own.truncation == "fusion" else 1
    np.testing.assert_allclose(found["input_features"], np.repeat(expected, pictures, 1), atol=1e-4)
    assert not found["is_longer"].any()
    assert int(theirs["is_longer"].sum()) == (own.truncation == "fusion")  # one at random, for training alone


def test_states_are_the_models_own(kind: tuple[Path, Encoder]) -> None:
    folder, encoder = kind
    inputs = encoder.preprocess((0.1 * np.random.default_rng(1).standard_normal((3, RATE // 5))).astype(np.float32))
    whole = hf.ClapAudioModel.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = whole(inputs["input_features"], is_longer=torch.zeros(3, 1, dtype=torch.bool)).last_hidden_state
    assert torch.equal(encoder(inputs).last_hidden_state, theirs)


def test_what_is_random_is_refused(kind: tuple[Path, Encoder]) -> None:
    with pytest.raises(SettingsError, match=r"^window_seconds: found 1\.001, expected more than 0 and at most 1$"):
        load_encoder(f"hf:{kind[0]}", modality="audio", window_seconds=1.001)


@pytest.mark.parametrize("padding", ["repeat", "pad"])
def test_other_fillings_are_followed(tmp_path: Path, padding: str) -> None:
    folder = save(tmp_path, truncation="rand_trunc", fused=False, padding=padding)
    encoder = load_encoder(f"hf:{folder}", modality="audio", window_seconds=0.3)
    waves = (0.1 * np.random.default_rng(1).standard_normal((2, round(0.3 * RATE)))).astype(np.float32)
    filled = np.zeros((2, RATE), np.float32)
    if padding == "repeat":
        filled = np.tile(waves, 4)[:, :RATE]
    else:
        filled[:, : waves.shape[1]] = waves
    whole = load_encoder(f"hf:{folder}", modality="audio").preprocess(filled)
    assert torch.equal(encoder.preprocess(waves)["input_features"], whole["input_features"])
    other = save(tmp_path / "other", truncation="rand_trunc", fused=False)
    assert encoder.identity(0) != load_encoder(f"hf:{other}", modality="audio", window_seconds=0.3).identity(0)


def test_an_extractor_of_the_other_configuration_is_refused(tmp_path: Path) -> None:
    for number, (truncation, fused) in enumerate((("fusion", False), ("rand_trunc", True))):
        folder = save(tmp_path / str(number), truncation=truncation, fused=fused)
        with pytest.raises(EncoderError, match=rf"truncation is '{truncation}', expected .*preprocessor_config"):
            load_encoder(f"hf:{folder}", modality="audio", window_seconds=0.5)
