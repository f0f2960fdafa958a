"""Stage 1: computes what is missing and nothing else, survives interruption, and says what is wrong in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import talik.extract.stage.clip_worker as clip_work
import talik.extract.stage.plan as planning
from talik.cache.feature_store import FeatureStore
from talik.cache.maintenance.verify import verify
from talik.cache.open import open_store
from talik.errors import (
    ManifestError,
    MediaError,
    MissingMediaError,
    SettingsError,
    StoreFormatError,
    StoreFullError,
    TrunkError,
)
from talik.extract.encoders.encoder import Encoder
from talik.extract.stage.extract import extract
from talik.extract.stage.run_records import read_failed_clips

WriteExperiment = Callable[..., Path]
SMALL_SHARDS = ('dtype = "float32"', 'dtype = "float32"\nshard_items = 3')


@pytest.fixture
def own_set(demo_set: Path, tmp_path: Path) -> Path:
    """A copy of the made set that a test may spoil."""
    return Path(shutil.copytree(demo_set, tmp_path / "set"))


def first_video(folder: Path) -> Path:
    return sorted((folder / "videos").glob("*.mp4"))[0]


def states(store: Path) -> dict[tuple[str, int, str], np.ndarray]:
    """Every stored state by modality, boundary and source."""
    opened, out = FeatureStore.open(store), {}
    for spec in opened.boundaries():
        with opened.reader(spec.modality, spec.boundary) as reader:
            for item in reader.items:
                out[spec.modality, spec.boundary, item.source] = reader.read([item.key]).hidden[0].copy()
    return out


def test_second_run_does_nothing_and_says_so(write_experiment: WriteExperiment) -> None:
    path = write_experiment()
    first = extract(path, progress=False)
    assert not first.up_to_date
    assert {name.split("-")[0]: count for name, count in first.items.items() if "text" not in name} == {
        "visual/b01": 8,
        "visual/b03": 8,
        "audio/b01": 8,
        "audio/b03": 8,
    }
    second = extract(path, progress=False)
    assert second.up_to_date
    assert second.bytes_written == 0
    assert second.lines() == ["nothing to do: every state is in the store"]
    assert verify(open_store(path.parent / "features.zarr")) == []


def test_a_text_is_stored_once_however_many_questions_use_it(write_experiment: WriteExperiment, demo_set: Path) -> None:
    path = write_experiment()
    extract(path, progress=False)
    with FeatureStore.open(path.parent / "features.zarr").reader("text", 1) as reader:
        stored = [item.source for item in reader.items]
    records = [r for f in (demo_set / "annotations").glob("*.json") for r in json.loads(f.read_text())]
    assert len(set(stored)) == len(stored) < len(records)


def test_an_interrupted_run_goes_on_and_equals_one_that_was_not(
    write_experiment: WriteExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_experiment(SMALL_SHARDS)
    extract(path, progress=False)
    whole = states(tmp_path / "features.zarr")
    shutil.rmtree(tmp_path / "features.zarr")

    real, calls = clip_work.boundary_states, iter(range(100))

    def dies(*args: object) -> object:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(clip_work, "boundary_states", dies)
        with pytest.raises(KeyboardInterrupt):
            extract(path, progress=False)
    before = len([k for k in states(tmp_path / "features.zarr") if k[0] == "visual" and k[1] == 1])
    resumed = extract(path, progress=False)
    assert 0 < before < 8
    assert resumed.items[next(n for n in resumed.items if n.startswith("visual/b01"))] == 8 - before
    after = states(tmp_path / "features.zarr")
    assert after.keys() == whole.keys()
    for key, value in whole.items():
        assert np.array_equal(value, after[key]), key


def test_units_above_the_cut_never_run(write_experiment: WriteExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, highest, real = [], [], planning.open_encoder

    def watched(*args: Any, **more: Any) -> Encoder:
        encoder = real(*args, **more)
        opened.append(encoder)
        run = encoder.run
        encoder.run = lambda state, start, stop: highest.append(stop) or run(state, start, stop)  # type: ignore[method-assign]
        return encoder

    monkeypatch.setattr(planning, "open_encoder", watched)
    extract(write_experiment(("cut = [1, 3]", "cut = 1")), progress=False)
    assert {encoder.modality for encoder in opened} == {"visual", "audio", "text"}
    assert len(highest) > 3
    assert max(highest) == 1
    for encoder in opened:
        assert encoder.num_units > 1
        with pytest.raises(TrunkError, match="dropped"):
            encoder.run(encoder.embed(encoder.probe()), 0, 2)


def test_missing_video_is_named_before_anything_is_computed(write_experiment: WriteExperiment, own_set: Path) -> None:
    gone = first_video(own_set)
    gone.unlink()
    path = write_experiment(root=own_set)
    with pytest.raises(MissingMediaError, match=gone.stem):
        extract(path, progress=False)
    assert FeatureStore.open(path.parent / "features.zarr").boundaries() == ()
    allowed = write_experiment(("segments = 3", "segments = 3\nallow_missing = true"), root=own_set)
    report = extract(allowed, progress=False)
    assert [name for name, _ in report.skipped] == [gone.stem]


@pytest.mark.parametrize("kind", ["truncated", "no sound", "not a video"])
def test_a_bad_video_is_named_and_the_others_are_kept(
    write_experiment: WriteExperiment, own_set: Path, kind: str
) -> None:
    bad = first_video(own_set)
    good = bad.read_bytes()
    _spoil(bad, kind)
    path = write_experiment(SMALL_SHARDS, root=own_set)
    with pytest.raises(MediaError, match=rf"1 of 8 clips could not be decoded.*{bad.name}") as caught:
        extract(path, progress=False)
    assert "\n" not in str(caught.value)
    store = path.parent / "features.zarr"
    for modality in ("visual", "audio"):
        with FeatureStore.open(store).reader(modality, 1) as reader:
            assert len(reader.items) == 7  # the clips that share a shard with the bad one are there
    (entry,) = read_failed_clips(store)
    assert (entry.source, bad.name in entry.reason) == (f"videos/{bad.name}", True)
    bad.write_bytes(good)
    report = extract(path, progress=False)
    assert report.items[next(n for n in report.items if n.startswith("visual/b01"))] == 1
    assert read_failed_clips(store) == ()
    assert verify(open_store(store)) == []


def test_a_store_with_bad_clips_equals_one_in_which_they_were_never_named(
    write_experiment: WriteExperiment, own_set: Path, tmp_path: Path
) -> None:
    videos = sorted((own_set / "videos").glob("*.mp4"))
    for bad in (videos[0], videos[1], videos[4]):
        _spoil(bad, "not a video")
        bad.write_bytes(bad.read_bytes() + bad.name.encode())  # unlike the others
    allowed = ("segments = 3", "segments = 3\nallow_missing = true")
    path = write_experiment(SMALL_SHARDS, allowed, root=own_set)
    first = extract(path, progress=False)
    assert sorted(source for source, _ in first.skipped) == sorted(f"videos/{videos[i].name}" for i in (0, 1, 4))
    rows = _num_rows(tmp_path / "features.zarr")
    again = extract(path, progress=False)
    assert again.up_to_date
    assert again.skipped == first.skipped
    assert _num_rows(tmp_path / "features.zarr") == rows  # trying again allots nothing
    found = states(tmp_path / "features.zarr")
    for i in (0, 1, 4):
        videos[i].unlink()
    other = (SMALL_SHARDS[1], SMALL_SHARDS[1] + '\npath = "two.zarr"')
    extract(write_experiment(SMALL_SHARDS, other, allowed, root=own_set), progress=False)
    expected = states(tmp_path / "two.zarr")
    assert {k for k in found if k[0] != "text"} == {k for k in expected if k[0] != "text"}
    assert len([k for k in expected if k[0] != "text"]) == 5 * 4  # clips, boundaries of picture and sound
    for key, value in expected.items():
        np.testing.assert_allclose(value, found[key], rtol=0, atol=1e-5, err_msg=str(key))


def test_when_no_clip_of_a_shard_can_be_decoded_the_others_are_there(
    write_experiment: WriteExperiment, own_set: Path
) -> None:
    for number, bad in enumerate(sorted((own_set / "videos").glob("*.mp4"))):
        if number != 5:
            bad.write_bytes(b"nothing" * (number + 1))
    path = write_experiment(SMALL_SHARDS, root=own_set)
    for _ in range(2):
        with pytest.raises(MediaError, match=r"7 of 8 clips could not be decoded.*and 4 more, listed in features"):
            extract(path, progress=False)
        with FeatureStore.open(path.parent / "features.zarr").reader("audio", 3) as reader:
            assert len(reader.items) == 1


def _num_rows(store: Path) -> list[int]:
    return [json.loads(p.read_text())["shape"][0] for p in sorted(store.glob("*/*/hidden/zarr.json"))]


def test_silence_stands_for_sound_only_where_the_file_says_so(
    write_experiment: WriteExperiment, own_set: Path, tmp_path: Path
) -> None:
    _spoil(first_video(own_set), "no sound")
    path = write_experiment(("segments = 3", 'segments = 3\nmissing_sound = "silence"'), root=own_set)
    report = extract(path, progress=False)
    assert report.items[next(n for n in report.items if n.startswith("audio/b01"))] == 8
    (spec,) = [s for s in FeatureStore.open(tmp_path / "features.zarr").boundaries() if s.path.startswith("audio/b01")]
    assert "missing_sound" not in spec.identity["sampling"]  # it belongs to the film, not to all


def test_clips_of_different_size_stand_in_one_store(
    write_experiment: WriteExperiment, own_set: Path, tmp_path: Path
) -> None:
    path = write_experiment(root=own_set)
    extract(path, progress=False)
    before = states(tmp_path / "features.zarr")
    changed = first_video(own_set)
    _spoil(changed, "smaller")
    silent = ("segments = 3", 'segments = 3\nmissing_sound = "silence"')  # the smaller copy has no sound
    path = write_experiment(silent, (SMALL_SHARDS[0], SMALL_SHARDS[0] + '\npath = "two.zarr"'), root=own_set)
    extract(path, progress=False)
    after = states(tmp_path / "two.zarr")
    equal = {key: np.array_equal(value, after[key]) for key, value in before.items() if key[0] == "visual"}
    assert equal == {key: key[2] != f"videos/{changed.name}" for key in equal}
    assert len(equal) == 8 * 2


def _spoil(path: Path, kind: str) -> None:
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    elif kind == "not a video":
        path.write_bytes(b"hello" * 100)
    else:
        size = {"width": 160, "height": 90} if kind == "smaller" else {}
        with av.open(str(path)) as source:
            frames = [f.reformat(**size).to_ndarray(format="rgb24") for f in source.decode(video=0)]
        with av.open(str(path), "w") as target:
            stream = target.add_stream("libx264", rate=8, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv420p"
            for array in frames:
                target.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
            target.mux(stream.encode(None))


def test_a_question_about_no_clip_is_an_error(write_experiment: WriteExperiment, own_set: Path) -> None:
    annotations = own_set / "annotations" / "avqa-test.json"
    records = json.loads(annotations.read_text())
    records[0]["video_id"] = "00009999"
    annotations.write_text(json.dumps(records))
    with pytest.raises((ManifestError, MissingMediaError), match="00009999") as caught:
        extract(write_experiment(root=own_set), progress=False)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_store_is_left_alone(write_experiment: WriteExperiment, tmp_path: Path) -> None:
    precious = tmp_path / "features.zarr" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(StoreFormatError, match="not a talik store"):
        extract(write_experiment(), progress=False)
    assert [p.name for p in precious.parent.iterdir()] == ["thesis.tex"]


def test_a_full_disk_keeps_what_is_finished(
    write_experiment: WriteExperiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import talik.cache.atomic_io as durable

    path = write_experiment(SMALL_SHARDS)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "free_bytes", lambda _: 1000)
        with pytest.raises(StoreFullError, match="disk"):
            extract(path, progress=False)
    assert states(tmp_path / "features.zarr") == {}
    extract(path, progress=False)
    assert len(states(tmp_path / "features.zarr")) > 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("segments = 3", "segmnets = 3", r"exp.toml: data.segmnets: unknown key 'segmnets'; did you mean 'segments'"),
        ("[store]", "[stor]", r"exp.toml: unknown table 'stor'; did you mean 'store'"),
        ("segments = 3", 'segments = "3"', r"data.segments: found '3', expected a whole number"),
        ("segments = 3", "segments = 0", r"data\.segments: found 0, expected at least 1"),
        ('dataset = "demo"', 'dataset = "demos"', r"did you mean 'demo'"),
        ("cut = [1, 3]", "cut = [9]", r"boundary 9"),
        ("cut = [1, 3]", 'cut = "deep"', r"encoders.visual.cut: found 'deep'"),
        ("[store]", "[store", r"exp.toml: not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named(write_experiment: WriteExperiment, old: str, new: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        extract(write_experiment((old, new)), progress=False)
    assert "\n" not in str(caught.value)


@pytest.fixture(autouse=True)
def _quiet(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    capsys.readouterr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_gpu_with_decoding_processes_stores_what_a_cpu_does(
    write_experiment: WriteExperiment, tmp_path: Path, dtype: str
) -> None:
    path, store = (
        write_experiment(('dtype = "float32"', f'dtype = "{dtype}"\nshard_items = 3')),
        tmp_path / "features.zarr",
    )
    extract(path, progress=False, device="cpu")
    expected = states(store)
    shutil.rmtree(store)
    extract(path, progress=False, device="cuda", workers=3)
    found = states(store)
    assert found.keys() == expected.keys()
    tolerance = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    for key, value in expected.items():
        whole = np.abs(value.astype(np.float64)).max()
        assert np.abs(found[key].astype(np.float64) - value.astype(np.float64)).max() <= tolerance * whole, key
