"""Data sets and model sources from outside the package, taken from docs/extending.md; and what is refused of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import talik
from talik.errors import ManifestError, SettingsError
from talik.extract.datasets.settings import DATASETS, DataSettings
from talik.extract.datasets.types import Clip, Manifest, Question

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"


def block(containing: str) -> str:
    """The page's Python block that holds some text."""
    found = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    return next(code for code in found if containing in code)


def manifest(root: Path, **changed: Any) -> Manifest:
    values = {"id": "1", "clip_id": "a", "text": "", "answer": "yes", "type": "all", "template": "", "split": "train"}
    question = Question(**{**values, **changed})
    clips = {"a": Clip(id="a", path=root / "a.mp4")}
    return Manifest(name="own", root=root, clips=clips, questions=(question,), answers=("yes", "no"))


@pytest.fixture
def by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install a module of the page's code that offers an entry point."""

    def install(group: str, name: str, value: str, code: str) -> None:
        folder = tmp_path / "site" / f"outside_{name}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: outside-{name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
        (folder.parent / f"outside_{name}.py").write_text(code, encoding="utf-8")
        monkeypatch.syspath_prepend(str(folder.parent))

    yield install
    for module in [m for m in sys.modules if m.startswith("outside_")]:
        del sys.modules[module]


def test_the_pages_data_set_by_entry_point(tmp_path: Path, by_entry_point: Callable[..., None]) -> None:
    code = block("load_doorbell").replace("talik.register_dataset", "# talik.register_dataset")
    by_entry_point("talik.datasets", "bells", "outside_bells:load_doorbell", code)
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "labels.csv").write_text(
        "film,class,split\nb.mp4,ring,train\na.mp4,knock,test\n", encoding="utf-8"
    )
    found = talik.load_manifest({"dataset": "bells", "root": "films"}, base=tmp_path)
    assert (found.answers, list(found.clips), found.splits) == (("knock", "ring"), ["b", "a"], ("train", "test"))
    assert found.split("test")[0].answer == "knock"
    named = talik.load_manifest({"dataset": "bells", "root": "films", "answers": ["ring", "knock"]}, base=tmp_path)
    assert named.answers == ("ring", "knock")
    with pytest.raises(SettingsError, match="unknown data set 'bell'; did you mean 'bells'"):
        DataSettings(dataset="bell", root=".")


def test_a_registered_class_loads_and_is_split_by_video(tmp_path: Path) -> None:
    class Own:
        def __call__(self, settings: DataSettings, *, root: Path, base: Path) -> Manifest:
            assert (root, base, settings.seed) == (tmp_path / "x", tmp_path, 3)
            return manifest(root)

    (tmp_path / "x").mkdir()
    talik.register_dataset("own-class", Own())
    assert "own-class" in DATASETS.names()
    settings = DataSettings(dataset="own-class", root="x", split="by-video", seed=3)
    notes = talik.load_manifest(settings, base=tmp_path).notes
    assert notes == ("split by video with seed 3: no clip is in two splits",)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clip_id": "b"}, "question '1': its clip 'b' is not among"),
        ({"answer": "maybe"}, "'maybe' is not among the manifest's answers"),
        ({"labels": ("yes", "loud")}, "'loud' is not among the manifest's answers"),
        (None, "returned list, expected a Manifest"),
    ],
)
def test_manifests_that_do_not_hold_together_are_refused(
    tmp_path: Path, changed: dict[str, Any] | None, message: str
) -> None:
    talik.register_dataset(
        "own-broken", lambda settings, *, root, base: [] if changed is None else manifest(root, **changed)
    )
    with pytest.raises(ManifestError, match=re.escape(message)):
        talik.load_manifest({"dataset": "own-broken", "root": "."}, base=tmp_path)


def test_an_id_twice_is_refused(tmp_path: Path) -> None:
    def twice(settings: DataSettings, *, root: Path, base: Path) -> Manifest:
        one = manifest(root)
        return Manifest(name="own", root=root, clips=one.clips, questions=one.questions * 2, answers=one.answers)

    talik.register_dataset("own-twice", twice)
    with pytest.raises(ManifestError, match="question '1': its id is another question's too"):
        talik.load_manifest({"dataset": "own-twice", "root": "."}, base=tmp_path)


def test_an_entry_point_that_cannot_be_imported_is_named(tmp_path: Path, by_entry_point: Callable[..., None]) -> None:
    by_entry_point("talik.datasets", "broken", "outside_broken", "import nowhere_at_all\n")
    with pytest.raises(SettingsError, match=r"'broken': .*'talik\.datasets' cannot be loaded: ModuleNotFoundError"):
        talik.load_manifest({"dataset": "broken", "root": "."}, base=tmp_path)


def test_the_pages_model_source_by_entry_point(by_entry_point: Callable[..., None]) -> None:
    by_entry_point("talik.model_sources", "tiny", "outside_tiny", block("open_tiny"))
    encoder = talik.load_encoder("tiny:3", modality="visual")
    assert (encoder.num_units, list(encoder.channels), encoder.image_size) == (3, [48] * 5, (16, 16))
    frames = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    inputs = encoder.preprocess(frames)
    with torch.no_grad():
        state = encoder.run(encoder.embed(inputs), 0, 3)
        assert torch.equal(encoder.finish(state), encoder(inputs))


def test_an_unknown_prefix_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"expected timm:NAME, hf:NAME-or-folder\[#part\] or pip:NAME"):
        talik.load_encoder("nowhere:vit", modality="visual")
