"""Data sets beside the plain MUSIC-AVQA: its releases, AVE, AVQA, tables with labels, clips as frames and sound."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest

from talik.adapt.scoring.metrics import score
from talik.cache.open import open_store
from talik.config import from_mapping
from talik.errors import ManifestError, MediaError, MissingMediaError, SettingsError
from talik.extract.datasets.ave import CATEGORIES
from talik.extract.datasets.describe import blind_baseline, describe
from talik.extract.datasets.load import load_manifest
from talik.extract.datasets.settings import DataSettings
from talik.extract.datasets.split import source_id
from talik.extract.datasets.types import MUSIC_AVQA_TYPES, Manifest
from talik.extract.media.clip_media import SegmentSettings
from talik.extract.media.decode import decode_clip, iter_media
from talik.extract.media.frame_folder import FrameFolder, frame_files
from talik.extract.stage.items import ClipDigests, clip_items, source_of

REAL = Path(__file__).parents[3] / "shared" / "data" / "music-avqa"
needs_real = pytest.mark.skipif(
    not (REAL / "avqa-test.json").is_file(),
    reason=f"no annotations in {REAL}: copy data/json/*.json of github.com/GeWu-Lab/MUSIC-AVQA there",
)


def load(root: Path, dataset: str, **settings: Any) -> Manifest:
    return load_manifest(
        from_mapping(DataSettings, {"dataset": dataset, "root": root.name, **settings}, where=""), base=root.parent
    )


def music(number: int, **changed: Any) -> dict[str, Any]:
    values = {
        "video_id": f"{number:08d}",
        "question_id": number,
        "type": '["Audio-Visual", "Counting"]',
        "question_content": "How many sounding <Object> in the video？",
        "templ_values": '["violin"]',
        "anser": "two",
    }
    return {k: v for k, v in {**values, **changed}.items() if v is not ...}


def put(path: Path, records: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(records if isinstance(records, str) else json.dumps(records), encoding="utf-8")


@needs_real
def test_a_file_of_predictions_gives_hand_checked_numbers_micro_averaged() -> None:
    files = {"train": "avqa-train_fake.json", "val": "avqa-val.json", "test": "avqa-test.json"}
    manifest = load(REAL, "music-avqa", files=files, allow_missing=True)
    test = manifest.split("test")
    # "yes" to everything: what is right is counted from the file itself, type by type.
    records = json.loads((REAL / "avqa-test.json").read_text())
    right = Counter(tuple(json.loads(r["type"])) for r in records if r["anser"] == "yes")
    scores = score([q.type for q in test], [q.answer == "yes" for q in test])
    assert scores.by_type["AV-exist"].correct == right["Audio-Visual", "Existential"]
    assert [scores.by_type[t].total for t in MUSIC_AVQA_TYPES] == [1017, 594, 1197, 1225, 988, 1265, 920, 1101, 822]
    assert scores.by_group["Audio"].total == 1017 + 594
    assert scores.by_group["Audio"].correct == right["Audio", "Counting"] + right["Audio", "Comparative"]
    # Micro, not the mean of nine shares.
    assert scores.overall.accuracy == sum(right.values()) / 9129
    shares = [t.accuracy for t in scores.by_type.values()]
    assert abs(scores.overall.accuracy - sum(shares) / 9) > 1e-4


@pytest.mark.parametrize(
    ("release", "folder", "names"),
    [
        ("original", "data/json", ("avqa-train", "avqa-val", "avqa-test")),
        ("updated", "data/json_update", ("avqa-train", "avqa-val", "avqa-test")),
        ("synthetic", "json", ("avqa-train_fake", "avqa-val_fake", "avqa-test_fake")),
        ("v2.0-balanced", "balance_full_set", ("train_balance", "val_balance", "test_balance")),
        ("v2.0-biased", "data/bias_set", ("train_bias", "val_bias", "test_bias")),
    ],
)
def test_a_release_is_found_where_it_is_distributed(
    tmp_path: Path, release: str, folder: str, names: tuple[str, ...]
) -> None:
    root = tmp_path / "set"
    for other in ("data/json", "data/json_update"):  # other releases beside it
        put(root / other / "avqa-train.json", [music(99, anser="ten")])
    for number, name in enumerate(names):
        put(root / folder / f"{name}.json", [music(number)])
    manifest = load(root, "music-avqa", release=release, allow_missing=True)
    assert [q.clip_id for q in manifest.questions] == ["00000000", "00000001", "00000002"]
    assert manifest.splits == ("train", "val", "test")
    (root / folder / f"{names[2]}.json").unlink()
    with pytest.raises(ManifestError, match=rf"no {names[2]}\.json for split 'test'.*data\.release") as caught:
        load(root, "music-avqa", release=release, allow_missing=True)
    assert "\n" not in str(caught.value)


def test_rephrased_questions_are_read_with_their_head_and_tail(tmp_path: Path) -> None:
    root = tmp_path / "set"
    put(root / "json_update" / "avqa-train.json", [music(1)])
    put(root / "json_update" / "avqa-val.json", [music(2)])
    said = "Does the cello in the video play all the time"
    head = [music(3, question_content=said, templ_values=..., anser="yes"), music(3, anser="one")]
    put(root / "MUSIC-AVQA-R" / "avqa-test-head.json", head)
    put(root / "MUSIC-AVQA-R" / "avqa-test-tail.json", [music(3, question_id=..., anser="nine")])
    manifest = load(root, "music-avqa", release="r", allow_missing=True)
    test = manifest.split("test")
    assert [(q.id, q.subset) for q in test] == [("3", "head"), ("3#2", "head"), ("test-tail-0", "tail")]
    assert test[0].text == said + "?"
    assert test[1].text == "How many sounding violin in the video?"
    scores = score([q.type for q in test], [True, False, False], subsets=[q.subset for q in test])
    assert {name: (t.correct, t.total) for name, t in scores.by_subset.items()} == {"head": (1, 2), "tail": (0, 1)}


def test_a_split_may_be_several_files(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("a", "b"):
        put(root / f"{name}.json", [music(ord(name))])
    manifest = load(root, "music-avqa", files={"train": ["a.json", "b.json"]}, allow_missing=True)
    assert len(manifest.split("train")) == 2


def test_all_dubbed_copies_stay_with_their_source() -> None:
    assert {source_id(f"{kind}00003770") for kind in ("", "sa", "va", "vv", "esa", "eva", "evv")} == {"00003770"}


# AVE

AVE_LINES = """Category&VideoID&Quality&StartTime&EndTime
Church bell&RUhOCu3LNXM&good&0&10
Male speech, man speaking&-x1JLdRWdIM&good&2&5
Mandolin&RUhOCu3LNXM&good&0&0
"""


def test_ave_gives_each_segment_its_class(tmp_path: Path) -> None:
    root = tmp_path / "AVE_Dataset"
    for split in ("train", "val", "test"):
        put(root / f"{split}Set.txt", AVE_LINES if split == "train" else AVE_LINES.split("\n", 2)[1])
    (root / "AVE").mkdir()
    for clip in ("RUhOCu3LNXM", "-x1JLdRWdIM"):
        (root / "AVE" / f"{clip}.mp4").touch()
    manifest = load(root, "ave")
    bell, speech, mandolin = manifest.split("train")
    assert bell.labels == ("Church bell",) * 10
    assert [label == "background" for label in speech.labels] == [True] * 2 + [False] * 3 + [True] * 5
    assert mandolin.labels == ("background",) * 10
    assert (mandolin.id, mandolin.clip_id, mandolin.text) == ("RUhOCu3LNXM#2", "RUhOCu3LNXM", "")
    assert manifest.answers == (*CATEGORIES, "background")
    assert len(manifest.answers) == 29
    assert any("lines are about a clip of an earlier line" in line for line in describe(manifest))
    assert describe(manifest)[-1].endswith("val 0.00 %, test 0.00 %")  # background: 17 of train's 30 segments
    clock = "labelled wrongly: set stride_seconds = "
    assert any(line.endswith(f"{clock}1 in [data]") for line in describe(manifest))
    assert any(line.endswith(f"{clock}0.5 in [data]") for line in describe(load(root, "ave", segments=20)))
    assert not any(clock in line for line in describe(load(root, "ave", stride_seconds=1.0)))
    halves = load(root, "ave", segments=20).split("train")[1]
    assert [label == "background" for label in halves.labels] == [True] * 4 + [False] * 6 + [True] * 10


def test_ave_is_read_from_annotations_and_orders(tmp_path: Path) -> None:
    root = tmp_path / "set"
    put(root / "Annotations.txt", AVE_LINES)
    for split, order in (("train", [2, 0]), ("val", [1]), ("test", [1])):
        with h5py.File(root / f"{split}_order.h5", "w") as file:
            file["order"] = np.array(order)
    manifest = load(root, "ave", allow_missing=True)
    assert [q.answer for q in manifest.split("train")] == ["Mandolin", "Church bell"]
    with h5py.File(root / "val_order.h5", "a") as file:
        file["order"][0] = 7
    with pytest.raises(ManifestError, match=r"val_order\.h5: entry 0 is 7, Annotations\.txt has 3 lines"):
        load(root, "ave", allow_missing=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "Church bel&x&good&0&10",
            r"trainSet\.txt:1: 'Category': unknown category 'Church bel'; did you mean 'Church b",
        ),
        ("Church bell&../x&good&0&10", "points outside the data set's root"),
        ("Church bell&x&good&0", "found 4 fields, expected Category&VideoID"),
        ("Church bell&x&good&0&1e9", "'EndTime' is '1e9', expected whole seconds from 0 to 10"),
        ("Church bell&x&good&-1&4", "'StartTime' is '-1'"),
        ("", r"trainSet\.txt: no line"),
    ],
)
def test_a_malformed_line_of_ave_is_named(tmp_path: Path, line: str, message: str) -> None:
    for split in ("train", "val", "test"):
        put(tmp_path / "set" / f"{split}Set.txt", line)
    with pytest.raises(ManifestError, match=message) as caught:
        load(tmp_path / "set", "ave", allow_missing=True)
    assert "\n" not in str(caught.value)


# AVQA


def avqa(number: int, **changed: Any) -> dict[str, Any]:
    return {
        "id": number,
        "video_name": "-HG3Omg_89c_000030",
        "video_id": 341,
        "question_text": "What happened in the video?",
        "multi_choice": ["motorboat", "Yacht consignment", "Sailboat set sail", "Consignment car"],
        "answer": 1,
        "question_relation": "View",
        "question_type": "Happening",
        **changed,
    }


def test_avqa_is_read_with_its_choices(tmp_path: Path) -> None:
    root = tmp_path / "set"
    put(root / "train_qa.json", [avqa(183), avqa(184, answer=3, multi_choice=["a", "b", "motorboat", "c"])])
    put(root / "val_qa.json", [avqa(183, answer=0)])
    (root / "videos").mkdir()
    (root / "videos" / "-HG3Omg_89c_000030.mp4").touch()
    manifest = load(root, "avqa")
    first, second = manifest.split("train")
    assert (first.answer, first.type, first.subset) == ("Yacht consignment", "Happening", "View")
    assert second.choices == ("a", "b", "motorboat", "c")
    assert manifest.answers == ("motorboat", "Yacht consignment", "Sailboat set sail", "Consignment car", "a", "b", "c")
    assert [q.id for q in manifest.questions] == ["183", "184", "183#2"]
    assert manifest.splits == ("train", "val")
    assert blind_baseline(manifest, "val") == {"183#2": "Yacht consignment"}
    assert "blind baseline" in describe(manifest)[-1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"answer": 4}, r"val_qa\.json\[0\]: 'answer' is 4, expected a place from 0 to 3"),
        ({"answer": True}, "'answer' is True"),
        ({"multi_choice": ["a", "a"]}, "expected at least two different answers"),
        ({"multi_choice": "a"}, "expected a JSON list of strings"),
        ({"video_name": "../x"}, "points outside"),
        ({"video_name": None}, "no 'video_name'"),
        ({"id": None}, "no 'id'"),
        ({"question_text": 3}, "expected a string"),
    ],
)
def test_a_malformed_record_of_avqa_is_named(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    put(tmp_path / "set" / "train_qa.json", [avqa(1)])
    put(tmp_path / "set" / "val_qa.json", [avqa(2, **wrong)])
    with pytest.raises(ManifestError, match=message) as caught:
        load(tmp_path / "set", "avqa", allow_missing=True)
    assert "\n" not in str(caught.value)


# tables


def test_a_table_may_give_labels_by_segment(tmp_path: Path) -> None:
    root = tmp_path / "set"
    lines = [
        {"clip": "a", "labels": ["bark", "background"]},
        {"clip": "b", "labels": ["bark", "bark"], "answer": "dog"},
    ]
    put(root / "manifest.jsonl", "\n".join(map(json.dumps, lines)))
    manifest = load(root, "manifest", segments=2, allow_missing=True)
    assert manifest.answers == ("bark", "background", "dog")
    assert manifest.questions[0].labels == ("bark", "background")
    assert [(q.answer, q.type) for q in manifest.questions] == [("", "event"), ("dog", "event")]
    put(root / "manifest.csv", "clip,labels\na,bark|background\n")
    csv = load(root, "manifest", segments=2, allow_missing=True, annotations="set/manifest.csv")
    assert csv.questions[0].labels == ("bark", "background")
    with pytest.raises(ManifestError, match=r"manifest\.jsonl:1: 'labels' has 2 classes, expected 3"):
        load(root, "manifest", segments=3, allow_missing=True, annotations="set/manifest.jsonl")


# frames and sound


def write_frames(folder: Path, count: int, *, name: str = "{:06d}.jpg") -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        with av.open(str(folder / name.format(number + 1)), "w", format="image2") as out:
            stream = out.add_stream("mjpeg", rate=1)
            stream.width, stream.height, stream.pix_fmt = 32, 24, "yuvj420p"
            picture = np.full((24, 32, 3), 20 + 10 * number, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            out.mux(stream.encode(None))


def write_wav(path: Path, samples: np.ndarray, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], "s16", layout="mono")
        frame.sample_rate = rate
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


@pytest.fixture
def frames_set(tmp_path: Path) -> Path:
    """Clips that are, in turn, frames with sound, frames alone, sound alone, and a video with frames beside it."""
    root = tmp_path / "set"
    for number in (1, 2, 4):
        write_frames(root / "frames" / f"{number:08d}", 12)
    click = np.zeros(24_000, np.float32)  # 3 s
    click[12_000] = 0.9  # at 1.5 s, the centre of the second of three segments
    for number in (1, 3):
        write_wav(root / "audio" / f"{number:08d}.wav", click)
    (root / "videos").mkdir()
    (root / "videos" / "00000004.mp4").touch()
    for split, ids in (("train", (1, 2)), ("val", (3,)), ("test", (4,))):
        put(root / "annotations" / f"avqa-{split}.json", [music(i) for i in ids])
    return root


def test_clips_are_found_as_video_or_as_frames_and_sound(frames_set: Path) -> None:
    manifest = load(frames_set, "music-avqa", frames_fps=4)
    clips = list(manifest.clips.values())
    assert clips[0].media == FrameFolder(
        path=frames_set / "frames" / "00000001", fps=4.0, sound=frames_set / "audio" / "00000001.wav"
    )
    assert clips[1].sound is None
    assert clips[2].media == frames_set / "audio" / "00000003.wav"
    assert clips[3].media == frames_set / "videos" / "00000004.mp4"
    assert source_of(manifest, clips[0]) == "frames/00000001 (4 fps) + audio/00000001.wav"
    with pytest.raises(ManifestError, match=r"clip '00000001' is a folder of frames; set data\.frames_fps"):
        load(frames_set, "music-avqa")


def test_frames_and_sound_are_decoded_as_a_video_would_be(frames_set: Path) -> None:
    clip = load(frames_set, "music-avqa", frames_fps=4).clips["00000001"].media
    assert isinstance(clip, FrameFolder)
    media = decode_clip(clip, num_segments=3, window_seconds=0.5, sample_rate_hz=8000)
    assert media.frames is not None
    assert media.waveforms is not None
    assert media.duration_seconds == 3.0
    np.testing.assert_allclose(media.instants_seconds, [0.5, 1.5, 2.5])
    np.testing.assert_allclose(media.frames.mean((1, 2, 3)), [20 + 10 * k for k in (2, 6, 10)], atol=3)
    assert media.frames.shape == (3, 24, 32, 3)
    assert np.abs(media.waveforms[1]).argmax() == 2000  # the window's centre
    assert not media.waveforms[[0, 2]].any()


def test_frames_are_in_order_of_their_numbers(tmp_path: Path) -> None:
    write_frames(tmp_path / "clip", 11, name="frame_{}.jpg")
    assert [p.stem for p in frame_files(tmp_path / "clip")] == [f"frame_{n}" for n in range(1, 12)]
    with pytest.raises(MissingMediaError, match="no such folder of frames"):
        frame_files(tmp_path / "nowhere")


def test_what_is_wrong_with_frames_is_one_line(frames_set: Path) -> None:
    folder = frames_set / "frames" / "00000001"
    settings = SegmentSettings(num_segments=3, window_seconds=0.5, sample_rate_hz=8000)
    silent = FrameFolder(path=folder, fps=4.0)
    with pytest.raises(MediaError, match=r"00000001: no sound file beside it"):
        decode_clip(silent, num_segments=3, window_seconds=0.5, sample_rate_hz=8000)
    quiet = decode_clip(silent, num_segments=3, window_seconds=0.5, sample_rate_hz=8000, missing_sound="silence")
    assert quiet.waveforms is not None
    assert not quiet.waveforms.any()
    (folder / "000003.jpg").write_bytes(b"no image")
    (outcome,) = iter_media([FrameFolder(path=folder, fps=4.0, sound=frames_set / "audio" / "00000001.wav")], settings)
    assert "000003.jpg" in str(outcome.error)
    assert "\n" not in str(outcome.error)


def test_frames_are_known_by_content_rate_and_sound(frames_set: Path) -> None:
    store = open_store(frames_set / "features.zarr", "a")

    def keys(fps: float) -> list[str]:
        manifest = load(frames_set, "music-avqa", frames_fps=fps)
        found = clip_items(manifest, ClipDigests(store, manifest), progress=False)
        return [item.key for item in found.items.values()]

    before = keys(4)
    assert keys(4) == before
    assert [a == b for a, b in zip(before, keys(8), strict=True)] == [False, False, True, True]
    write_wav(frames_set / "audio" / "00000001.wav", np.zeros(8000, np.float32))
    assert [a == b for a, b in zip(before, keys(4), strict=True)] == [False, True, True, True]


def test_a_stride_gives_segments_of_one_length(frames_set: Path) -> None:
    clip = FrameFolder(path=frames_set / "frames" / "00000002", fps=4.0)
    media = decode_clip(clip, num_segments=5, sound=False, stride_seconds=1.0)
    assert media.frames is not None
    np.testing.assert_allclose(media.instants_seconds, [0.5, 1.5, 2.5, 3.5, 4.5])
    levels = media.frames.mean((1, 2, 3))
    np.testing.assert_allclose(levels, [20 + 10 * k for k in (2, 6, 10, 11, 11)], atol=3)  # beyond the end: the last
    with pytest.raises(SettingsError, match="stride_seconds: found 0"):
        decode_clip(clip, num_segments=5, sound=False, stride_seconds=0.0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"dataset": "music-avqa", "root": "x", "release": "v2"}, "release: found 'v2', expected one of 'original', "),
        ({"dataset": "ave", "root": "x", "release": "r"}, "release"),
        (
            {"dataset": "music-avqa", "root": "x", "release": "r", "files": {"test": "a.json"}},
            "leave this or files out",
        ),
        ({"dataset": "music-avqa", "root": "x", "frames_fps": 0}, "frames_fps: found 0"),
        ({"dataset": "ave", "root": "x", "stride_seconds": -1.0}, "stride_seconds: found -1"),
        ({"dataset": "ave", "root": "x", "answers": ["a"]}, "ave has its own classes"),
    ],
)
def test_settings_that_cannot_be_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        from_mapping(DataSettings, table, where="data")
