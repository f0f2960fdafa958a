"""Names as people mean them: Unicode forms, spellings of a path, folders of frames, one name for two files."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from talik.errors import ManifestError, MissingMediaError
from talik.extract.datasets.describe import describe
from talik.extract.datasets.load import load_manifest
from talik.extract.datasets.settings import DataSettings
from talik.extract.datasets.types import Manifest

COMPOSED, DECOMPOSED = "Café", unicodedata.normalize("NFD", "Café")
assert COMPOSED != DECOMPOSED


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def frames(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.jpg")


def load(root: Path, *clips: str, text: str | None = None, name: str = "manifest.jsonl", **settings: Any) -> Manifest:
    """A manifest of one record a clip, or of the text that is given."""
    lines = [json.dumps({"clip": c, "answer": f"a{i}"}, ensure_ascii=False) for i, c in enumerate(clips)]
    (root / name).write_text("\n".join(lines) if text is None else text, encoding="utf-8", newline="")
    return load_manifest(DataSettings(dataset="manifest", root=root.name, **settings), base=root.parent)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


@pytest.mark.parametrize("on_disk", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("written", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("ending", ["", ".mp4"])
@pytest.mark.parametrize("folder", ["", f"{DECOMPOSED}s/"])
def test_unicode_forms_are_one_name(root: Path, on_disk: str, written: str, ending: str, folder: str) -> None:
    path = f"{folder}{on_disk}.mp4"
    touch(root, path)
    manifest = load(root, f"{unicodedata.normalize('NFC', folder)}{written}{ending}")
    (clip,) = manifest.clips.values()
    assert clip.path == root / path
    assert clip.id == unicodedata.normalize("NFC", clip.id)


@pytest.mark.parametrize(
    "written",
    ["v/a.mp4", "./v/a.mp4", "v//a.mp4", "v/./a.mp4", "v\\a.mp4", ".\\v\\a.mp4", "v/a.mp4/", " v/a.mp4 "],
)
def test_spellings_of_one_path_are_one_clip(root: Path, written: str) -> None:
    touch(root, "v/a.mp4")
    manifest = load(root, "v/a.mp4", written)
    assert list(manifest.clips) == ["v/a.mp4"]
    assert [q.clip_id for q in manifest.questions] == ["v/a.mp4"] * 2
    assert manifest.clips["v/a.mp4"].path == root / "v" / "a.mp4"


@pytest.mark.parametrize("written", ["a", "a.mp4", "./a", "v/a", "v\\a", "v/a.mp4"])
def test_a_clip_is_found_with_and_without_its_ending(root: Path, written: str) -> None:
    touch(root, "v/a.mp4", "v/b.mp4")
    (clip,) = load(root, written).clips.values()
    assert clip.path == root / "v" / "a.mp4"


@pytest.mark.parametrize("written", ["x/7", "x/7/", "./x/7", "x\\7", "x\\7\\", "7"])
def test_a_folder_of_frames_may_be_named_by_its_path(root: Path, written: str) -> None:
    frames(root / "x" / "7")
    touch(root, "x/7.wav", "other/7.wav")
    (clip,) = load(root, written, frames_fps=4).clips.values()
    assert (clip.path, clip.sound) == (root / "x" / "7", root / "x" / "7.wav")
    with pytest.raises(ManifestError, match=r"manifest\.jsonl:1: .* is a folder of frames; set data\.frames_fps"):
        load(root, written)


@pytest.mark.parametrize(
    ("files", "written"),
    [
        (("a/1.mp4", "b/1.mp4"), "1"),
        (("1.mp4", "b/1.mp4"), "1"),
        (("a/1.mp4", "b/1.mkv"), "1"),
        (("a/1.mp4", "a/1.webm"), "1"),
        (("a/1.mp4", "a/1.webm"), "a/1"),
        (("a/1.wav", "b/1.flac"), "1"),
        (("a/1.mp4", "b/1.mp4"), "1.mp4"),
        ((f"a/{COMPOSED}.mp4", f"a/{DECOMPOSED}.mp4"), f"a/{COMPOSED}.mp4"),
        ((f"{COMPOSED}/1.mp4", f"{DECOMPOSED}/1.mp4"), f"{COMPOSED}/1.mp4"),
    ],
)
def test_one_name_for_two_files_is_an_error_that_names_both(root: Path, files: tuple[str, ...], written: str) -> None:
    touch(root, *files)
    with pytest.raises(ManifestError, match=r"^manifest\.jsonl:1: ") as caught:
        load(root, written, allow_missing=True)
    told = str(caught.value)
    assert all(name in told or name.split("/")[0] in told for name in files)
    assert "\n" not in told


def test_two_folders_of_frames_of_one_name_are_an_error(root: Path) -> None:
    frames(root / "train" / "7")
    frames(root / "test" / "7")
    with pytest.raises(ManifestError, match=r"'7' may be .*test/7 or .*train/7"):
        load(root, "7", frames_fps=4)
    assert load(root, "train/7", "test/7", frames_fps=4).clips["train/7"].path == root / "train" / "7"


def test_what_is_no_ambiguity(root: Path) -> None:
    touch(root, "a/1.mp4", "a/1.wav", "b/2.mp4", "b/3.mp4", "c/2.mp4", "c/b/3.mp4")
    (root / "link").mkdir()
    (root / "link" / "1.mp4").symlink_to(root / "a" / "1.mp4")  # of the same file
    manifest = load(root, "1", "c/2.mp4", "3")
    assert manifest.clips["1"].path == root / "a" / "1.mp4"  # and its sound beside it
    assert manifest.clips["c/2.mp4"].path == root / "c" / "2.mp4"
    ordered = load(root, "2", videos=("c", "b"))
    assert ordered.clips["2"].path == root / "c" / "2.mp4"


def test_capitals_are_kept_and_a_missing_file_is_said_with_the_one_that_is_like_it(root: Path) -> None:
    touch(root, "v/A.MP4", "v/a.mp4")
    manifest = load(root, "A", "a")
    assert [clip.path for clip in manifest.clips.values()] == [root / "v" / "A.MP4", root / "v" / "a.mp4"]
    touch(root, "v/Dog.mp4")
    with pytest.raises(MissingMediaError, match=r"'dog' .*manifest\.jsonl:1; there is .*v/Dog\.mp4\)"):
        load(root, "dog")


@pytest.mark.parametrize("written", ["../a.mp4", "v/../../a.mp4", "/a.mp4", "\\a.mp4", "..\\a.mp4", "C:\\a.mp4", "C:a"])
def test_no_name_leaves_the_root(root: Path, written: str) -> None:
    touch(root, "a.mp4")
    with pytest.raises(ManifestError, match="points outside"):
        load(root, written)


# what else a table may hold

ROW = '{"clip": "a", "question": "Is it?", "answer": "yes", "split": "train"}'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "manifest.jsonl",
            f'{ROW}\n{{"clip": "a", "question": "Is it?", "answer": ""}}',
            r"jsonl:2: 'answer' is empty",
        ),
        ("manifest.jsonl", '{"clip": "a", "answer": "  "}', r"jsonl:1: 'answer' is empty"),
        ("manifest.jsonl", '\n\n{"clip": "a", "answer": 3}', r"jsonl:3: 'answer' is 3, expected a string"),
        ("manifest.jsonl", '{"clip": "a", "answer": null}', r"jsonl:1: no 'answer'"),
        ("manifest.jsonl", f'{ROW}\r\n{{"clip": "a", "answer": "no"}}', r"jsonl:2: no question, but .*jsonl:1"),
        ("manifest.jsonl", f"{ROW}\n{ROW.replace('Is it?', ' ')}", r"jsonl:2: no question"),
        ("manifest.jsonl", f"{ROW}\n{ROW}", r"jsonl:2: says the same as manifest\.jsonl:1"),
        ("manifest.jsonl", f"{ROW}\n" + ROW.replace('"a"', '"./a "'), r"jsonl:2: says the same as manifest\.jsonl:1"),
        ("manifest.jsonl", '{"clip": "a", "answer": "x", "answer": "y"}', r"line 1: the key 'answer' stands twice"),
        ("manifest.jsonl", ROW.replace("train", "Train"), r"jsonl:1: 'split' is 'Train', expected 'train'"),
        ("manifest.jsonl", ROW.replace("train", "validation"), r"jsonl:1: 'split' is 'validation', expected 'val'"),
        ("manifest.csv", "clip,answer\na,\n", r"csv:2: no 'answer'"),
        ("manifest.csv", "clip,answer,answer\na,x,y\n", r"csv:1: the header names 'answer' twice"),
        ("manifest.csv", 'clip,question,answer\na,"one\r\ntwo",x\r\n\r\na,"one,x\r\n', r"csv:5: not CSV"),
        ("manifest.csv", 'clip,question,answer\na,"one\ntwo",x\na,three\n', r"csv:4: found 2 fields, .* header's 3"),
        ("manifest.csv", "clip;question;answer\na;b\n", r"csv:2: found 2 fields, .* header's 3"),
    ],
)
def test_what_is_wrong_in_a_table_is_said_with_file_and_line(root: Path, name: str, text: str, message: str) -> None:
    touch(root, "a.mp4")
    with pytest.raises(ManifestError, match=message) as caught:
        load(root, text=text, name=name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffclip,question,answer,split\r\na,Is it?,yes,train\r\n",
        "clip;question;answer;split\na;Is it?;yes;train\n",
        "clip\tquestion\tanswer\tsplit\na\tIs it?\t yes \t train\n",
        '"clip","question","answer","split"\n"a","Is it?","yes","train"\n',
        " clip , question , answer , split \n a ,Is it?, yes , train \n\n",
    ],
)
def test_tables_as_programs_write_them(root: Path, text: str) -> None:
    touch(root, "a.mp4")
    (question,) = load(root, text=text, name="manifest.csv").questions
    assert (question.clip_id, question.text, question.answer, question.split) == ("a", "Is it?", "yes", "train")
    assert question.id == "2"


def test_two_tables_and_one_that_is_no_utf8(root: Path) -> None:
    touch(root, "a.mp4")
    (root / "manifest.csv").write_text("clip,answer\na,x\n")
    with pytest.raises(ManifestError, match=r"found manifest\.jsonl and manifest\.csv; name the one to read"):
        load(root, "a")
    (root / "manifest.jsonl").unlink()
    (root / "manifest.csv").write_bytes("clip,answer\na,x\nb,Größe\n".encode("latin-1"))
    with pytest.raises(ManifestError, match=r"manifest\.csv: not UTF-8 text \(byte 20\) in line 3"):
        load_manifest(DataSettings(dataset="manifest", root=root.name), base=root.parent)
    (root / "manifest.csv").write_text("clip,answer\na,x\n", encoding="utf-16")
    with pytest.raises(ManifestError, match="not UTF-8"):
        load_manifest(DataSettings(dataset="manifest", root=root.name), base=root.parent)


def test_answers_of_two_unicode_forms_are_one_class(root: Path) -> None:
    touch(root, "a.mp4", "b.mp4", "c.mp4")
    rows = [{"clip": c, "answer": a} for c, a in zip("abc", (COMPOSED, DECOMPOSED, f" {COMPOSED}"), strict=True)]
    text = "\n".join(json.dumps(r) for r in rows)
    assert load(root, text=text).answers == (COMPOSED,)
    assert load(root, text=text, answers=(DECOMPOSED, "no")).answers == (COMPOSED, "no")


def test_what_may_be_meant_is_told(root: Path) -> None:
    touch(root, "a.mp4")
    rows = [
        {"clip": "a", "question": "Is it?", "answer": "yes", "split": "train"},
        {"clip": "a", "question": "Is it?", "answer": "no", "split": "train"},
        {"clip": "a", "question": "What?", "answer": "dog"},
        {"clip": "a", "question": "What?", "answer": "cat", "split": "test", "id": "t"},
        {"clip": "a", "question": "What?", "answer": "cat", "split": "test", "id": "u"},
    ]
    told = "\n".join(describe(load(root, text="\n".join(map(json.dumps, rows)))))
    assert "1 records name no split and are of train, the first manifest.jsonl:3" in told
    assert "another answer than an earlier record does, the first manifest.jsonl:2" in told
    assert "2 questions of test with an answer that train does not have" in told


@pytest.mark.skipif(os.name != "posix", reason="file names that are no text are POSIX's")
def test_files_whose_names_are_no_text_are_passed_over(root: Path) -> None:
    touch(root, "v/a.mp4")
    (root / "v" / os.fsdecode(b"caf\xe9.mp4")).touch()
    assert load(root, "a").clips["a"].path == root / "v" / "a.mp4"
