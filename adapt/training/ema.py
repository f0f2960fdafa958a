"""The exponential moving average of what a model trains, which stands in for it where it is evaluated and saved.

The rule is torch's own (`torch.optim.swa_utils.get_ema_multi_avg_fn`, as its `AveragedModel` applies it): the average
starts as the weights after the first step. `AveragedModel` itself copies the whole model, frozen encoders included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Averages:
    """The averages of a model's trained parameters.

    Args:
        model: its parameters that require gradients are averaged.
        decay: the share of the old average that each update keeps, 0 to 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._rule = get_ema_multi_avg_fn(decay)
        self._trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._means: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters in, after an optimiser step."""
        if self._means:
            self._rule(list(self._means.values()), list(self._trained.values()), 0)
        else:
            self._means = {n: p.detach().clone() for n, p in self._trained.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While this is open, the model's parameters are the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, mean in self._means.items():
            parameter = self._trained[name]
            parameter.data, self._means[name] = mean, parameter.data

    def state(self) -> dict[str, Tensor]:
        """The averages by the parameters' names; {} before the first step."""
        return dict(self._means)

    def load(self, means: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        self._means = {n: means[n].to(p) for n, p in self._trained.items()} if means else {}
