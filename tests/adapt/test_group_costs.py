"""What a fused group of eight costs beside one run, counted: the rows that each unit computes, and peak memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from talik.adapt.config.experiment import load_experiment
from talik.adapt.training.experiment_context import ExperimentContext
from talik.adapt.training.lockstep_group import train_together
from talik.adapt.training.run_folder import RunFolder
from talik.adapt.training.trainer import Trainer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from tensor_memory import peak_bytes

MEMBERS = 8
GROUP = "".join(
    f"""
[[variants]]
name = "b{i}"
insertion = {{ visual = [2], audio = [2], text = [2] }}
adapter = {{ kind = "bottleneck", d_bottleneck = 8 }}
train = {{ lr = {i + 1}e-3, epochs = 1 }}
"""
    for i in range(MEMBERS)
)


@pytest.fixture
def opened(on_store: Callable[..., Path], tmp_path: Path) -> Callable[[int], list[Trainer]]:
    """Open so many variants that start one unit above the stored boundary 1, new ones at every call."""
    experiment = load_experiment(on_store(tmp_path / "group.toml", more=GROUP))
    context, runs = ExperimentContext(experiment), iter(range(1000))

    def made(count: int) -> list[Trainer]:
        out = []
        for i in range(count):
            variant = experiment.variant(f"b{i}")
            folder = RunFolder(tmp_path / "runs" / str(next(runs)))
            folder.path.mkdir(parents=True)
            training = Trainer(context, variant, experiment.train_settings(variant), 0, folder)
            training.data.questions = {
                s: context.manifest.split(s)[:n] for s, n in (("train", 8), ("val", 4), ("test", 4))
            }
            out.append(training)
        return out

    return made


@contextmanager
def counted_rows(context: ExperimentContext) -> Iterator[dict[tuple[str, int], int]]:
    """Count the rows that every unit computes while this is open, whoever calls it."""
    rows: dict[tuple[str, int], int] = {}
    hooks = []
    for modality, encoder in context.encoders.items():
        for k, unit in enumerate(encoder.units):
            rows[modality, k] = 0

            def count(module: torch.nn.Module, args: object, out: Tensor, at: tuple[str, int] = (modality, k)) -> None:
                rows[at] += out.shape[0]

            # Passes that skip the units call them too, with another forward; what is inside them is not called then.
            inside = next(m for m in unit.modules() if isinstance(m, torch.nn.Linear))
            hooks.append(inside.register_forward_hook(count))
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


def test_units_below_the_insertion_run_once_for_eight(
    opened: Callable[[int], list[Trainer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = []  # of training and answering; operations are counted once a structure, not once a variant
    monkeypatch.setattr("talik.adapt.training.trainer.forward_flops", lambda model, batch: {})
    for trainings in (opened(1), opened(MEMBERS)):
        with counted_rows(trainings[0].context) as rows:
            train_together(trainings, progress=False)
        costs.append(rows)
    alone, together = costs
    for modality in ("visual", "audio", "text"):
        assert alone[modality, 0] == together[modality, 0] == 0  # below the stored boundary
        assert together[modality, 1] == alone[modality, 1] > 0  # from there to the insertions: shared
        assert together[modality, 2] == MEMBERS * alone[modality, 2] > 0  # above: each variant's own


def kept_by_a_step(training: Trainer) -> int:
    """Bytes that the graph of a variant's largest step keeps, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in training.model.parameters()}
    for encoder in training.context.encoders.values():
        weights |= {p.untyped_storage().data_ptr() for p in encoder.model.parameters()}
    steps: list[dict[int, int]] = [{}]
    step = training.step

    def counted(*args: object, **options: object) -> object:
        steps.append({})
        return step(*args, **options)  # type: ignore[arg-type]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            steps[-1][storage.data_ptr()] = storage.nbytes()
        return tensor

    training.step = counted  # type: ignore[assignment,method-assign]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        train_together([training], progress=False)
    return max(sum(kept.values()) for kept in steps)


@pytest.mark.filterwarnings("ignore::UserWarning")  # the profiler's own
def test_memory_of_eight_is_that_of_one_and_what_is_each_variants_own(opened: Callable[[int], list[Trainer]]) -> None:
    assert peak_bytes(lambda: [torch.zeros(1 << 20) for _ in range(3)]) >= 3 * 4 << 20  # the meter counts
    first = opened(1)
    trained = sum(p.numel() * p.element_size() for p in first[0].model.parameters())
    activations = kept_by_a_step(first[0])
    one, eight = opened(1), opened(MEMBERS)
    solo = peak_bytes(lambda: train_together(one, progress=False))
    together = peak_bytes(lambda: train_together(eight, progress=False))
    optimiser = 2 * trained  # AdamW's moments; the weights themselves were there before
    assert solo > optimiser + activations
    assert together - solo >= (MEMBERS - 1) * optimiser  # each has moments of its own
    assert together <= solo + MEMBERS * (trained + optimiser + activations)
