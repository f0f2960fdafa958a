"""A pack is carried to where the media are not: training from it gives the same run, and damage is found."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

import talik
from talik.errors import CorruptItemError, SettingsError, StoreMismatchError
from talik.extract.stage.pack import SUMS, pack_experiment, unpack

MADE_EARLIER = Path(__file__).parents[1] / "data" / "made_by_3bc9310"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with its media, its store, local encoders and code of one's own."""
    folder = tmp_path_factory.mktemp("here") / "experiment"
    shutil.copytree(MADE_EARLIER, folder)
    (folder / "mine.py").write_text("LOADED = True\n")
    (folder / "run.toml").write_text('extends = "exp.toml"\nimport = ["mine"]\n[train]\nepochs = 1\n')
    talik.extract(folder / "run.toml", progress=False)
    return folder


@pytest.fixture(scope="module")
def packed(here: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("carried") / "run.tar"
    report = pack_experiment(here / "run.toml", path, device="cpu", progress=False)
    assert len(report.boundaries) == 5
    assert report.missing == 1  # the damaged clip
    return path


@pytest.fixture(scope="module")
def there(here: Path, packed: Path) -> Path:
    """The pack unpacked where the experiment's own folder is no more."""
    folder = packed.with_name("unpacked")
    assert unpack(packed, folder, progress=False).files > 100
    here.rename(here.with_name("away"))
    return folder


def test_training_there_is_training_here(here: Path, there: Path) -> None:
    runs = [
        talik.adapt(folder / "run.toml", variant="trimodal", device="cpu", progress=False)
        for folder in (there, here.with_name("away"))
    ]
    found, expected = ((run.folder / "predictions.jsonl").read_bytes() for run in runs)
    assert found == expected
    weights, same = ((run.folder / "adapter.safetensors").read_bytes() for run in runs)
    assert weights == same


def test_no_media_are_in_it(there: Path) -> None:
    suffixes = {path.suffix for path in there.rglob("*") if path.is_file()}
    assert not suffixes & {".mp4", ".png", ".wav"}
    assert (there / "mine.py").is_file()


def test_a_folder_is_checked_by_sha256sum_too(there: Path, tmp_path: Path) -> None:
    shutil.copytree(there, tmp_path / "pack", ignore=shutil.ignore_patterns("runs"))
    assert unpack(tmp_path / "pack", progress=False).files > 100
    program = shutil.which("sha256sum") or shutil.which("gsha256sum")
    if program is None:
        pytest.skip("sha256sum comes with the coreutils")
    subprocess.run([program, "--check", "--quiet", SUMS], cwd=tmp_path / "pack", check=True)


@pytest.mark.parametrize("damage", ["changed", "missing", "added"])
def test_damage_is_named(packed: Path, tmp_path: Path, damage: str) -> None:
    unpack(packed, tmp_path / "pack", progress=False)
    shard = next((tmp_path / "pack" / "features.zarr" / "visual").glob("*/hidden/c.*"))
    if damage == "changed":
        content = bytearray(shard.read_bytes())
        content[7] ^= 1
        shard.write_bytes(content)
    elif damage == "missing":
        shard.unlink()
    else:
        shard.with_name("stranger").write_bytes(b"")
    said = {"changed": "differs", "missing": "is missing", "added": "stranger: is not in"}[damage]
    with pytest.raises(CorruptItemError, match=said):
        unpack(tmp_path / "pack", progress=False)


def test_a_cut_or_foreign_tar_is_refused_and_leaves_nothing(packed: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.tar"
    cut.write_bytes(packed.read_bytes()[: packed.stat().st_size // 2])
    with pytest.raises(CorruptItemError):
        unpack(cut, progress=False)
    with tarfile.open(tmp_path / "foreign.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("foreign/../../outside"))
    with pytest.raises(CorruptItemError, match=r"foreign\.tar: 'foreign/../../outside' is no file of a pack"):
        unpack(tmp_path / "foreign.tar", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.tar", "foreign.tar"]


def test_what_cannot_be_packed_is_said(packed: Path, there: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is there already"):
        pack_experiment(there / "run.toml", packed, device="cpu", progress=False)
    shutil.rmtree(there / "features.zarr" / "audio")
    with pytest.raises(StoreMismatchError, match="run talik extract first"):
        pack_experiment(there / "run.toml", tmp_path / "again", device="cpu", progress=False)
    assert not list(tmp_path.iterdir())
