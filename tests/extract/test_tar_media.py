"""Media inside tar files: read where they lie, found by name and by path, of the key that they have in a folder."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import talik
from talik.errors import ManifestError, MediaError, MissingMediaError
from talik.extract.datasets.load import load_manifest
from talik.extract.media.clip_media import SegmentSettings
from talik.extract.media.decode import decode_clip
from talik.extract.media.decode_pool import DecodeRequest, open_decoder
from talik.extract.media.frame_folder import digest_media
from talik.extract.media.tar_member import media_file, tar_members
from talik.extract.stage.items import ClipDigests, clip_items
from talik.extract.stage.media_files import guess_modality, named_files

RATE = 16_000
WANTED = {"num_segments": 3, "window_seconds": 0.5, "sample_rate_hz": RATE}
KINDS = ("mp4", "mkv", "avi", "webm", "ts", "wav", "mp3", "flac", "m4a", "ogg")
PICTURES = ("png", "jpg", "webp", "gif", "bmp")


@pytest.fixture(scope="module")
def files(ffmpeg: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    picture = ("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=8:duration=4")
    sound = ("-f", "lavfi", "-i", f"sine=frequency=500:sample_rate={RATE}:duration=4")
    for kind in KINDS:
        codec = ("-c:v", "libvpx", "-c:a", "libvorbis") if kind == "webm" else ()
        ffmpeg(*(() if kind in KINDS[5:] else picture), *sound, *codec, folder / f"film.{kind}")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (40, 60, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in PICTURES:
        image = Image.fromarray(pixels) if kind in ("png", "webp") else Image.fromarray(pixels[..., :3])
        image.save(folder / f"still.{kind}", **({"exif": exif} if kind in ("jpg", "png", "webp") else {}))
    return folder


def write_tar(path: Path, members: Mapping[str, Path | bytes], *, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_manifest(root: Path, clips: Sequence[str], **more: Any) -> None:
    lines = [json.dumps({"clip": clip, "answer": "yes", "id": f"{n}", **more}) for n, clip in enumerate(clips)]
    (root / "manifest.jsonl").write_text("\n".join(lines))


def load(root: Path, **settings: Any) -> dict[str, str]:
    clips = load_manifest({"dataset": "manifest", "root": str(root), **settings}).clips
    return {name: os.path.relpath(str(clip.path), root) for name, clip in clips.items()}


@pytest.fixture(scope="module")
def shard(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of the files, in a tar file whose name has what means something to FFmpeg and to shells."""
    members: dict[str, Path | bytes] = {f"a long/{'x' * 120}/é.json": b"{}"}
    for path in sorted(files.iterdir()):
        members |= {path.name: path, f"{path.name}.json": b"{}"}
    return write_tar(tmp_path_factory.mktemp("shards") / "shard,,:end 0.tar", members)


@pytest.mark.parametrize("name", [*(f"film.{k}" for k in KINDS), *(f"still.{k}" for k in PICTURES)])
def test_it_is_decoded_as_the_file_and_has_its_key(files: Path, shard: Path, name: str) -> None:
    member = tar_members(shard)[name]
    assert member.read_bytes() == (files / name).read_bytes()
    assert digest_media(member) == digest_media(files / name)
    wanted = {**WANTED, "missing_sound": "silence", "missing_picture": "black"}
    inside, outside = decode_clip(f"{shard}/{name}", **wanted), decode_clip(files / name, **wanted)
    np.testing.assert_array_equal(inside.frames, outside.frames)
    np.testing.assert_array_equal(inside.waveforms, outside.waveforms)
    assert inside.duration_seconds == pytest.approx(outside.duration_seconds)


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
def test_a_stretch_of_a_film_in_a_shard(files: Path, shard: Path, name: str) -> None:
    ends = {"start_seconds": 1.25, "end_seconds": 3.0}
    inside, outside = decode_clip(f"{shard}/{name}", **WANTED, **ends), decode_clip(files / name, **WANTED, **ends)
    np.testing.assert_array_equal(inside.frames, outside.frames)
    np.testing.assert_array_equal(inside.waveforms, outside.waveforms)


