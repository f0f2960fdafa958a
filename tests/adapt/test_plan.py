"""`talik plan` on a real small experiment: what it writes, `cut = "auto"`, what is kept, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from talik.adapt.config.experiment import load_experiment
from talik.adapt.plan import measure as kept_module
from talik.adapt.plan.cost_model import clip_share
from talik.adapt.plan.measure import sample_clips
from talik.adapt.plan.plan import plan
from talik.adapt.plan.text import plan_lines
from talik.adapt.plan.workload import SampleStates
from talik.adapt.sweep.sweep import sweep
from talik.adapt.training.experiment_context import ExperimentContext
from talik.cli import app
from talik.errors import SettingsError
from talik.extract.media.decode import iter_media
from talik.extract.stage.extract import extract

AUTO = (("cut = [1, 3]", 'cut = "auto"'),)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALIK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_module, "pace", lambda device: 0.01)


def test_a_plan_is_made_kept_and_followed(write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    path = write_experiment(*AUTO, ("epochs = 2", "epochs = 200"))
    with pytest.raises(SettingsError, match="talik plan"):
        extract(path, progress=False)
    first = plan(path, progress=False)
    assert {m: max(k) for m, k in first.cuts.items()} == {"visual": 3, "audio": 3, "text": 3}  # the probe's ends
    assert all(2 in k for k in first.cuts.values())  # and what "last 1" starts from
    assert first.groups == (("probe", "trimodal"),)
    by_name = {v.name: v for v in first.variants}
    assert dict(by_name["trimodal"].cut) == {"visual": 2, "audio": 2, "text": 2}
    for v in first.variants:
        assert 0 < v.seconds < v.seconds_live
        assert v.peak_bytes > 0
    written = json.loads((tmp_path / "exp.plan.json").read_text())
    assert written["seconds"] == pytest.approx(first.seconds)
    assert first.opening > 0
    assert first.seconds == pytest.approx(2 * first.opening + first.extraction + sum(first.group_seconds))

    report = extract(path, progress=False)
    made = {name.split("/")[0] for name in report.items}
    assert made == {"visual", "audio", "text"}
    indexes = 300_000 * len(report.items)  # a shard's index has room for a full shard, however few items it holds
    assert 0.9 * first.num_bytes <= report.bytes_written <= first.num_bytes + indexes

    again = plan(path, progress=False)  # units and steps come from the kept measurements
    assert again.encoder_costs == first.encoder_costs
    assert [v.peak_bytes for v in again.variants] == [v.peak_bytes for v in first.variants]


def test_what_was_kept_follows_the_machine(
    write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_experiment()
    first = plan(path, progress=False)
    for now, factor in ((0.03, 3.0), (0.005, 0.5), (0.011, 1.0)):
        monkeypatch.setattr(kept_module, "pace", lambda device, now=now: now)
        again = plan(path, progress=False)
        for m, costs in first.encoder_costs.items():
            assert again.encoder_costs[m].forward == pytest.approx([factor * t for t in costs.forward])
            assert again.encoder_costs[m].state_bytes == costs.state_bytes


def test_a_batch_about_one_clip_is_that_batch_with_its_rows_once(write_experiment: Callable[..., Path]) -> None:
    context = ExperimentContext(load_experiment(write_experiment()))
    clip = sample_clips(context.manifest, 1)[0]
    media = next(iter_media([clip.path], context.sampling.media_settings({"visual", "audio"}, context.encoders))).media
    states = SampleStates(context.encoders, context.sampling, {clip.id: media})
    questions = [q for q in context.manifest.questions if q.clip_id == clip.id][:3]
    model = context.build(context.experiment.variant("trimodal"), seed=0).eval()
    plain, once = (states.batch(model.starts(), questions, one_clip=one) for one in (False, True))
    assert plain.states["visual"].batch_size == len(questions) * once.states["visual"].batch_size
    with torch.no_grad():
        found, expected = (model(batch) for batch in (once, plain))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_clips_a_question_of_batches_by_clip() -> None:
    questions = [SimpleNamespace(clip_id=i // 10) for i in range(100)]
    assert clip_share(questions, 20) == pytest.approx(0.1 + 0.05)
    assert clip_share(questions[::10], 20) == 1.0
    assert clip_share([], 20) == 1.0


def test_cut_auto_trains(write_experiment: Callable[..., Path]) -> None:
    path = write_experiment(*AUTO, ("epochs = 2", "epochs = 60"))
    plan(path, progress=False)
    path.write_text(path.read_text().replace("epochs = 60", "epochs = 1"))
    extract(path, progress=False)
    assert len(sweep(path, progress=False).runs) == 2


def test_a_budget_that_nothing_fits_says_do_not_cache(write_experiment: Callable[..., Path]) -> None:
    path = write_experiment(*AUTO, ('dtype = "float32"', 'dtype = "float32"\ndisk_budget = "1 kB"'))
    made = plan(path, progress=False)
    assert not made.cuts
    lines = plan_lines(made)
    assert any(line.startswith("do not cache") and "disk budget" in line for line in lines)


def test_a_budget_nobody_can_read_is_refused(write_experiment: Callable[..., Path]) -> None:
    path = write_experiment(('dtype = "float32"', 'dtype = "float32"\ndisk_budget = "much"'))
    with pytest.raises(SettingsError, match="disk_budget"):
        plan(path, progress=False)


def test_the_command_prints_every_variant_and_a_damaged_plan_is_named(write_experiment: Callable[..., Path]) -> None:
    path = write_experiment(*AUTO, ("epochs = 2", "epochs = 50"))
    shown = CliRunner().invoke(app, ["plan", str(path), "--quiet"], catch_exceptions=False)
    assert shown.exit_code == 0
    for expected in ("measured on", "cache visual", "probe", "trimodal", "together on the same batches", "in all"):
        assert expected in shown.output
    path.with_name("exp.plan.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"exp\.plan\.json: not a plan"):
        extract(path, progress=False)
