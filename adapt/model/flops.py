"""Counts the floating-point operations of one forward pass above the cached states, for a question."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..data.batch import Batch
from .frozen_units import states_at
from .joint_model import JointModel
from .precision import Precision


@torch.no_grad()
def forward_flops(model: JointModel, batch: Batch) -> dict[str, int]:
    """Count the operations of answering one question, averaged over a batch, in eval mode; restore the model's mode.

    Counted are matrix products, convolutions and attention, two operations for a multiplication with its addition;
    what works element by element (norms, activations, the scan) is not (`torch.utils.flop_counter`).

    Args:
        model: the joint model.
        batch: with rows of its own for each question.

    Returns:
        "flops", of everything above the states: frozen units, the encoders' ends, adapters, head; and, where what is
        trained stands apart from the frozen units, "flops_trained", of adapters and head alone.
    """
    was_training = model.training
    model.eval()
    counter, alone = _Counter(), replace(batch, memo=None)
    try:
        if isinstance(model, JointModel) and model.precision != Precision():
            model(alone)  # what is held narrow is tried out when it first runs
        with counter.watching(model), counter:
            model(alone)
    finally:
        model.train(was_training)
    found = {"flops": round(counter.total / len(batch))}
    return found if model.tunes_units else {**found, "flops_trained": round(counter.inside / len(batch))}


@torch.no_grad()
def at_starts(model: JointModel, batch: Batch) -> Batch:
    """Return a batch with the states that a model starts from and reads, computed from those that it holds."""
    starts, reads = model.starts(), model.reads()
    known = {
        m: states_at(model.encoders[m], [state, *batch.above.get(m, ())], {starts[m], *reads.get(m, ())})
        for m, state in batch.states.items()
    }
    above = {m: tuple(known[m][k] for k in sorted(set(ks)) if k > starts[m]) for m, ks in reads.items()}
    return replace(batch, states={m: known[m][starts[m]] for m in known}, above=above)


def operations(call: Callable[[], Any]) -> int:
    """Count what a call does, backward passes in it included, as `forward_flops` counts."""
    counter = _Counter()
    with counter:
        call()
    return counter.total


class _Counter(TorchDispatchMode):
    """Adds up what every operation costs, and what those cost that run inside the watched model's own modules.

    `FlopCounterMode` counts the same, but puts backward hooks on what modules are given, which fails on parameters.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = self.inside = 0
        self._depth = 0

    @contextmanager
    def watching(self, model: torch.nn.Module) -> Iterator[None]:
        """While this is open, know whether one of the model's modules (not the model itself) is running."""
        hooks = []
        for module in list(model.modules())[1:]:
            hooks.append(module.register_forward_pre_hook(self._enter))
            hooks.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, module: torch.nn.Module, args: Any) -> None:
        self._depth += 1

    def _leave(self, module: torch.nn.Module, args: Any, out: Any) -> None:
        self._depth -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        cost = flop_registry.get(func._overloadpacket)
        if cost is not None:
            count = int(cost(*args, **(kwargs or {}), out_val=out))
            self.total += count
            self.inside += count * (self._depth > 0)
        return out
