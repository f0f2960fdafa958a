"""The table [sweep] of an experiment: seeds, grids and random searches, early stopping, how a group's variants run."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from ...config import Count, CountOrZero, settings_class
from ...errors import SettingsError


@settings_class
class HalvingSettings:
    """Successive halving: at rungs of the training, only the best share of the variants goes on.

    Jamieson, Talwalkar: Non-stochastic best arm identification and hyperparameter optimization, AISTATS 2016.

    Args:
        kind: "halving", the only one.
        keep: share of a rung's variants that goes on, more than 0 and less than 1; rounded up, at least one.
        rungs: epochs after which variants are compared, ascending; [] for the largest number of epochs of a variant
            times keep, keep², …, down to 1.
    """

    kind: Literal["halving"] = "halving"
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.5
    rungs: tuple[Count, ...] = ()

    def __post_init__(self) -> None:
        if list(self.rungs) != sorted(set(self.rungs)):
            raise SettingsError(f"rungs: found {list(self.rungs)}, expected ascending epochs, each once")

    def epochs(self, longest: int) -> tuple[int, ...]:
        """Return the rungs of variants that train for `longest` epochs at most; all are below that.

        >>> HalvingSettings().epochs(10), HalvingSettings(keep=0.25).epochs(10), HalvingSettings(rungs=(2, 9)).epochs(9)
        ((1, 2, 5), (2,), (2,))
        """
        if self.rungs:
            return tuple(rung for rung in self.rungs if rung < longest)
        found, share = [], self.keep
        while longest * share >= 1:
            found.append(math.floor(longest * share))
            share *= self.keep
        return tuple(sorted({rung for rung in found if rung < longest}))


@settings_class
class SweepSettings:
    """Seeds, searched settings, early stopping, and how the variants of a group run.

    Args:
        seeds: of the weights, the order of the data and dropout; every variant is trained with each.
        grid: one grid, or several: by a variant's key ("adapter.window", "train.lr", "insertion", "placement",
            "data.…", "encoders.…", "store.…") the list of its values. Every combination is a variant, in place of the
            one that it starts from: that named by `variant` (a name, or a list of names), or each of the experiment's.
        random: one random search, or several: `trials` combinations are drawn, with the draw's own `seed`. A key has a
            list to choose from, or a range: { low, high }, with log = true on a logarithmic scale, with `step` on a
            lattice from `low`; of whole numbers where both ends are.
        early_stop: "halving", or its settings as a table, stops variants whose validation is behind; "none" trains all
            to their end.
        stack: run units that several variants of a group need on their states stacked along the batch: true, false, or
            "auto" for on CUDA only (on a CPU it costs more than one after another).
        stack_size: variants stacked at most, each of which holds its activations until the backward pass; 0 for all,
            on CUDA as many as memory holds.
        batch_members: run adapters of one structure, and heads, as one batched module with one optimiser step for all:
            true, which stacks as well; false; or "auto" for wherever variants are stacked.
    """

    seeds: tuple[int, ...] = (0,)
    grid: dict[str, Any] | tuple[dict[str, Any], ...] = ()
    random: dict[str, Any] | tuple[dict[str, Any], ...] = ()
    early_stop: Literal["none", "halving"] | HalvingSettings = "none"
    stack: Literal["auto"] | bool = "auto"
    stack_size: CountOrZero = 0
    batch_members: Literal["auto"] | bool = "auto"

    @property
    def halving(self) -> HalvingSettings | None:
        """The settings of successive halving; None where no variant is stopped early."""
        if isinstance(self.early_stop, HalvingSettings):
            return self.early_stop
        return HalvingSettings() if self.early_stop == "halving" else None

    def stacks(self, device: str) -> bool:
        """Whether variants are stacked on a kind of device ("cpu", "cuda", …)."""
        return device == "cuda" or self.batch_members is True if self.stack == "auto" else self.stack

    def batches(self, device: str) -> bool:
        """Whether stacked variants run adapters and heads of one structure as one module."""
        return self.stacks(device) and self.batch_members is not False
