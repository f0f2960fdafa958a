"""The benchmarks that kill extractions, fail the disk and flip bits, in small: what they count must be nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Give a function that imports a benchmark by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_an_extraction_killed_ten_times(benchmark, write_experiment, tmp_path):
    experiment = write_experiment(('dtype = "float32"', 'dtype = "float32"\nshard_items = 2'))
    work = benchmark("store_extraction").extraction(experiment)
    seen = benchmark("store_faults").kill_again_and_again(tmp_path / "features.zarr", work, kills=10, seed=1)
    assert seen.faults == []
    assert seen.killed == 10
    assert seen.unfinished > 0
    assert seen.finished > 0


@pytest.mark.parametrize("fault", ["a full disk", "a read-only store", "two writers at once", "torn renames"])
def test_a_disk_that_fails(fault, benchmark, tmp_path_factory, tmp_path):
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        folder.chmod(0o755)  # the read-only store is looked at by a user without rights
    assert benchmark("store_faults").FAULTS[fault](tmp_path)


def test_flipped_bits(benchmark, tmp_path):
    tally = benchmark("store_bitflips").run(40, 3, tmp_path)
    assert tally.faults == []
    total = sum((count for count in tally.counts.values()), start=type(tally.counts["data"])())
    assert total["flips"] == total["detected"] == 40
    assert total["wrong"] == 0
    assert total["repaired"] > 0
