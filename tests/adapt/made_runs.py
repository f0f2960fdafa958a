"""Run folders written without training, with a data set beside them, for tests and pictures of reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import tomli_w

from talik.adapt.scoring.metrics import TYPE_ORDER, score

ANSWERS = (
    "yes",
    "no",
    "one",
    "two",
    "three",
    "left",
    "right",
    "flute",
    "piano",
    "violin",
    "drum",
    "indoor",
    "accordion",
)
WORDS = {
    "A-count": "How many instruments are sounding in the video?",
    "A-comp": "Is the flute more rhythmic than the piano?",
    "V-count": "Is there a violin in the entire video?",
    "V-loc": "Where is the performance?",
    "AV-exist": "Is this sound from the instrument in the video?",
    "AV-loc": "What is the left instrument of the first sounding instrument?",
    "AV-count": "How many instruments in the video did not sound from beginning to end?",
    "AV-comp": "Is the instrument on the left louder than the one on the right?",
    "AV-temp": "Which instrument makes sounds before the drum?",
}


def write_clip(path: Path) -> None:
    """Write a small film with a tone, 2 s."""
    with av.open(str(path), "w") as film:
        picture = film.add_stream("libx264", rate=8, width=64, height=48, pix_fmt="yuv420p")
        sound = film.add_stream("aac", rate=16_000, layout="mono")
        for i in range(16):
            shown = np.full((48, 64, 3), (i * 16) % 256, dtype=np.uint8)
            film.mux(picture.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        wave = (8000 * np.sin(np.arange(32_000) * 0.17)).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        frame.sample_rate = 16_000
        film.mux(sound.encode(frame))
        for stream in (picture, sound):
            film.mux(stream.encode())


def made_runs(
    base: Path,
    names: Sequence[str],
    *,
    seeds: int = 1,
    clips: int = 20,
    media: bool = False,
    gates: bool = False,
    searched: bool = False,
    stretch: tuple[float, float] | None = None,
) -> Path:
    """Write an experiment's file, its data set and its finished runs; return the folder of the runs.

    Args:
        base: the experiment's folder.
        names: of the variants, the later the better.
        seeds: of each.
        clips: test clips, each with nine questions.
        media: write a film for each clip; without, they are missing.
        gates: give the last variant's first run gates.
        searched: all variants but the first are points of a search.
        stretch: the seconds between which the test clips' films are looked at; None for all of each.
    """
    rng = np.random.default_rng(0)
    questions = _questions(clips)
    _write_data(base, questions, media=media, stretch=stretch)
    if stretch is not None:
        questions = [{**q, "clip_id": f"{q['clip_id']}#t={stretch[0]:g},{stretch[1]:g}"} for q in questions]
    variants = [{"name": name, "adapter": {"kind": "trimodal"}} for name in names]
    (base / "exp.toml").write_text(tomli_w.dumps({"variants": variants}))
    for index, name in enumerate(names):
        share = 0.35 + 0.45 * index / max(1, len(names) - 1)
        for seed in range(seeds):
            folder = base / "runs" / "exp" / f"v{index:02d}" / f"seed{seed}"
            folder.mkdir(parents=True)
            lines = []
            for question in questions:
                right = bool(rng.random() < share + 0.04 * rng.standard_normal())
                wrong = ANSWERS[int(rng.integers(len(ANSWERS) - 1))]
                given = question["answer"] if right else wrong
                chance = round(float(rng.uniform(0.2, 0.99)), 4)
                lines.append(
                    {**question, "prediction": given, "probability": chance, "correct": given == question["answer"]}
                )
            _write_run(
                folder, name, seed, lines, index=index, count=len(names), share=share, searched=searched and index > 0
            )
    if gates:
        _write_gates(base / "runs" / "exp" / f"v{len(names) - 1:02d}" / "seed0", questions[:27], rng)
    return base / "runs"


def _questions(clips: int) -> list[dict[str, Any]]:
    found = []
    for i in range(9 * clips):
        kind = TYPE_ORDER[i % 9]
        answer = "accordion" if i % 40 == 14 else ANSWERS[(7 * i) % (len(ANSWERS) - 1)]  # training has no accordion
        found.append(
            {"question_id": f"q{i}", "clip_id": f"media/clip{i // 9:03d}.mp4", "type": kind, "template": WORDS[kind]}
            | {"question": WORDS[kind], "answer": answer}
        )
    return found


def _write_data(
    base: Path, questions: Sequence[dict[str, Any]], *, media: bool, stretch: tuple[float, float] | None
) -> None:
    part = {} if stretch is None else dict(zip(("start", "end"), stretch, strict=True))
    base.mkdir(parents=True, exist_ok=True)
    (base / "media").mkdir()
    if media:
        write_clip(base / "media" / "clip000.mp4")
    lines = []
    for question in questions:
        if media and not (base / question["clip_id"]).exists():
            (base / question["clip_id"]).write_bytes((base / "media" / "clip000.mp4").read_bytes())
        shared = {"type": question["type"], "clip": question["clip_id"], "question": question["question"]}
        lines.append({**shared, **part, "id": question["question_id"], "answer": question["answer"], "split": "test"})
    for i, answer in enumerate(ANSWERS[:-1]):
        shared = {"type": "A-count", "clip": f"media/train{i}.mp4", "question": WORDS["A-count"]}
        lines.append({**shared, "id": f"t{i}", "answer": answer, "split": "train"})
    (base / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))


def _write_run(
    folder: Path,
    name: str,
    seed: int,
    lines: list[dict[str, Any]],
    *,
    index: int,
    count: int,
    share: float,
    searched: bool,
) -> None:
    rng = np.random.default_rng([index, seed])
    epochs = [
        {"event": "epoch", "epoch": e, "step": 10 * e, "val_loss": 1.5, "seconds": 4.0 + index}
        | {
            "train_loss": 2.2 * 0.8**e + 0.02 * float(rng.random()),
            "val_accuracy": share * (1 - 0.5**e) + 0.02 * float(rng.random()),
        }
        for e in range(1, 9)
    ]
    done = {"event": "done", "best_epoch": 8, "seconds": 40.0 + index, "trainable_params": 1000, "all_params": 2000}
    depth = index % 6
    config = {"experiment": "exp", "variant": name, "seed": seed, "adapter": {"kind": "trimodal"}}
    config |= {"insertion": {"visual": [depth]}, "train": {"lr": 0.001}}
    config["data"] = {"dataset": "manifest", "root": ".", "segments": 4}
    scores = score([x["type"] for x in lines], [x["correct"] for x in lines]).to_json()
    result = {
        "split": "test",
        **scores,
        "seconds": 1.0,
        "trainable_params": 20_000 * (1 + index % 5),
        "flops": 10**8 * (1 + index),
    }
    adapter = {"insertions": [{"visual": depth}], "encoders": {"visual": {"num_units": 6}}}
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    (folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*epochs, done])))
    (folder / "result.json").write_text(json.dumps({**result, "device": "cpu"}))
    (folder / "adapter.json").write_text(json.dumps(adapter))
    if searched:
        values = {"train.lr": [1e-4, 1e-3, 1e-2][index % 3], "adapter.d_model": [16, 32, 64][index % 4 % 3]}
        values |= {"adapter.center": ["visual", "audio"][index % 2]}
        (folder / "search.json").write_text(json.dumps({"base": "base", "values": values}))


def _write_gates(folder: Path, questions: Sequence[dict[str, Any]], rng: np.random.Generator) -> None:
    lines = []
    for question in questions:
        words = question["question"].lower().rstrip("?").split()
        gates = {m: np.round(rng.uniform(0.6, 1.4, 4), 4).tolist() for m in ("visual", "audio")}
        gates |= {"text": np.round(rng.uniform(0.8, 1.2, len(words)), 4).tolist()}
        named = {"question_id": question["question_id"], "clip_id": question["clip_id"], "insertion": 0}
        lines.append({**named, **gates, "tokens": words})
    (folder / "gates-test.jsonl").write_text("\n".join(map(json.dumps, lines)))
