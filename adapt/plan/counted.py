"""What encoders and variants cost in floating-point operations, counted; and the rate at which a device does them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...extract.datasets.types import Question
from ...extract.encoders.encoder import Encoder
from ...extract.media.decode import ClipMedia
from ...extract.stage.prefix import boundary_states
from ...extract.stage.sampling import Sampling
from ..model.flops import operations
from ..model.joint_model import JointModel, forward
from .measure import stored_numbers, timed
from .workload import SampleStates


@dataclass(frozen=True, kw_only=True)
class EncoderCounts:
    """One encoder, for one clip or text.

    Args:
        embed, finish: operations before the first and after the last unit.
        forward: operations of each unit.
        numbers: stored at each boundary, one more than units.
        seconds: of all units forward, on the device that it was counted on.
    """

    embed: int
    forward: tuple[int, ...]
    finish: int
    numbers: tuple[int, ...]
    seconds: float

    @property
    def rate(self) -> float:
        """Operations a second of the units forward, where it was counted."""
        return sum(self.forward) / self.seconds


def count_encoder(encoder: Encoder, sampling: Sampling, media: ClipMedia, texts: Sequence[str]) -> EncoderCounts:
    """Count one encoder on one clip, or on texts as one batch; the second run of its units is timed."""
    is_text = encoder.modality == "text"
    count = len(texts) if is_text else 1
    inputs = encoder.preprocess(list(texts)) if is_text else sampling.inputs(encoder, [media])
    units = range(encoder.num_units)
    with torch.no_grad():
        embed = operations(lambda: encoder.embed(inputs))
        states = list(boundary_states(encoder, inputs, range(encoder.num_units + 1)))
        forward_counts = [operations(lambda k=k: encoder.run(states[k], k, k + 1)) for k in units]  # type: ignore[misc]
        finish = operations(lambda: encoder.finish(states[-1]))
        seconds = timed(lambda: encoder.run(states[0], 0, encoder.num_units), str(encoder.device))
    return EncoderCounts(
        embed=embed // count,
        forward=tuple(n // count for n in forward_counts),
        finish=finish // count,
        numbers=tuple(stored_numbers(s) // count for s in states),
        seconds=seconds / count,
    )


def count_variant(model: JointModel, states: SampleStates, questions: Sequence[Question]) -> tuple[int, int]:
    """Operations a question of a training step and of answering, from the states at the model's starts."""
    batch = states.batch(model.starts(), questions)

    def step() -> None:
        logits = forward(model, batch, amp="off")
        labels = torch.zeros(logits.shape[:-1], dtype=torch.long, device=logits.device)
        F.cross_entropy(logits.flatten(0, -2), labels.flatten()).backward()

    def answer() -> None:
        with torch.no_grad():
            forward(model, batch, amp="off")

    model.train()
    trained = operations(step)
    model.eval()
    return trained // len(questions), operations(answer) // len(questions)
