"""What `gpu.py` measures on: clips with moving pictures and tones, encoders with random weights, the experiment's text.

Everything is made on the machine itself. Clips are H.264 and AAC as PyAV's own encoders write them, by one process a
core; encoders are folders as transformers saves them, of the published sizes and with weights drawn from a seed.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from talik.extract.stage.experiment_file import EXPERIMENT_TABLES
from talik.extract.stage.settings import EncoderSettings

Pixels = NDArray[np.uint8]

_SOUND_HZ = 44100
_INSTRUMENTS = ["violin", "piano", "drum", "flute", "cello", "trumpet", "guitar", "accordion"]
_QUESTIONS = (
    ("Is there a {} in the video?", "yes no"),
    ("How many instruments are sounding in the entire video beside the {}?", "one two three"),
    ("Where is the {} that sounds first?", "left right middle"),
    ("Is the {} on the left louder than the one on the right?", "yes no"),
    ("Which instrument sounds after the {} has stopped?", " ".join(_INSTRUMENTS)),
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the clips, encoders and batches.

    Attributes:
        clips: clips made, each with questions of its own.
        copies: how many files with the same pictures and sound, but other bytes, stage 1 gets of each clip.
        few: clips of the small experiment, whose time is mostly fixed costs.
        clip_seconds, width, height, fps: of a clip.
        segments: T.
        picture: side of the visual encoder's picture, in pixels.
        visual, audio, text: width, units, heads and inner width of each encoder.
        mels, positions, window_seconds: of the audio encoder.
        batch, members, grid, batches: questions a batch, variants of a group and of the grid, and batches timed.
        d_bottleneck: of the bottleneck and LoRA's rank; None for the kinds' own.
        rounds: interleaved repeats.
    """

    clips: int = 96
    copies: int = 3
    few: int = 8
    clip_seconds: int = 60
    width: int = 320
    height: int = 240
    fps: int = 30
    segments: int = 10
    picture: int = 224
    visual: tuple[int, int, int, int] = (1024, 24, 16, 4096)
    audio: tuple[int, int, int, int] = (768, 12, 12, 3072)
    text: tuple[int, int, int, int] = (768, 12, 12, 3072)
    mels: int = 80
    positions: int = 1500
    window_seconds: float = 2.0
    vocabulary: int = 30522
    batch: int = 32
    members: int = 8
    grid: int = 24
    batches: int = 8
    d_bottleneck: int | None = None
    rounds: int = 3


FULL = Sizes()
QUICK = Sizes(
    clips=4,
    copies=2,
    few=1,
    clip_seconds=2,
    width=64,
    height=48,
    fps=8,
    segments=2,
    picture=28,
    visual=(24, 3, 2, 96),
    audio=(32, 3, 2, 64),
    text=(16, 3, 2, 32),
    mels=16,
    positions=50,
    window_seconds=0.4,
    vocabulary=80,
    batch=4,
    members=2,
    grid=3,
    batches=2,
    d_bottleneck=4,
    rounds=1,
)


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# clips


def make_clips(folder: Path, sizes: Sizes, workers: int) -> list[Path]:
    """Make the clips that are missing in `folder`, in so many processes; return all, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"clip{i:03d}.mp4" for i in range(sizes.clips)]
    missing = [(i, p) for i, p in enumerate(paths) if not p.exists()]
    if missing:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(missing)), mp_context=context) as pool:
            list(pool.map(partial(_make_clip, sizes=sizes), missing))
    return paths


def make_copies(paths: Sequence[Path], folder: Path, copies: int) -> list[Path]:
    """Return `copies` files of each clip, the first of which is the clip: other bytes, but decoded alike.

    What differs is a box of the type "free" behind the rest, which MP4 (ISO/IEC 14496-12, 8.1.2) has for padding.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = list(paths)
    for number in range(1, copies):
        for path in paths:
            copy = folder / f"{path.stem}-{number}.mp4"
            if not copy.exists():
                copy.write_bytes(path.read_bytes() + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big"))
            found.append(copy)
    return found


def _make_clip(numbered: tuple[int, Path], *, sizes: Sizes) -> None:
    import av

    seed, path = numbered
    random = np.random.default_rng(seed)
    partial_path = path.with_suffix(".part.mp4")
    with av.open(str(partial_path), "w") as out:
        picture = out.add_stream("libx264", rate=sizes.fps, options={"preset": "superfast", "g": str(2 * sizes.fps)})
        picture.width, picture.height, picture.pix_fmt = sizes.width, sizes.height, "yuv420p"
        picture.bit_rate = round(5.2 * sizes.width * sizes.height)  # 3.6 MB a clip of 60 s with the sound
        picture.codec_context.thread_count = 1
        track = out.add_stream("aac", rate=_SOUND_HZ, layout="stereo")
        track.bit_rate = 96_000
        for pixels in _frames(random, sizes):
            out.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="yuv420p")))
        out.mux(picture.encode(None))
        sound = av.AudioFrame.from_ndarray(_sound(random, sizes.clip_seconds), format="fltp", layout="stereo")
        sound.sample_rate = _SOUND_HZ
        resampler = av.AudioResampler("fltp", "stereo", _SOUND_HZ, frame_size=1024)
        for part in [*resampler.resample(sound), *resampler.resample(None)]:
            out.mux(track.encode(part))
        out.mux(track.encode(None))
    partial_path.rename(path)


