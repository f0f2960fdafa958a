"""A real extraction that is small enough to be killed hundreds of times: made clips, tiny encoders, small shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

import talik.extract.stage.plan as planning
from talik.cache.feature_store import FeatureStore
from talik.demo.make import make_demo
from talik.extract.stage.extract import extract
from talik.extract.stage.settings import RunOptions, read_settings

WORDS = "[PAD] [UNK] [CLS] [SEP] is the in video how many instruments are sounding left right violin piano ? first a"
EXPERIMENT = """
[data]
dataset = "demo"
root = "{set}"
segments = 2

[encoders.visual]
model = "hf:{visual}"
image_size = 28
fit = "stretch"
cut = [1, 3]

[encoders.text]
model = "hf:{text}"
cut = [2]

[store]
dtype = "float16"
shard_items = 2
"""


def made_extraction(folder: Path, *, num_clips: int) -> tuple[Path, Callable[[], object]]:
    """Make clips, encoders and an experiment under `folder`; return its store and what runs it in a forked child."""
    torch.set_num_threads(1)  # a child that was forked must not wait for threads that it does not have
    make_demo(folder / "set", num_clips=num_clips, seed=0, workers=1, progress=False)
    path = folder / "exp.toml"
    path.write_text(EXPERIMENT.format(set=folder / "set", **tiny_encoders(folder / "encoders")), encoding="utf-8")
    return folder / "features.zarr", extraction(path)


def extraction(experiment: Path) -> Callable[[], object]:
    """Return what runs an experiment's extraction with encoders that are opened only once, here."""
    opened: dict[str, Any] = {}
    real = planning.open_encoder

    def open_encoder(settings: Any, *, modality: str, **more: Any) -> Any:
        if modality not in opened:
            opened[modality] = real(settings, modality=modality, **more)
        return opened[modality]

    def work() -> object:
        torch.set_num_threads(1)
        planning.open_encoder = open_encoder
        try:
            return extract(experiment, progress=False)
        finally:
            planning.open_encoder = real

    settings = read_settings(experiment)
    store = FeatureStore.open(settings.store_path, "a")
    planning.open_encoder = open_encoder
    try:
        planning.requested_boundaries(settings, store, RunOptions(progress=False))
    finally:
        planning.open_encoder = real
    return work


def tiny_encoders(root: Path) -> dict[str, Path]:
    """Save a tiny DINOv2 and a tiny BERT with fixed random weights; return their folders by modality."""
    torch.manual_seed(5)
    picture = hf.Dinov2Config(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14)
    hf.Dinov2Model(picture).save_pretrained(root / "visual")
    hf.BitImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    ).save_pretrained(root / "visual")
    text = hf.BertConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, vocab_size=len(WORDS.split())
    )
    hf.BertModel(text).save_pretrained(root / "text")
    (root / "vocab.txt").write_text("\n".join(WORDS.split()), encoding="utf-8")
    hf.BertTokenizerFast(vocab_file=str(root / "vocab.txt")).save_pretrained(root / "text")
    return {"visual": root / "visual", "text": root / "text"}
