"""A sample of the fuzzing benchmark: damaged files end in a result or in one line, never in a hang or traceback."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz_media.py"


@pytest.fixture(scope="module")
def fuzz_media() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_media", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_damaged_media_and_annotations_are_reported_or_read(fuzz_media: ModuleType) -> None:
    found = fuzz_media.fuzz(videos=48, annotations=60, seed=3, timeout=120.0)
    for kind, count in (("videos", 48), ("annotations", 60)):
        counts = found[kind]["counts"]
        assert not found[kind]["wrong"], found[kind]["wrong"]
        assert not set(counts) & set(fuzz_media.BAD)
        assert sum(n for name, n in counts.items() if not name.startswith("of those")) == count
        assert counts["reported"] > count // 4
    videos = found["videos"]["counts"]
    decoded = sum(n for name, n in videos.items() if name.startswith("decoded"))
    assert videos.get("of those decoded: noticed by the file's digest", 0) == decoded


def test_a_worker_that_hangs_or_dies_is_noticed(fuzz_media: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text("import sys, time\nprint('{}', flush=True)\nfor line in sys.stdin:\n    "
                      "time.sleep(60) if 'slow' in line else sys.exit(3)\n")  # fmt: skip
    real = fuzz_media.__file__
    fuzz_media.__dict__["__file__"] = str(script)
    try:
        with fuzz_media.Worker(1.0) as worker:
            assert worker.ask({"media": "slow"})["outcome"] == "hang"
            assert worker.ask({"media": "dies"})["outcome"] == "crash"
    finally:
        fuzz_media.__dict__["__file__"] = real
