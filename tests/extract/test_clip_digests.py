"""A clip is its content: what a store remembers of files and names, and where it asks for the file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from talik.cache.feature_store import FeatureStore
from talik.cache.format.digests import digest_file
from talik.cache.open import open_store
from talik.errors import MissingMediaError, StoreFormatError
from talik.extract.datasets.load import load_manifest
from talik.extract.stage.items import ClipDigests, clip_items

TIME = 1_600_000_000_000_000_000


def make_set(root: Path, contents: dict[str, str], *, named: list[str] | None = None) -> None:
    """Write files of one time, and a manifest that names them."""
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
        os.utime(root / name, ns=(TIME, TIME))
    lines = [f'{{"clip": "{name}", "answer": "yes"}}\n' for name in named or contents]
    root.mkdir(parents=True, exist_ok=True)
    (root / "manifest.jsonl").write_text("".join(lines))


def find(store: FeatureStore, root: Path, *, deep: bool = False, **data: object) -> dict[str, str]:
    """Return the digest of each clip, and have the store remember them."""
    settings = {"dataset": "manifest", "root": str(root), "allow_missing": True, **data}
    manifest = load_manifest(settings)
    found = clip_items(manifest, ClipDigests(store, manifest, deep=deep), progress=False)
    if found.files is not None:
        store.record_files(found.files)
    return {clip_id: item.key for clip_id, item in found.items.items()}


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return open_store(tmp_path / "features.zarr", "a")


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read."""
    from talik.extract.stage import items

    names, real = [], items.digest_media

    def digest(media: Path) -> str:
        names.append(getattr(media, "path", media).name)
        return real(media)

    monkeypatch.setattr(items, "digest_media", digest)
    return names


def test_files_of_one_name_size_and_time_in_two_sets(tmp_path: Path, store: FeatureStore, digested: list[str]) -> None:
    for name, letter in (("clean", "a"), ("noisy", "b")):
        make_set(tmp_path / name, {"clips/0.wav": letter * 9})
    for _ in range(2):  # in turn, as one works on both
        for name in ("clean", "noisy"):
            assert find(store, tmp_path / name) == {"clips/0.wav": digest_file(tmp_path / name / "clips/0.wav")}
    assert digested == ["0.wav", "0.wav"]


@pytest.mark.parametrize("change", ["time", "size", "another file", "swapped folders", "link"])
def test_what_may_be_another_file_is_digested(
    change: str, tmp_path: Path, store: FeatureStore, digested: list[str]
) -> None:
    root, other = tmp_path / "set", tmp_path / "other"
    for folder, letter in ((root, "a"), (other, "b")):
        make_set(folder, {"0.wav": letter * 9})
    if change == "link":
        (root / "0.wav").rename(tmp_path / "away.wav")
        (root / "0.wav").symlink_to(tmp_path / "away.wav")
    find(store, root)
    if change == "time":
        os.utime(root / "0.wav")
    elif change == "size":
        (root / "0.wav").write_text("c" * 8)
        os.utime(root / "0.wav", ns=(TIME, TIME))
    elif change == "another file":
        (other / "0.wav").rename(root / "0.wav")
    elif change == "link":
        (root / "0.wav").unlink()
        (root / "0.wav").symlink_to(other / "0.wav")
    else:
        root.rename(tmp_path / "aside")
        other.rename(root)
    assert find(store, root) == {"0.wav": digest_file(root / "0.wav")}
    assert len(digested) == 2


def test_a_change_that_keeps_name_size_and_time_is_found_by_deep_alone(tmp_path: Path, store: FeatureStore) -> None:
    root = tmp_path / "set"
    make_set(root, {"0.wav": "before"})
    before = find(store, root)
    make_set(root, {"0.wav": "behind"})
    assert find(store, root) == before
    assert find(store, root, deep=True) == {"0.wav": digest_file(root / "0.wav")}
    assert find(store, root) == {"0.wav": digest_file(root / "0.wav")}


def test_a_folder_of_frames_is_another_when_one_frame_is(
    tmp_path: Path, store: FeatureStore, digested: list[str]
) -> None:
    root = tmp_path / "set"
    make_set(root, {"frames/0/1.jpg": "one", "frames/0/2.jpg": "two", "other/2.jpg": "own"}, named=["0"])
    settings = {"videos": ["frames"], "frames_fps": 2.0}
    before = find(store, root, **settings)
    assert find(store, root, **settings) == before
    (root / "other/2.jpg").rename(root / "frames/0/2.jpg")
    assert find(store, root, **settings) != before
    assert len(digested) == 2


def copied(store: FeatureStore, to: Path) -> FeatureStore:
    """Return the store, copied and opened for reading."""
    shutil.copytree(store.path, to)
    return open_store(to)


def test_without_files_a_name_leads_to_the_content_that_it_had_in_the_set_at_this_place(
    tmp_path: Path, store: FeatureStore
) -> None:
    keys = {}
    for name, letter in (("clean", "a"), ("noisy", "b")):
        make_set(tmp_path / name, {"0.wav": letter * 9, "1.wav": letter * 5})
        keys[name] = find(store, tmp_path / name)
    away = tmp_path / "away"
    for name in ("clean", "noisy"):
        (away / name).mkdir(parents=True)
        shutil.copy(tmp_path / name / "manifest.jsonl", away / name)
    moved = copied(store, away / "features.zarr")
    assert {name: find(moved, away / name) for name in keys} == keys
    for path in tmp_path.glob("*/*.wav"):  # where it was, by the absolute place
        path.unlink()
    assert {name: find(store, tmp_path / name) for name in keys} == keys


