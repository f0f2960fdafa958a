"""What commit 3bc9310 wrote (tests/data/made_by_3bc9310) is read, verified, extended and resumed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import talik
from talik.cache.maintenance.verify import verify

MADE = Path(__file__).parents[1] / "data" / "made_by_3bc9310"
MODALITIES = ("visual", "audio", "text")
EXPERIMENTS = ("exp", "bfloat16", "int8")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy with new modification times, as a clone has them; the working directory, since encoders count from it."""
    copied = Path(shutil.copytree(MADE, tmp_path / "made", copy_function=shutil.copy))
    monkeypatch.chdir(copied)
    return copied


def expected(name: str) -> Any:
    return json.loads((MADE / "expected" / name).read_text(encoding="utf-8"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def digests(store: Path) -> dict[str, dict[str, str]]:
    """The SHA-256 of each item's state as it is read, by boundary and source."""
    opened, found = talik.FeatureStore.open(store), {}
    for spec in opened.boundaries():
        with opened.reader(spec.modality, spec.boundary, key=spec.key, verify="always") as reader:
            found[f"{store.name}/{spec.path}"] = {
                item.source: hashlib.sha256(reader.read([item.key]).hidden.tobytes()).hexdigest()
                for item in reader.items
            }
    return found


def shards(store: Path) -> dict[Path, bytes]:
    """All that holds values; what knows each file's size and modification time is left out."""
    found = {path: path.read_bytes() for path in store.rglob("c.*") if "items" not in path.parts}
    assert found
    return found


def test_every_state_reads_as_it_did(folder: Path) -> None:
    assert digests(folder / "features.zarr") | digests(folder / "timm.zarr") == expected("states.json")


@pytest.mark.parametrize("store", ["features.zarr", "timm.zarr"])
def test_every_checksum_holds_and_damage_is_found(store: str, folder: Path) -> None:
    assert verify(talik.open_store(folder / store)) == []
    shard = next((folder / store).rglob("hidden/c.0.0.0.0"))
    content = bytearray(shard.read_bytes())
    content[1] ^= 1
    shard.write_bytes(content)
    assert [finding.boundary.split("/")[-1] for finding in verify(talik.open_store(folder / store))] == [
        shard.parents[1].name
    ]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_nothing_is_left_to_extract(name: str, folder: Path, talik: Run) -> None:
    before = shards(folder / "features.zarr")
    left_out = (folder / "features.zarr.left-out.jsonl").read_text(encoding="utf-8")
    code, out, err = talik("extract", f"{name}.toml", "--quiet")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "nothing to do: every state is in the store"
    assert shards(folder / "features.zarr") == before
    now = [entry["source"] for entry in lines(folder / "features.zarr.left-out.jsonl")]
    assert now == [json.loads(line)["source"] for line in left_out.splitlines()] == ["absent", "clips/damaged.mp4"]


def of_this_torch(store: str = "timm.zarr") -> str:
    """The name of the old boundary of pictures; skips where torch draws other random weights than the stored ones."""
    encoder = talik.load_encoder("timm:test_vit", modality="visual", weights="random", image_size=32)
    old = {s.modality: s for s in talik.FeatureStore.open(store).boundaries()}["visual"]
    if encoder.identity(5)["weights"] != old.identity["encoder"]["weights"]:
        pytest.skip("torch draws other random weights here; those of constraints.txt, on x86-64, draw the stored ones")
    return old.path


def test_nothing_is_left_to_extract_of_timm(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    of_this_torch()
    assert talik.extract("timm.toml", progress=False).up_to_date
    assert (
        "visual: the store's states are of an earlier version, which prepared its inputs in another way" in caplog.text
    )


def test_frames_enter_timm_as_they_did_where_a_store_goes_on_and_as_timm_has_it_in_a_new_one(folder: Path) -> None:
    old = of_this_torch()
    text = (folder / "timm.toml").read_text(encoding="utf-8")
    (folder / "new.toml").write_text(text.replace("timm.zarr", "new.zarr"), encoding="utf-8")
    made = [path for path in talik.extract("new.toml", progress=False).items if path.startswith("visual/")]
    assert made != [old]
    shutil.rmtree(folder / "timm.zarr" / old)  # as one begun by an earlier version, of which nothing was computed
    assert [p for p in talik.extract("timm.toml", progress=False).items if p.startswith("visual/")] == made


def test_the_store_is_extended_by_a_new_clip(folder: Path) -> None:
    before = digests(folder / "features.zarr")
    text = (folder / "exp.toml").read_text(encoding="utf-8").replace("manifest.jsonl", "manifest-new.jsonl")
    (folder / "more.toml").write_text(text, encoding="utf-8")
    computed = talik.extract("more.toml", progress=False).items
    assert [count for path, count in computed.items() if not path.startswith("text/")] == [1, 1, 1, 1]
    after = digests(folder / "features.zarr")
    assert {path: {s: d for s, d in items.items() if s in before[path]} for path, items in after.items()} == before
    new = [path for path, items in after.items() if any("clips/new" in source for source in items)]
    assert len(new) == 4
    assert verify(talik.open_store(folder / "features.zarr")) == []
    assert talik.extract("more.toml", progress=False).up_to_date


def test_states_computed_now_are_those_stored_then(folder: Path) -> None:
    text = (folder / "exp.toml").read_text(encoding="utf-8").replace("[store]", '[store]\npath = "new.zarr"')
    (folder / "again.toml").write_text(text, encoding="utf-8")
    assert not talik.extract("again.toml", progress=False).up_to_date
    old, new = talik.FeatureStore.open("features.zarr"), talik.FeatureStore.open("new.zarr")
    specs = new.boundaries()
    assert len(specs) == 5
    for spec in specs:
        with (
            old.reader(spec.modality, spec.boundary, key=spec.key) as then,
            new.reader(spec.modality, spec.boundary, key=spec.key) as now,
        ):
            keys = [item.key for item in now.items]
            assert len(keys) >= 4
            torch.testing.assert_close(
                torch.from_numpy(then.read(keys).hidden.copy()), torch.from_numpy(now.read(keys).hidden.copy())
            )


def test_a_plan_is_followed(folder: Path) -> None:
    computed = talik.extract("auto.toml", progress=False).items
    cuts = json.loads((folder / "auto.plan.json").read_text(encoding="utf-8"))["cuts"]
    assert cuts == {modality: [2, 3] for modality in MODALITIES}
    assert {path.split("-")[0] for path in computed} == {
        "visual/b02",
        "audio/b02",
        "text/b02",
        "text/b03",
    }  # others are


def test_an_interrupted_run_ends_with_the_numbers_of_one_uninterrupted(folder: Path) -> None:
    resumed = talik.adapt("exp.toml", variant="trimodal", seed=1, progress=False)
    run = resumed.folder
    assert resumed.how == "resumed"
    assert not (run / "checkpoint").exists()
    (*epochs, done), (*epochs_then, done_then) = (lines(f / "metrics.jsonl") for f in (run, MADE / "expected"))
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    for now, then in zip(epochs, epochs_then, strict=True):
        compared = {name: then[name] for name in ("step", "train_loss", "val_loss", "val_accuracy", "lr")}
        assert {name: now[name] for name in compared} == pytest.approx(compared, abs=1e-6, rel=0), now["epoch"]
    assert (done["best_epoch"], done["trainable_params"]) == (done_then["best_epoch"], done_then["trainable_params"])
    predictions, predictions_then = lines(run / "predictions.jsonl"), lines(MADE / "expected" / "predictions.jsonl")
    assert [p["probability"] for p in predictions] == pytest.approx(
        [p["probability"] for p in predictions_then], abs=2e-6, rel=0
    )
    assert [{**p, "probability": 0} for p in predictions] == [{**p, "probability": 0} for p in predictions_then]
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    then = expected("result.json")
    assert {name: result[name] for name in then if name != "seconds"} == {
        n: v for n, v in then.items() if n != "seconds"
    }


@pytest.mark.parametrize("variant", ["trimodal", "lora"])
def test_a_finished_run_was_done_before_and_is_scored_again(variant: str, folder: Path, talik: Run) -> None:
    if variant == "lora":
        pytest.importorskip("peft", reason="peft is not installed: pip install 'talik[peft]'")
    run = folder / "runs" / "exp" / variant / "seed0"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, out, _ = talik("adapt", "exp.toml", "--variant", variant, "--quiet")
    assert (code, "was done before" in out) == (0, True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    for more in ((), ("--live",)):
        assert talik("evaluate", run, *more)[0] == 0
        again, then = lines(run / "predictions-test.jsonl"), lines(run / "predictions.jsonl")
        assert [p["probability"] for p in again] == pytest.approx([p["probability"] for p in then], abs=1e-5)
        assert [p["prediction"] for p in again] == [p["prediction"] for p in then]
        assert len(again) == 4


@pytest.mark.parametrize("variant", ["trimodal", "lora"])
def test_a_finished_run_answers_about_a_video_as_it_did(variant: str, folder: Path) -> None:
    if variant == "lora":
        pytest.importorskip("peft", reason="peft is not installed: pip install 'talik[peft]'")
    run, video = folder / "runs" / "exp" / variant / "seed0", folder / "data" / "clips" / "video.mp4"
    answers = talik.predict(run, video=video, question="is the square blue ?").answers
    assert {a.answer: a.probability for a in answers} == pytest.approx(expected("answers.json")[variant], abs=1e-5)


def test_peft_reads_the_export(folder: Path) -> None:
    exported = folder / "runs" / "exp" / "lora" / "seed0" / "peft"
    for modality in ("visual", "audio", "text"):
        tensors = load_file(exported / modality / "adapter_model.safetensors")
        assert tensors
        assert all("lora_" in name for name in tensors)


def test_runs_are_reported(folder: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed: pip install 'talik[peft]'")
    files = talik.report(["runs"], out="report", skip_unfinished=True)
    rows = {row.name: row for row in files.table.rows}
    assert {"trimodal", "lora"} <= rows.keys()
    for variant in ("trimodal", "lora"):
        result = json.loads((folder / "runs" / "exp" / variant / "seed0" / "result.json").read_text(encoding="utf-8"))
        assert rows[variant].overall.mean == pytest.approx(100 * result["accuracy"])
        assert rows[variant].trainable_params == result["trainable_params"]
    assert files.html.is_file()
