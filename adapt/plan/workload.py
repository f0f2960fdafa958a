"""Measure a variant's training step above the states that it starts from, on a batch of the sample's questions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...extract.datasets.types import Question
from ...extract.encoders.encoder import Encoder
from ...extract.media.clip_media import ClipMedia
from ...extract.stage.sampling import Sampling
from ...extract.trunk.state import State
from ..config.experiment import TrainSettings
from ..data.batch import Batch, ClipRows
from ..model.joint_model import JointModel
from ..training.optimizer import make_optimizer
from .measure import REPEATS, timed

FEW = 4  # questions that a slow step is measured on
SLOW_SECONDS = 1.0


class SampleStates:
    """States of a few clips and of texts at any boundary, computed once, stacked into batches as the store gives them.

    Args:
        encoders: by modality.
        sampling: of the experiment.
        media: decoded clips by clip id.
    """

    def __init__(self, encoders: Mapping[str, Encoder], sampling: Sampling, media: Mapping[str, ClipMedia]) -> None:
        self._encoders = encoders
        self._sampling = sampling
        self._media = media
        self._computed: dict[tuple[str, int, str], Tensor] = {}

    @torch.no_grad()
    def batch(self, starts: Mapping[str, int], questions: Sequence[Question], *, one_clip: bool = False) -> Batch:
        """Compute the states of these questions, whose clips are all in `media`, at the boundaries `starts`.

        With `one_clip` all questions are about the first one's clip, whose rows the batch holds once.
        """
        of_clips = questions[:1] if one_clip else questions
        clips = ClipRows(torch.zeros(len(questions), dtype=torch.int64), 1) if one_clip else None
        states = {m: self._state(m, k, questions if m == "text" else of_clips) for m, k in starts.items()}
        segments = self._sampling.num_segments
        return Batch(questions=tuple(questions), states=states, num_segments=segments, clips=clips)

    def _state(self, modality: str, boundary: int, questions: Sequence[Question]) -> State:
        encoder = self._encoders[modality]
        if modality == "text":
            return encoder.run(encoder.embed(encoder.preprocess([q.text for q in questions])), 0, boundary)
        for clip_id in {q.clip_id for q in questions}:
            if (modality, boundary, clip_id) not in self._computed:
                inputs = self._sampling.inputs(encoder, [self._media[clip_id]])
                found = encoder.run(encoder.embed(inputs), 0, boundary)
                self._computed[modality, boundary, clip_id] = found.hidden
        rows = torch.cat([self._computed[modality, boundary, q.clip_id] for q in questions])
        return encoder.restore(rows, boundary, {})


def train_pass(model: JointModel, batch: Batch) -> None:
    """Run a batch forward and backward, with made-up labels."""
    logits = model(batch).flatten(0, -2)  # (B, C), or (B * T, C) of segments
    labels = torch.arange(len(logits), device=logits.device) % logits.shape[-1]
    torch.autograd.backward(F.cross_entropy(logits, labels))


@torch.no_grad()
def answer_pass(model: JointModel, batch: Batch) -> None:
    """Answer a batch, as evaluation does."""
    model(batch).float().log_softmax(-1).cpu()


def measure_step(
    model: JointModel,
    settings: TrainSettings,
    states: SampleStates,
    questions: Sequence[Question],
    *,
    device: str,
    clips: tuple[float, float] = (1.0, 1.0),
) -> tuple[float, float, int]:
    """Measure the seconds per question of training and of answering, and the peak bytes of a training step.

    The bytes count the batch's states, saved activations, gradients, trained parameters and AdamW's two moments; on
    a GPU they are the allocator's own peak. On a CPU, where a question costs the same in a batch of any size, a step of
    more than `SLOW_SECONDS` is measured on `FEW` of the questions; the optimiser's time is per step, not per question.

    Args:
        model, settings: of the variant.
        states, questions: of the sample; a whole batch of questions.
        device: where it runs.
        clips: clips per question in a batch of training and of answering; below 1, the cost of a clip's rows is the
            difference to a batch about a single clip.
    """
    optimizer, whole = make_optimizer(model, settings), len(questions)

    def batch_of(size: int, *, one_clip: bool = False) -> Batch:
        spread = [questions[i * whole // size] for i in range(size)]
        return states.batch(model.starts(), spread, one_clip=one_clip)

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        train_pass(model, batch)
        optimizer.step()

    def measured(size: int, *, one_clip: bool = False) -> tuple[float, float]:
        batch = batch_of(size, one_clip=one_clip)
        training, answering = [], []
        for _ in range(REPEATS):
            model.train()
            training.append(timed(lambda: step(batch), device))
            model.eval()
            answering.append(timed(lambda: answer_pass(model, batch), device))
        return statistics.median(training), statistics.median(answering)

    model.train()
    peak = _peak_bytes(model, step, batch_of, whole, device)
    size = whole if torch.device(device).type == "cuda" else min(FEW, whole)
    training, answering = measured(size)
    if size < whole and training * whole / size <= SLOW_SECONDS:
        size = whole
        training, answering = measured(size)
    once = min(training, statistics.median(timed(optimizer.step, device) for _ in range(REPEATS)))
    if size > 1 and min(clips) < 1:
        train_one, answer_one = map(min, measured(size, one_clip=True), (training, answering))
        spared = [(1 - share) * size / (size - 1) for share in clips]  # of the cost of all clips but one
        training = max(once, training - spared[0] * (training - train_one))
        answering -= spared[1] * (answering - answer_one)
    return (training - once) / size + once / whole, answering / size, peak


def _peak_bytes(
    model: JointModel, step: Callable[[Batch], None], batch_of: Callable[[int], Batch], size: int, device: str
) -> int:
    if torch.device(device).type == "cuda":
        batch = batch_of(size)
        torch.cuda.reset_peak_memory_stats(device)
        step(batch)
        return torch.cuda.max_memory_allocated(device)
    trained = sum(4 * p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    frozen = {p.data_ptr(): p.numel() * p.element_size() for e in model.encoders.values() for p in e.model.parameters()}
    live = (unit for m, k in model.starts().items() for unit in model.encoders[m].units[k:])
    frozen |= {p.data_ptr(): p.numel() * p.element_size() for unit in live for p in unit.parameters()}  # held narrow
    weights = {*frozen, *(p.data_ptr() for p in model.parameters())}
    few = min(FEW, size)
    half = max(1, few // 2)
    of_few, of_half = (_graph_bytes(step, batch_of(n), weights) for n in (few, half))
    a_question = (of_few - of_half) / (few - half) if few > half else 0.0
    return round(of_few + a_question * (size - few)) + trained + sum(frozen.values())


def _graph_bytes(step: Callable[[Batch], None], batch: Batch, weights: Collection[int]) -> int:
    """Count the bytes of a batch's states and of the activations that the graph saves, weights left out."""
    found: dict[int, int] = {}

    def add(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    for state in batch.states.values():
        add(state.hidden)
    with torch.autograd.graph.saved_tensors_hooks(add, lambda t: t):
        step(batch)
    return sum(size for place, size in found.items() if place not in weights)
