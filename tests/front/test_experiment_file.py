"""How an experiment is given: `--set`, `extends`, a dict, code of one's own beside it, encoders of one variant."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import talik as package
from talik.adapt.report.read_runs import read_run
from talik.adapt.training.run_folder import RunFolder
from talik.errors import PlugInError, RunDiffersError, RunError, SettingsError
from talik.extract.stage.experiment_file import merged, parse_changes, read_experiment
from talik.extract.stage.settings import read_all_settings, read_settings
from talik.progress import progress_bar

Run = Callable[..., tuple[int, str, str]]

FILM = """
from dataclasses import dataclass

import torch
from torch import nn

from helper import SCALE
from talik.adapt.adapters.base import Deltas


class Film(nn.Module):
    @dataclass(frozen=True, kw_only=True)
    class Settings:
        gain: float = 1.0

    def __init__(self, settings: Settings, dims):
        super().__init__()
        self.gain = settings.gain * SCALE
        self.shifts = nn.ModuleList(
            nn.ParameterDict({m: nn.Parameter(torch.zeros(d)) for m, d in here.items()}) for here in dims
        )

    def at(self, index):
        return lambda triple: Deltas(
            **{m: self.gain * shift.expand_as(triple.get(m)) for m, shift in self.shifts[index].items()}
        )


class Head(nn.Module):
    def __init__(self, settings, dims, num_classes):
        super().__init__()
        self.linear = nn.Linear(dims["visual"], num_classes)

    def forward(self, features, text_mask):
        return self.linear(features["visual"].flatten(1, 2).mean(1))


def load(settings, *, root, base):
    from talik.extract.datasets.generic import load_generic

    return load_generic(settings, root=root, base=base)
