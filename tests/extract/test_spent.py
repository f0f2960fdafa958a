"""What filling a store took is recorded beside it, run by run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from talik.errors import MediaError
from talik.extract.stage.extract import extract
from talik.extract.stage.run_records import costs_path, read_costs, record_cost


def test_a_run_that_computed_something_is_recorded_and_one_that_did_not_is_not(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_experiment(("cut = [1, 3]", "cut = [3]"))
    first = extract(path, progress=False)
    assert extract(path, progress=False).up_to_date
    (spent,) = read_costs(tmp_path / "features.zarr")
    assert 0 < spent.seconds <= first.seconds
    assert (spent.device, spent.size_bytes, spent.items) == ("cpu", first.bytes_written, first.items)
    assert "extraction" not in {p.name for p in (tmp_path / "features.zarr").iterdir()}


def test_runs_add_up_and_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    store = tmp_path / "features.zarr"
    assert read_costs(store) == ()
    for seconds in (1.5, 2.5):
        record_cost(store, seconds=seconds, device="cpu", size_bytes=10, items={"text/b3": 2})
    record_cost(store, seconds=9.0, device="cpu", size_bytes=0, items={"text/b3": 0})
    with costs_path(store).open("a") as file:
        file.write('{"seconds": 3.0, "dev')
    assert [spent.seconds for spent in read_costs(store)] == [1.5, 2.5]


def test_an_extraction_that_fails_has_cost_too(
    write_experiment: Callable[..., Path], demo_set: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(demo_set, own)
    sorted((own / "videos").glob("*.mp4"))[0].write_bytes(b"no film")
    path = write_experiment(root=own)
    with pytest.raises(MediaError, match="1 of 8 clips"):
        extract(path, progress=False)
    (spent,) = read_costs(tmp_path / "features.zarr")
    assert sum(spent.items.values()) > 0
