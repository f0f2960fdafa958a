"""The command line: each command does its job, and a mistake ends it in one line with a non-zero exit."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from talik.errors import SettingsError

Run = Callable[..., tuple[int, str, str]]


def test_the_whole_way(talik: Run, write_experiment: Callable[..., Path]) -> None:
    path = write_experiment()
    code, out, _ = talik("extract", path, "--quiet")
    assert (code, "items computed" in out) == (0, True)
    code, out, _ = talik("extract", path, "--quiet")
    assert (code, out.strip()) == (0, "nothing to do: every state is in the store")
    code, out, _ = talik("adapt", path, "--variant", "trimodal", "--quiet")
    assert code == 0
    run = path.parent / "runs" / "exp" / "trimodal" / "seed0"
    assert out.startswith(f"{run}: done in ")
    code, out, _ = talik("adapt", path, "--variant", "trimodal", "--quiet")
    assert (code, "was done before" in out) == (0, True)
    code, out, _ = talik("evaluate", run, "--split", "val")
    assert (code, out.splitlines()[-1].split()[0]) == (0, "Avg")
    code, out, _ = talik("sweep", path, "--seeds", "2", "--variants", "probe", "--quiet")
    assert (code, out.count("accuracy")) == (0, 2)
    code, out, _ = talik("report", path.parent / "runs", "--out", path.parent / "report")
    assert (code, (path.parent / "report" / "report.html").is_file()) == (0, True)
    store = path.parent / "features.zarr"
    code, out, _ = talik("store", "ls", store)
    assert (code, len(out.splitlines())) == (0, 6)
    boundary = out.split()[0]
    code, out, _ = talik("store", "show", store, boundary)
    assert (code, '"sampling"' in out) == (0, True)
    code, out, _ = talik("store", "verify", store)
    assert (code, out.strip()) == (0, "every checksum holds")
    assert talik("store", "export", store, path.parent / "one.h5")[0] == 0
    assert talik("store", "import", path.parent / "one.h5", path.parent / "again.zarr")[0] == 0
    assert talik("store", "verify", path.parent / "again.zarr")[0] == 0


def test_a_flipped_byte_is_found(talik: Run, write_experiment: Callable[..., Path]) -> None:
    path = write_experiment()
    talik("extract", path, "--quiet")
    shard = max((path.parent / "features.zarr").rglob("c.*"), key=lambda p: p.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    code, _, err = talik("store", "verify", path.parent / "features.zarr")
    assert code == 1
    assert shard.parent.parent.name in err
    code, out, _ = talik("store", "repair", path.parent / "features.zarr", path, "--quiet")
    assert (code, "to be computed again" in out) == (0, True)
    code, out, _ = talik("store", "repair", path.parent / "features.zarr")
    assert (code, out.strip()) == (0, "every checksum holds; nothing to repair")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("extract", "nothing.toml"), "nothing.toml: no such file"),
        (("extract", "."), "is a folder; expected an experiment's TOML"),
        (("evaluate", "."), "no config.toml; expected a run's folder"),
        (("report", "nowhere"), "nowhere: no such folder"),
        (("store", "ls", "nowhere"), "nowhere: there is no store"),
        (("store", "ls", "."), "not a talik store"),
        (("encoders", "inspect", "dinov2"), "expected timm:NAME, hf:NAME-or-folder[#part] or pip:NAME"),
        (("demo", "make", "d", "--clips", "1"), "clips: found 1, expected 4 or more"),
    ],
)
def test_a_mistake_is_one_line(
    talik: Run, arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "something.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    code, out, err = talik(*arguments)
    assert code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_an_unknown_variant_lists_the_known_ones(talik: Run, write_experiment: Callable[..., Path]) -> None:
    code, _, err = talik("adapt", write_experiment(), "--variant", "trimodel")
    assert code == 1
    assert "unknown variant 'trimodel'; did you mean 'trimodal'? (known: probe, trimodal)" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("extrct", "exp.toml"), "no such command 'extrct'; did you mean 'extract', 'export'? (see talik --help)"),
        (("store", "lss"), "no such command 'lss'; did you mean 'ls'? (see talik store --help)"),
        (("adapt", "exp.toml", "--varint", "a"), "no such option: --varint; did you mean --variant?"),
        (("extract",), "missing argument 'experiment' (see talik extract --help)"),
        (("sweep", "exp.toml", "--seeds", "0"), "'--seeds'"),
        (("adapt", "exp.toml", "--variant"), "'--variant' requires an argument"),
    ],
)
def test_a_command_line_that_cannot_be_understood_is_one_line(
    talik: Run, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = talik(*arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err


def test_it_says_its_version_and_its_exit_codes(talik: Run) -> None:
    assert talik("--version")[:2] == (0, f"talik {version('talik')}\n")
    code, out, _ = talik("--help")
    assert (code, "Exit codes: 0 done" in out, "--install-completion" in out) == (0, True, True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("-v",), ["DEBUG talik.own: small", "INFO talik.own: note", "WARNING talik.own: beware", "error: enough"]),
        ((), ["note", "beware", "error: enough"]),
        (("--quiet",), ["beware", "error: enough"]),
    ],
)
def test_verbose_names_the_modules_that_speak_and_quiet_shows_warnings_alone(
    talik: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], expected: list[str]
) -> None:
    logger, before = logging.getLogger("talik.own"), logging.getLogger("talik").level

    def speak(*args: object, **kwargs: object) -> None:
        logger.debug("small")
        logger.info("note")
        logger.warning("beware")
        raise SettingsError("enough")

    monkeypatch.setattr("talik.extract.stage.settings.read_all_settings", speak)
    code, out, err = talik("extract", tmp_path / "exp.toml", *options)
    assert (code, out, err.splitlines()) == (1, "", expected)
    assert logging.getLogger("talik").level == before


def test_an_interrupted_command_runs_exit_handlers_and_leaves_the_interpreter_as_it_is(tmp_path: Path) -> None:
    code = """
import atexit, sys
import talik.cli, talik.extract.datasets.load

class Freed:
    def __del__(self, write=sys.stderr.write):
        write("freed at the end")

kept = Freed()

def interrupted(*args, **kwargs):
    atexit.register(print, "handlers ran")
    raise KeyboardInterrupt

talik.extract.datasets.load.load_manifest = interrupted
sys.argv = ["talik", "data", "exp.toml"]
talik.cli.main()
"""
    tables = '[data]\ndataset = "demo"\nroot = "."\n[encoders.text]\nmodel = "timm:test_vit"\n'
    (tmp_path / "exp.toml").write_text(tables, encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (130, "handlers ran", "")
