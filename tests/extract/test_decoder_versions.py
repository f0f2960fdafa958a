"""The versions of what decodes: the oldest allowed gives right colours, stores tell them, differences are said."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from packaging.requirements import Requirement

import talik
from talik.extract.stage.maintenance import repair_store
from talik.extract.stage.version_notes import version_notes

COLOURS = ("red", "lime", "blue", "0x20C0E0", "0xE08020", "gray")


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write six coloured fields, one second long, in YUV of a matrix and range that the file names."""
    folder = tmp_path_factory.mktemp("colours")

    def write(matrix: str, range_: str, pixels: str = "yuv420p", codec: tuple[str, ...] = ("libx264",)) -> Path:
        path = folder / f"{matrix}-{range_}-{pixels}.mp4"
        fields = [option for c in COLOURS for option in ("-f", "lavfi", "-i", f"color=c={c}:s=32x64:r=5:d=1")]
        stacked = "".join(f"[{i}:v]" for i in range(len(COLOURS))) + f"hstack=inputs={len(COLOURS)}"
        scale = f"{stacked},scale=out_color_matrix={matrix}:out_range={range_},format={pixels}"
        tags = ("-colorspace", {"bt2020": "bt2020nc"}.get(matrix, matrix), "-color_range", range_)
        command = [*fields, "-filter_complex", scale, "-c:v", codec[0], *codec[1:], *tags, str(path)]
        subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *command], check=True)
        return path

    return write


@pytest.mark.parametrize(
    ("matrix", "range_", "pixels"),
    [
        ("bt709", "tv", "yuv420p"),
        ("bt709", "pc", "yuv420p"),
        ("bt709", "tv", "yuv444p"),
        ("bt2020", "tv", "yuv420p"),
        ("smpte170m", "tv", "yuv420p"),
        ("bt470bg", "pc", "yuv422p"),
        ("bt709", "tv", "yuv420p10le"),
    ],
)
def test_colours_are_those_that_were_recorded(make: Callable[..., Path], matrix: str, range_: str, pixels: str) -> None:
    codec = ("libx265", "-x265-params", "log-level=none") if pixels.endswith("10le") else ("libx264",)
    path = make(matrix, range_, pixels, codec)
    frames = talik.decode_clip(path, num_segments=2, sound=False).frames
    assert frames is not None
    found = frames[:, 24:40, 8::32].mean(axis=(0, 1))  # the middle of each field
    meant = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0x20, 0xC0, 0xE0], [0xE0, 0x80, 0x20], [128, 128, 128]]
    assert np.abs(found - np.array(meant)).max() <= 6, found.round(1).tolist()


def test_the_version_under_test_is_the_one_meant() -> None:
    """`make test-oldest` runs this module with the lower bound of pyproject.toml."""
    meant = os.environ.get("TALIK_EXPECTED_AV")
    assert meant is None or av.__version__.startswith(f"{meant}.")


def test_the_bound_leaves_out_the_versions_that_decode_wrongly_or_crash() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    needed = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    (bound,) = [r for r in map(Requirement, needed) if r.name == "av"]
    wrong = ("14.0.0", "15.1.0", "16.0.1", "16.1.0", "17.0.0", "17.0.1")
    assert [v for v in wrong if bound.specifier.contains(v)] == []
    assert bound.specifier.contains(av.__version__)
    assert bound.specifier.contains("17.1.0")


def test_a_store_tells_the_versions_that_made_its_states(write_experiment: Callable[..., Path]) -> None:
    experiment = write_experiment()
    talik.extract(experiment, progress=False)
    store = talik.FeatureStore.open(experiment.parent / "features.zarr")
    versions = importlib.metadata.version
    for spec in store.boundaries():
        with store.reader(spec.modality, spec.boundary, key=spec.key) as reader:
            (told,) = reader.provenance
        expected = {
            "visual": {"av": av.__version__, "torchvision": versions("torchvision"), "pillow": versions("pillow")},
            "audio": {"av": av.__version__},
            "text": {"tokenizers": versions("tokenizers")},
        }[spec.modality]
        assert {name: told[name] for name in expected} == expected
        assert ("libavcodec" in told) == (spec.modality != "text")


def test_other_versions_than_those_stored_are_said(
    write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = write_experiment()
    with monkeypatch.context() as patched:
        patched.setattr(av, "__version__", "17.3.1")
        first = talik.extract(experiment, progress=False)
    assert first.notes == ()
    again = talik.extract(experiment, progress=False)
    assert again.up_to_date
    said = f"states are stored that were made with av 17.3.1; this environment has av {av.__version__}"
    assert again.lines() == [f"visual: {said}", f"audio: {said}", "nothing to do: every state is in the store"]
    shard = next((experiment.parent / "features.zarr" / "visual").rglob("hidden/c.0.*"))
    shard.write_bytes(shard.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        assert repair_store(experiment.parent / "features.zarr", experiment, progress=False).forgotten
    assert f"(av); its shards are marked: now av '{av.__version__}', stored '17.3.1'" in caplog.text


def test_notes_name_each_version_once() -> None:
    now = {"av": "18.1.0", "torchvision": "0.29", "torch": "2.15"}
    assert version_notes("visual", now, []) == []
    assert version_notes("visual", now, [{"spec": "an older version's record"}]) == []
    assert version_notes("visual", now, [dict(now), {**now, "torch": "2.11"}]) == []
    (line,) = version_notes("visual", now, [{"av": "17.1.0"}, {"av": "17.2.0", "torchvision": "0.28"}])
    assert line == (
        "visual: states are stored that were made with av 17.1.0 and 17.2.0, torchvision 0.28; this environment has av "
        "18.1.0, torchvision 0.29"
    )
