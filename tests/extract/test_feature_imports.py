"""Features that others computed come into a store with the values, the clips and the identity that their files say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from talik.cache.feature_store import BoundarySpec, FeatureStore
from talik.cache.maintenance.hdf5 import export_hdf5
from talik.cache.maintenance.verify import verify
from talik.cache.open import open_store
from talik.errors import ManifestError, NumericsError, SettingsError, StoreFormatError, StoreMismatchError
from talik.extract.importers.column_mapping import FeatureMapping, read_mapping
from talik.extract.importers.import_features import as_segments, import_any, import_features

NAMES = ["RUhOCu3LNXM", "-J2WJaG1Dd4", "e_5ngCwYckE", "RUhOCu3LNXM", "9U3n8WVLTKQ"]


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def h5(path: Path, **arrays: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def ave(folder: Path, values: np.ndarray, *, header: bool = True) -> Path:
    lines = [f"Church bell&{name}&good&0&10" for name in NAMES]
    lines = ["Category&VideoID&Quality&StartTime&EndTime", *lines] if header else lines
    (folder / "Annotations.txt").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return h5(folder / "visual_feature.h5", avadataset=values)


def stored(store: Path, ids: Sequence[str]) -> tuple[BoundarySpec, np.ndarray]:
    opened = FeatureStore.open(store)
    (spec,) = opened.boundaries()
    with opened.reader(spec.modality, 0) as reader:
        key = {item.source: item.key for item in reader.items}
        assert sorted(key) == sorted(set(ids))
        return spec, reader.read([key[i] for i in ids]).hidden


@pytest.mark.parametrize("header", [True, False])
def test_ave_rows_are_named_by_the_annotations(tmp_path: Path, header: bool) -> None:
    values = numbers(5, 10, 7, 7, 6)
    source = ave(tmp_path, values, header=header)
    lines = import_any(source, tmp_path / "s", layout="ave", changes={"modality": "visual"})
    assert "4 of 4 items imported, each 10 x 49 x 6 float32" in lines[0]
    assert lines[1] == "1 rows repeat an id, 1 of them with other values; the first row of each id is taken"
    spec, hidden = stored(tmp_path / "s", [*NAMES[:3], NAMES[4]])
    np.testing.assert_array_equal(hidden, values[[0, 1, 2, 4]].reshape(4, 10, 49, 6))
    assert list(spec.identity) == ["imported"]
    assert spec.identity["imported"]["axes"] == "THWD"
    assert verify(open_store(tmp_path / "s")) == []


def test_ave_order_files_choose_the_rows(tmp_path: Path) -> None:
    values = numbers(5, 10, 6)
    source = ave(tmp_path, values)
    h5(tmp_path / "train_order.h5", order=np.array([4, 1]))
    changes = {"modality": "audio", "name": "vggish", "order": ["train_order.h5"]}
    import_any(source, tmp_path / "s", layout="ave", changes=changes)
    _, hidden = stored(tmp_path / "s", [NAMES[1], NAMES[4]])
    np.testing.assert_array_equal(hidden[:, :, 0], values[[1, 4]])
    h5(tmp_path / "bad_order.h5", order=np.array([5]))
    with pytest.raises(ManifestError, match="names row 5, the features have rows 0 to 4"):
        import_any(source, tmp_path / "t", layout="ave", changes={**changes, "order": ["bad_order.h5"]})


def test_avqa_rows_are_named_by_ids(tmp_path: Path) -> None:
    frames, sound = numbers(3, 8, 16, 5), numbers(3, 12)
    source = h5(tmp_path / "appearance.h5", resnet_features=frames, ids=np.array([30, 7, 11]))
    h5(tmp_path / "vl.h5", vlaudio_features=sound, ids=np.array([30, 7, 11]))
    import_any(source, tmp_path / "s", layout="avqa", changes={"modality": "visual"})
    _, hidden = stored(tmp_path / "s", ["30", "7", "11"])
    (tmp_path / "none.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ManifestError, match=r"none.json: 3 ids have no name, the first 30"):
        import_any(source, tmp_path / "s", layout="avqa", ids=[tmp_path / "none.json"], changes={"modality": "visual"})
    np.testing.assert_array_equal(hidden, frames)
    (tmp_path / "map.json").write_text(json.dumps({"a_000010": 7, "b_000020": 11}), encoding="utf-8")
    records = [{"id": 1, "video_name": "c_000030", "video_id": 30}]
    (tmp_path / "train_qa.json").write_text(json.dumps(records), encoding="utf-8")
    import_any(
        tmp_path / "vl.h5",
        tmp_path / "t",
        layout="avqa",
        ids=[tmp_path / "map.json", tmp_path / "train_qa.json"],
        changes={"modality": "audio", "segments": 4},
    )
    spec, hidden = stored(tmp_path / "t", ["c_000030", "a_000010", "b_000020"])
    assert spec.shape == (4, 1, 12)
    np.testing.assert_array_equal(hidden, np.repeat(sound[:, None, None], 4, axis=1))


def test_music_avqa_folders_take_every_sixth_step_and_grow(tmp_path: Path) -> None:
    folder = tmp_path / "res18_14x14"
    folder.mkdir()
    values = {"00000093": numbers(60, 4, 3, 3), "sa00000126": numbers(57, 4, 3, 3)}
    for name, array in values.items():
        np.save(folder / f"{name}.npy", array)
    changes = {"modality": "visual"}
    assert "2 of 2 items" in import_any(folder, tmp_path / "s", layout="music-avqa", changes=changes)[0]
    _, hidden = stored(tmp_path / "s", list(values))
    for got, array in zip(hidden, values.values(), strict=True):
        np.testing.assert_array_equal(got, array[::6].transpose(0, 2, 3, 1).reshape(10, 9, 4))
    assert "0 of 2 items" in import_any(folder, tmp_path / "s", layout="music-avqa", changes=changes)[0]
    np.save(folder / "00000093.npy", values["00000093"] + 1)
    np.save(folder / "vv1.npy", np.zeros((60, 4, 3, 3), np.float32))
    lines = import_any(folder, tmp_path / "s", layout="music-avqa", changes=changes)
    assert "2 of 3 items" in lines[0]
    assert "1 item is all zeros" in lines[1]
    _, hidden = stored(tmp_path / "s", ["00000093", "sa00000126", "vv1"])
    np.testing.assert_array_equal(hidden[0, 0, 0], values["00000093"][0, :, 0, 0] + 1)


def test_any_other_file_by_a_stated_mapping(tmp_path: Path) -> None:
    values = {"a": numbers(6, 4), "b": numbers(6, 4) + 1}
    with h5py.File(tmp_path / "clip.h5", "w") as file:
        for name, array in values.items():
            file[f"train/{name}"] = array.T
    (tmp_path / "m.toml").write_text(
        'name = "clip-b32"\nmodality = "visual"\ndataset = "train"\naxes = "DT"\ndtype = "float16"\n', encoding="utf-8"
    )
    import_any(tmp_path / "clip.h5", tmp_path / "s", mapping=tmp_path / "m.toml", changes={"segments": 3})
    spec, hidden = stored(tmp_path / "s", ["a", "b"])
    assert (spec.dtype, spec.shape) == ("float16", (3, 1, 4))
    for got, array in zip(hidden, values.values(), strict=True):
        np.testing.assert_array_equal(got[:, 0], array[[1, 3, 5]].astype(np.float16))


def test_an_export_and_its_import_keep_what_was_imported(tmp_path: Path) -> None:
    import_any(ave(tmp_path, numbers(5, 10, 6)), tmp_path / "s", layout="ave", changes={"modality": "audio"})
    assert export_hdf5(FeatureStore.open(tmp_path / "s"), tmp_path / "out.h5") == 4
    with h5py.File(tmp_path / "out.h5") as file:
        (group,) = file["audio"].values()
        assert group["hidden"].chunks == (1, 10, 1, 6)
        assert json.loads(group.attrs["provenance"])[0]["imported_from"] == "visual_feature.h5"
    assert import_any(tmp_path / "out.h5", tmp_path / "t") == [f"{tmp_path / 't'}: 4 items imported"]
    ids = [*NAMES[:3], NAMES[4]]
    (first, here), (second, there) = stored(tmp_path / "s", ids), stored(tmp_path / "t", ids)
    assert first == second
    np.testing.assert_array_equal(here, there)


def test_another_file_is_another_boundary(tmp_path: Path) -> None:
    for shift in (0, 1):
        source = ave(tmp_path, numbers(5, 10, 6) + shift)
        import_any(source, tmp_path / "s", layout="ave", changes={"modality": "audio"})
    specs = FeatureStore.open(tmp_path / "s").boundaries()
    assert len({s.identity["imported"]["digest"] for s in specs}) == len(specs) == 2


def test_axes() -> None:
    mapping = FeatureMapping(name="n", modality="visual", axes="D")
    values = numbers(2, 3, 4, 5)  # T, D, H, W
    np.testing.assert_array_equal(as_segments(values, "TDHW", mapping), values.transpose(0, 2, 3, 1).reshape(2, 20, 3))
    np.testing.assert_array_equal(as_segments(values[0], "DHW", mapping), as_segments(values[:1], "TDHW", mapping))
    np.testing.assert_array_equal(as_segments(values[0, :, 0], "ND", mapping), values[0, :, 0][None])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": "TT"}, "expected letters of TNHWD"),
        ({"axes": "TN"}, "D among them"),
        ({"axes": "NHD"}, "either N or H and W"),
        ({"name": "a b"}, "expected letters, digits"),
        ({"step": 2, "segments": 3}, "both choose the time steps"),
        ({"ids": "ids", "rows": "rows.txt"}, "both name the rows"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"modality": "text"}, "expected one of 'visual', 'audio'"),
    ],
)
def test_mappings_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "m.toml").write_text('name = "n"\nmodality = "audio"\naxes = "TD"\n', encoding="utf-8")
    with pytest.raises(SettingsError, match=message):
        read_mapping(tmp_path / "m.toml", changes)


def test_sources_that_are_not_what_was_said(tmp_path: Path) -> None:
    def fails(error: type[Exception], message: str, source: Path, **more: Any) -> None:
        with pytest.raises(error, match=message) as raised:
            import_any(source, tmp_path / "s", **more)
        assert "\n" not in str(raised.value)

    visual = {"modality": "visual"}
    fails(StoreFormatError, "no such file or folder", tmp_path / "none.h5", layout="ave", changes=visual)
    source = h5(tmp_path / "x.h5", avadataset=numbers(2, 10, 4))
    fails(ManifestError, "Annotations.txt: cannot be read", source, layout="ave", changes=visual)
    (tmp_path / "Annotations.txt").write_text("Bark&a&good&0&1\n", encoding="utf-8")
    fails(ManifestError, "names 1 rows, but /avadataset of .* has 2", source, layout="ave", changes=visual)
    (tmp_path / "Annotations.txt").write_text("Bark\n", encoding="utf-8")
    fails(ManifestError, "Annotations.txt:1: 1 fields", source, layout="ave", changes=visual)
    fails(StoreFormatError, "0 datasets fit '\\*_features'", source, layout="avqa", changes=visual)
    fails(SettingsError, "unknown layout of features 'avq'; did you mean", source, layout="avq", changes=visual)
    fails(SettingsError, r"add --as ave\|avqa\|music-avqa or --mapping", source, changes=visual)
    fails(SettingsError, "modality: missing", source, layout="ave")
    fails(StoreFormatError, "holds avadataset and no talik_format", source)
    folder = tmp_path / "npy"
    folder.mkdir()
    fails(StoreFormatError, "no file ends in .npy", folder, layout="music-avqa", changes=visual)
    np.save(folder / "a.npy", numbers(60, 4))
    np.save(folder / "b.npy", numbers(60, 5))
    fails(
        StoreMismatchError,
        "features of 'b': .*60, 5.* the first clip's gave",
        folder,
        layout="music-avqa",
        changes=visual,
    )
    np.save(folder / "b.npy", np.array([{"pickled": 1}], dtype=object), allow_pickle=True)
    fails(StoreFormatError, "b.npy: not an array", folder, layout="music-avqa", changes=visual)
    np.save(folder / "b.npy", np.full((60, 4), np.nan, np.float32))
    fails(NumericsError, "item 'b': the encoder gave NaN", folder, layout="music-avqa", changes=visual)
    np.save(folder / "a.npy", numbers(60, 4, 2, 2, 2))
    fails(SettingsError, "an item has 5 axes", folder, layout="music-avqa", changes=visual)


def test_a_killed_import_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "vggish"
    folder.mkdir()
    for i in range(3):
        np.save(folder / f"{i}.npy", numbers(4, 5) + i)
    mapping = FeatureMapping(name="vggish", modality="audio", axes="TD")
    (folder / "2.npy").rename(tmp_path / "later")
    import_features(folder, tmp_path / "s", mapping)
    (tmp_path / "later").rename(folder / "2.npy")
    seen: list[int] = []
    report = import_features(folder, tmp_path / "s", mapping, progress=seen.append)
    assert (report.num_items, report.num_imported, seen) == (3, 1, [1])


def test_the_command_line_imports_and_lists_them(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from talik.cli import app

    ave(tmp_path, numbers(5, 10, 6))
    command = ["store", "import", str(tmp_path / "visual_feature.h5"), str(tmp_path / "s"), "--as", "ave"]
    done = CliRunner().invoke(app, [*command, "--name", "vgg19", "--modality", "visual", "--dtype", "float16"])
    assert done.exit_code == 0, done.output
    assert "4 of 4 items imported, each 10 x 1 x 6 float16" in done.output
    assert 'uses them by [encoders.visual] model = "features:vgg19"' in done.output
    listed = CliRunner().invoke(app, ["store", "ls", str(tmp_path / "s")])
    assert "float16" in listed.output
    assert listed.output.rstrip().endswith("features:vgg19")
