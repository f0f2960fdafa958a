"""The package as it is installed: what it exports, what the wheel holds, what importing a room costs."""

from __future__ import annotations

import inspect
import pydoc
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import talik

ROOT = Path(talik.__file__).parent
ROOMS = ("adapt", "cache", "commands", "demo", "extract", "testing")


def test_what_the_module_shows_is_what_all_names() -> None:
    shown = {name for name in dir(talik) if not name.startswith("_") and is_ours(getattr(talik, name))}
    assert sorted(shown) == talik.__all__
    assert len(shown) > 15


def is_ours(value: object) -> bool:
    """Whether a value is a function, a class or a callable room of this package."""
    home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
    return callable(value) and home.split(".")[0] == "talik"


@pytest.mark.parametrize("name", talik.__all__)
def test_every_public_name_is_there_and_says_what_it_does(name: str) -> None:
    """A function or class under its own name, or a room that can be called."""
    public = getattr(talik, name)
    assert callable(public)
    assert name in (public.__name__, public.__name__.removeprefix("talik."))
    assert (public.__doc__ or "").strip()


def test_no_other_name_is_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = talik.nothing
    with pytest.raises(ImportError):
        from talik import AdapterKind  # noqa: F401


def test_rooms_are_packages_and_calls_at_once() -> None:
    code = (
        "import talik.extract.stage.settings, talik.adapt.model.insertion, talik;"
        "print(callable(talik.extract), talik.adapt)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("True <module 'talik.adapt'")


def test_a_room_shows_the_function_that_it_is_called_as() -> None:
    """`help`, signatures and imports of modules below a callable room."""
    from talik.adapt.training.adapt import adapt
    from talik.extract.media.decode import decode_clip
    from talik.extract.stage.extract import extract

    assert callable(decode_clip)
    for room, function in ((talik.extract, extract), (talik.adapt, adapt)):
        assert isinstance(room, ModuleType)
        assert inspect.signature(room) == inspect.signature(function)
        shown = pydoc.render_doc(room, renderer=pydoc.plaintext)
        first = (inspect.getdoc(function) or "").splitlines()[0]
        assert f"{room.__name__} - {first}" in shown
        assert "The package: Stage" in shown
    with pytest.raises(TypeError, match="experiment"):
        talik.extract()
    with pytest.raises(TypeError, match="variant"):
        talik.adapt("experiment.toml")


@pytest.mark.slow
def test_type_checkers_see_the_function_behind_a_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = pytest.importorskip("mypy.api", reason="mypy is not installed: pip install 'talik[test]'")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "talik").symlink_to(ROOT)  # mypy does not follow an editable installation
    monkeypatch.setenv("MYPYPATH", str(tmp_path / "src"))
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import talik\n\ntalik.extract('experiment.toml', device=3)\n")
    out, _, _ = api.run(["--follow-imports=silent", "--ignore-missing-imports", f"--cache-dir={tmp_path}", str(wrong)])
    assert 'Argument "device" to "extract" has incompatible type "int"; expected "str"' in out


def test_the_store_imports_no_network_library() -> None:
    code = (
        "import sys, talik, talik.cache.feature_store, talik.cache.read.boundary_reader;"
        "import talik.cache.write.boundary_writer;"
        "print([m for m in ('torch', 'timm', 'transformers', 'av', 'typer') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def modules() -> set[str]:
    rooms = {p.relative_to(ROOT).as_posix() for room in ROOMS for p in (ROOT / room).rglob("*.py")}
    return rooms | {p.name for p in ROOT.glob("*.py")}


def test_the_wheel_holds_every_module_and_one_top_level_name(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "py.typed", *(p.name for p in ROOT.glob("*.py"))):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        entry_points = next(wheel.read(n).decode() for n in names if n.endswith("entry_points.txt"))
    held = {n.removeprefix("talik/") for n in names if n.startswith("talik/") and n.endswith(".py")}
    assert held == modules()
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"talik"}
    assert "talik/py.typed" in names
    assert "talik = talik.cli:main" in entry_points
