"""Data sets loaded: MUSIC-AVQA's real annotations and made ones, the made set, JSONL and CSV; and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from talik.config import from_mapping
from talik.errors import ManifestError, MissingMediaError, SettingsError
from talik.extract.datasets.describe import blind_baseline, describe, fraction_correct, shared_clips
from talik.extract.datasets.load import load_manifest
from talik.extract.datasets.music_avqa import ANSWERS_42, fill_template
from talik.extract.datasets.settings import DataSettings
from talik.extract.datasets.split import source_id
from talik.extract.datasets.types import MUSIC_AVQA_TYPES, Manifest

REAL = Path(__file__).parents[3] / "shared" / "data" / "music-avqa"
needs_real = pytest.mark.skipif(
    not (REAL / "avqa-test.json").is_file(),
    reason=f"no annotations in {REAL}: copy data/json/*.json of github.com/GeWu-Lab/MUSIC-AVQA there",
)


def record(number: int, **changed: Any) -> dict[str, Any]:
    """Return a record as distributed, with some fields changed; a field set to ... is left out."""
    values: dict[str, Any] = {
        "video_id": f"{number:08d}",
        "question_id": number,
        "type": '["Audio-Visual", "Counting"]',
        "question_content": "How many sounding <Object> in the video？",
        "templ_values": '["violin"]',
        "question_deleted": 0,
        "anser": "two",
    }
    return {k: v for k, v in {**values, **changed}.items() if v is not ...}


def write_set(root: Path, *, media: bool = True, **splits: list[dict[str, Any]]) -> Path:
    """Write a set in MUSIC-AVQA's format, each clip an empty file, half of them in another folder."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "videos").mkdir(exist_ok=True)
    (root / "videos-synthetic").mkdir(exist_ok=True)
    for split in ("train", "val", "test"):
        records = splits.get(split, [record({"train": 0, "val": 1000, "test": 2000}[split])])
        (root / "annotations" / f"avqa-{split}.json").write_text(json.dumps(records))
        for number, clip in enumerate(dict.fromkeys(values["video_id"] for values in records) if media else []):
            folder = "videos" if number % 2 == 0 else "videos-synthetic"
            (root / folder / f"{clip}.mp4").touch()
    return root


def load(root: Path, dataset: str = "music-avqa", **settings: Any) -> Manifest:
    return load_manifest(DataSettings(dataset=dataset, root=root.name, **settings), base=root.parent)


@pytest.fixture(scope="module")
def real() -> Manifest:
    files = {"train": "avqa-train_fake.json", "val": "avqa-val.json", "test": "avqa-test.json"}
    settings = DataSettings(dataset="music-avqa", root=REAL.name, files=files, allow_missing=True)
    return load_manifest(settings, base=REAL.parent)


@needs_real
def test_the_real_annotations_have_the_counts_that_they_have(real: Manifest) -> None:
    counts = Counter(q.type for q in real.split("test"))
    assert [counts[t] for t in MUSIC_AVQA_TYPES] == [1017, 594, 1197, 1225, 988, 1265, 920, 1101, 822]
    assert len(real.split("test")) == 9129
    assert len(real.split("val")) == 4568
    assert len(real.split("train")) == 6233
    assert real.splits == ("train", "val", "test")
    assert not [q for q in real.questions if "<" in q.text or not q.text.endswith("?") or q.text.count("?") > 1]
    assert {q.type for q in real.questions} == set(MUSIC_AVQA_TYPES)
    assert {q.answer for q in real.questions} <= set(real.answers)
    assert len({q.id for q in real.questions}) == len(real.questions)
    assert len(real.missing) == len(real.clips) == 8199


@needs_real
def test_the_answers_are_in_the_canonical_order(real: Manifest) -> None:
    assert list(real.answers) == (REAL / "answers.txt").read_text().splitlines()
    assert len(real.answers) == 42


