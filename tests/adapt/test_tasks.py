"""Tasks from made files to reports: MUSIC-AVQA's real annotations, AVE's events, AVQA's choices, plain classes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from talik.adapt.config.experiment import load_experiment
from talik.adapt.evaluation.evaluate import evaluate
from talik.adapt.model.targets import labels_of, loss_of, restricted
from talik.adapt.plan.plan import plan
from talik.adapt.report.write import report
from talik.adapt.scoring.metrics import mean_class_accuracy
from talik.adapt.training.adapt import adapt
from talik.adapt.training.experiment_context import ExperimentContext
from talik.errors import ManifestError, MissingItemError, SettingsError
from talik.extract.datasets.types import Question
from talik.extract.stage.extract import extract

REAL = Path(__file__).parents[3] / "shared" / "data" / "music-avqa"
needs_real = pytest.mark.skipif(
    not (REAL / "avqa-test.json").is_file(),
    reason=f"no annotations in {REAL}: copy data/json/*.json of github.com/GeWu-Lab/MUSIC-AVQA there",
)

TABLES = """
[data]
{data}
segments = 2

[encoders.visual]
model = "hf:{visual}"
image_size = 28
fit = "stretch"
cut = [2, 3]

[encoders.audio]
model = "hf:{audio}#encoder"
window_seconds = 0.4
cut = [2, 3]
{text}
[store]
dtype = "float32"

[task]
kind = "{kind}"
d_head = 16
num_heads = 2

[train]
epochs = {epochs}
batch_size = 8
num_threads = 1
lr = 1e-2
weight_decay = 0.0

[[variants]]
name = "trimodal"
insertion = "last 1"
adapter = {{ kind = "trimodal", d_model = 8, d_state = 4, num_latents = 2, num_heads = 2 }}