@pytest.mark.parametrize("workers", [0, 2])
def test_other_processes_decode_it(files: Path, shard: Path, workers: int) -> None:
    settings = SegmentSettings(**WANTED)
    members = [tar_members(shard)[f"film.{kind}"] for kind in ("mp4", "mkv", "mp4")]
    assert pickle.loads(pickle.dumps(members)) == members
    with open_decoder(workers) as decoder:
        found = [out.media for _, out in decoder.outcomes(DecodeRequest(source=m, settings=settings) for m in members)]
    for member, media in zip(members, found, strict=True):
        assert media is not None
        np.testing.assert_array_equal(media.frames, decode_clip(files / member.name, **WANTED).frames)


def test_clips_are_found_by_path_and_by_name(files: Path, tmp_path: Path) -> None:
    film = files / "film.mp4"
    write_tar(tmp_path / "shards" / "000000.tar", {"./0001.mp4": film, "0001.json": b"{}", "sub/0002.mp4": film})
    write_tar(tmp_path / "shards" / "000001.tar", {"0003.mp4": film, "0004.wav": files / "film.wav"})
    (tmp_path / "0003.mp4").write_bytes(film.read_bytes())
    first, second = "shards/000000.tar", "shards/000001.tar"
    write_manifest(tmp_path, [f"{first}/0001.mp4", f"{first}/sub/0002", str(tmp_path / second / "0004.wav")])
    assert list(load(tmp_path).values()) == [f"{first}/0001.mp4", f"{first}/sub/0002.mp4", f"{second}/0004.wav"]
    write_manifest(tmp_path, ["0001", "0002", "0003", "0004"])
    files_first = [f"{first}/0001.mp4", f"{first}/sub/0002.mp4", "0003.mp4", f"{second}/0004.wav"]
    assert list(load(tmp_path).values()) == files_first  # a file outside of shards counts first
    shards = [f"{first}/0001.mp4", f"{first}/sub/0002.mp4", f"{second}/0003.mp4", f"{second}/0004.wav"]
    for videos in (["shards"], ["shards/*.tar"], [first, second]):
        assert list(load(tmp_path, videos=videos).values()) == (files_first if videos == ["."] else shards)
    write_manifest(tmp_path, ["0001"], start=1, end=2)
    assert load(tmp_path) == {"0001#t=1,2": f"{first}/0001.mp4"}
    with pytest.raises(ManifestError, match=r"no tar file below .* is called 'shards/x\*\.tar'"):
        load(tmp_path, videos=["shards/x*.tar"])
    write_manifest(tmp_path, ["0001", f"{first}/0009.mp4"])
    with pytest.raises(MissingMediaError, match=r"1 of 2 clips are not in .*000000\.tar/0009\.mp4"):
        load(tmp_path)


