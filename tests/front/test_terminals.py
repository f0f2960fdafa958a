"""Everything that is printed works on a terminal of any encoding, whatever the names of files and variants are."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from talik import cli

Run = Callable[..., tuple[int, str]]


ENCODINGS = ["ascii", "cp1252", "utf-8", "shift_jis"]


@pytest.fixture(params=ENCODINGS)
def talik(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Call `talik` on a terminal of an encoding, whose stdout is as strict as Python makes it."""

    def run(*arguments: object) -> tuple[int, str]:
        out, err = io.BytesIO(), io.BytesIO()
        monkeypatch.setattr(sys, "argv", ["talik", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=request.param))
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding=request.param, errors="backslashreplace"))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        return int(ended.value.code or 0), (out.getvalue() + err.getvalue()).decode(request.param, errors="replace")

    return run


NAMES = ["Gemälde", "вариант", "🎻", os.fsdecode(b"caf\xe9")]


#: A name that the terminal has, one that it has not, and one that is no text; the other pairs go the ways of these.
QUICK = {("cp1252", NAMES[0]), ("cp1252", NAMES[2]), ("ascii", NAMES[1]), ("ascii", NAMES[3])}
PAIRS = [
    pytest.param(e, n, marks=() if (e, n) in QUICK else pytest.mark.slow, id=f"{e}-{n!a}")
    for e in ENCODINGS
    for n in NAMES
]


@pytest.mark.parametrize(("talik", "name"), PAIRS, indirect=["talik"])
def test_names_of_any_kind_are_printed(talik: Run, extracted: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    text = extracted.read_text(encoding="utf-8").replace("epochs = 2\nbatch_size = 8", "epochs = 1\nbatch_size = 24")
    variant = "café" if name == NAMES[3] else name  # a TOML file holds no names that are not text
    path = folder / "exp.toml"
    path.write_text(text.replace('name = "probe"', f'name = "{variant}"'), encoding="utf-8")
    shutil.copytree(extracted.parent / "features.zarr", folder / "features.zarr")
    run = folder / "runs" / "exp" / variant / "seed0"
    for command in (
        ("data", path),
        ("extract", path),
        ("adapt", path, "--variant", variant),
        ("sweep", path, "--variants", variant),
        ("evaluate", run, "--split", "val"),
        ("report", folder / "runs", "--out", folder / "report"),
        ("store", "ls", folder / "features.zarr"),
        ("store", "verify", folder / "features.zarr"),
        ("adapt", path, "--list"),
    ):
        code, said = talik(*command)
        assert (code, said != "") == (0, True), said
    for command in (
        ("adapt", path, "--variant", f"{variant}—…"),
        ("evaluate", folder / "nowhere"),
        ("extract", folder / "nowhere.toml"),
        ("store", "ls", folder / "nowhere.zarr"),
        ("report", folder / "nowhere"),
    ):
        code, said = talik(*command)
        assert code != 0, command
        assert len(said.strip().splitlines()) == 1, said


def test_help_is_printed(talik: Run) -> None:
    code, said = talik("--help")
    assert (code, "extract" in said) == (0, True)
