"""Stretches of films in a manifest: named, digested, extracted, looked up, split and shown as clips of their own."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import talik
from talik.adapt.report.dataset import DataSet
from talik.adapt.report.page_data import media_link
from talik.cache.format.digests import digest_file
from talik.errors import ManifestError, MediaError, MissingMediaError
from talik.extract.datasets.describe import describe
from talik.extract.datasets.load import load_manifest
from talik.extract.datasets.types import Manifest
from talik.extract.media.stretch import Stretch
from talik.extract.stage.items import ClipDigests, clip_items


def write_lines(root: Path, records: Sequence[dict[str, Any]], *, name: str = "manifest.jsonl") -> Path:
    path = root / name
    if name.endswith(".csv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for record in records for key in record)))
            writer.writeheader()
            writer.writerows(records)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def load(root: Path, **settings: Any) -> Manifest:
    return load_manifest({"dataset": "manifest", "root": str(root), **settings})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "films").mkdir()
    for name in ("a", "b"):
        (tmp_path / "films" / f"{name}.mp4").write_bytes(name.encode())
    return tmp_path


RECORDS = [
    {"clip": "films/a.mp4", "answer": "yes", "start": 60, "end": 70.5, "split": "train"},
    {"clip": "films/a.mp4", "answer": "no", "start": 60.0, "end": 70.50, "split": "train", "id": "x"},
    {"clip": "films/a.mp4", "answer": "no", "start": 3600, "split": "train"},
    {"clip": "films/a.mp4", "answer": "no", "end": 7, "split": "test"},
    {"clip": "films/a.mp4", "answer": "no", "start": 0, "split": "test"},
    {"clip": "b", "answer": "no", "start": 0.1, "end": 0.3, "split": "test"},
]
NAMES = [
    "films/a.mp4#t=60,70.5",
    "films/a.mp4#t=3600",
    "films/a.mp4#t=0,7",
    "films/a.mp4",
    "b#t=0.1,0.3",
]


@pytest.mark.parametrize("name", ["manifest.jsonl", "manifest.csv"])
def test_each_stretch_is_a_clip_with_a_name_of_its_own(root: Path, name: str) -> None:
    write_lines(root, RECORDS, name=name)
    manifest = load(root)
    assert list(manifest.clips) == NAMES
    assert [q.clip_id for q in manifest.questions] == [NAMES[0], NAMES[0], *NAMES[1:]]
    film = root / "films" / "a.mp4"
    line = 1 if name.endswith("jsonl") else 2
    assert manifest.clips[NAMES[0]].media == Stretch(media=film, start_seconds=60.0, end_seconds=70.5)
    assert manifest.clips[NAMES[0]].where == f"{name}:{line}"
    assert manifest.clips[NAMES[1]].media == Stretch(media=film, start_seconds=3600.0)
    assert manifest.clips[NAMES[3]].media == film  # from 0 to the end: the film itself


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"start": 5, "end": 5}, "start is 5, end is 5; expected an end after the start"),
        ({"start": -2}, "start is -2, expected seconds from the film's beginning, 0 or more"),
        ({"end": -2}, "end is -2, expected"),
        ({"end": 0}, "expected an end after the start"),
        ({"start": float("nan")}, "start is nan"),
        ({"end": float("inf")}, "end is inf"),
        ({"start": "00:01:00"}, "'start' is '00:01:00', expected seconds, such as 90 or 12.5"),
        ({"start": True}, "'start' is True, expected seconds"),
    ],
)
@pytest.mark.parametrize("name", ["manifest.jsonl", "manifest.csv"])
def test_what_is_no_stretch_is_said_with_file_and_line(
    root: Path, name: str, bounds: dict[str, Any], said: str
) -> None:
    write_lines(
        root,
        [{"clip": "films/b.mp4", "answer": "yes"}, {"clip": "films/a.mp4", "answer": "no", **bounds}][::-1],
        name=name,
    )
    with pytest.raises(ManifestError) as raised:
        load(root)
    assert str(raised.value).startswith(f"{name}:{1 if name.endswith('jsonl') else 2}: ")
    assert said in str(raised.value).replace("'True'", "True")


def test_columns_of_these_names_that_were_the_users_own_stay_so(root: Path) -> None:
    write_lines(root, [{"clip": "films/a.mp4", "answer": "yes", "start": "early", "end": 3}])
    assert list(load(root, columns=["start", "end"]).clips) == ["films/a.mp4"]


def test_a_film_that_is_missing_is_missing_once(root: Path) -> None:
    write_lines(root, [{"clip": "c", "answer": "yes", "start": s} for s in (1, 2)])
    with pytest.raises(MissingMediaError, match="1 of 1 clips are not in"):
        load(root)
    assert load(root, allow_missing=True).missing == ("c#t=1", "c#t=2")


def test_stretches_of_a_film_stay_in_one_split(root: Path) -> None:
    records = [
        {"clip": f"films/{name}.mp4", "answer": "yes", "start": s, "split": "test" if s > 4 else "train"}
        for name in "ab"
        for s in range(1, 9)
    ]
    write_lines(root, records)
    assert any(
        "2 of the 2 films of train are also in test, with other stretches" in line for line in describe(load(root))
    )
    dealt = load(root, split="by-video")
    assert {len({q.split for q in dealt.questions if q.clip_id.startswith(f"films/{n}")}) for n in "ab"} == {1}


def test_a_film_is_digested_once_and_its_stretches_have_keys_of_their_own(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from talik.extract.stage import items

    digested: list[Path] = []
    real = items.digest_media
    monkeypatch.setattr(items, "digest_media", lambda media: digested.append(media) or real(media))
    write_lines(root, RECORDS)
    store = talik.open_store(root / "features.zarr", "a")

    def keys(**found: Any) -> dict[str, str]:
        manifest = load(root)
        items_ = clip_items(manifest, ClipDigests(store, manifest, **found), progress=False)
        assert items_.files is not None
        store.record_files(items_.files)
        assert [item.source for item in items_.items.values()] == [n.replace("b#", "films/b.mp4#") for n in NAMES]
        return {name: item.key for name, item in items_.items.items()}

    first = keys()
    assert sorted(path.name for path in digested) == ["a.mp4", "a.mp4", "b.mp4"]  # the whole film is a clip too
    assert first["films/a.mp4"] == digest_file(root / "films" / "a.mp4")
    assert len(set(first.values())) == len(NAMES)
    digested.clear()
    assert keys() == first
    assert digested == []
    write_lines(root, [*RECORDS, {"clip": "films/a.mp4", "answer": "no", "start": 5, "end": 6}][-1:])
    manifest = load(root)
    ClipDigests(store, manifest).find("films/a.mp4#t=5,6")
    assert digested == []  # the store knows the film
    shutil.copy(root / "films" / "a.mp4", root / "films" / "copy.mp4")
    write_lines(root, [{"clip": "films/copy.mp4", "answer": "no", "start": 60, "end": 70.5}])
    other = load(root)
    found = ClipDigests(store, other).find("films/copy.mp4#t=60,70.5")
    assert found is not None
    assert found.key == first[NAMES[0]]  # known by content, whatever the film's name


def test_the_page_plays_the_stretch(root: Path) -> None:
    write_lines(root, RECORDS)
    data = DataSet(manifest=load(root))
    assert media_link(NAMES[0], data, root / "report") == {"media": "../films/a.mp4#t=60,70.5", "kind": "video"}


@pytest.fixture
def experiment(tmp_path: Path, ffmpeg: Callable[..., bytes], tiny_encoders: dict[str, Path]) -> dict[str, Any]:
    picture = ("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=8:duration=30")
    sound = ("-f", "lavfi", "-i", "aevalsrc='0.4*sin(2*PI*t*(200+9*t))':s=16000:d=30")
    ffmpeg(*picture, *sound, "-pix_fmt", "yuv420p", "-g", "40", tmp_path / "film.mp4")
    records = [
        {"clip": "film.mp4", "answer": "one", "start": 3, "end": 6, "split": "train"},
        {"clip": "film.mp4", "answer": "two", "start": 12, "end": 18, "split": "train"},
        {"clip": "film.mp4", "answer": "two", "start": 25, "split": "test"},
    ]
    write_lines(tmp_path, records)
    return {
        "data": {"dataset": "manifest", "root": str(tmp_path), "segments": 3},
        "encoders": {
            "visual": {"model": f"hf:{tiny_encoders['visual']}", "image_size": 28, "fit": "stretch", "cut": [1]},
            "audio": {"model": f"hf:{tiny_encoders['audio']}#encoder", "window_seconds": 0.4, "cut": [1]},
        },
        "store": {"path": str(tmp_path / "features.zarr"), "dtype": "float32"},
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_their_features_are_those_of_the_film_there(experiment: dict[str, Any], tmp_path: Path, workers: int) -> None:
    talik.extract({**experiment, "extract": {"workers": workers}}, progress=False)
    visual = experiment["encoders"]["visual"]
    encoder = talik.load_encoder(visual["model"], modality="visual", image_size=28, fit="stretch")
    with talik.stored_features(experiment, "visual") as stored:
        assert list(stored) == ["film.mp4#t=3,6", "film.mp4#t=12,18", "film.mp4#t=25"]
        for name, start, end in zip(stored, (3, 12, 25), (6, 18, None), strict=True):
            clip = talik.decode_clip(
                tmp_path / "film.mp4", num_segments=3, sound=False, start_seconds=start, end_seconds=end
            )
            state = encoder.run(encoder.embed(encoder.preprocess(clip.frames)), 0, 1)
            np.testing.assert_allclose(stored[name], state.tokens().detach().numpy(), rtol=0, atol=1e-5)
    assert talik.extract(experiment, progress=False).up_to_date


def test_a_stretch_beyond_the_film_is_named_by_its_line_and_the_rest_is_kept(
    experiment: dict[str, Any], tmp_path: Path
) -> None:
    with (tmp_path / "manifest.jsonl").open("a") as file:
        file.write(json.dumps({"clip": "film.mp4", "answer": "two", "start": 40, "end": 50, "split": "test"}) + "\n")
    with pytest.raises(MediaError) as raised:
        talik.extract(experiment, progress=False)
    assert "manifest.jsonl:4: start is 40, but" in str(raised.value)
    assert "lasts 30.0" in str(raised.value)
    with talik.stored_features(experiment, "audio") as stored:
        assert list(stored) == ["film.mp4#t=3,6", "film.mp4#t=12,18", "film.mp4#t=25"]