@needs_real
def test_the_words_are_those_that_upstream_feeds_its_models(real: Manifest) -> None:
    for split, name in (("train", "avqa-train_fake"), ("val", "avqa-val"), ("test", "avqa-test")):
        records = json.loads((REAL / f"{name}.json").read_text())
        for question, values in zip(real.split(split), records, strict=True):
            words = values["question_content"].rstrip().split(" ")  # as net_grd_avst/dataloader_avst.py does
            words[-1] = words[-1][:-1]
            fill = iter(json.loads(values["templ_values"]))
            assert question.text[:-1].split(" ") == [next(fill) if "<" in word else word for word in words]
            assert question.template == values["question_content"]


@needs_real
def test_the_summary_of_the_real_annotations_tells_their_traps(real: Manifest) -> None:
    lines = "\n".join(describe(real))
    assert "9129 test questions, the updated release" in lines
    assert "avqa-train_fake.json: 56 records repeat a question id" in lines
    assert "shared: 2296 of the 3815 clips of val are also in test" in lines
    assert "test: 9129 questions about 6399 clips (A-count 1017, A-comp 594," in lines
    assert "missing: 8,199 clips without a file" in lines


@needs_real
def test_the_blind_baseline_of_the_real_annotations(real: Manifest) -> None:
    counts: dict[str, Counter[str]] = {}
    for q in real.split("train"):
        counts.setdefault(q.template.strip(), Counter())[q.answer] += 1
    best = {template: max(c.values()) for template, c in counts.items()}
    assert fraction_correct(real.split("train"), blind_baseline(real, "train")) == pytest.approx(
        sum(best.values()) / len(real.split("train"))
    )
    assert fraction_correct(real.split("test"), blind_baseline(real, "test")) == pytest.approx(0.3512, abs=1e-4)


@needs_real
def test_splitting_the_real_annotations_by_video_leaks_nothing(real: Manifest) -> None:
    files = {"train": "avqa-train_fake.json", "val": "avqa-val.json", "test": "avqa-test.json"}

    def draw(seed: int) -> Manifest:
        settings = DataSettings(
            dataset="music-avqa", root=REAL.name, files=files, allow_missing=True, split="by-video", seed=seed
        )
        return load_manifest(settings, base=REAL.parent)

    first, again, other = draw(0), draw(0), draw(1)
    assert shared_clips(real)
    assert not shared_clips(first)
    assert first.questions == again.questions
    assert first.questions != other.questions
    assert {q.id for q in first.questions} == {q.id for q in real.questions}
    for split in real.splits:
        assert abs(len(first.split(split)) - len(real.split(split))) < 60


def test_copies_of_a_clip_stay_with_their_source() -> None:
    pairs = {"00000012": "00000012", "eGmXU1Tpc-M_flip": "eGmXU1Tpc-M", "va00003770": "00003770", "sa1": "sa1"}
    assert {clip: source_id(clip) for clip in pairs} == pairs


