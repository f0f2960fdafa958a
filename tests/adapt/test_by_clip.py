"""States of each clip once for all its questions: same answers and gradients, fewer rows through the units."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from talik.adapt.config.experiment import TrainSettings, VariantSettings, load_experiment
from talik.adapt.data.batch import Batch, ClipRows
from talik.adapt.model.joint_model import JointModel
from talik.adapt.scoring.predictions import answer, clip_order, restore_order
from talik.adapt.training.adapt import adapt
from talik.adapt.training.experiment_context import ExperimentContext
from talik.adapt.training.run_folder import RunFolder
from talik.adapt.training.trainer import Trainer
from talik.extract.encoders.pretrained_encoder import PretrainedEncoder
from talik.extract.trunk.state import State

SMALL = {"d_model": 8, "d_state": 4, "num_latents": 2, "num_heads": 2}
PAIR = {"reduction": 2, "groups": 1, "num_latents": 2}
# name: adapter, placement, whether the question enters at the adapter and not only at the head
KINDS: dict[str, tuple[dict[str, Any], str, bool]] = {
    "probe": ({"kind": "probe"}, "between", False),
    "trimodal": ({"kind": "trimodal", **SMALL}, "between", True),
    "lavish": ({"kind": "lavish", **PAIR}, "parallel", False),
    "lavish-text": ({"kind": "lavish", **PAIR, "text": True}, "parallel", True),
    "lavish-inside": ({"kind": "lavish", **PAIR, "text": True, "after_attention": True}, "parallel", True),
    "lstta": ({"kind": "lstta", "d_model": 8, "num_heads": 2, "text": False}, "between", False),
    "bottleneck": ({"kind": "bottleneck", "d_bottleneck": 4}, "between", False),
    "side": ({"kind": "side", "reduction": 4, "num_heads": 2}, "between", False),
    "norm": ({"kind": "norm"}, "between", False),
    "lora": ({"kind": "peft:lora", "r": 2}, "between", False),
}


@pytest.fixture(scope="module")
def context(extracted: Path) -> Iterator[ExperimentContext]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield ExperimentContext(load_experiment(extracted))
    torch.set_num_threads(threads)


def built(context: ExperimentContext, name: str) -> JointModel:
    adapter, placement, _ = KINDS[name]
    insertion = None if name == "probe" else {"visual": (1, 2), "audio": (1, 2), "text": (1, 2)}
    variant = VariantSettings(name=name, adapter=adapter, insertion=insertion, placement=placement)  # type: ignore[arg-type]
    model = context.build(variant, seed=0)
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def batch_of(context: ExperimentContext, model: JointModel) -> Batch:
    """Seven questions about three clips, in no order."""
    asked = context.questions("train")
    clips = list(dict.fromkeys(q.clip_id for q in asked))[:3]
    of = {c: [q for q in asked if q.clip_id == c] for c in clips}
    chosen = [of[clips[i]][j] for i, j in ((1, 0), (0, 0), (1, 1), (2, 0), (0, 1), (1, 2), (0, 2))]
    return next(iter(context.cached(model).batches([chosen], by_clip=True)))


def test_a_clips_rows_are_spread_to_its_questions(context: ExperimentContext) -> None:
    batch = batch_of(context, built(context, "trimodal"))
    clips = batch.clips
    assert clips is not None
    assert clips.num == 3
    assert clips.of.tolist() == [0, 1, 0, 2, 1, 0, 1]
    apart = next(iter(context.cached(built(context, "trimodal")).batches([list(batch.questions)])))
    assert apart.clips is None
    assert batch.by_question().states.keys() == apart.states.keys() == {"visual", "audio", "text"}
    for modality, state in batch.by_question().states.items():
        assert torch.equal(state.hidden, apart.states[modality].hidden), modality
    assert apart.by_question() is apart
    alone = next(iter(context.cached(built(context, "trimodal")).batches([batch.questions[:2]], by_clip=True)))
    assert alone.clips is None


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("name", KINDS)
def test_answers_and_gradients_are_those_of_questions_apart(
    context: ExperimentContext, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(context, name)
    batch = batch_of(context, model)
    rows = count_rows(monkeypatch)
    found: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
    costs = []
    for given in (batch, batch.by_question()):
        rows.clear()
        model.zero_grad()
        logits = model(given)
        logits.square().mean().backward()
        found.append((logits.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
        costs.append(sum(rows))
    (ours, our_grads), (theirs, their_grads) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert len(our_grads) == len(their_grads) > 0
    for one, other in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()) + 1e-7)
    # 3 clips in place of 7 questions, through two units or, until the question enters at the first insertion, one.
    if name not in ("probe", "lavish-inside", "side"):  # no unit runs above the store, or as it was
        entered = KINDS[name][2]
        assert (costs[0] < costs[1]) if not entered or KINDS[name][1] == "parallel" else costs[0] == costs[1]
        if not entered:
            assert costs[0] * 7 == costs[1] * 3


def count_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that pass units of the visual and the audio encoder, each time as often as there are units."""
    rows: list[int] = []
    run = PretrainedEncoder.run

    def counted(self: PretrainedEncoder, state: State, start: int, stop: int) -> State:
        if self.modality != "text":
            rows.append(state.hidden.shape[0] * (stop - start))
        return run(self, state, start, stop)

    monkeypatch.setattr(PretrainedEncoder, "run", counted)
    return rows


