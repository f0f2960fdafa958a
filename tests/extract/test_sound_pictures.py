"""Pictures of sound as published front ends make them, and models whose pictures lie in their own way."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest
import timm
import torch
import transformers as hf
from timm.models import save_for_hf

from talik.errors import EncoderError, SettingsError
from talik.extract.encoders.load import load_encoder
from talik.extract.encoders.options import PictureSettings
from talik.extract.encoders.spectrogram import AUDIO_MAE, SpectrogramPreprocess
from talik.extract.presets.datasets import DATA
from talik.extract.presets.write_experiment import preset_text


def _chord(seconds):
    """Sixty partials that rise slowly, and a constant."""
    times = np.arange(round(seconds * 16000)) / 16000
    partials = (np.sin(2 * np.pi * 113 * k * times * (1 + times / 40) + k * k) for k in range(1, 61))
    return (0.01 * sum(partials) + 0.02).astype(np.float32)


def _lavish(dataset):
    """The front end that the preset's file names, and its window."""
    audio = tomllib.loads(preset_text(dataset, "lavish"))["encoders"]["audio"]
    return PictureSettings(**audio["picture"]), audio["window_seconds"]


#: torchaudio 2.11's `compliance.kaldi.fbank(w, htk_compat=True, sample_frequency=16000, use_energy=False,
#: window_type="hanning", num_mel_bins=…, dither=0, frame_shift=…)` of that chord less its mean, normalised and filled
#: up as GenjiB/LAVISH and facebookresearch/AudioMAE do: mean and deviation of the picture, then three bands (a low one,
#: the one after a third of them, a high one) of the first frame, the middle one and the last.
TORCHAUDIO = {
    "music-avqa": (0.3232, 0.6362, [[-0.3164, 0.2354, 0.8844], [-0.307, 0.4085, 0.9058], [-0.2564, 0.4013, 0.8647]]),
    "ave": (0.2391, 0.6271, [[-0.3606, 0.1741, 0.8029], [-0.3611, 0.1932, 0.8025], [0.0, 0.0, 0.0]]),
    "audiomae": (0.2255, 0.4281, [[-0.1138, 0.115, 0.5303], [-0.5292, 0.1313, 0.4764], [0.467, 0.467, 0.467]]),
}