def test_questions_are_read_and_clips_found_in_any_folder(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", test=[record(1), record(2, anser="no")])
    manifest = load(root)
    question = manifest.split("test")[1]
    assert (question.id, question.clip_id, question.answer) == ("2", "00000002", "no")
    assert (question.type, question.split) == ("AV-count", "test")
    assert question.text == "How many sounding violin in the video?"
    assert manifest.clips["00000001"].path == root / "videos" / "00000001.mp4"
    assert manifest.clips["00000002"].path == root / "videos-synthetic" / "00000002.mp4"
    assert manifest.answers == ANSWERS_42
    assert load(root, dataset="demo", allow_missing=True).missing == ("00000002",)  # the made set has one folder
    assert manifest.present() is manifest


def test_ragged_records_of_later_releases_are_read(tmp_path: Path) -> None:
    new = record(1, question_id=..., question_deleted=..., type=["Visual", "Location"], templ_values=["left", "drum"])
    new |= {"video_id": "-_x9G7EAfgj_flip", "question_content": "What is the <LR> one of <Object>, please? "}
    manifest = load(
        write_set(
            tmp_path / "set",
            test=[
                new,
                record(2, question_id="seven"),
                record(3, templ_values=[]) | {"question_content": "Is there a voiceover?"},
            ],
        )
    )
    first, second, third = manifest.split("test")
    assert (first.id, first.clip_id, first.type) == ("test-0", "-_x9G7EAfgj_flip", "V-loc")
    assert first.text == "What is the left one of drum, please?"
    assert second.id == "seven"
    assert third.text == "Is there a voiceover?"


def test_repeated_ids_stay_apart_and_are_counted(tmp_path: Path) -> None:
    manifest = load(write_set(tmp_path / "set", test=[record(7), record(7, anser="no"), record(7, anser="one")]))
    assert [q.id for q in manifest.split("test")] == ["7", "7#2", "7#3"]
    assert any("2 records repeat a question id" in line for line in describe(manifest))


def test_deleted_questions_are_left_out_with_their_clips(tmp_path: Path) -> None:
    manifest = load(write_set(tmp_path / "set", test=[record(1), record(2, question_deleted=1)]))
    assert [q.id for q in manifest.split("test")] == ["1"]
    assert "00000002" not in manifest.clips
    assert any("1 records are marked deleted" in line for line in describe(manifest))


def test_missing_clips_are_listed_together(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", media=False, test=[record(n) for n in range(50, 62)])
    with pytest.raises(MissingMediaError, match=r"14 of 14 clips are not in .*'00000000', '00001000', .*…") as caught:
        load(root)
    assert "avqa-train.json[0]" in str(caught.value)
    assert str(caught.value).count("'000") == 10
    assert "\n" not in str(caught.value)
    (root / "videos" / "00000055.webm").touch()
    manifest = load(root, allow_missing=True)
    assert len(manifest.missing) == 13
    assert [q.clip_id for q in manifest.present().questions] == ["00000055"]
    assert list(manifest.present().clips) == ["00000055"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"video_id": "../secret"}, r"avqa-test\.json\[0\]: 'video_id' is '\.\./secret', which points outside"),
        ({"video_id": "/etc/passwd"}, "points outside"),
        ({"video_id": "C:\\clip"}, "points outside"),
        ({"video_id": "..\\clip"}, "points outside"),
        ({"video_id": "a/b"}, "expected the name of a clip"),
        ({"video_id": ""}, "expected the name of a clip"),
        ({"video_id": "a\0b"}, "characters that are not text"),
        ({"video_id": ...}, "no 'video_id'"),
        ({"video_id": True}, "'video_id' is True, expected a string or a whole number"),
        ({"anser": "fourty"}, r"unknown answer 'fourty'; did you mean 'four'\?"),
        ({"anser": ...}, r"no 'anser' \(found 'video_id'"),
        ({"anser": 2}, "'anser' is 2, expected a string"),
        ({"type": '["Audio", "Smell"]'}, r"'type' is \['Audio', 'Smell'\], expected one of: Audio, Counting;"),
        ({"type": "Audio"}, "expected a JSON list of strings"),
        ({"templ_values": "[]"}, "do not fill .* 0 values for 1 placeholders"),
        ({"templ_values": "[1]"}, "expected a list of strings"),
        ({"templ_values": '["violin'}, "expected a JSON list of strings"),
        ({"templ_values": '["\\ud800"]'}, "characters that are not text"),
        ({"question_content": 5}, "'question_content' is 5, expected a string"),
        ({"question_id": 1.5}, "'question_id' is 1.5"),
        ({"question_deleted": "no"}, "'question_deleted' is 'no', expected 0 or 1"),
    ],
)
def test_a_malformed_record_is_named_in_one_line(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    root = write_set(tmp_path / "set", media=False, test=[record(1, **wrong)])
    with pytest.raises(ManifestError, match=message) as caught:
        load(root, allow_missing=True)
    assert str(caught.value).startswith("avqa-test.json[0]: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'[\n{"video_id": "1",\n]', r"avqa-test\.json: line 3, column 1: not JSON"),
        (b"", r"avqa-test\.json: line 1, column 1: not JSON"),
        (b'{"video_id": "1"}', r"avqa-test\.json: found .*, expected a list of questions"),
        (b"[1]", r"avqa-test\.json\[0\]: found 1, expected an object"),
        (b"[\xff]", r"avqa-test\.json: not UTF-8 text \(byte 1\)"),
        (b"[" * 100_000, r"avqa-test\.json: line 1: not JSON: "),
        (b"[" + b"9" * 5000 + b"]", r"avqa-test\.json: line 1: not JSON: "),
    ],
)
def test_a_file_that_does_not_parse_is_named_with_its_line(tmp_path: Path, text: bytes, message: str) -> None:
    root = write_set(tmp_path / "set")
    (root / "annotations" / "avqa-test.json").write_bytes(text)
    with pytest.raises(ManifestError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    (root / "annotations" / "avqa-train.json").rename(root / "annotations" / "avqa-train_real.json")
    with pytest.raises(ManifestError, match=r"no avqa-train\.json for split 'train' .*avqa-train_real\.json"):
        load(root)
    assert load(root, files={"test": "avqa-test.json", "train": "avqa-train_real.json"}).splits == ("train", "test")
    with pytest.raises(ManifestError, match="no such folder"):
        load(tmp_path / "elsewhere")
    with pytest.raises(ManifestError, match="talik demo make"):
        load(root / "videos", dataset="demo")
    with pytest.raises(ManifestError, match="points outside"):
        load(write_set(tmp_path / "whole"), videos=("../set",))


def test_a_template_takes_its_values_in_order() -> None:
    content = "Is the <Object> on the <LR> louder than the <Object> on the <LR>? "
    assert fill_template(content, ["flute", "left", "piano", "right"]) == (
        "Is the flute on the left louder than the piano on the right?"
    )
    with pytest.raises(ValueError, match="1 values for 4 placeholders"):
        fill_template(content, ["flute"])


def test_mutated_annotations_load_or_are_refused(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", test=[record(n) for n in range(1, 6)])
    path = root / "annotations" / "avqa-test.json"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused: list[str] = []
    for turn in range(500):
        data = bytearray(whole)
        if turn % 5 == 0:
            del data[rng.integers(0, len(data)) :]
        for place in rng.integers(0, max(len(data), 1), size=rng.integers(1, 6)) if data else ():
            data[place] = rng.integers(0, 256) if turn % 2 else rng.choice(np.frombuffer(b'"[]{},:\\0-', np.uint8))
        path.write_bytes(data)
        try:
            manifest = load(root, allow_missing=True)
        except ManifestError as error:
            refused.append(str(error))
        else:
            assert {q.answer for q in manifest.questions} <= set(ANSWERS_42)
            "".join(describe(manifest)).encode()
    assert len(refused) > 250
    assert not [line for line in refused if "\n" in line or not line.encode()]


def write_table(root: Path, name: str, text: str) -> Path:
    (root / "clips").mkdir(parents=True, exist_ok=True)
    for clip in ("a", "b"):
        (root / "clips" / f"{clip}.mp4").touch()
    (root / name).write_text(text)
    return root


LINES = [
    {"clip": "clips/b.mp4", "question": "Is it loud?", "answer": "yes", "type": "sound", "split": "test", "id": "x"},
    {"clip": "a", "question": "Is it loud?", "answer": "no"},
    {"clip": "a", "question": "Is it?", "answer": "maybe", "template": "T"},
]


def test_json_lines_are_read(tmp_path: Path) -> None:
    root = write_table(tmp_path / "set", "manifest.jsonl", "\n\n".join(json.dumps(line) for line in LINES))
    manifest = load(root, dataset="manifest")
    assert manifest.answers == ("no", "maybe", "yes")  # of train first
    assert [q.id for q in manifest.questions] == ["3", "5", "x"]
    assert [q.split for q in manifest.questions] == ["train", "train", "test"]
    assert [q.template for q in manifest.questions] == ["Is it loud?", "T", "Is it loud?"]
    assert [q.type for q in manifest.questions] == ["all", "all", "sound"]
    assert manifest.questions[1].text == "Is it?"
    assert manifest.clips["a"].path == root / "clips" / "a.mp4"
    assert manifest.clips["clips/b.mp4"].path == root / "clips" / "b.mp4"
    assert any("1 question of test with an answer that train does not have" in line for line in describe(manifest))
    named = load(root, dataset="manifest", answers=("maybe", "yes", "no", "never"), annotations="set/manifest.jsonl")
    assert named.answers == ("maybe", "yes", "no", "never")
    with pytest.raises(ManifestError, match=r"manifest\.jsonl:3: 'answer': unknown answer 'no'"):
        load(root, dataset="manifest", answers=("yes", "maybe"))


def test_csv_is_read(tmp_path: Path) -> None:
    text = 'clip,question,answer,type,split\nclips/b.mp4,"Is it loud, or\nnot?",yes,,test\na,Is it?,no,sound,train\n'
    manifest = load(write_table(tmp_path / "set", "manifest.csv", text), dataset="manifest")
    assert [(q.id, q.text, q.type) for q in manifest.questions] == [
        ("4", "Is it?", "sound"),
        ("2", "Is it loud, or\nnot?", "all"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "manifest.jsonl",
            '{"clip": "a", "answer": "x"}\n{"clip": "a"',
            r"manifest\.jsonl: line 2, column 13: not JSON",
        ),
        ("manifest.jsonl", '{"clip": "../a.mp4", "answer": "x"}', r"manifest\.jsonl:1: 'clip' is .* points outside"),
        ("manifest.jsonl", '{"clip": "/a.mp4", "answer": "x"}', "points outside"),
        ("manifest.jsonl", '{"clip": "a", "anser": "x"}', r"unknown column 'anser'; did you mean 'answer'\?"),
        ("manifest.jsonl", '{"clip": "a", "answer": null}', "no 'answer'"),
        ("manifest.jsonl", '{"clip": "gone", "answer": "x"}', r"1 of 1 clips are not in .*'gone'.*manifest\.jsonl:1"),
        ("manifest.jsonl", "", "no record"),
        ("manifest.jsonl", '{"clip": "a", "answer": "x", "id": 1}\n' * 2, "id '1' is also that of manifest.jsonl:1"),
        ("manifest.csv", "clip,answer\na,yes,more\n", r"manifest\.csv:2: found 3 fields, expected the header's 2"),
        ("manifest.csv", 'clip,answer\na,"yes\n', r"manifest\.csv:2: not CSV"),
        ("other.txt", "", "no manifest.jsonl or manifest.csv"),
    ],
)
def test_a_malformed_table_is_named_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises((ManifestError, MissingMediaError), match=message) as caught:
        load(write_table(tmp_path / "set", name, text), dataset="manifest")
    assert "\n" not in str(caught.value)


def records(**more: Any) -> list[dict[str, Any]]:
    return [
        {"clip": f"{i}.mp4", "question": "q ?", "answer": "ab"[i % 2], "split": "test" if i > 9 else "train", **more}
        for i in range(12)
    ]


def write_records(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for row in rows:
        (folder / row["clip"]).write_bytes(b"")


def test_a_validation_split_is_dealt_by_video_where_there_is_none(tmp_path: Path) -> None:
    rows = records()
    write_records(tmp_path, [*rows, *({**row, "question": "r ?"} for row in rows)])
    table = {"dataset": "manifest", "root": ".", "validation": 0.3}
    manifest = load_manifest(table, base=tmp_path)
    clips = {split: {q.clip_id for q in manifest.split(split)} for split in manifest.splits}
    assert {split: len(found) for split, found in clips.items()} == {"train": 7, "val": 3, "test": 2}
    assert not clips["train"] & clips["val"]
    assert len(manifest.split("val")) == 6
    assert "val is 3 of the 10 clips of train, dealt with seed 0 (data.validation)" in manifest.notes
    other = load_manifest({**table, "seed": 1}, base=tmp_path)
    assert {q.clip_id for q in other.split("val")} != clips["val"]
    write_records(tmp_path, [{**row, "split": "val" if i == 0 else row["split"]} for i, row in enumerate(rows)])
    with pytest.raises(ManifestError, match=r"data\.validation: the data set has a split 'val'; remove the key"):
        load_manifest(table, base=tmp_path)


def test_a_loader_beside_the_data_needs_no_registration(tmp_path: Path) -> None:
    write_records(tmp_path, records())
    code = "from talik.extract.datasets.generic import load_generic as load_doorbells\n"
    (tmp_path / "own_doorbells.py").write_text(code, encoding="utf-8")
    manifest = load_manifest({"dataset": "own_doorbells:load_doorbells", "root": "."}, base=tmp_path)
    assert len(manifest.questions) == 12


def test_clips_may_be_absolute_paths_below_the_root(tmp_path: Path) -> None:
    rows = records()
    write_records(tmp_path, rows)
    table = {"dataset": "manifest", "root": "."}
    relative = load_manifest(table, base=tmp_path)
    lines = [json.dumps({**row, "clip": str(tmp_path / row["clip"])}) for row in rows]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert load_manifest(table, base=tmp_path) == relative
    (tmp_path / "below").mkdir()
    table |= {"root": "below", "annotations": "manifest.jsonl"}
    with pytest.raises(ManifestError, match=r"points outside the data set's root .*; set data\.root to a folder above"):
        load_manifest(table, base=tmp_path)


def test_further_columns_may_be_question_types(tmp_path: Path) -> None:
    write_records(tmp_path, records(genre="jazz", year=1959))
    table = {"dataset": "manifest", "root": "."}
    with pytest.raises(ManifestError, match=r"unknown column 'genre'.*; others are allowed by data\.columns"):
        load_manifest(table, base=tmp_path)
    manifest = load_manifest({**table, "type_column": "genre", "columns": ["year"]}, base=tmp_path)
    assert {q.type for q in manifest.questions} == {"jazz"}
    with pytest.raises(SettingsError, match="columns, type_column: are of a manifest; demo has its own"):
        load_manifest({"dataset": "demo", "root": ".", "columns": ["year"]}, base=tmp_path)


def test_the_blind_baseline_answers_by_template_then_type_then_all(tmp_path: Path) -> None:
    rows = [("T1", "s", "a")] * 3 + [("T1", "s", "b")] * 2 + [("T2", "p", "b")] * 2 + [("T2", "p", "c")] * 2
    lines = [{"clip": "a", "template": t, "type": k, "answer": a, "id": f"t{i}"} for i, (t, k, a) in enumerate(rows)]
    asked = [("T1", "s", "a"), ("T2", "p", "c"), ("new", "p", "b"), ("new", "other", "b")]
    lines += [
        {"clip": "b", "template": t, "type": k, "answer": a, "split": "test", "id": f"q{i}"}
        for i, (t, k, a) in enumerate(asked)
    ]
    root = write_table(tmp_path / "set", "manifest.jsonl", "\n".join(json.dumps(line) for line in lines))
    manifest = load(root, dataset="manifest")
    # T1: a, 3 of 5. T2: b and c tie, b is the lower class. The type p: b. All: b 4, a 3, c 2.
    assert blind_baseline(manifest, "test") == {"q0": "a", "q1": "b", "q2": "b", "q3": "b"}
    assert fraction_correct(manifest.split("test"), blind_baseline(manifest, "test")) == 0.75
    assert describe(manifest)[-1].endswith("test 75.00 %")
    with pytest.raises(ManifestError, match=r"no split 'val' \(it has: train, test\)"):
        blind_baseline(manifest, "val")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"dataset": "music-qa", "root": "x"},
            r"unknown data set 'music-qa'; did you mean 'music-avqa'\? \(known: ave, ",
        ),
        ({"dataset": "demo", "root": ""}, "root: found an empty string"),
        ({"dataset": "demo", "root": "x", "segments": 0}, "segments: found 0"),
        ({"dataset": "demo", "root": "x", "split": "random"}, "split"),
        ({"dataset": "demo", "root": "x", "allow_mising": True}, "did you mean 'allow_missing'"),
        ({"dataset": "demo", "root": "x", "answers": ["yes"]}, "its own 42 answers"),
        ({"dataset": "manifest", "root": "x", "answers": ["yes", "yes"]}, "listed twice"),
        ({"dataset": "manifest", "root": "x", "files": {"test": "t.json"}}, "a manifest is one file"),
    ],
)
def test_settings_that_cannot_be_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        from_mapping(DataSettings, table, where="data")
