"""`talik plan --simulate`: schedules by hand and by their bounds, operations by hand, and nothing need be there."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from talik.adapt.plan.cluster import SimulateSettings, Work, makespan, parse_simulate, phase, stops_helping
from talik.adapt.plan.simulate import Simulation, simulate
from talik.adapt.plan.text import simulated_lines
from talik.cache.feature_store import FeatureStore
from talik.cli import app
from talik.errors import ManifestError, SettingsError

FAST = 1e30  # a disk that nothing waits for


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALIK_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("seconds", "num_gpus", "expected"),
    [
        ([3, 3, 3], 1, 9),
        ([3, 3, 3], 3, 3),
        ([3, 3, 3], 64, 3),
        ([1, 1, 1, 1, 4], 2, 6),  # the long one comes last and is begun at 2
        ([4, 1, 1, 1, 1], 2, 4),
        ([2, 3, 4, 1], 2, 6),  # 2 then 4; 3 then 1
    ],
)
def test_units_go_to_whoever_is_free_first(seconds: list[float], num_gpus: int, expected: float) -> None:
    assert makespan(seconds, num_gpus) == expected
    assert phase([Work(gpu=s) for s in seconds], num_gpus, disk=FAST).seconds == expected


@pytest.mark.parametrize("seed", range(20))
def test_no_schedule_beats_its_bounds_and_more_gpus_are_never_slower(seed: int) -> None:
    rng = random.Random(seed)
    units = [
        Work(gpu=rng.expovariate(1), decode=rng.expovariate(2), num_bytes=rng.expovariate(1))
        for _ in range(rng.randrange(1, 60))
    ]
    disk = rng.choice([0.5, 5.0, FAST])
    phases = [phase(units, count, disk=disk) for count in range(1, 30)]
    alone = [u.seconds(disk) for u in units]
    for count, found in enumerate(phases, start=1):
        assert found.seconds >= max(alone)
        assert found.seconds >= sum(u.gpu for u in units) / count - 1e-9
        assert found.seconds >= sum(u.decode for u in units) / count - 1e-9
        assert found.seconds >= sum(u.num_bytes for u in units) / disk
        assert makespan(alone, count) <= sum(alone) / count + max(alone) + 1e-9  # Graham's bound
        assert 0 < found.busy <= found.gpu_seconds * (1 + 1e-9)
    assert all(after.seconds <= before.seconds + 1e-9 for before, after in itertools.pairwise(phases))


def test_what_bounds_a_phase_is_named() -> None:
    def bound(work: Work, *, units: int, gpus: int, disk: float = FAST) -> str:
        return phase([work] * units, gpus, disk=disk).bound

    assert bound(Work(gpu=2, decode=1), units=64, gpus=8) == "GPU"
    assert bound(Work(gpu=1, decode=2), units=64, gpus=8) == "decoding"
    assert bound(Work(gpu=1, num_bytes=1), units=64, gpus=2, disk=1) == "disk"
    assert bound(Work(gpu=1), units=3, gpus=8) == "units"


def test_more_gpus_stop_helping_at_the_disk_or_at_the_last_unit() -> None:
    def beyond(units: list[Work], disk: float = FAST, limit: int = 1024) -> int:
        return stops_helping(lambda count: phase(units, count, disk=disk), limit=limit)

    assert beyond([Work(gpu=1)] * 16) == 16
    assert beyond([Work(gpu=1, num_bytes=1)] * 1600, disk=4) == 4
    assert beyond([Work(gpu=1)] * 4000, limit=64) == 64


def test_the_option_is_read_strictly() -> None:
    assert parse_simulate("gpus=1,8,64,tflops=40,hours=2.5") == SimulateSettings(
        gpus=(1, 8, 64), tflops=40.0, hours=2.5
    )
    assert parse_simulate("gpus=64").shown == (1, 8, 64)
    assert parse_simulate("gpus=4").shown == (1, 4)
    assert parse_simulate("gpus=2,16").shown == (2, 16)
    for wrong, named in [("gpu=3", "gpus"), ("gpus=0", "gpus"), ("gpus=many", "many"), ("gpus=2,disk=0", "disk")]:
        with pytest.raises(SettingsError, match=named):
            parse_simulate(wrong)


def simulated(path: Path, text: str = "gpus=1,2,1000,tflops=0.01") -> Simulation:
    return simulate(path, parse_simulate(text), progress=False)


def test_a_real_set_is_counted_as_it_would_be_extracted_and_trained(
    write_experiment: Callable[..., Path], extracted: Path
) -> None:
    found = simulated(write_experiment())
    store = FeatureStore.open(extracted.with_name("features.zarr"))
    stored = {s.modality + str(s.boundary): 4 * math.prod(s.shape) for s in store.boundaries() if not s.ragged}
    visual, audio = found.encoders["visual"], found.encoders["audio"]
    for k in (1, 3):
        assert visual.state_bytes[k] == stored[f"visual{k}"]
        assert audio.state_bytes[k] == stored[f"audio{k}"]
    assert found.num_clips == 8
    assert found.num_runs == 2

    # A DINOv2 block on 3 frames of 5 tokens of 24 channels: four projections, an MLP of 4, two products of attention.
    tokens, channels, heads = 3 * 5, 24, 2
    block = 2 * tokens * channels * channels * (4 + 2 * 4) + heads * 2 * 2 * 3 * 5 * 5 * channels // heads
    assert found.counts["visual"].forward == (block,) * 3

    (extraction, one), (_, two), (_, many) = (found.clusters[n] for n in (1, 2, 1000))
    assert extraction.seconds == pytest.approx(extraction.busy) or extraction.bound == "decoding"
    assert one.num_units == 1  # both variants see the same batches
    assert two.num_units == 2  # divided, so that both have something to do
    assert many.seconds == two.seconds
    assert many.seconds >= max(v.own_seconds for v in found.variants)
    # twice the rate, half the time
    faster = simulated(write_experiment(), "gpus=1,tflops=0.02")
    assert faster.clusters[1][1].seconds == pytest.approx(one.seconds / 2)


def test_nothing_need_be_there_but_the_file(write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    path = write_experiment(
        ('dataset = "demo"', 'dataset = "music-avqa"'), ("epochs = 2", "epochs = 10"), root=tmp_path / "nowhere"
    )
    found = simulated(path, "gpus=64,tflops=1,hours=0.5")
    assert (found.num_clips, found.num_texts) == (9_288, 2_138)
    variant = found.variants[0]
    assert (variant.num_train, variant.num_val, variant.num_test) == (32_087, 4_595, 9_185)
    assert tuple(found.clusters) == (1, 8, 64)
    assert found.enough is not None
    text = "\n".join(simulated_lines(found))
    for expected in ("simulated, not measured", "as published", "1 TFLOP/s (given)", "bound by", "within 0.5 h"):
        assert expected in text


def test_what_cannot_be_simulated_is_said(write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="auto"):
        simulated(write_experiment(("cut = [1, 3]", 'cut = "auto"')))
    with pytest.raises(SettingsError, match="starts"):
        simulated(write_experiment(("cut = [1, 3]", "cut = [3]")))
    with pytest.raises(ManifestError):  # nobody knows how large a set of one's own is
        simulated(write_experiment(('dataset = "demo"', 'dataset = "manifest"'), root=tmp_path / "nowhere"))


def test_the_command_prints_it(write_experiment: Callable[..., Path]) -> None:
    args = ["plan", str(write_experiment()), "--simulate", "gpus=2", "--quiet"]
    shown = CliRunner().invoke(app, args, catch_exceptions=False)
    assert shown.exit_code == 0
    assert "simulated, not measured" in shown.output
    assert "in all" in shown.output
