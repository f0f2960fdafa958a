"""One variant trained by several processes, each on its own questions of every batch: what torchrun starts.

Every process holds the whole model. Of a batch each takes some questions and sums their losses; the gradients of all
are added up and divided by the number of all questions (averaging over processes would weigh the questions of uneven
parts unlike), so every process takes the step that one process would have taken on the whole batch. Evaluation deals
whole batches, so that what is computed does not depend on the number of processes. One process alone is this class
with one process.

Equal to one process up to the rounding of sums, without dropout; with dropout the first process draws what one would
draw, and each other from a stream of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...errors import SettingsError
from ...extract.executors.device import chosen_device

T = TypeVar("T")


class Processes:
    """The processes that train together.

    Args:
        rank: this one's number, from 0.
        size: how many there are.
        device: where this one's tensors lie.
    """

    def __init__(self, rank: int = 0, size: int = 1, *, device: str = "cpu") -> None:
        self.rank, self.size, self.device = rank, size, device

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    def own(self, batch: Sequence[T]) -> Sequence[T]:
        """This process's part of a batch to train on; where it has none, a question of the batch to take part with."""
        first, end = self._bounds(len(batch))
        return batch[first:end] or batch[:1]

    def count(self, size: int) -> int:
        """How many questions of a batch of `size` this process's part holds; 0 where it has none."""
        first, end = self._bounds(size)
        return end - first

    def _bounds(self, size: int) -> tuple[int, int]:
        return size * self.rank // self.size, size * (self.rank + 1) // self.size

    def to_mean(
        self, parameters: Iterable[nn.Parameter], *, base: int, count: int, loss: Tensor | None = None
    ) -> Tensor | None:
        """Make gradients the mean over the questions of all processes, in place, and return that mean of the losses.

        A parameter without a gradient in every process keeps none, as it would in one process.

        Args:
            parameters: those of the model, in the same order everywhere.
            base: what this process's gradients are the sum over its questions divided by.
            count: how many questions that are.
            loss: the sum of their losses, a scalar; not needed of a process that is alone.

        Returns:
            A scalar; None of a process that is alone.
        """
        trained = [p for p in parameters if p.requires_grad]
        if self.size == 1:
            _scale([p.grad for p in trained], base, count)
            return None
        there = [float(p.grad is not None) for p in trained]
        gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() * base for p in trained]
        assert loss is not None
        flat = torch.cat([*gradients, torch.tensor([*there, count], device=self.device), loss.float()[None]])
        dist.all_reduce(flat)
        *sums, having, (total, losses) = flat.split([*(p.numel() for p in trained), len(trained), 2])
        for parameter, summed, several in zip(trained, sums, having.tolist(), strict=True):
            parameter.grad = (summed / total).view_as(parameter).to(parameter.dtype) if several else None
        return losses / total

    def deal(self, batches: Sequence[T]) -> Sequence[T]:
        """This process's whole batches of those to answer."""
        return batches[self.rank :: self.size]

    def gather(self, own: Sequence[Any]) -> list[Any]:
        """What all processes made of the batches that `deal` gave them, in the order of the batches; as JSON."""
        if self.size == 1:
            return list(own)
        made = torch.frombuffer(bytearray(json.dumps(list(own)).encode()), dtype=torch.uint8).to(self.device)
        sizes = [torch.zeros(1, dtype=torch.long, device=self.device) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(made)], device=self.device))
        longest = max(int(n) for n in sizes)
        parts = [torch.zeros(longest, dtype=torch.uint8, device=self.device) for _ in range(self.size)]
        dist.all_gather(parts, nn.functional.pad(made, (0, longest - len(made))))
        dealt = [json.loads(bytes(p[: int(n)].tolist())) for p, n in zip(parts, sizes, strict=True)]
        return [dealt[i % self.size][i // self.size] for i in range(sum(len(d) for d in dealt))]

    def largest(self, values: Sequence[int]) -> list[int]:
        """Return the largest of each of several numbers over all processes; of one process alone its own."""
        if self.size == 1:
            return list(values)
        found = torch.tensor(values, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def agree(self, model: nn.Module, loss: nn.Module | None = None) -> None:
        """Give every process the first one's parameters, and refuse what cannot be trained in parts.

        Args:
            model: the joint model.
            loss: one of one's own in place of the cross-entropy.

        Raises:
            SettingsError: what is made of a question depends on the others of its batch, or may do so.
        """
        if self.size == 1:
            return
        for part in (*model.modules(), *([] if loss is None else [loss])):
            unknown = part is loss or isinstance(part, nn.modules.batchnorm._BatchNorm)
            if getattr(part, "mixes_questions", unknown):
                raise SettingsError(
                    f"{type(part).__name__}: may mix the questions of a batch, so that {self.size} processes would "
                    "not train what one does; train by one process, or say mixes_questions = False in the class"
                )
        for parameter in model.parameters():
            if parameter.requires_grad:
                dist.broadcast(parameter.data, src=0)

    def wait(self) -> None:
        """Go on when every process has come here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1, device=self.device))

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process goes through this block before the others enter it: it may put files into place."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()


def leads() -> bool:
    """Whether this process is the first of those that torchrun started, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def joined(device: str = "auto") -> Iterator[Processes]:
    """The processes that torchrun started, joined while this is open; the only one where there are no others.

    Args:
        device: "cpu" (gloo), or "cuda" (nccl), of which each process takes the one of its local rank; "auto" is CUDA
            where there is one.

    Raises:
        SettingsError: a GPU named by number, or more processes than GPUs.
    """
    size, device = int(os.environ.get("WORLD_SIZE", "1")), chosen_device(device)
    if size == 1:
        yield Processes(device=device)
        return
    if torch.device(device).type == "cuda":
        device = _own_gpu(device)
    already = dist.is_initialized()
    if not already:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), device=device)
    finally:
        if not already:
            dist.destroy_process_group()


def _scale(gradients: Sequence[Tensor | None], base: int, count: int) -> None:
    if base != count:
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(base / count)


def _own_gpu(device: str) -> str:
    local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if torch.device(device).index is not None:
        raise SettingsError(f'device: found "{device}", expected "cuda": each process takes its own GPU')
    if local >= there:
        raise SettingsError(f"--nproc-per-node: found more than {there} processes, expected one a GPU at most")
    torch.cuda.set_device(local)
    return f"cuda:{local}"
