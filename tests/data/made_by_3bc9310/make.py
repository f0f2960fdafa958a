"""Make what this folder holds, with the `talik` of commit 3bc9310; see README.md."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import transformers as hf
from PIL import Image

from talik import FeatureStore, adapt, extract, plan, predict
from talik.adapt import training
from talik.extract.demo.make import make_demo

HERE = Path(__file__).parent
WORDS = "[PAD] [UNK] [CLS] [SEP] is the in video how many tones are sounding high low square green blue red ? a"
COLOURS = ("red", "green", "blue")
SPLITS = ("train", "train", "train", "val", "test", "train", "train", "test")

ENCODERS = """
[encoders.visual]
model = "hf:encoders/visual"
image_size = 28
fit = "stretch"
cut = {visual}

[encoders.audio]
model = "hf:encoders/audio#encoder"
window_seconds = 0.4
cut = {audio}
"""
TEXT = """
[encoders.text]
model = "hf:encoders/text"
cut = {text}
"""
DATA = """[data]
dataset = "manifest"
root = "data"
annotations = "{manifest}"
segments = 3
frames_fps = 4.0
allow_missing = true
"""
TRAIN = """
[task]
d_head = 16
num_heads = 2

[train]
epochs = 3
batch_size = 4
eval_batch_size = 4
num_threads = 1

[[variants]]
name = "probe"
adapter = { kind = "probe" }

[[variants]]
name = "trimodal"
insertion = "last 1"
adapter = { kind = "trimodal", d_model = 8, d_state = 4, num_latents = 2, num_heads = 2 }

[variants.train]
ema = 0.5