"""
VARIANT = """
[[variants]]
name = "film"
insertion = "last 1"
adapter = { kind = "mine:Film", gain = 0.5 }
"""


@pytest.fixture
def mine(made: Path) -> Path:
    (made / "mine.py").write_text(FILM, encoding="utf-8")
    (made / "helper.py").write_text("SCALE = 2.0\n", encoding="utf-8")
    text = (made / "exp.toml").read_text(encoding="utf-8")
    (made / "exp.toml").write_text(text + VARIANT, encoding="utf-8")
    return made


def test_a_setting_of_the_command_line_takes_the_place_of_the_files(talik: Run, made: Path) -> None:
    settings = ["--set", "name=again", "--set", "train.epochs=1", "--set", "variants.trimodal.adapter.d_model=16"]
    code, out, err = talik("adapt", "exp.toml", "--variant", "trimodal", *settings, "--quiet", "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["variant"], result["seed"], result["how"]) == ("trimodal", 0, "trained")
    config = RunFolder(made / "runs" / "again" / "trimodal" / "seed0").config()
    assert (config["train"]["epochs"], config["adapter"]["d_model"], config["train"]["ema"]) == (1, 16, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.lr=fast", "exp.toml: train.lr: found 'fast', expected a number"),
        ("train.lrr=1", "exp.toml: train.lrr: unknown key 'lrr'; did you mean 'lr'?"),
        ("trian.lr=1", "exp.toml: unknown table 'trian'; did you mean 'train'?"),
        ("variants.trimodel.train.lr=1", "unknown variant 'trimodel'; did you mean 'trimodal'?"),
        ("variants.trimodal.adapter.d_modell=4", "unknown key 'd_modell'; did you mean 'd_model'?"),
        ("variants.trimodal=4", "expected variants.NAME.KEY"),
        ("train.lr.peak=1", "train.lr.peak: train.lr is 0.5, which has no keys"),
        ("train.lr", "--set: found 'train.lr', expected KEY=VALUE"),
    ],
)
def test_a_setting_is_checked_like_the_files(talik: Run, made: Path, change: str, message: str) -> None:
    code, out, err = talik("adapt", "exp.toml", "--variant", "trimodal", "--set", "train.lr=0.5", "--set", change)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert message in err


def test_values_are_toml_and_a_bare_word_is_a_string() -> None:
    found = parse_changes(["a.b=[1, 2]", "a.c=timm:vit", 'variants."a.b".name="x=y"', "d=true"])
    assert found == {"a.b": [1, 2], "a.c": "timm:vit", 'variants."a.b".name': "x=y", "d": True}


def test_an_experiment_extends_another_by_key_and_variants_by_name(made: Path) -> None:
    (made / "more").mkdir()
    (made / "more" / "base.toml").write_text(
        'extends = "../exp.toml"\nname = "base"\n[train]\nepochs = 7\n', encoding="utf-8"
    )
    own = (
        'extends = "more/base.toml"\n[train]\nbatch_size = 2\n[[variants]]\nname = "trimodal"\n'
        'adapter = { kind = "trimodal", d_state = 2 }\n[[variants]]\nname = "probe"\n'
        'adapter = { kind = "bottleneck" }\ninsertion = "last 1"\n[[variants]]\nname = "new"\nadapter.kind = "probe"\n'
    )
    (made / "own.toml").write_text(own, encoding="utf-8")
    experiment = package.load_experiment("own.toml")
    assert experiment.name == "own"
    assert (experiment.train.epochs, experiment.train.batch_size, experiment.train.eval_batch_size) == (7, 2, 4)
    assert [v.name for v in experiment.variants] == ["probe", "trimodal", "lora", "new"]
    assert experiment.variant("trimodal").adapter == {
        "kind": "trimodal",
        "d_model": 8,
        "d_state": 2,
        "num_latents": 2,
        "num_heads": 2,
    }
    assert experiment.variant("probe").adapter == {"kind": "bottleneck"}
    assert package.extract("own.toml", progress=False).up_to_date  # the base's paths count from the base's folder


def test_circles_and_missing_bases_are_said(made: Path) -> None:
    (made / "a.toml").write_text('extends = "b.toml"\n', encoding="utf-8")
    (made / "b.toml").write_text('extends = "a.toml"\n', encoding="utf-8")
    with pytest.raises(SettingsError, match=r"b\.toml: extends: a\.toml -> b\.toml -> a\.toml is a circle; break it"):
        read_experiment("a.toml")
    (made / "a.toml").write_text('extends = "nowhere.toml"\n', encoding="utf-8")
    with pytest.raises(SettingsError, match=r"a\.toml: extends: nowhere\.toml: no such file"):
        read_experiment("a.toml")


def test_lists_and_tables_of_another_kind_are_replaced() -> None:
    base = {"loss": {"kind": "a", "x": 1}, "cut": [1, 2], "variants": [{"name": "v", "train": {"lr": 1}}]}
    assert merged(base, {"loss": {"kind": "b"}, "cut": [3]}) == {**base, "loss": {"kind": "b"}, "cut": [3]}
    assert merged(base, {"loss": {"x": 2}})["loss"] == {"kind": "a", "x": 2}


def test_a_dict_is_an_experiment(made: Path) -> None:
    tables = {"extends": Path("exp.toml"), "name": "short", "train": {"epochs": 1}}
    result = package.adapt(tables, variant="probe", progress=False)
    assert result.folder == made / "runs" / "short" / "probe" / "seed0"
    assert repr(result).startswith("RunResult(probe, seed 0: ")
    assert package.sweep(tables, variants=["probe"], progress=False).runs[0].how == "kept"
    assert package.extract(tables, progress=False).up_to_date
    with pytest.raises(SettingsError, match=r"the experiment: train\.epoch: unknown key 'epoch'"):
        package.adapt({**tables, "train": {"epoch": 1}}, variant="probe")
    with pytest.raises(RunDiffersError, match="epochs"):
        package.adapt({**tables, "train": {"epochs": 2}}, variant="probe", progress=False)


def test_a_class_beside_the_experiment_needs_no_package(talik: Run, mine: Path) -> None:
    code, _, err = talik("adapt", "exp.toml", "--variant", "film", "--set", "task.head.kind=mine:Head", "--quiet")
    assert (code, err) == (0, "")
    folder = mine / "runs" / "exp" / "film" / "seed0"
    script = f"import talik; print(talik.evaluate({str(folder)!r}, split='val').scores.overall.total)"
    done = subprocess.run([sys.executable, "-c", script], cwd="/", capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr
    assert talik("data", "exp.toml", "--set", "data.dataset=mine:load")[0] == 0
    assert (
        "unknown key 'gian'; did you mean 'gain'"
        in talik("adapt", "exp.toml", "--variant", "film", "--set", "variants.film.adapter.gian=1")[2]
    )


def test_code_that_registers_is_imported_by_the_file_and_by_the_command(talik: Run, mine: Path) -> None:
    registers = "import talik\nfrom mine import Film\ntalik.register_adapter('film-own', Film.Settings, Film)\n"
    (mine / "known.py").write_text(registers, encoding="utf-8")
    kind = ["--set", "variants.film.adapter.kind=film-own", "--set", "train.epochs=1", "--quiet"]
    for options in (["--import", "known.py"], ["--import", "known"], ["--set", 'import=["known"]']):
        code, _, err = talik("sweep", "exp.toml", "--variants", "film", *kind, *options)
        assert (code, err) == (0, "")
        script = f"import talik; talik.evaluate({str(mine / 'runs/exp/film/seed0')!r}, split='val')"
        done = subprocess.run([sys.executable, "-c", script], cwd="/", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (mine / "runs" / "exp" / "film").rename(mine / f"film {len(options[-1])}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("variants.film.adapter.kind=film", "module:Class"),
        ("variants.film.adapter.kind=min:Film", "there is no min.py in"),
        ("variants.film.adapter.kind=mine:Flim", "unknown name in"),
        ("variants.film.adapter.kind=mine:load", "expected a class that derives from torch.nn.Module"),
        ("data.dataset=musik", "talik.register_dataset"),
        ('import=["nowhere.py"]', "there is no file"),
        ('import=["nowhere"]', "no installed module"),
    ],
)
def test_code_that_is_not_there_is_said_with_the_ways_to_bring_it(
    talik: Run, mine: Path, change: str, message: str
) -> None:
    code, _, err = talik("adapt", "exp.toml", "--variant", "film", "--set", change)
    assert (code, len(err.splitlines())) == (1, 1)
    assert message in err


def test_code_of_ones_own_that_raises_is_one_line(mine: Path) -> None:
    (mine / "bad.py").write_text("1 / 0\n", encoding="utf-8")
    (mine / "json.py").write_text("", encoding="utf-8")
    with pytest.raises(PlugInError, match=r"exp\.toml: .*bad\.py: cannot be imported: ZeroDivisionError"):
        read_experiment("exp.toml", imports=["bad.py"])
    with pytest.raises(SettingsError, match="another module is called 'json'; rename the file"):
        read_experiment("exp.toml", imports=["json.py"])


def test_a_variant_may_have_encoders_of_its_own(talik: Run, made: Path) -> None:
    text = (made / "exp.toml").read_text(encoding="utf-8")
    other = """
