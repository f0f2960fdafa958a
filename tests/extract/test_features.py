"""`talik.features` and `talik features`: a layer's features of files, without an experiment."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import h5py
import imageio_ffmpeg
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import talik
from talik.cli import app
from talik.errors import MediaError, MissingMediaError, SettingsError, TalikError
from talik.extract.stage import features as features_module

VISION = {"encoder": "timm:test_vit", "progress": False}


def make(path: Path, *source: str) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, str(path)]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint, so that each call opens the same model."""
    path = tmp_path_factory.mktemp("weights") / "vit.pt"
    torch.manual_seed(3)
    torch.save(talik.load_encoder("timm:test_vit", modality="visual", weights="random").model.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films with sound, one of them in a folder of its own, and a hidden one that does not count."""
    root = tmp_path_factory.mktemp("films")
    (root / "more").mkdir()
    for name, hertz in (("a.mp4", 300), ("more/b.mkv", 500), (".hidden.mp4", 700)):
        picture = ("-f", "lavfi", "-i", f"testsrc=size=96x64:rate=8:duration={hertz / 200}")
        make(root / name, *picture, "-f", "lavfi", "-i", f"sine=frequency={hertz}:duration={hertz / 200}")
    return root


@pytest.mark.parametrize("layer", [0, 4, -1, 6])
def test_they_are_what_the_model_gives(folder: Path, weights: str, layer: int) -> None:
    encoder = talik.load_encoder("timm:test_vit", modality="visual", weights=weights)
    boundary = layer if layer >= 0 else encoder.num_units + layer
    with talik.features(folder, layer=layer, weights=weights, segments=3, **VISION) as found:
        assert list(found) == ["a.mp4", "more/b.mkv"]
        for name in found:
            clip = talik.decode_clip(folder / name, num_segments=3, sound=False)
            with torch.no_grad():
                state = encoder.run(encoder.embed(encoder.preprocess(clip.frames)), 0, boundary)
            np.testing.assert_allclose(found[name], state.tokens().numpy(), rtol=0, atol=1e-5)
        assert found.to_numpy().shape == (2, *found["a.mp4"].shape)
        assert [names for names, _ in found.batches(1)] == [["a.mp4"], ["more/b.mkv"]]


def test_pooled_they_are_the_tokens_mean_and_a_table(folder: Path, weights: str) -> None:
    with talik.features(folder, layer=2, weights=weights, segments=2, **VISION) as whole:
        means = {name: array.mean(axis=1) for name, array in whole.items()}
        tokens = whole.to_pandas()
        assert tokens.index.names == ["file", "segment", "token"]
        assert tokens.loc["more/b.mkv"].loc[(1, 3)].tolist() == whole["more/b.mkv"][1, 3].tolist()
    with talik.features(folder, layer=2, weights=weights, segments=2, pool="mean", **VISION) as found:
        table = found.to_pandas()
        assert table.index.names == ["file", "segment"]
        for name, mean in means.items():
            np.testing.assert_array_equal(found[name], mean)
            np.testing.assert_array_equal(table.loc[name].to_numpy(), mean)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file}


def read_h5(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        assert [d.label for d in file["more/b.mkv"].dims] == ["segment", "token", "channel"]
        return {name: file[name][:] for name in ("a.mp4", "more/b.mkv")}


def read_parquet(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path).to_pandas()
    found = {}
    for name, part in table.groupby("file", sort=False):
        shape = (part.segment.max() + 1, part.token.max() + 1, -1)
        ordered = part.sort_values(["segment", "token"])
        found[str(name)] = np.stack(list(ordered.features)).reshape(shape)
    return found


@pytest.mark.parametrize(("ending", "read"), [(".npz", read_npz), (".h5", read_h5), (".parquet", read_parquet)])
def test_a_file_holds_them_and_nothing_else_is_left(
    folder: Path, weights: str, tmp_path: Path, ending: str, read: Any
) -> None:
    with talik.features(folder, layer=3, weights=weights, segments=2, **VISION) as expected:
        words = ["features", folder, "--encoder", "timm:test_vit", "--weights", weights, "--layer", 3, "--segments", 2]
        out = tmp_path / "made" / f"f{ending}"
        result = CliRunner().invoke(app, [*map(str, words), "--out", str(out), "--quiet"])
        assert result.exit_code == 0, result.output
        found = read(out)
        assert list(found) == list(expected)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_a_store_is_extended_and_an_interrupted_call_goes_on(
    folder: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    real = features_module.extract

    def counted(*args: Any, **kwargs: Any) -> Any:
        report = real(*args, **kwargs)
        computed.append(sum(report.items.values()))
        return report

    monkeypatch.setattr(features_module, "extract", counted)
    given = {"layer": 2, "weights": weights, "segments": 2, **VISION}
    out = tmp_path / "f.zarr"
    talik.features(folder / "a.mp4", out=out, **given).close()
    talik.features([folder / "a.mp4", folder / "more"], out=out, **given).close()
    assert computed == [1, 1]

    def torn(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "f.npz"
    with monkeypatch.context() as patch:
        patch.setattr(features_module.Features, "save", torn)
        with pytest.raises(KeyboardInterrupt):
            talik.features(folder, out=file, **given)
    talik.features(folder, out=file, **given)
    assert computed[2:] == [2, 0]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("f.npz")) == ["f.npz"]


def test_texts_are_as_long_as_they_are(tmp_path: Path, tiny_encoders: dict[str, Path]) -> None:
    texts = {"one.txt": "a drum", "two.txt": "who plays the flute first ?", "same.txt": " a drum \n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    model = f"hf:{tiny_encoders['text']}"
    encoder = talik.load_encoder(model, modality="text")
    with talik.features(tmp_path, encoder=model, layer=1, progress=False) as found:
        assert set(found) == set(texts)
        for name, text in texts.items():
            with torch.no_grad():
                alone = encoder.run(encoder.embed(encoder.preprocess([text.strip()])), 0, 1)
            np.testing.assert_allclose(found[name], alone.tokens()[0].numpy(), rtol=0, atol=1e-5)
        with pytest.raises(SettingsError, match='not one array; set pool = "mean"'):
            found.to_numpy()
    with talik.features(tmp_path, encoder=model, layer=1, pool="mean", progress=False) as pooled:
        assert pooled.to_numpy().ndim == 2


def test_sound_of_films(folder: Path, tiny_encoders: dict[str, Path]) -> None:
    model = f"hf:{tiny_encoders['audio']}#encoder"
    with talik.features(folder, encoder=model, modality="audio", layer=1, segments=2, progress=False) as found:
        assert list(found) == ["a.mp4", "more/b.mkv"]
        assert found.axes == ("segment", "token", "channel")
        assert not np.allclose(found["a.mp4"], found["more/b.mkv"])


def test_still_pictures_have_one_segment(tmp_path: Path, weights: str) -> None:
    make(tmp_path / "p.png", "-f", "lavfi", "-i", "testsrc=size=80x60:duration=1:rate=1", "-frames:v", "1")
    with talik.features(tmp_path, layer=1, weights=weights, **VISION) as found:
        assert found["p.png"].shape[0] == 1


def test_a_file_that_cannot_be_decoded_costs_none_of_the_others(folder: Path, weights: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no film")
    paths, out = [folder, bad], tmp_path / "f.h5"
    given = {"layer": 1, "weights": weights, "segments": 2, "out": out, **VISION}
    with pytest.raises(MediaError, match=r"1 of 3 .*bad\.mp4.*--allow-missing"):
        talik.features(paths, **given)
    assert not out.exists()
    assert [name for name, _ in talik.features(paths, allow_missing=True, **given).skipped] == [str(bad)]
    with h5py.File(out) as file:
        assert set(file) == {"a.mp4", "more"}


def test_mistakes_are_said_in_one_line(folder: Path, weights: str, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "none").mkdir()
    given = {"layer": 1, "weights": weights, **VISION}
    text = {"encoder": "timm:test_vit", "layer": 1, "modality": "text", "progress": False}
    for paths, options, kind, says in (
        ([folder, tmp_path / "a.mp4"], given, SettingsError, "two files of one name"),
        (tmp_path / "gone", given, MissingMediaError, "gone: no such file or folder"),
        (tmp_path / "none", given, MissingMediaError, "none: holds no file that ends in .mp4"),
        ([], given, SettingsError, "paths: none given"),
        (folder, {**given, "out": tmp_path / "f.csv"}, SettingsError, "expected an ending of .zarr, .npz, .h5"),
        (folder, {**given, "modality": "vision"}, SettingsError, "unknown modality 'vision'"),
        (folder, {**given, "pool": "max"}, SettingsError, "pool: found 'max'"),
        (folder, {**given, "layer": 7}, TalikError, "found boundary 7, expected -6 … 6"),
        ([folder, tmp_path / "empty.txt"], given, SettingsError, "looks visual, .*looks text; name the one"),
        (tmp_path / "empty.txt", text, SettingsError, "empty.txt: an empty text"),
        (tmp_path / "latin.txt", text, SettingsError, "latin.txt: not UTF-8"),
    ):
        with pytest.raises(kind, match=says):
            talik.features(paths, **{**options, "modality": options.get("modality")})