[[variants]]
name = "lora"
insertion = "last 1"
adapter = { kind = "peft:lora", r = 2 }
"""


def write_clip(name: str, index: int) -> None:
    """Six frames of a coloured square that moves, as PNG, and 1.2 s of a tone, as 4 kHz wav."""
    folder = HERE / "data" / "clips" / name
    folder.mkdir(parents=True)
    rng = np.random.default_rng(index)
    ground = rng.integers(30, 60, size=(32, 40, 3), dtype=np.uint8)
    for number in range(6):
        picture = ground.copy()
        picture[8:20, 4 + 4 * number : 16 + 4 * number, index % 3] = 220
        Image.fromarray(picture).save(folder / f"{number:04d}.png")
    time = np.arange(4_800) / 4_000
    samples = 0.4 * np.sin(2 * np.pi * (220 if index % 2 else 880) * time) + 0.01 * rng.standard_normal(len(time))
    with wave.open(str(folder.with_suffix(".wav")), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(4_000)
        file.writeframes((samples * 32_767).astype("<i2").tobytes())


def questions(name: str, index: int, split: str) -> list[dict[str, str]]:
    """Two questions of different length about a clip."""
    return [
        {
            "id": f"{name}-{split}-colour",
            "clip": name,
            "question": f"is the square {COLOURS[index % 2]} ?",
            "answer": "yes" if index % 3 == index % 2 else "no",
            "type": "visual",
            "split": split,
        },
        {
            "id": f"{name}-{split}-tone",
            "clip": name,
            "question": "is a high tone sounding in the video ?" if index < 5 else "is the high tone sounding ?",
            "answer": "no" if index % 2 else "yes",
            "type": "audio",
            "split": split,
        },
    ]


def write_manifest(name: str, clips: list[tuple[str, int, str]]) -> None:
    lines = [json.dumps(question) for clip in clips for question in questions(*clip)]
    (HERE / "data" / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_encoders() -> None:
    """Three tiny transformers models with fixed random weights."""
    root = HERE / "encoders"
    torch.manual_seed(5)
    visual = hf.Dinov2Config(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14)
    hf.Dinov2Model(visual).save_pretrained(root / "visual")
    audio = hf.WhisperConfig(
        d_model=16,
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=16,
        max_source_positions=50,
        vocab_size=16,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    hf.WhisperModel(audio).save_pretrained(root / "audio")
    text = hf.BertConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=len(WORDS.split()),
        max_position_embeddings=32,
    )
    hf.BertModel(text).save_pretrained(root / "text")
    hf.BitImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    ).save_pretrained(root / "visual")
    hf.WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(root / "audio")
    (root / "vocab.txt").write_text("\n".join(WORDS.split()), encoding="utf-8")
    hf.BertTokenizerFast(vocab_file=str(root / "vocab.txt")).save_pretrained(root / "text")
    (root / "vocab.txt").unlink()


def write_experiments() -> None:
    cut = {"visual": "[1, 3]", "audio": "[1, 3]", "text": "[1]"}
    experiments = {
        "exp": DATA.format(manifest="data/manifest.jsonl")
        + (ENCODERS + TEXT).format(**cut)
        + '\n[store]\ndtype = "float32"\nshard_items = 4\n'
        + TRAIN,
        "bfloat16": DATA.format(manifest="data/manifest.jsonl")
        + (ENCODERS + TEXT).format(visual="2", audio="-1", text="[2]")
        + '\n[store]\ndtype = "bfloat16"\nshard_items = 4\n',
        "int8": DATA.format(manifest="data/manifest.jsonl")
        + ENCODERS.format(visual="[3]", audio="[3]").split("[encoders.audio]")[0]
        + '\n[store]\ndtype = "int8"\nshard_items = 4\n',
        "timm": DATA.format(manifest="data/manifest.jsonl")
        + "\n".join(
            f'\n[encoders.{m}]\nmodel = "timm:test_vit"\nweights = "random"\nimage_size = 32\ncut = [-1]{more}'
            for m, more in (("visual", ""), ("audio", "\nwindow_seconds = 0.4"))
        )
        + '\n\n[store]\npath = "timm.zarr"\ndtype = "float16"\nshard_items = 4\n',
        "auto": DATA.format(manifest="data/manifest-video.jsonl")
        + (ENCODERS + TEXT).format(**dict.fromkeys(cut, '"auto"'))
        + '\n[store]\ndtype = "float32"\nshard_items = 4\n'
        + TRAIN,
    }
    for name, text in experiments.items():
        (HERE / f"{name}.toml").write_text(text, encoding="utf-8")


def extract_in_two_generations() -> None:
    path, first = HERE / "first.toml", (HERE / "exp.toml").read_text(encoding="utf-8")
    path.write_text(first.replace("manifest.jsonl", "manifest-first.jsonl"), encoding="utf-8")
    extract(path, progress=False)
    for name in ("exp", "bfloat16", "int8", "timm"):
        print(name, *extract(HERE / f"{name}.toml", progress=False).lines(), sep="\n  ")
    path.unlink()


def train() -> None:
    experiment = HERE / "exp.toml"
    for variant in ("trimodal", "lora"):
        adapt(experiment, variant=variant, progress=False)
    whole = adapt(experiment, variant="trimodal", seed=1, progress=False).folder
    expected = HERE / "expected"
    expected.mkdir()
    for name in ("metrics.jsonl", "predictions.jsonl", "result.json"):
        shutil.copy(whole / name, expected / name)
    shutil.rmtree(whole)
    save = training.save_checkpoint

    def save_and_stop(*arguments: Any, **settings: Any) -> None:
        save(*arguments, **settings)
        raise KeyboardInterrupt

    training.save_checkpoint = save_and_stop
    try:
        adapt(experiment, variant="trimodal", seed=1, progress=False)
    except KeyboardInterrupt:
        training.save_checkpoint = save


def write_expected() -> None:
    """What this commit reads from the stores, and what it answers about the video."""
    states = {}
    for name in ("features.zarr", "timm.zarr"):
        store = FeatureStore.open(HERE / name)
        for spec in store.boundaries():
            with store.reader(spec.modality, spec.boundary, key=spec.key) as reader:
                states[f"{name}/{spec.path}"] = {
                    item.source: hashlib.sha256(reader.read([item.key]).hidden.tobytes()).hexdigest()
                    for item in reader.items
                }
    (HERE / "expected" / "states.json").write_text(json.dumps(states, indent=1), encoding="utf-8")
    answers = {
        variant: {
            a.answer: a.probability
            for a in predict(
                HERE / "runs" / "exp" / variant / "seed0",
                video=HERE / "data" / "clips" / "video.mp4",
                question="is the square blue ?",
            ).answers
        }
        for variant in ("trimodal", "lora")
    }
    (HERE / "expected" / "answers.json").write_text(json.dumps(answers, indent=1), encoding="utf-8")


def write_video() -> None:
    """A clip of the demo: one encoded file with picture and sound."""
    folder = HERE / "made"
    make_demo(folder, num_clips=4, seed=0, workers=1, progress=False)
    video = min((folder / "videos").glob("*.mp4"), key=lambda p: p.stat().st_size)
    shutil.copy(video, HERE / "data" / "clips" / "video.mp4")
    shutil.rmtree(folder)
    with av.open(str(HERE / "data" / "clips" / "video.mp4")) as container:
        print("video:", container.duration, [s.codec_context.name for s in container.streams])


def main() -> None:
    os.chdir(HERE)  # "hf:encoders/visual" counts from the working directory
    torch.set_num_threads(1)
    names = [f"clip{index}" for index in range(len(SPLITS))]
    clips = [(name, index, split) for index, (name, split) in enumerate(zip(names, SPLITS, strict=True))]
    for name, index, _ in clips:
        write_clip(name, index)
    write_clip("new", 8)
    write_video()
    (HERE / "data" / "clips" / "damaged.mp4").write_bytes(b"no video")
    clips += [("video", 9, "train"), ("damaged", 10, "train"), ("absent", 11, "train")]
    write_manifest("manifest-first.jsonl", clips[:5])
    write_manifest("manifest.jsonl", clips)
    write_manifest("manifest-new.jsonl", [*clips, ("new", 8, "test")])
    write_manifest("manifest-video.jsonl", [("video", 9, split) for split in ("train", "val", "test")])
    write_encoders()
    write_experiments()
    extract_in_two_generations()
    plan(HERE / "auto.toml", progress=False)
    train()
    write_expected()


if __name__ == "__main__":
    main()
