"""MUSIC-AVQA as distributed, with real annotation records: the page's commands, in each release and with clips missing.

tests/data/music_avqa holds records of the authors' files (MIT) about six clips; the clips themselves are made here.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from talik.cache.open import open_store
from talik.cli import app
from talik.errors import TalikError

pytestmark = pytest.mark.timeout(900)  # the first test waits for all of the recipe
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "music-avqa.md").read_text(encoding="utf-8")
RECORDS = ROOT / "tests" / "data" / "music_avqa"
SPLITS = ("train", "val", "test")
SMALL = {"data.segments": 2, "encoders.audio.window_seconds": 1.0, "train.epochs": 1, "train.num_threads": 1}
MODELS = {  # of each preset, by modality
    "trimodal": ("timm:swinv2_large_window12_192.ms_in22k", "hf:laion/clap-htsat-unfused#audio_model"),
    "lavish": ("timm:swinv2_large_window12_192.ms_in22k", "timm:swinv2_large_window12_192.ms_in22k"),
}


def records(split: str, *, synthetic: bool | None = None) -> list[dict[str, Any]]:
    """Real records of a split; of synthetic clips alone, of real ones alone, or of both."""
    found = json.loads((RECORDS / f"avqa-{split}.json").read_text(encoding="utf-8"))
    return [r for r in found if synthetic is None or synthetic != r["video_id"].isdigit()]


def put(path: Path, found: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as its README has it: annotations in data/, the two archives unpacked into data/video."""
    root = tmp_path_factory.mktemp("clone") / "MUSIC-AVQA"
    for split in SPLITS:
        put(root / "data" / "json_update" / f"avqa-{split}.json", records(split))
        put(root / "data" / "json" / f"avqa-{split}.json", records(split)[:-1])  # another number than the update's
        put(root / "data" / "json" / f"avqa-{split}_fake.json", records(split, synthetic=True))
    named = sorted({r["video_id"] for split in SPLITS for r in records(split)})
    for number, clip in enumerate(named):
        archive = "MUSIC-AVQA-videos-Real" if clip.isdigit() else "MUCIS-AVQA-videos-Synthetic"
        path = root / "data" / "video" / archive / f"{clip}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = f"testsrc2=size=48x32:rate=10:duration=2,hue=h={50 * number}"
        sound = f"sine=frequency={200 + 90 * number}:sample_rate=16000:duration=2"
        command = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound, "-pix_fmt", "yuv420p", str(path)]
        subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *command], check=True)
    return root