def test_one_name_in_two_shards_is_an_error_that_names_both_unless_they_are_in_order(
    files: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", {"0001.mp4": files / "film.mp4"})
    write_manifest(tmp_path, ["0001"])
    with pytest.raises(ManifestError, match=r"a\.tar/0001\.mp4 or .*b\.tar/0001\.mp4: one name for two files"):
        load(tmp_path)
    assert load(tmp_path, videos=["b.tar", "a.tar"]) == {"0001": "b.tar/0001.mp4"}


def test_a_film_keeps_its_key_when_it_goes_into_a_shard_and_is_read_once(files: Path, tmp_path: Path) -> None:
    store = talik.open_store(tmp_path / "features.zarr", "a")

    def keys(**settings: Any) -> dict[str, str]:
        manifest = load_manifest({"dataset": "manifest", "root": str(tmp_path), **settings})
        found = clip_items(manifest, ClipDigests(store, manifest), progress=False)
        assert found.files is not None
        store.record_files(found.files)
        assert all(ClipDigests(store, manifest).remembered(name) is not None for name in manifest.clips)
        return {item.source: item.key for item in found.items.values()}

    (tmp_path / "0001.mp4").write_bytes((files / "film.mp4").read_bytes())
    write_manifest(tmp_path, ["0001"])
    outside = keys()
    (tmp_path / "0001.mp4").unlink()
    tar = write_tar(tmp_path / "000000.tar", {"0000.wav": files / "film.wav", "0001.mp4": files / "film.mp4"})
    inside = keys()
    assert (list(outside), list(inside)) == (["0001.mp4"], ["000000.tar/0001.mp4"])
    assert list(outside.values()) == list(inside.values())
    write_tar(tar, {"0001.mp4": files / "film.mkv"})
    assert list(keys().values()) == [digest_media(files / "film.mkv")]


def test_what_is_no_shard_is_said_in_one_line(files: Path, tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", {"a.mp4": files / "film.mp4", "b.mp4": files / "film.mp4"}).read_bytes()
    second = tar_members(tmp_path / "whole.tar")["b.mp4"]
    cases = {
        "a tar file compressed with gzip": gzip.compress(whole),
        "compressed with zstd": b"\x28\xb5\x2f\xfd" + bytes(600),
        f"its member 'b.mp4' ends at byte {second.offset + second.size_bytes}": whole[: second.offset + 9],
        "no mark of its end after byte": whole[: second.offset - 512],
        "no header of a member at byte": whole[: second.offset - 512] + b"?" * 512 + whole[second.offset :],
        "not a tar file, or damaged": b"?" * 2048,
        "not a tar file, or damaged (empty file": b"",
    }
    write_manifest(tmp_path, ["set.tar/a.mp4"])
    for said, content in cases.items():
        (tmp_path / "set.tar").write_bytes(content)
        with pytest.raises((ManifestError, MediaError)) as raised:
            load(tmp_path)
        assert said in str(raised.value)
        assert "set.tar: " in str(raised.value)
        assert "\n" not in str(raised.value)
    write_tar(tmp_path / "set.tar", {"a.mp4": b"1"})
    write_tar(tmp_path / "set.tar", {"a.mp4": b"2"}, mode="a")
    with pytest.raises((ManifestError, MediaError), match=r"holds 'a\.mp4' twice"):
        load(tmp_path)
    write_tar(tmp_path / "set.tar", {"a.mp4": b"1"})
    with pytest.raises(MissingMediaError, match=r"set.*holds no file 'c\.mp4'"):
        media_file(tmp_path / "set.tar" / "c.mp4")


def test_damage_inside_is_named_by_shard_and_member(files: Path, tmp_path: Path) -> None:
    film = (files / "film.mp4").read_bytes()
    tar = write_tar(tmp_path / "set.tar", {"a.mp4": film[: len(film) // 2], "b.mp4": film})
    with pytest.raises(MediaError, match=r"set\.tar/a\.mp4: "):
        decode_clip(f"{tar}/a.mp4", **WANTED)
    decode_clip(f"{tar}/b.mp4", **WANTED)


def test_a_shard_stands_for_a_folder_of_files(files: Path, tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "set" / "0.tar", {"x/a.mp4": files / "film.mp4", "b.mp4": files / "film.mp4", "b.txt": b"words"}
    )
    assert list(named_files([tar], (".mp4",))) == ["x/a.mp4", "b.mp4"]
    assert list(named_files([tar.parent], (".mp4",))) == ["0.tar/x/a.mp4", "0.tar/b.mp4"]
    assert list(named_files([tar / "b.mp4"], (".mp4",))) == ["b.mp4"]
    assert guess_modality([tar]) == "visual"
    (tar.parent / "c.mp4").write_bytes(b"")
    assert list(named_files([tar.parent], (".mp4",))) == ["c.mp4"]
    with pytest.raises(MissingMediaError, match="holds no file that ends in"):
        named_files([tar], (".wav",))


def test_features_of_a_shard_are_those_of_its_files(files: Path, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", {"film.mp4": files / "film.mp4", "film.json": b"{}"})
    weights = tmp_path / "vit.pt"
    import torch

    torch.save(talik.load_encoder("timm:test_vit", modality="visual", weights="random").model.state_dict(), weights)
    given = {"encoder": "timm:test_vit", "weights": str(weights), "layer": 2, "segments": 2, "progress": False}
    with talik.features(tar, **given) as inside, talik.features(files / "film.mp4", **given) as outside:
        assert list(inside) == ["film.mp4"]
        assert inside.keys_by_name == outside.keys_by_name
        np.testing.assert_array_equal(inside["film.mp4"], outside["film.mp4"])
