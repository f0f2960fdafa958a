"""The parts that a plan adds up: what a machine, an encoder and a variant cost, in seconds and bytes.

An item is a clip or a text; a pass is one question answered or trained on once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class MachineCosts:
    """What does not depend on encoder or variant.

    Args:
        decode: seconds a clip, by what is decoded: "visual", "audio" or "visual+audio"; in the threads that decode.
        read: seconds a stored byte, checked and copied.
        write: seconds a stored byte, fsync included.
        to_device: seconds a byte from host to device; 0 on a CPU.
    """

    decode: Mapping[str, float]
    read: float
    write: float
    to_device: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EncoderCosts:
    """One encoder, for one item.

    Args:
        modality: "visual", "audio" or "text".
        num_items: clips or distinct texts of the experiment.
        embed: seconds of preprocessing and embedding.
        forward: seconds of each unit, no graph.
        forward_backward: seconds of each unit with its backward pass, for what trains below it.
        finish: seconds of what follows the last unit.
        state_bytes: stored bytes of the state at each boundary, one more than units.
    """

    modality: str
    num_items: int
    embed: float
    forward: tuple[float, ...]
    forward_backward: tuple[float, ...]
    finish: float
    state_bytes: tuple[int, ...]

    def slower(self, factor: float) -> EncoderCosts:
        """These costs on a machine that is slower by a factor."""
        return replace(
            self,
            embed=self.embed * factor,
            forward=tuple(t * factor for t in self.forward),
            forward_backward=tuple(t * factor for t in self.forward_backward),
            finish=self.finish * factor,
        )

    def run(self, start: int, stop: int) -> float:
        """Seconds from boundary `start` to `stop`, no graph."""
        return sum(self.forward[start:stop])


@dataclass(frozen=True, kw_only=True)
class VariantCosts:
    """One variant, for one question.

    Args:
        name: the variant's.
        group: what has to be equal for variants to train on the same batches, as a readable string.
        starts: by modality, the boundary that it needs; below it nothing is trained.
        num_seeds, epochs: how often it is trained.
        num_train, num_val, num_test: questions of the splits; validation is answered every epoch, test once.
        train: seconds of a training step, from the states at `starts`, divided by the batch size.
        answer: seconds of answering, likewise.
        distinct: by modality, distinct items a question in a training batch, at most 1: what is read and decoded.
        computed: by modality, items a question that units below the start run on: 1, but where batches hold the
            questions of a clip together; `distinct` where not given.
        peak_bytes: memory of one training step: states, saved activations, parameters with their optimiser.
    """

    name: str
    group: str
    starts: Mapping[str, int]
    num_seeds: int
    epochs: int
    num_train: int
    num_val: int
    num_test: int
    train: float
    answer: float
    distinct: Mapping[str, float]
    peak_bytes: int
    computed: Mapping[str, float] | None = None

    def runs(self, modality: str) -> float:
        """Items a question that frozen units run on below the start."""
        return (self.distinct if self.computed is None else self.computed)[modality]

    @property
    def passes(self) -> int:
        """Questions that one run trains on or answers, all epochs together."""
        return self.epochs * (self.num_train + self.num_val) + self.num_test

    @property
    def own_seconds(self) -> float:
        """Seconds of one run above `starts`: suffix, adapters, head and optimiser."""
        return self.epochs * (self.num_train * self.train + self.num_val * self.answer) + self.num_test * self.answer
