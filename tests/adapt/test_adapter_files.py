"""Every kind of adapter, saved, loads onto live encoders without any store and gives the same logits.

Beside it what a run with such an adapter does: PEFT's hooks, resumes, gates, recorded alignments, the listing.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from talik.adapt.adapters.registry import known_adapters
from talik.adapt.config.experiment import Experiment, VariantSettings, load_experiment
from talik.adapt.config.run_config import run_config
from talik.adapt.data.batch import Batch
from talik.adapt.evaluation.describe_variants import settings_of
from talik.adapt.evaluation.evaluate import evaluate
from talik.adapt.model.joint_model import JointModel
from talik.adapt.report.write import report
from talik.adapt.training.adapt import adapt
from talik.adapt.training.adapter_files import load_adapter, save_adapter
from talik.adapt.training.checkpoint import Checkpointer
from talik.adapt.training.experiment_context import ExperimentContext
from talik.adapt.training.run_folder import RunFolder
from talik.cli import app
from talik.errors import RunError, SettingsError

sys.path.insert(0, str(Path(__file__).parent))

from adapter_sizes import SETTINGS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # PEFT's own


def variant(kind: str, name: str = "v") -> VariantSettings:
    adapter = {"kind": kind, **SETTINGS.get(kind, {})}
    return VariantSettings(name=name, adapter=adapter, insertion=None if kind == "probe" else "last 1")


@pytest.fixture(scope="module")
def context(extracted: Path) -> ExperimentContext:
    """The tiny encoders and their filled store."""
    return ExperimentContext(load_experiment(extracted))


@pytest.fixture(scope="module")
def batch(context: ExperimentContext) -> Batch:
    """A batch's states at boundary 2 of each encoder, computed from the media files."""
    source = context.live(context.build(variant("trimodal"), seed=0))
    return next(iter(source.batches([list(context.questions("train"))[:4]])))


@pytest.fixture(scope="module")
def live(extracted: Path) -> ExperimentContext:
    """The same experiment's encoders, opened anew; its store is nowhere."""
    experiment = load_experiment(extracted)
    found = ExperimentContext(experiment)
    found.store = None  # type: ignore[assignment]
    return found


def shaken(model: JointModel) -> JointModel:
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def saved(context: ExperimentContext, chosen: VariantSettings, folder: Path) -> tuple[RunFolder, JointModel]:
    experiment = context.experiment
    run = RunFolder(folder / "runs" / experiment.name / chosen.name / "seed0")
    run.prepare(run_config(experiment, chosen, experiment.train_settings(chosen), 0))
    model = shaken(context.build(chosen, seed=0))
    save_adapter(run, model, context, chosen, cuts={})
    return run, model


@pytest.mark.parametrize("kind", known_adapters())
def test_saved_and_loaded_without_a_store_gives_the_same_logits(
    kind: str, context: ExperimentContext, live: ExperimentContext, batch: Batch, tmp_path: Path
) -> None:
    run, model = saved(context, variant(kind), tmp_path)
    with torch.no_grad():
        expected = model(batch)
    _, again = run.experiment()
    torch.manual_seed(5)
    loaded = live.build(again, seed=3)  # whatever was drawn is replaced
    described = load_adapter(run, loaded.eval())
    assert described["adapter"]["kind"] == kind
    with torch.no_grad():
        assert torch.equal(loaded(batch), expected)
    names = {p.name for p in run.path.iterdir()}
    assert names == {"config.toml", "adapter.safetensors", "adapter.json"} | ({"peft"} if "peft:" in kind else set())


@pytest.mark.parametrize("kind", ["trimodal", "finetune", "peft:lora"])
def test_another_base_encoder_is_refused(
    kind: str, context: ExperimentContext, live: ExperimentContext, tmp_path: Path
) -> None:
    run, _ = saved(context, variant(kind), tmp_path)
    described = run.read_json("adapter.json")
    assert described["insertion"]["resolved"] == "visual at 2 of 3 units; audio at 2 of 3 units; text at 2 of 3 units"
    weight = next(iter(live.encoders["text"].model.parameters()))
    kept = weight.detach().clone()
    fresh = ExperimentContext(live.experiment)
    with torch.no_grad():
        weight.add_(1e-3)
    try:
        # Digests are taken once for each opened encoder, so the changed one is opened as a new one would be.
        live.encoders["text"].prefix_weights.digests.clear()
        fresh.encoders = live.encoders
        with pytest.raises(RunError, match="trained on another text encoder"):
            load_adapter(run, fresh.build(variant(kind), seed=0))
    finally:
        with torch.no_grad():
            weight.copy_(kept)
        live.encoders["text"].prefix_weights.digests.clear()


@pytest.fixture
def place(on_store: Callable[..., Path], tmp_path: Path) -> Path:
    """The extracted experiment in a folder of its own, the store shared."""
    return on_store(tmp_path / "exp.toml")


def with_variants(path: Path, *tables: str) -> Experiment:
    head = path.read_text(encoding="utf-8").split("[[variants]]")[0]
    path.write_text(head + "".join(f"[[variants]]\n{table}\n" for table in tables), encoding="utf-8")
    return load_experiment(path)


def shared(experiment: Experiment, context: ExperimentContext) -> ExperimentContext:
    made = ExperimentContext(experiment)
    made.encoders = context.encoders
    return made


ADALORA = """name = "adalora"
insertion = { text = [2] }
adapter = { kind = "peft:adalora", init_r = 4, target_r = 1, tinit = 2, tfinal = 4, deltaT = 1 }"""