def test_batches_hold_clip_after_clip(extracted: Path, context: ExperimentContext, tmp_path: Path) -> None:
    variant = context.experiment.variant("probe")
    settings = TrainSettings(batch_size=8, group_by_clip=True)
    training = Trainer(context, variant, settings, 0, RunFolder(tmp_path))
    orders = [[q for batch in training.data.train_batches(epoch) for q in batch] for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    for order in orders:
        assert sorted(q.id for q in order) == sorted(q.id for q in training.data.questions["train"])
        clips = [q.clip_id for q in order]
        changes = sum(a != b for a, b in pairwise(clips))
        assert changes == len(set(clips)) - 1
    assert "by clip" in settings.data_order


def test_grouped_training_runs_fewer_rows_and_answers_in_order(
    on_store: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = count_rows(monkeypatch)
    costs = {}
    for grouping in (False, True):
        rows.clear()
        keys = f"group_by_clip = {json.dumps(grouping)}\n"
        train = "[train]\nepochs = 2\n", f"[train]\nepochs = 1\n{keys}"
        path = on_store(tmp_path / str(grouping) / "exp.toml", train)
        experiment = load_experiment(path)
        run = adapt(experiment, variant="trimodal", progress=False)
        costs[grouping] = sum(rows)
        lines = (run.folder / "predictions.jsonl").read_text().splitlines()
        made = [json.loads(line)["question_id"] for line in lines]
        context = ExperimentContext(experiment)
        assert made == [q.id for q in context.questions("test")]
    assert costs[True] < costs[False]


def test_answering_by_clip_is_answering_apart(context: ExperimentContext) -> None:
    model = built(context, "trimodal")
    questions = list(context.questions("train"))[:12][::-1]
    how: dict[str, Any] = {"answers": context.manifest.answers}
    together = answer(model, context.cached(model), questions, batch_size=12, **how)
    apart = [p for q in questions for p in answer(model, context.cached(model), [q], batch_size=1, **how)]
    assert [p.record["question_id"] for p in together] == [q.id for q in questions]
    assert len(questions) == 12
    for one, other in zip(together, apart, strict=True):
        assert one.record == other.record
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-5)


def test_order_of_several_predictions_a_question(context: ExperimentContext) -> None:
    questions = context.questions("train")[:9]
    order = clip_order(questions[::2] + questions[1::2])
    several: Any = [(i, part) for i in order for part in "ab"]
    assert restore_order(several, order) == [(i, part) for i in range(len(order)) for part in "ab"]
    assert restore_order([], []) == []


def test_rows_of_a_clip_that_enters_whole_are_one_each(context: ExperimentContext) -> None:
    state = next(iter(context.cached(built(context, "probe")).batches([context.questions("train")[:1]]))).states[
        "visual"
    ]
    clips = ClipRows(torch.tensor([1, 0, 1]), 3)  # as many rows as clips: as of an encoder of whole clips
    assert torch.equal(clips.spread(state).hidden, state.hidden[[1, 0, 1]])
