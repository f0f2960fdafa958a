"""For stage 2: a training of few steps, and stand-ins for the encoders of the presets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def in_few_steps(on_store: Callable[..., Path]) -> Callable[..., Path]:
    """Write the experiment on the store that is there, as `on_store` does, with a third of the steps an epoch.

    For tests that compare whole trainings with each other: an epoch still has several batches and a smaller last one.
    """
    larger = "batch_size = 8\neval_batch_size = 8", "batch_size = 24\neval_batch_size = 24"
    return lambda path, *changes, more="": on_store(path, larger, *changes, more=more)


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory, tiny_encoders: dict[str, Path]) -> dict[str, str]:
    """Tiny encoders with as many units as those of the presets, by the model that they stand in for."""
    import timm
    import transformers as hf
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    def talik_tiny_swin(pretrained: bool = False, **options: object) -> SwinTransformerV2:
        options.pop("pretrained_cfg", None), options.pop("pretrained_cfg_overlay", None), options.pop("cache_dir", None)
        sizes = {"img_size": 32, "window_size": 4, "embed_dim": 32, "depths": (2, 2, 18, 2), "num_heads": (1, 1, 1, 1)}
        model = SwinTransformerV2(**{**sizes, **options})  # type: ignore[arg-type]
        model.pretrained_cfg = model.default_cfg = {"input_size": (3, 32, 32), "classifier": "head.fc"}
        return model

    talik_tiny_swin.__module__ = "timm.models.swin_transformer_v2"
    timm.models.register_model(talik_tiny_swin)
    root = tmp_path_factory.mktemp("stand-ins")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        shapes = {
            "patch_embeds_hidden_size": 16,
            "hidden_size": 64,
            "num_attention_heads": (1, 2, 4),
            "spec_size": 64,
        }
        clap = hf.ClapAudioConfig(**shapes, depths=(2, 4, 6), num_mel_bins=16, window_size=4, patch_stride=(4, 4))
        hf.ClapAudioModel(clap).save_pretrained(root / "clap")
        words = len((tiny_encoders["text"].parent / "vocab.txt").read_text().split("\n"))
        sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": words}
        for name, layers in (("twelve", 12), ("six", 6)):
            hf.BertModel(hf.BertConfig(**sizes, num_hidden_layers=layers)).save_pretrained(root / name)
            for path in tiny_encoders["text"].glob("*token*"):
                shutil.copy(path, root / name)
        picture = hf.Dinov2Config(
            hidden_size=24, num_hidden_layers=12, num_attention_heads=2, image_size=98, patch_size=14
        )
        hf.Dinov2Model(picture).save_pretrained(root / "dino")
        shutil.copy(tiny_encoders["visual"] / "preprocessor_config.json", root / "dino")
        config = json.loads((tiny_encoders["audio"] / "config.json").read_text()) | {"encoder_layers": 4}
        hf.WhisperModel(hf.WhisperConfig(**config)).save_pretrained(root / "whisper")
        shutil.copy(tiny_encoders["audio"] / "preprocessor_config.json", root / "whisper")
    hf.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=16_000,
        max_length_s=2,
        truncation="rand_trunc",
        fft_window_size=1024,
        frequency_min=50,
        frequency_max=7600,
    ).save_pretrained(root / "clap")
    return {
        "timm:swinv2_large_window12_192.ms_in22k": "timm:talik_tiny_swin",
        "hf:laion/clap-htsat-unfused#audio_model": f"hf:{root / 'clap'}",
        "hf:FacebookAI/roberta-base": f"hf:{root / 'twelve'}",
        "pip:dinov2-small": f"hf:{root / 'dino'}",
        "pip:whisper-tiny.en": f"hf:{root / 'whisper'}#encoder",
        "pip:minilm-l6": f"hf:{root / 'six'}",
    }