[[variants]]
name = "other"
insertion = { visual = [4] }
adapter = { kind = "bottleneck", d_bottleneck = 4 }

[variants.encoders.visual]
model = "timm:test_vit"
weights = "random"
image_size = 32
fit = "crop"
cut = [4]
"""
    (made / "own.toml").write_text(f'name = "exp"\n{text}{other}', encoding="utf-8")
    base, own = read_all_settings("own.toml")
    assert base == read_settings("exp.toml")
    assert (own.encoders.visual.model, own.encoders.audio) == ("timm:test_vit", base.encoders.audio)
    report = package.extract("own.toml", progress=False)
    assert [name.split("-")[0] for name, count in report.items.items() if count] == ["visual/b04"]
    assert package.extract("own.toml", progress=False).up_to_date
    package.adapt("exp.toml", variant="probe", progress=False)
    result = package.sweep("own.toml", variants=["probe", "other"], progress=False)
    assert [(run.variant, run.how) for run in result.runs] == [("probe", "kept"), ("other", "trained")]
    assert package.adapt("own.toml", variant="other", progress=False).how == "kept"
    assert package.evaluate(result.runs[1].folder, split="val").scores.overall.total == 2
    unneeded = talik("store", "gc", "features.zarr", "own.toml", "--quiet", "--json")[1]
    garbage = {line.split("-")[0] for line in json.loads(unneeded)["garbage"]}
    assert "audio/b02" in garbage  # of another experiment on this store
    assert not garbage & {"visual/b04", "visual/b01", "audio/b03", "audio/b01", "text/b01"}
    code, _, err = talik("extract", "own.toml", "--set", "variants.other.encoders.visual.mdoel=x")
    assert (code, "variant 'other'" in err, "did you mean 'model'" in err) == (1, True, True)
    code, out, _ = talik("report", "runs/exp/probe", "runs/exp/other", "--json")
    assert (code, [row["variant"] for row in json.loads(out)["rows"]]) == (0, ["blind", "probe", "other"])


def test_every_command_that_prints_results_gives_json(talik: Run, made: Path) -> None:
    run = made / "runs" / "exp" / "probe" / "seed0"
    commands = [
        ("data", "exp.toml"),
        ("extract", "exp.toml", "--quiet"),
        ("sweep", "exp.toml", "--variants", "probe", "--quiet"),
        ("evaluate", run, "--split", "val"),
        ("report", "runs", "--skip-unfinished"),
        ("store", "ls", "features.zarr"),
        ("store", "verify", "features.zarr"),
        ("store", "why", "features.zarr", "exp.toml", "--quiet"),
        ("encoders", "inspect", "timm:test_vit", "--weights", "random"),
    ]
    for command in commands:
        code, out, _ = talik(*command, "--json")
        assert code == 0, command
        assert json.loads(out), command
    (listed, *_) = json.loads(talik("store", "ls", "features.zarr", "--json")[1])
    assert {"path", "items", "shape", "dtype", "bytes"} <= listed.keys()
    assert json.loads(talik("evaluate", run, "--json")[1])["scores"]["overall"]["total"] == 4


def test_the_pages_extending_experiment(made: Path) -> None:
    page = (Path(package.__file__).parent / "docs" / "experiment.md").read_text(encoding="utf-8")
    extending, *_ = re.findall(r'```toml\n(extends = "exp.toml".*?)```', page, re.DOTALL)
    (made / "own.toml").write_text(extending, encoding="utf-8")
    experiment = package.load_experiment("own.toml")
    assert [v.name for v in experiment.variants] == ["probe", "trimodal", "lora", "bottleneck"]
    assert (experiment.variant("trimodal").adapter["window"], experiment.variant("trimodal").adapter["d_model"]) == (
        2,
        8,
    )


def test_a_cut_at_the_end_is_said_so(made: Path) -> None:
    package.extract("exp.toml", progress=False)
    for cut in ("end", [1, "end"]):
        settings = read_settings("exp.toml", changes={"encoders.visual.cut": cut})
        assert package.extract(settings, progress=False).up_to_date
    with pytest.raises(SettingsError, match=r'found boundary 4, expected -3 … 3, or "end" \(which is 3\)'):
        package.extract(read_settings("exp.toml", changes={"encoders.visual.cut": 4}), progress=False)


def test_models_are_listed_by_a_part_of_their_name_and_misspelt_ones_get_suggestions(talik: Run) -> None:
    code, out, _ = talik("encoders", "list", "dinov2", "--json")
    names = [model["name"] for model in json.loads(out)]
    assert code == 0
    assert {"timm:vit_small_patch14_dinov2.lvd142m", "pip:dinov2-small", "dinov2"} <= {*names}
    assert all("dinov2" in name for name in names)
    for command in (
        ("encoders", "list", "vit_smal_patch14_dinov2"),
        ("encoders", "inspect", "timm:vit_smal_patch14_dinov2"),
    ):
        code, _, err = talik(*command)
        assert (code, "did you mean 'vit_small_patch14_dinov2.lvd142m'?" in err) == (1, True)


def test_a_log_file_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(total=1000, desc="probe/seed0", unit=" questions") as bar:
        for _ in range(1000):
            bar.update(1)
        bar.set_postfix_str("epoch 1, val 50.0 %")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) < 5
    assert lines[0].startswith("probe/seed0: 0 of 1000 questions, ")
    assert lines[-1].startswith("probe/seed0: 1000 of 1000 questions, ")
    assert lines[-1].endswith(", epoch 1, val 50.0 %")


def test_results_show_themselves_in_a_notebook(made: Path) -> None:
    store = package.open_store("features.zarr")
    encoder = package.load_encoder("timm:test_vit", modality="visual", weights="random")
    swept = package.sweep("exp.toml", variants=["probe"], progress=False)
    evaluation = package.evaluate("runs/exp/probe/seed0", split="val", save=False)
    report = package.report(["runs/exp"], out="report", resamples=100, skip_unfinished=True)
    for shown, short, held in (
        (store, "FolderStore(features.zarr, mode 'r')", "visual/b02-1375f0de170e"),
        (encoder, "PretrainedEncoder(timm:test_vit: visual, 6 units, cpu)", "<td>64</td>"),
        (evaluation, "Evaluation(probe/seed0: ", "<th>Avg</th>"),
        (report, "ReportFiles(3 variants, report/report.html)", "<th>trimodal</th>"),
        (swept, "SweepResult(1 run)", "<td>probe</td>"),
        (swept.runs[0], "RunResult(probe, seed 0: ", "<th>Avg</th>"),
    ):
        assert repr(shown).startswith(short)
        assert len(repr(shown).replace(str(made), "")) < 120
        assert held in shown._repr_html_()
    assert evaluation.to_pandas().loc["Avg", "total"] == 2
    assert report.to_pandas().loc["blind", "label"] == "blind baseline"


def test_superseded_items_are_not_among_stored_features(made: Path) -> None:
    with package.stored_features("exp.toml", "visual", layer=1, pool="mean") as features:
        before = features.to_pandas()
    shutil.copytree(made / "data" / "clips" / "clip1", made / "data" / "clips" / "clip0", dirs_exist_ok=True)
    package.extract("exp.toml", progress=False)
    with package.stored_features("exp.toml", "visual", layer=1, pool="mean") as features:
        after = features.to_pandas()
    assert list(after.index) == list(before.index)
    assert (after != before).any(axis=1).groupby("file").any().to_dict() == {
        name: name == "clip0" for name in before.index.get_level_values("file").unique()
    }
    with package.stored_features("features.zarr", "visual", layer=1) as features:
        assert sum(name.startswith("clips/clip0 ") for name in features) == 1


def test_a_report_takes_several_experiments_with_prefixes_labels_order_and_validation(talik: Run, made: Path) -> None:
    package.adapt("exp.toml", variant="probe", progress=False)
    runs = {"small": "runs/exp/probe", "large": "runs/exp/trimodal/seed0"}
    with pytest.raises(RunError, match=r"no predictions of val; run talik evaluate .*seed0 --split val first"):
        package.report(runs, out="report", split="val", resamples=100)
    for folder in ("runs/exp/probe/seed0", "runs/exp/trimodal/seed0"):
        package.evaluate(folder, split="val")
    files = package.report(runs, out="report", split="val", resamples=100)
    assert (files.table.split, files.table.num_questions) == ("val", 2)
    assert [row.name for row in files.table.trained] == ["small/probe", "large/trimodal"]
    options = ("--order", "large/trimodal,small/probe", "--label", "small/probe=the probe", "--json")
    code, out, _ = talik("report", *(f"{prefix}={folder}" for prefix, folder in runs.items()), *options)
    rows = json.loads(out)["rows"]
    assert (code, [row["label"] for row in rows]) == (0, ["blind baseline", "large/trimodal", "the probe"])
    probe = read_run("runs/exp/probe/seed0")
    best = next(epoch for epoch in probe.epochs if epoch.epoch == probe.best_epoch)
    assert rows[2]["validation"] == 100 * (best.val_accuracy or 0)
    assert rows[2]["macro_f1"] == pytest.approx(100 * package.evaluate("runs/exp/probe/seed0").macro_f1)
    assert rows[0]["validation"] is None
    code, out, err = talik("report", *runs.values(), "--label", "probe")
    assert (code, "--label: found 'probe', expected NAME=TEXT" in err) == (1, True)
    _, out, _ = talik("report", *runs.values())
    assert any(line.split()[:1] == ["variant"] and "val" in line.split() for line in out.splitlines())