def test_a_name_that_another_set_has_is_no_clip_of_this_one(tmp_path: Path, store: FeatureStore) -> None:
    make_set(tmp_path / "clean", {"0.wav": "a" * 9})
    known = find(store, tmp_path / "clean")
    make_set(tmp_path / "noisy", {}, named=["0.wav"])
    manifest = load_manifest({"dataset": "manifest", "root": str(tmp_path / "noisy"), "allow_missing": True})
    (clip,) = ClipDigests(store, manifest).unknown()
    assert f'extracted_from = "{tmp_path / "clean"}"' in clip.reason
    assert find(store, tmp_path / "noisy") == {}
    assert find(store, tmp_path / "noisy", extracted_from=str(tmp_path / "clean")) == known


def test_folders_of_one_root_are_sets_of_their_own(tmp_path: Path, store: FeatureStore) -> None:
    make_set(tmp_path / "set", {"clean/0.wav": "a" * 9, "noisy/0.wav": "b" * 9}, named=["0"])
    keys = {name: find(store, tmp_path / "set", videos=[name]) for name in ("clean", "noisy")}
    assert keys["clean"] != keys["noisy"]
    for path in tmp_path.glob("set/*/*.wav"):
        path.unlink()
    assert {name: find(store, tmp_path / "set", videos=[name]) for name in keys} == keys


def test_two_contents_of_one_name_at_one_place_are_an_error(tmp_path: Path, store: FeatureStore) -> None:
    make_set(tmp_path / "set", {"0.wav": "a" * 9})
    find(store, tmp_path / "set")
    away = tmp_path / "away"
    make_set(away / "set", {"0.wav": "b" * 9})
    shutil.copytree(store.path, away / "features.zarr")
    find(open_store(away / "features.zarr", "a"), away / "set")  # now the place beside the store is this set's
    shutil.copytree(away / "features.zarr", tmp_path / "mixed.zarr")
    (tmp_path / "set" / "0.wav").unlink()
    with pytest.raises(MissingMediaError, match=r"'0\.wav'.*two contents.*extracted_from") as caught:
        find(open_store(tmp_path / "mixed.zarr", "a"), tmp_path / "set")
    assert "\n" not in str(caught.value)


def test_a_manifest_of_a_part_leaves_the_rest_remembered(
    tmp_path: Path, store: FeatureStore, digested: list[str]
) -> None:
    root, contents = tmp_path / "set", {f"{i}.wav": "a" * (i + 1) for i in range(4)}
    make_set(root, contents)
    whole = find(store, root)
    make_set(root, {"0.wav": "a"}, named=["0.wav"])
    (root / "0.wav").write_text("new")
    assert find(store, root)["0.wav"] != whole["0.wav"]
    make_set(root, {}, named=list(contents))
    digested.clear()
    assert {**find(store, root), "0.wav": whole["0.wav"]} == whole
    assert digested == []


def test_damage_is_named(tmp_path: Path, store: FeatureStore) -> None:
    make_set(tmp_path / "set", {"0.wav": "a"})
    find(store, tmp_path / "set")
    path = tmp_path / "features.zarr" / "datasets" / "zarr.json"
    path.write_bytes(path.read_bytes().replace(b"0.wav", b"1.wav"))
    with pytest.raises(StoreFormatError, match="datasets"):
        find(store, tmp_path / "set")


def test_a_file_that_cannot_be_read_is_a_clip_without_states(
    tmp_path: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_set(tmp_path / "set", {"0.wav": "a", "1.wav": "b"})
    from talik.extract.stage import items

    real = items.digest_media

    def digest(media: Path) -> str:
        if media.name == "0.wav":
            raise OSError(5, "Input/output error", str(media))
        return real(media)

    monkeypatch.setattr(items, "digest_media", digest)
    manifest = load_manifest({"dataset": "manifest", "root": str(tmp_path / "set")})
    found = clip_items(manifest, ClipDigests(store, manifest), progress=False)
    assert list(found.items) == ["1.wav"]
    assert [(clip.source, clip.reason) for clip in found.unreadable] == [
        ("0.wav", "0.wav: cannot be read: Input/output error")
    ]


def test_digests_of_another_version_are_taken_anew(
    tmp_path: Path, store: FeatureStore, digested: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_set(tmp_path / "set", {"0.wav": "a", "1.wav": "b"})
    find(store, tmp_path / "set")
    monkeypatch.setattr("talik.extract.stage.items.DIGEST_VERSION", 1000)
    make_set(tmp_path / "set", {}, named=["1.wav"])
    find(store, tmp_path / "set")
    make_set(tmp_path / "set", {}, named=["0.wav", "1.wav"])
    find(store, tmp_path / "set")
    assert (sorted(digested[:2]), digested[2:]) == (["0.wav", "1.wav"], ["1.wav", "0.wav"])
