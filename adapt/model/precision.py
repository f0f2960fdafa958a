"""The number type that the live units run in, and beside them the products of adapters: one rule for every pass."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

PrecisionName = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Precision:
    """The number type of a model's passes, whoever runs them: training, evaluation, prediction, gates, the plan.

    In bfloat16 the weights of the frozen units are held in it and the states between units are of it
    (`Encoder.held_in`). What is trained is float32: adapters, and units that are trained themselves, run under
    autocast, which casts the operands of their products; heads and losses compute in float32. In float32 nothing is
    changed.

    Attributes:
        dtype: torch.float32 or torch.bfloat16.
    """

    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, setting: PrecisionName, device: torch.device | str) -> Precision:
        """Return what `[train] precision` means on a device: "auto" is bfloat16 on a GPU that has it, else float32.

        >>> Precision.of("auto", "cpu").name, Precision.of("bfloat16", "cpu").name
        ('float32', 'bfloat16')
        """
        narrow = setting == "bfloat16" or (setting == "auto" and _has_bfloat16(torch.device(device)))
        return cls(torch.bfloat16 if narrow else torch.float32)

    @property
    def name(self) -> str:
        """The setting that always means it: "float32" or "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")

    def autocast(self, device: torch.device | str) -> AbstractContextManager[None]:
        """Return the context in which adapters, and units that are trained themselves, run on a device."""
        kind = torch.device(device).type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def _has_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