[[variants]]
name = "probe"
adapter = {{ kind = "probe", modalities = {modalities} }}
"""
TEXT = '\n[encoders.text]\nmodel = "hf:{text}"\ncut = [2, 3]\n'


def write_tables(
    path: Path, encoders: dict[str, Path], data: str, *, kind: str = "answers", text: bool = True, epochs: int = 1
) -> Path:
    names = ["visual", "audio", "text"] if text else ["visual", "audio"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        TABLES.format(
            data=data,
            visual=encoders["visual"],
            audio=encoders["audio"],
            text=TEXT.format(text=encoders["text"]) if text else "",
            kind=kind,
            epochs=epochs,
            modalities=json.dumps(names),
        ),
        encoding="utf-8",
    )
    return path


def make_clip(path: Path, *, levels: tuple[int, int] = (40, 200), pitches: tuple[int, int] = (300, 300)) -> Path:
    """Write a clip of 1 s whose two halves differ in brightness and pitch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        track = out.add_stream("aac", rate=16_000, layout="mono")
        for number in range(8):
            picture = np.full((32, 32, 3), levels[number // 4], np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(stream.encode(None))
        times = np.arange(16_000) / 16_000
        pitch = np.where(times < 0.5, pitches[0], pitches[1])
        samples = (0.5 * np.sin(2 * np.pi * pitch * times)).astype(np.float32)
        for start in range(0, 16_000, 1000):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1000], "fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, start
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@needs_real
def test_the_real_annotations_go_from_clips_to_a_report_by_type(tmp_path: Path, tiny_encoders: dict[str, Path]) -> None:
    names = {"train": "avqa-train_fake", "val": "avqa-val", "test": "avqa-test"}
    wanted: set[str] = set()
    for name in names.values():  # a dozen clips of each split, those that are asked most
        asked = Counter(r["video_id"] for r in json.loads((REAL / f"{name}.json").read_text()))
        wanted.update(clip for clip, _ in asked.most_common(12))
    clip = make_clip(tmp_path / "clip.mp4")
    for number, clip_id in enumerate(sorted(wanted)):
        target = tmp_path / "set" / ("real" if clip_id.isdigit() else "synthetic") / f"{clip_id}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(clip.read_bytes() + b"\0" * (8 + number))  # each its own file by content
    files = ", ".join(f'{split} = "{name}.json"' for split, name in names.items())
    data = f'dataset = "music-avqa"\nroot = "set"\nannotations = "{REAL}"\nfiles = {{ {files} }}'
    path = write_tables(tmp_path / "exp.toml", tiny_encoders, data + "\nallow_missing = true")
    stage1 = extract(path, progress=False)
    assert len(stage1.skipped) == 8199 - len(wanted)
    assert {n for name, n in stage1.items.items() if "text" not in name} == {len(wanted)}
    run = adapt(path, variant="trimodal", progress=False)
    expected = [r for r in json.loads((REAL / "avqa-test.json").read_text()) if r["video_id"] in wanted]
    evaluation = evaluate(run.folder, split="test")
    assert evaluation.scores.overall.total == len(expected) > 30
    assert evaluation.scores.overall.accuracy == run.accuracy
    counts = Counter("-".join(json.loads(r["type"])) for r in expected)
    assert sorted(t.total for t in evaluation.scores.by_type.values()) == sorted(counts.values())
    evaluate(run.folder, split="val")
    written = report([run.folder], out=tmp_path / "report")
    assert all(name in written.text for name in evaluation.scores.by_type)
    refused = write_tables(tmp_path / "exp2.toml", tiny_encoders, data)
    with pytest.raises(Exception, match=rf"{8199 - len(wanted)} of 8199 clips are not in"):
        extract(refused, progress=False)


@pytest.fixture
def ave_set(tmp_path: Path) -> Path:
    """Twelve clips: bright half and high pitch is Bark, dark and low is background."""
    root = tmp_path / "AVE_Dataset"
    for number in range(4):
        halves = [(number >> bit) & 1 for bit in (1, 0)]
        levels, pitches = tuple(40 + 180 * h for h in halves), tuple(300 + 2000 * h for h in halves)
        source = make_clip(root / "AVE" / f"clip{number}-0.mp4", levels=levels, pitches=pitches)  # type: ignore[arg-type]
        for copy in (1, 2):
            (root / "AVE" / f"clip{number}-{copy}.mp4").write_bytes(source.read_bytes() + bytes([0] * 8 + [copy]))
        begin, end = {0: (0, 0), 1: (5, 10), 2: (0, 5), 3: (0, 10)}[number]
        for copy, split in enumerate(("train", "val", "test")):
            with (root / f"{split}Set.txt").open("a") as file:
                file.write(f"Bark&clip{number}-{copy}&good&{begin}&{end}\n")
    return root


def test_events_are_learnt_segment_by_segment(ave_set: Path, tiny_encoders: dict[str, Path]) -> None:
    data = 'dataset = "ave"\nroot = "AVE_Dataset"'
    path = write_tables(ave_set.parent / "exp.toml", tiny_encoders, data, kind="events", text=False, epochs=25)
    extract(path, progress=False)
    run = adapt(path, variant="trimodal", progress=False)
    records = lines(run.folder / "predictions.jsonl")
    assert [r["question_id"] for r in records[:3]] == ["clip0-2/0", "clip0-2/1", "clip1-2/0"]
    assert [r["answer"] for r in records] == ["background"] * 3 + ["Bark", "Bark", "background", "Bark", "Bark"]
    assert {r["type"] for r in records} == {"event", "background"}
    assert run.accuracy == sum(r["correct"] for r in records) / 8 >= 0.875
    result = json.loads((run.folder / "result.json").read_text())
    assert result["mean_class_accuracy"] == pytest.approx(
        mean_class_accuracy([r["answer"] for r in records], [r["correct"] for r in records])
    )
    live = evaluate(run.folder, split="test", live=True)
    assert live.scores.overall.accuracy == run.accuracy
    assert live.scores.by_type["background"].total == 4
    assert "event" in report([run.folder], out=ave_set.parent / "report").text


def test_events_are_planned(ave_set: Path, tiny_encoders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALIK_CACHE", str(ave_set.parent / "cache"))
    data = 'dataset = "ave"\nroot = "AVE_Dataset"'
    path = write_tables(ave_set.parent / "exp.toml", tiny_encoders, data, kind="events", text=False)
    assert all(v.seconds_live > 0 and v.peak_bytes > 0 for v in plan(path, progress=False).variants)


def test_classes_need_no_text(ave_set: Path, tiny_encoders: dict[str, Path]) -> None:
    clips = sorted((ave_set / "AVE").iterdir())
    table = [
        {"clip": f"AVE/{c.name}", "answer": "light" if c.name[4] == "3" else "dark", "split": s, "id": c.stem}
        for c in clips
        if c.name[4] in "03"
        for s in [("train", "val", "test")[int(c.stem[-1])]]
    ]
    (ave_set / "manifest.jsonl").write_text("\n".join(map(json.dumps, table)))
    data = 'dataset = "manifest"\nroot = "AVE_Dataset"'
    path = write_tables(ave_set.parent / "exp.toml", tiny_encoders, data, kind="classes", text=False, epochs=12)
    extract(path, progress=False)
    run = adapt(path, variant="probe", progress=False)
    assert run.accuracy == 1.0
    result = json.loads((run.folder / "result.json").read_text())
    assert result["mean_class_accuracy"] == 1.0
    with_text = write_tables(ave_set.parent / "two.toml", tiny_encoders, data, kind="classes")
    experiment = load_experiment(with_text)
    with pytest.raises(SettingsError, match=r"6 of 6 records ask no question; remove \[encoders\.text\]"):
        ExperimentContext(experiment).build(experiment.variant("probe"), seed=0)
    events = load_experiment(write_tables(path, tiny_encoders, data, kind="events", text=False))
    with pytest.raises(ManifestError, match="6 of 6 records have no labels"):
        ExperimentContext(events).build(events.variant("probe"), seed=0)


def test_choices_are_what_is_answered_with(tmp_path: Path, tiny_encoders: dict[str, Path]) -> None:
    root = tmp_path / "set"
    words = ["violin", "piano", "left", "right", "first"]
    for split, count in (("train", 4), ("val", 3)):
        records = []
        for number in range(count):
            clip = make_clip(root / "videos" / f"{split}{number}.mp4", levels=(10 * number, 50), pitches=(200, 400))
            choices = [words[(number + k) % 5] for k in range(4)]
            records.append(
                {"id": number, "video_name": clip.stem, "question_text": "is violin first ?", "multi_choice": choices,
                 "answer": number, "question_relation": "View", "question_type": "Which"}
            )  # fmt: skip
        (root / f"{split}_qa.json").write_text(json.dumps(records))
    path = write_tables(tmp_path / "exp.toml", tiny_encoders, 'dataset = "avqa"\nroot = "set"')
    extract(path, progress=False)
    run = adapt(path, variant="probe", progress=False)
    records = lines(run.folder / "predictions.jsonl")
    for number, r in enumerate(records):
        assert r["prediction"] in [words[(number + k) % 5] for k in range(4)]
        assert r["subset"] == "View"
    assert json.loads((run.folder / "result.json").read_text())["by_subset"]["View"]["total"] == 3


def test_a_clip_that_was_left_out_is_refused_by_name_or_left_out(ave_set: Path, tiny_encoders: dict[str, Path]) -> None:
    (ave_set / "AVE" / "clip1-0.mp4").write_bytes(b"no video")
    data = 'dataset = "ave"\nroot = "AVE_Dataset"'
    path = write_tables(ave_set.parent / "exp.toml", tiny_encoders, data, kind="events", text=False)
    with pytest.raises(Exception, match=r"1 of 12 clips could not be decoded.*clip1-0\.mp4"):
        extract(path, progress=False)
    with pytest.raises(MissingItemError, match=r"1 of 4 questions need states.*clip 'clip1-0' \(.*cannot be decoded"):
        adapt(path, variant="probe", progress=False)
    run = adapt(load_experiment(path, allow_missing=True), variant="probe", seed=1, progress=False)
    assert len(lines(run.folder / "predictions.jsonl")) == 8


def _asked(answer: str, *choices: str, labels: tuple[str, ...] = ()) -> Question:
    return Question(
        id="q",
        clip_id="c",
        text="",
        answer=answer,
        type="all",
        template="",
        split="train",
        choices=choices,
        labels=labels,
    )


def test_losses_are_the_cross_entropies_that_they_say() -> None:
    classes = {"a": 0, "b": 1, "c": 2}
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    plain = [_asked("a"), _asked("c"), _asked("b")]
    labels = torch.tensor([0, 2, 1])
    assert torch.equal(
        loss_of(logits, plain, classes, label_smoothing=0.1), F.cross_entropy(logits, labels, label_smoothing=0.1)
    )
    assert restricted(logits, plain, classes) is logits
    chosen = [_asked("a", "a", "b"), _asked("c"), _asked("b", "c", "b")]
    by_hand = [
        F.cross_entropy(logits[:1, :2], torch.tensor([0]), label_smoothing=0.1),
        F.cross_entropy(logits[1:2], torch.tensor([2]), label_smoothing=0.1),
        F.cross_entropy(logits[2:, 1:], torch.tensor([0]), label_smoothing=0.1),
    ]
    torch.testing.assert_close(loss_of(logits, chosen, classes, label_smoothing=0.1), torch.stack(by_hand).mean())
    assert torch.isinf(restricted(logits, chosen, classes)).sum() == 2
    segments = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1))
    events = [_asked("", labels=("a", "b")), _asked("", labels=("c", "c"))]
    assert labels_of(events, classes, segments).tolist() == [[0, 1], [2, 2]]
    torch.testing.assert_close(
        loss_of(segments, events, classes, label_smoothing=0.0),
        F.cross_entropy(segments.reshape(4, 3), torch.tensor([0, 1, 2, 2])),
    )