def test_adalora_killed_and_resumed_equals_one_never_killed(
    place: Path, context: ExperimentContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = with_variants(place, ADALORA)
    whole = adapt(experiment, variant="adalora", progress=False, context=shared(experiment, context))
    kept = place.parent / "kept"
    shutil.move(whole.folder, kept)
    config = json.loads((kept / "peft" / "text" / "adapter_config.json").read_text())
    assert sum(map(sum, config["rank_pattern"].values())) == 6  # target_r for each of six layers

    save = Checkpointer.save

    def dies(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            adapt(experiment, variant="adalora", progress=False, context=shared(experiment, context))
    again = adapt(experiment, variant="adalora", resume=True, progress=False, context=shared(experiment, context))
    assert (again.folder / "adapter.safetensors").read_bytes() == (kept / "adapter.safetensors").read_bytes()
    assert (again.folder / "predictions.jsonl").read_text() == (kept / "predictions.jsonl").read_text()


def test_gates_are_written_and_shown(place: Path, context: ExperimentContext) -> None:
    table = '{ kind = "trimodal", d_model = 8, d_state = 4, num_latents = 2, num_heads = 2 }'
    experiment = with_variants(
        place,
        f'name = "trimodal"\ninsertion = "last 1"\nadapter = {table}',
        'name = "probe"\nadapter = { kind = "probe" }',
    )
    runs = [
        adapt(experiment, variant=v, progress=False, context=shared(experiment, context)).folder
        for v in ("trimodal", "probe")
    ]
    evaluate(runs[0], gates=True)
    records = [json.loads(line) for line in (runs[0] / "gates-test.jsonl").read_text().splitlines()]
    asked = [json.loads(line) for line in (runs[0] / "predictions-test.jsonl").read_text().splitlines()]
    assert [r["question_id"] for r in records] == [p["question_id"] for p in asked]
    assert len(records) > 0
    for record, question in zip(records, asked, strict=True):
        assert len(record["visual"]) == len(record["audio"]) == 3
        assert len(record["text"]) == len(record["tokens"])
        assert record["tokens"][0] == "[CLS]"
        assert question["question"].lower().split()[0].strip("?,") in (*record["tokens"], "[UNK]", *_unknown(record))
        assert all(0 < g < 2 for m in ("visual", "audio", "text") for g in record[m])
    assert len({tuple(r["visual"]) for r in records}) > 1
    page = report([place.parent / "runs"], out=place.parent / "report").html.read_text(encoding="utf-8")
    assert "Gates of the selection" in page
    assert page.count("segment 3: ") == 2 * min(6, len({r["question_id"] for r in records}))
    with pytest.raises(SettingsError, match="gates: this adapter has none"):
        evaluate(runs[1], gates=True)
    assert not (runs[1] / "gates-test.jsonl").exists()
    (runs[0] / "gates-test.jsonl").write_text('{"no": 1}\n')
    with pytest.raises(RunError, match=r"gates-test\.jsonl: not as talik evaluate --gates writes it"):
        report([place.parent / "runs"], out=place.parent / "report")


def _unknown(record: dict[str, Any]) -> list[str]:
    """Any word, if the tiny vocabulary did not know one."""
    return [word for token in record["tokens"] if token == "[UNK]" for word in _ANY]


_ANY = ("how", "is", "what", "where", "which", "are", "there", "who", "does", "do")


def test_what_an_alignment_resolved_to_is_printed_and_recorded(
    place: Path, context: ExperimentContext, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="talik")
    table = '{ kind = "trimodal", d_model = 8, d_state = 4, num_latents = 2, num_heads = 2 }'
    experiment = with_variants(
        place, f'name = "deep"\ninsertion = {{ visual = [2], audio = "aligned", text = [0.7] }}\nadapter = {table}'
    )
    run = adapt(experiment, variant="deep", progress=False, context=shared(experiment, context))
    where = "visual at 2 of 3 units; audio at 2 of 3 units; text at 2 of 3 units"
    assert where in caplog.text
    told = json.loads((run.folder / "adapter.json").read_text())["insertion"]
    assert told == {"asked": {"visual": [2], "audio": "aligned", "text": [0.7]}, "resolved": where, "notes": []}
    assert evaluate(run.folder).scores.overall.accuracy == run.accuracy


def test_the_listing_names_every_adapter_and_shows_those_that_are_asked_for(place: Path) -> None:
    overview = listed(place)
    for kind in known_adapters():
        assert kind.removeprefix("peft:") in " ".join(overview), kind
    assert len(overview) < 30
    lines = [line for name in ("trimodal", "lora", "finetune") for line in listed(place, name)]
    assert any(line.startswith("    window = 1   radius in segments") for line in lines)
    assert any(line.startswith("    lora_alpha = 8") for line in lines)
    assert not any(line.startswith(("lavish", "peft:ia3")) for line in lines)
    line = next(line for line in lines if line.startswith("finetune: "))
    context = ExperimentContext(load_experiment(place))
    own = sum(p.numel() for e in context.encoders.values() for p in e.units[2].parameters())
    assert line.startswith(f"finetune: {own:,} trained in the adapter, ")
    assert any("trimodal: trimodal, insertion = 'last 1', " in line for line in lines)
    for arguments, message in (((), "variants (probe, trimodal)"), (("--list", "lorra"), "did you mean 'peft:lora'")):
        missing = CliRunner().invoke(app, ["adapt", str(place), *arguments])
        assert isinstance(missing.exception, SettingsError)
        assert message in str(missing.exception)


def listed(place: Path, *names: str) -> list[str]:
    result = CliRunner().invoke(app, ["adapt", str(place), "--list", *names])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


@pytest.mark.parametrize("kind", [k for k in known_adapters() if not k.startswith("peft:")])
def test_every_setting_of_talik_s_own_adapters_is_described(kind: str) -> None:
    from talik.adapt.adapters.registry import adapter_kind

    assert [name for name, _, meaning in settings_of(adapter_kind(kind)) if not meaning] == []