@pytest.mark.parametrize("name", TORCHAUDIO)
def test_kaldis_filter_banks_are_torchaudios(name):
    settings, seconds = (AUDIO_MAE, 10.0) if name == "audiomae" else _lavish(name)
    frames, bands = settings.num_frames, settings.num_mel_bins
    made = SpectrogramPreprocess(height=frames, width=bands, window_seconds=seconds, settings=settings)
    pictures = made(np.stack([_chord(seconds), np.zeros(round(seconds * 16000), np.float32)]))["pixel_values"]
    assert pictures.shape == (2, 3, frames, bands)
    assert torch.equal(pictures[:, 0], pictures[:, 2])
    mean, deviation, places = TORCHAUDIO[name]
    assert float(pictures[0, 0].mean()) == pytest.approx(mean, abs=1e-3)
    assert float(pictures[0, 0].std()) == pytest.approx(deviation, abs=1e-3)
    found = pictures[0, 0][[0, frames // 2, frames - 1]][:, [12, bands // 3, bands - 40]]
    torch.testing.assert_close(found, torch.tensor(places), rtol=0, atol=1e-3)
    silence = (np.log(np.finfo(np.float32).eps) - settings.mean) / settings.std
    torch.testing.assert_close(pictures[1, 0, 0], torch.full((bands,), float(silence)))


@pytest.mark.filterwarnings("ignore:At least one mel filter")  # of the extractor's own
def test_kaldis_filter_banks_are_those_of_the_spectrogram_transformer():
    own = hf.ASTFeatureExtractor(max_length=198, num_mel_bins=128)
    settings = PictureSettings(front_end="kaldi", rows="time", num_mel_bins=128, min_hz=20.0)
    made = SpectrogramPreprocess(height=198, width=128, window_seconds=2.0, settings=settings)
    waves = (0.1 * np.random.default_rng(5).standard_normal((2, 32000))).astype(np.float32)
    expected = own(list(waves), sampling_rate=16000, return_tensors="pt")["input_values"]
    torch.testing.assert_close(made(waves)["pixel_values"][:, 0], expected, rtol=1e-3, atol=1e-3)


def test_rows_of_time_are_rows_of_frequency_turned():
    waves = _chord(1.0)[None]
    pictures = {}
    for rows in (None, "frequency", "time"):
        settings = PictureSettings(num_mel_bins=40, num_frames=60, rows=rows)
        size = {"height": 60, "width": 40} if rows == "time" else {"height": 40, "width": 60}
        made = SpectrogramPreprocess(**size, window_seconds=1.0, settings=settings)
        pictures[rows] = made(waves)["pixel_values"][0, 0]
    assert torch.equal(pictures["time"], pictures["frequency"].flip(0).T)
    assert torch.equal(pictures[None], pictures["frequency"])


def test_only_what_changes_a_number_changes_what_identifies_a_picture():
    def described(**changes):
        settings = PictureSettings(**changes)
        return SpectrogramPreprocess(height=8, width=8, window_seconds=1.0, settings=settings).describe()

    assert not {"front_end", "rows", "fill"} & described()["settings"].keys()
    assert described() == described(rows="frequency", front_end="log-mel")
    others = ({"rows": "time"}, {"front_end": "kaldi"}, {"fill": 0.0}, {"min_hz": 20.0})
    assert len({repr(described(**changes)) for changes in ({}, *others)}) == 5


@pytest.mark.parametrize("dataset", DATA)
def test_the_lavish_preset_sees_whole_frames_and_hears_as_published(dataset):
    written = tomllib.loads(preset_text(dataset, "lavish"))
    assert written["data"]["channels"] == "first"  # Kaldi's filter banks hear the first (`channel=-1`)
    assert written["encoders"]["visual"]["fit"] == "stretch"
    settings, seconds = _lavish(dataset)
    assert (settings.front_end, settings.rows, settings.num_mel_bins, settings.num_frames) == (
        "kaldi",
        "time",
        192,
        192,
    )
    assert (seconds, settings.hop_seconds) == ((1.0, 0.0052) if dataset == "ave" else (1.95, 0.01))
    assert settings.fill == settings.mean


def _save(folder, size, channels):
    """A tiny model with random weights as a folder that timm opens, for pictures of that (height, width)."""
    made_with = {"img_size": size, "in_chans": channels, "num_classes": 0}
    overlay = {"input_size": (channels, *size), "mean": (0.5,) * channels, "std": (0.5,) * channels}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_vit", pretrained_cfg_overlay=overlay, **made_with)
    save_for_hf(model, folder, model_args={**made_with, "img_size": list(size)})
    return f"timm:local-dir:{folder}"


def test_a_model_of_sound_is_followed_or_asked_about(tmp_path):
    mae = load_encoder(_save(tmp_path / "vit_audiomae_as2m", (64, 32), 1), modality="audio")
    assert (mae.image_size, mae.window_seconds, mae.sample_rate_hz) == ((64, 32), 10.0, 16000)
    assert mae.preprocess.settings == AUDIO_MAE
    assert mae.preprocess(np.zeros((2, 16000), np.float32))["pixel_values"].shape == (2, 1, 64, 32)
    for name, size, channels in (("grey", (32, 32), 1), ("high", (64, 32), 3)):
        spec = _save(tmp_path / name, size, channels)
        with pytest.raises(SettingsError, match=rf"{size[0]} x {size[1]} .*rows = \"time\" or \"frequency\""):
            load_encoder(spec, modality="audio")
        with pytest.raises(SettingsError, match="to say how sound lies in them"):
            load_encoder(spec, modality="audio", picture=PictureSettings(num_mel_bins=32))
        said = PictureSettings(num_mel_bins=32, rows="time")
        encoder = load_encoder(spec, modality="audio", picture=said)
        assert encoder.preprocess(np.zeros((1, 16000), np.float32))["pixel_values"].shape == (1, channels, *size)
    other = load_encoder("timm:test_vit", modality="audio", weights="random", image_size=(32, 64))  # sees, and may hear
    assert other.preprocess(np.zeros((1, 16000), np.float32))["pixel_values"].shape == (1, 3, 32, 64)
    with pytest.raises(SettingsError, match=r"^rows: found 'both'"):
        PictureSettings(rows="both")
    with pytest.raises(SettingsError, match=r"^front_end: found 'htk'"):
        PictureSettings(front_end="htk")


def test_an_extractor_that_draws_or_fails_is_refused(tmp_path, tiny_encoders, monkeypatch):
    hf.AutoModel.from_pretrained(tiny_encoders["audio"]).save_pretrained(tmp_path)
    own = hf.AutoFeatureExtractor.from_pretrained(tiny_encoders["audio"])
    own.dither = 0.5
    own.save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match=r"WhisperFeatureExtractor draws input_features at random; .*dither to 0"):
        load_encoder(f"hf:{tmp_path}#encoder", modality="audio", window_seconds=0.4)
    monkeypatch.setattr(type(own), "__call__", lambda self, *args, **kwargs: {}["mask"])
    with pytest.raises(SettingsError, match=r"WhisperFeatureExtractor fails on a window of 0.4 s \(KeyError: 'mask'"):
        load_encoder(f"hf:{tmp_path}#encoder", modality="audio", window_seconds=0.4)