def talik(line: str, *more: str) -> str:
    """Run a command line of the page, with further arguments; what it prints."""
    program, *arguments = shlex.split(line)
    assert program == "talik"
    ended = CliRunner().invoke(app, [*arguments, *more], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.output


def refused(line: str, *more: str) -> str:
    """Run a command that fails; its message."""
    with pytest.raises(TalikError) as error:
        CliRunner().invoke(app, [*shlex.split(line)[1:], *more], catch_exceptions=False)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def smaller(stand_ins: dict[str, str]) -> Callable[..., list[str]]:
    """The `--set` options that put tiny encoders, and fewer segments and epochs, in place of a preset's."""

    def sets(preset: str, **changed: Any) -> list[str]:
        visual, audio = (stand_ins[name] for name in MODELS[preset])
        models = {"visual": visual, "audio": audio, "text": stand_ins["hf:FacebookAI/roberta-base"]}
        values = {f"encoders.{m}.model": model for m, model in models.items()} | SMALL | changed
        values |= {f"encoders.{m}.weights": "random" for m, model in models.items() if model.startswith("timm:")}
        return [part for key, value in values.items() for part in ("--set", f"{key}={json.dumps(value)}")]

    return sets


def blocks(heading: str) -> list[str]:
    """The command lines below a heading of the page."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = "\n".join(re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL))
    return [line for line in found.splitlines() if line]


def follow(lines: list[str], clone: Path, smaller: Callable[..., list[str]]) -> dict[str, list[str]]:
    """Run command lines of the page in the working directory; what each command printed, in order."""
    said: dict[str, list[str]] = {}
    for line in lines:
        program, command, *rest = shlex.split(line)
        if program == "git":
            Path(rest[-1]).parent.mkdir(parents=True, exist_ok=True)
            Path(rest[-1]).symlink_to(clone)
        elif program == "unzip":
            assert (clone / "data" / "video" / command.removesuffix(".zip")).is_dir()
        elif program == "ln":
            Path(rest[1]).symlink_to(rest[0])
        else:
            sets = smaller("lavish" if "lavish/" in line else "trimodal") * (command in ("extract", "sweep"))
            said.setdefault(command, []).append(talik(line, *sets))
    return said


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, clone: Path, smaller: Callable[..., list[str]]
) -> tuple[Path, dict[str, list[str]]]:
    """The folder in which the recipe was followed, both presets, and what its commands printed."""
    folder = tmp_path_factory.mktemp("followed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, follow(blocks("The recipe"), clone, partial(smaller, **{"sweep.seeds": [0]}))


def test_the_recipe_runs_as_the_page_has_it(done: tuple[Path, dict[str, list[str]]]) -> None:
    folder, said = done
    assert list(said) == ["init", "data", "extract", "sweep", "report"]
    assert said["data"][0].startswith("music-avqa: 29 questions, 6 clips in ")
    assert len(list(folder.glob("avqa/runs/experiment/*/seed0/result.json"))) == 4
    assert len(list(folder.glob("lavish/runs/experiment/*/seed0/result.json"))) == 3
    both = json.loads((folder / "both" / "report.json").read_text(encoding="utf-8"))
    assert [row["variant"] for row in both["rows"] if row["trained"]].count("lavish/lavish") == 1
    assert len(both["rows"]) == 1 + 4 + 3  # the blind baseline above the variants
    assert "trimodal/no-selection" in said["report"][1]
    assert "lavish/lavish-top" in said["report"][1]


def test_every_command_of_the_page_is_one() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    lines = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]
    ours = [shlex.split(line)[1:] for line in lines if line.startswith("talik ")]
    assert len(ours) > 10
    for name, *arguments in ours:
        commands[name].make_context(name, arguments)  # options, numbers of arguments and their types


def release_files(root: Path, release: str) -> None:
    """Lay real records out as a release is distributed, beside the clone's."""
    for split in SPLITS:
        if release == "real":
            found = records("val" if split == "train" else split, synthetic=False)  # no train record is at hand
            put(root / "data" / "json" / f"avqa-{split}_real.json", found)
        elif release.startswith("v2.0-"):
            kind = {"balanced": "balance", "biased": "bias"}[release.removeprefix("v2.0-")]
            folder = root / "data" / {"balance": "balance_full_set", "bias": "bias_set"}[kind]
            without = ("question_id", "question_deleted")  # as its new records
            found = [{k: v for k, v in r.items() if k not in without} for r in records(split)]
            put(folder / f"{split}_{kind}.json", found)
    if release == "r":
        test = records("test")
        put(root / "MUSIC-AVQA-R" / "avqa-test-head.json", test[:6])
        put(root / "MUSIC-AVQA-R" / "avqa-test-tail.json", test[6:])


@pytest.mark.parametrize(
    ("release", "num_questions", "num_clips"),
    [
        ("original", 26, 6),
        ("real", 12, 2),
        ("synthetic", 21, 4),
        ("v2.0-balanced", 29, 6),
        ("r", 29, 6),
    ],
)
def test_every_release_trains_from_the_store_of_the_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clone: Path,
    done: tuple[Path, dict[str, list[str]]],
    smaller: Callable[..., list[str]],
    release: str,
    num_questions: int,
    num_clips: int,
) -> None:
    root = tmp_path / "MUSIC-AVQA"
    shutil.copytree(clone / "data" / "json", root / "data" / "json")
    shutil.copytree(clone / "data" / "json_update", root / "data" / "json_update")
    (root / "data" / "video").symlink_to(clone / "data" / "video")
    release_files(root, release)
    shutil.copy(done[0] / "avqa" / "experiment.toml", tmp_path / "experiment.toml")
    monkeypatch.chdir(tmp_path)
    store = done[0] / "avqa" / "features.zarr"
    sets = smaller("trimodal", **{"sweep.seeds": [0], "data.release": release, "store.path": str(store)})
    counted = talik("talik data experiment.toml", "--set", f"data.release={release}")
    assert counted.startswith(f"music-avqa: {num_questions} questions, {num_clips} clips in ")
    talik("talik extract experiment.toml", *sets)
    talik("talik sweep experiment.toml --variants probe", *sets)
    assert "probe" in talik("talik report runs")
    result = json.loads((tmp_path / "runs" / "experiment" / "probe" / "seed0" / "result.json").read_text("utf-8"))
    subsets = {name: tally["total"] for name, tally in result.get("by_subset", {}).items()}
    assert subsets == ({"head": 6, "tail": 5} if release == "r" else {})
    lines = (tmp_path / "runs" / "experiment" / "probe" / "seed0" / "predictions.jsonl").read_text("utf-8").splitlines()
    synthetic = {"real": False, "synthetic": True}.get(release)
    asked = records("test", synthetic=synthetic)[: -1 if release == "original" else None]
    assert [json.loads(line)["clip_id"] for line in lines] == [r["video_id"] for r in asked]


def test_missing_clips_are_refused_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clone: Path, smaller: Callable[..., list[str]]
) -> None:
    shutil.copytree(clone, tmp_path / "avqa" / "MUSIC-AVQA")
    archive = tmp_path / "avqa" / "MUSIC-AVQA" / "data" / "video" / "MUSIC-AVQA-videos-Real"
    (archive / "00000461.mp4").rename(tmp_path / "later.mp4")
    monkeypatch.chdir(tmp_path)
    talik("talik init music-avqa avqa --preset trimodal")
    sets = partial(smaller, "trimodal", **{"sweep.seeds": [0]})
    extract, sweep, report = blocks("Clips that are missing")
    message = refused(extract.replace(" --allow-missing", ""), *sets())
    assert "1 of 6 clips are not in " in message
    assert "'00000461'" in message
    assert "missing: 1 clip without a file: 00000461" in talik("talik data avqa/experiment.toml --allow-missing")
    talik(extract, *sets())
    assert "00000461" in refused(sweep.replace(" --allow-missing", ""), *sets(), "--variants", "probe")
    talik(sweep, *sets())
    assert "trimodal" in talik(report)
    run = tmp_path / "avqa" / "runs" / "experiment" / "trimodal" / "seed0"
    answered = [json.loads(line)["clip_id"] for line in (run / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert answered == [r["video_id"] for r in records("test") if r["video_id"] != "00000461"]
    (tmp_path / "later.mp4").rename(archive / "00000461.mp4")
    talik("talik extract avqa/experiment.toml", *sets())
    stored = open_store(tmp_path / "avqa" / "features.zarr")
    clips = [spec for spec in stored.boundaries() if spec.modality != "text"]
    assert [len(stored.sources(spec)) for spec in clips] == [6, 6, 6, 6]
