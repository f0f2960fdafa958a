"""Measuring a variant's training step, from the states it starts from, on a batch of the sample's questions."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...extract.encoders import Encoder
from ...extract.manifest.types import Question
from ...extract.media import ClipMedia
from ...extract.sampling import Sampling
from ...extract.state import State
from ..answering import forward
from ..experiment import TrainSettings
from ..joint import JointModel
from ..params import parameter_groups
from .measure import REPEATS, timed


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
        self._kept: dict[tuple[str, int, str], Tensor] = {}

    @torch.no_grad()
    def batch(self, starts: Mapping[str, int], questions: Sequence[Question]) -> dict[str, State]:
        """The states of these questions, whose clips are all in `media`, at the boundaries `starts`."""
        return {m: self._state(m, k, questions) for m, k in starts.items()}

    def _state(self, modality: str, boundary: int, questions: Sequence[Question]) -> State:
        encoder = self._encoders[modality]
        if modality == "text":
            inputs = encoder.preprocess([q.text for q in questions])
            return encoder.run(encoder.embed(inputs), 0, boundary)
        rows = torch.cat([self._hidden(modality, boundary, q.clip_id) for q in questions])
        return encoder.restore(rows, boundary, {})

    def _hidden(self, modality: str, boundary: int, clip_id: str) -> Tensor:
        place = (modality, boundary, clip_id)
        if place not in self._kept:
            encoder = self._encoders[modality]
            inputs = self._sampling.inputs(encoder, [self._media[clip_id]])
            self._kept[place] = encoder.run(encoder.embed(inputs), 0, boundary).hidden
        return self._kept[place]


def measure_step(
    model: JointModel,
    settings: TrainSettings,
    states: SampleStates,
    questions: Sequence[Question],
    num_segments: int,
    *,
    device: str,
) -> tuple[float, float, int]:
    """Seconds a question of training and of answering, and the peak bytes of a training step.

    The bytes count the batch's states, what the graph keeps, gradients, trained parameters and AdamW's two moments; on
    a GPU they are the allocator's own peak.
    """
    optimizer = torch.optim.AdamW(
        parameter_groups(
            model,
            lr=settings.lr,
            head_lr=settings.lr if settings.head_lr is None else settings.head_lr,
            weight_decay=settings.weight_decay,
        )
    )
    size = len(questions)
    batch = states.batch(model.starts(), questions)
    classes = int(forward(model, batch, num_segments, amp=settings.amp).shape[-1])
    labels = torch.arange(size, device=device) % classes

    def step() -> None:
        loss = F.cross_entropy(forward(model, batch, num_segments, amp=settings.amp), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def answer() -> None:
        forward(model, batch, num_segments, amp=settings.amp).float().log_softmax(-1).cpu()

    model.train()
    peak = _peak_bytes(model, step, batch, device)
    training, answering = [], []
    for _ in range(REPEATS):
        model.train()
        training.append(timed(step, device))
        model.eval()
        answering.append(timed(answer, device))
    return statistics.median(training) / size, statistics.median(answering) / size, peak


def _peak_bytes(model: JointModel, step: object, batch: Mapping[str, State], device: str) -> int:
    assert callable(step)
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        step()
    trained = sum(4 * p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    frozen = {id(p): p.numel() * p.element_size() for e in model.encoders.values() for p in e.model.parameters()}
    given = {s.hidden.untyped_storage().data_ptr(): s.hidden.untyped_storage().nbytes() for s in batch.values()}
    return sum({**given, **kept}.values()) + trained + sum(frozen.values())
