"""Training from a store that serves several data sets, and from one whose media are elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from talik.adapt.evaluation.evaluate import evaluate
from talik.adapt.sweep.sweep import sweep
from talik.adapt.training.adapt import adapt
from talik.cache.format.digests import digest_json
from talik.errors import MissingItemError, MissingMediaError, RunDiffersError, SettingsError, StoreError
from talik.extract.encoders.load import load_encoder
from talik.extract.stage.extract import extract

EXPERIMENT = """
[data]
dataset = "manifest"
root = "data"
videos = ["{folder}"]
segments = 2
{data}

[encoders.audio]
model = "hf:{audio}#encoder"
window_seconds = 0.4
cut = {cut}

[store]
dtype = "float32"

[task]
kind = "classes"
d_head = 16
num_heads = 2

[train]
epochs = 2
batch_size = 2
lr = 0.01
num_threads = 1

[[variants]]
name = "probe"
adapter = {{ kind = "probe", modalities = ["audio"] }}
"""


def write(place: Path, folder: str, audio: Path, *, name: str = "", data: str = "", cut: str = "[3]") -> Path:
    path = place / f"{name or folder}.toml"
    text = EXPERIMENT.format(folder=folder, audio=audio, data=data, cut=cut)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Clean and noisy copies of six tones: the same names, sizes and times, in two folders of one root."""
    random = np.random.default_rng(0)
    (tmp_path / "here" / "data").mkdir(parents=True)
    for folder, noise in (("clean", 0), ("noisy", 8000), ("never", 4000)):
        (tmp_path / "here" / "data" / folder).mkdir()
        for number in range(6):
            path = tmp_path / "here" / "data" / folder / f"{number}.wav"
            tone = np.sin(np.arange(8000) * (0.1 + 0.05 * number)) * 10000 + random.normal(0, 1, 8000) * noise
            with wave.open(str(path), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes(tone.astype("<i2").tobytes())
            os.utime(path, (1_600_000_000, 1_600_000_000))
    splits = ("train", "train", "train", "val", "val", "test")
    lines = [{"clip": f"{i}", "answer": "ab"[i % 2], "split": split} for i, split in enumerate(splits)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "here" / "data" / "manifest.jsonl").write_text(text, encoding="utf-8")
    return tmp_path / "here"


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["train_loss"] for line in lines if line["event"] == "epoch"]


def test_one_store_serves_two_sets_of_one_name_with_and_without_their_media(
    place: Path, tmp_path: Path, tiny_encoders: dict[str, Path]
) -> None:
    audio, expected = tiny_encoders["audio"], {}
    for folder in ("clean", "noisy"):
        extract(write(place, folder, audio), progress=False)
    for folder in ("clean", "noisy"):
        live = write(place, folder, audio, name=f"{folder}-live")
        expected[folder] = losses(adapt(live, variant="probe", live=True, progress=False).folder)
        found = adapt(place / f"{folder}.toml", variant="probe", progress=False)
        assert losses(found.folder) == pytest.approx(expected[folder], abs=1e-5)
    assert expected["clean"] != pytest.approx(expected["noisy"], abs=1e-5)

    away = tmp_path / "away"
    shutil.copytree(place, away, ignore=shutil.ignore_patterns("*.wav", "runs"))
    for folder in ("clean", "noisy"):
        path = away / f"{folder}.toml"
        found = adapt(path, variant="probe", progress=False)
        assert losses(found.folder) == pytest.approx(expected[folder], abs=1e-5)
        assert evaluate(found.folder, split="val").scores.overall.total == 2
        assert extract(path, progress=False).up_to_date

    never = write(away, "never", audio)
    for call in (lambda: adapt(never, variant="probe", progress=False), lambda: extract(never, progress=False)):
        with pytest.raises((MissingItemError, MissingMediaError), match=r"'0'.*not in .*away/data") as error:
            call()
        assert "\n" not in str(error.value)


def test_what_needs_the_files_asks_for_them_in_one_line(
    place: Path, tmp_path: Path, tiny_encoders: dict[str, Path]
) -> None:
    audio, away = tiny_encoders["audio"], tmp_path / "away"
    extract(write(place, "clean", audio), progress=False)
    shutil.copytree(place, away, ignore=shutil.ignore_patterns("*.wav"))
    another = write(away, "clean", audio, name="another", cut="[1, 3]")
    known = away / "clean.toml"
    for call in (
        lambda: adapt(known, variant="probe", live=True, progress=False),
        lambda: extract(known, deep=True, progress=False),
        lambda: extract(another, progress=False),
    ):
        with pytest.raises(MissingMediaError, match="6 ") as error:
            call()
        assert "\n" not in str(error.value)
    shutil.copy(place / "data" / "clean" / "5.wav", away / "data" / "clean")  # one is here, and is what it was there
    assert extract(known, progress=False).up_to_date
    shutil.copy(place / "data" / "noisy" / "5.wav", away / "data" / "clean")  # and now it is not
    with pytest.raises(MissingItemError, match="'5'"):
        evaluate(adapt(known, variant="probe", progress=False).folder)
    assert list(extract(known, progress=False).items.values()) == [1]


def test_states_that_the_store_lacks_are_computed_if_wanted(place: Path, tiny_encoders: dict[str, Path]) -> None:
    path, other = (write(place, "clean", tiny_encoders["audio"], name=name) for name in ("first", "second"))
    store = place / "features.zarr"
    with pytest.raises(StoreError, match=r"features\.zarr"):
        adapt(path, variant="probe", progress=False)
    with pytest.raises(SettingsError, match="on_missing: found 'ask'"):
        adapt(path, variant="probe", progress=False, on_missing="ask")  # type: ignore[arg-type]
    filled = adapt(path, variant="probe", progress=False, on_missing="compute")
    stored = sorted(store.rglob("c.*"))
    result = sweep(other, progress=False, on_missing="compute")
    assert sorted(store.rglob("c.*")) == stored != []
    for name in ("predictions.jsonl", "adapter.safetensors"):
        assert (filled.folder / name).read_bytes() == (result.runs[0].folder / name).read_bytes()


def test_an_encoder_that_differs_after_its_last_unit_is_another(place: Path, tiny_encoders: dict[str, Path]) -> None:
    model = Path(shutil.copytree(tiny_encoders["audio"], place / "model"))
    path = write(place, "clean", model)
    run = adapt(path, variant="probe", progress=False, on_missing="compute").folder
    (weights,) = model.glob("*.safetensors")
    tensors = load_file(weights)
    (norm,) = (name for name in tensors if name.endswith("encoder.layer_norm.weight"))
    save_file({**tensors, norm: tensors[norm] * 2}, weights, metadata={"format": "pt"})
    assert extract(path, progress=False).up_to_date
    with pytest.raises(RunDiffersError, match="the audio encoder, its weights or preprocessing"):
        adapt(path, variant="probe", progress=False)
    save_file(tensors, weights, metadata={"format": "pt"})
    assert adapt(path, variant="probe", progress=False).skipped

    # a version that did not know of the end
    encoder = load_encoder(f"hf:{model}#encoder", modality="audio", window_seconds=0.4)
    recorded = json.loads((run / "data.json").read_text(encoding="utf-8"))
    known = {"audio": digest_json(encoder.identity(encoder.num_units))}
    assert recorded["encoders"] != known
    (run / "data.json").write_text(json.dumps({**recorded, "encoders": known}), encoding="utf-8")
    assert adapt(path, variant="probe", progress=False).skipped