def _frames(random: np.random.Generator, sizes: Sizes) -> Iterator[Pixels]:
    """Two textures that move against each other, and a bright square before them; YUV 4:2:0, (3/2 H, W) uint8."""
    width, height = sizes.width, sizes.height
    far, near = (_texture(random, 2 * height, 2 * width) for _ in range(2))
    colour = _texture(random, 2 * height, 2 * width)
    speeds = random.uniform(0.3, 1.2, 6)
    for index in range(sizes.clip_seconds * sizes.fps):
        t = 2 * np.pi * index / (sizes.fps * 20)
        swing = 0.5 + 0.5 * np.sin(speeds * t + np.arange(6))  # (6,), 0 to 1
        y, x = (swing[:2] * (height, width)).astype(int)
        v, u = (swing[2:4] * (height, width)).astype(int)
        grey = (far[y : y + height, x : x + width] // 2) + (near[v : v + height, u : u + width] // 2)
        top, left = (swing[4:] * (height * 3 // 4, width * 3 // 4)).astype(int)
        grey[top : top + height // 4, left : left + height // 4] = 235
        chroma = colour[y : y + height // 2, x : x + width]  # U and V side by side
        yield np.concatenate([grey, chroma.reshape(height // 2, width)])


def _texture(random: np.random.Generator, height: int, width: int) -> Pixels:
    """Noise of several scales, (height, width) uint8 from 16 to 235."""
    from PIL import Image

    total = np.zeros((height, width), np.float32)
    for cells, weight in ((8, 1.0), (32, 0.6), (96, 0.3)):
        noise = Image.fromarray(random.standard_normal((cells, cells)).astype(np.float32))
        total += weight * np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(126 + 45 * total, 16, 235).astype(np.uint8)


def _sound(random: np.random.Generator, seconds: int) -> NDArray[np.float32]:
    """Tones that change every half second, with vibrato and a little noise, (2, S)."""
    count = seconds * _SOUND_HZ
    steps = np.arange(count) // (_SOUND_HZ // 2)
    notes = 220.0 * 2 ** (random.integers(0, 24, steps[-1] + 1) / 12)
    phase = 2 * np.pi * np.cumsum(notes[steps]) / _SOUND_HZ
    vibrato = 0.3 * np.sin(2 * np.pi * 5 * np.arange(count) / _SOUND_HZ)
    tone = 0.3 * np.sin(phase + vibrato) + 0.1 * np.sin(2 * phase)
    noise = 0.01 * random.standard_normal((2, count))
    return (np.stack([tone, 0.5 * tone]) + noise).astype(np.float32)


# manifests


def write_manifests(folder: Path, paths: Sequence[Path], sizes: Sizes) -> None:
    """Write questions.jsonl (the clips made, five questions each), few.jsonl and many.jsonl (copies included)."""
    random = np.random.default_rng(0)
    records = [_record(p, folder, n, random, sizes) for p in paths for n in range(len(_QUESTIONS))]
    made = sizes.clips * len(_QUESTIONS)
    parts = {"questions": records[:made], "few": records[: sizes.few * len(_QUESTIONS)], "many": records}
    for name, some in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in some), encoding="utf-8")


def _record(path: Path, folder: Path, number: int, random: np.random.Generator, sizes: Sizes) -> dict[str, str]:
    text, answers = _QUESTIONS[number]
    place = int(path.stem[4:7])
    return {
        "clip": path.relative_to(folder).as_posix(),
        "question": text.format(random.choice(_INSTRUMENTS)),
        "answer": str(random.choice(answers.split())),
        "type": str(number),
        "split": "val" if place % 8 == 7 or (sizes.clips < 8 and place == sizes.clips - 1) else "train",
    }


# encoders


def make_encoders(folder: Path, sizes: Sizes, device: str) -> None:
    """Save the three encoders, with their preprocessing, where they are not there yet."""
    import torch
    import transformers as hf

    if (folder / "text" / "tokenizer_config.json").exists():
        return
    width, units, heads, inner = sizes.visual
    visual = hf.Dinov2Config(
        hidden_size=width,
        num_hidden_layers=units,
        num_attention_heads=heads,
        mlp_ratio=inner // width,
        image_size=sizes.picture,
        patch_size=14,
        layerscale_value=1.0,
    )
    width, units, heads, inner = sizes.audio
    audio = hf.WhisperConfig(
        d_model=width,
        encoder_layers=units,
        decoder_layers=1,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=inner,
        decoder_ffn_dim=inner,
        num_mel_bins=sizes.mels,
        max_source_positions=sizes.positions,
        vocab_size=64,  # of the decoder, which is left out
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    width, units, heads, inner = sizes.text
    text = hf.BertConfig(
        hidden_size=width,
        num_hidden_layers=units,
        num_attention_heads=heads,
        intermediate_size=inner,
        vocab_size=sizes.vocabulary,
    )
    torch.manual_seed(0)
    with torch.device(device):
        for name, make, config in (
            ("visual", hf.Dinov2Model, visual),
            ("audio", hf.WhisperModel, audio),
            ("text", hf.BertModel, text),
        ):
            make(config).save_pretrained(folder / name)
    half = {"height": sizes.picture, "width": sizes.picture}
    hf.BitImageProcessor(
        size={"shortest_edge": sizes.picture * 8 // 7}, crop_size=half, image_mean=[0.5] * 3, image_std=[0.25] * 3
    ).save_pretrained(folder / "visual")
    hf.WhisperFeatureExtractor(feature_size=sizes.mels, chunk_length=sizes.positions // 50).save_pretrained(
        folder / "audio"
    )
    words = {w.lower().strip("?") for text, answers in _QUESTIONS for w in (*text.split(), *answers.split())} - {"{}"}
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "?", *_INSTRUMENTS, *sorted(words - set(_INSTRUMENTS))]
    known += [f"word{i}" for i in range(sizes.vocabulary - len(known))]
    (folder / "vocab.txt").write_text("\n".join(known[: sizes.vocabulary]), encoding="utf-8")
    hf.BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder / "text")


# the experiment


def experiment_text(
    *,
    sizes: Sizes,
    manifest: str,
    store: str,
    compute: str | None = None,
    variants: str = "",
    workers: int | None = None,
) -> str:
    """Return an experiment's TOML on the made clips and encoders, in the folder that holds `clips` and `encoders`.

    Args:
        sizes: of everything.
        manifest: "questions", "few" or "many".
        store: the store's folder.
        compute: precision of the prefixes, where stage 1 has that setting; None for its default.
        variants: tables of variants.
        workers: decoding processes, where stage 1 has that setting; None for its default.
    """
    precision = f'compute = "{compute}"\n' if compute is not None and "compute" in encoder_settings() else ""
    extract = f"[extract]\nworkers = {workers}\n\n" if workers is not None and "extract" in EXPERIMENT_TABLES else ""
    return f"""\
[data]
dataset = "manifest"
root = "."
annotations = "{manifest}.jsonl"
segments = {sizes.segments}

[encoders.visual]
model = "hf:encoders/visual"
cut = [-2, -1]
{precision}
[encoders.audio]
model = "hf:encoders/audio#encoder"
window_seconds = {sizes.window_seconds}
cut = [-2, -1]
{precision}
[encoders.text]
model = "hf:encoders/text"
cut = [-2, -1]
{precision}
[store]
path = "{store}"
dtype = "float16"

{extract}[train]
epochs = 1
batch_size = {sizes.batch}
eval_batch_size = {sizes.batch}

{variants}"""


def encoder_settings() -> set[str]:
    """The names of the settings that an encoder's table has."""
    return {f.name for f in dataclasses.fields(EncoderSettings)}
