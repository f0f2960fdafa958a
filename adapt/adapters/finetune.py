"""`bitfit`, `norm`, `finetune`: the reference rows, which train the encoders' own parameters in the units named.

- `bitfit`: the biases (Ben Zaken, Goldberg, Ravfogel, *BitFit*, ACL 2022, sec. 3), those of norms included.
- `norm`: gain and bias of the normalisations (Zhao et al., *Tuning LayerNorm in Attention*, ICLR 2024). What counts as
  one is our rule: a module whose class name holds "norm".
- `finetune`: every parameter.

The insertion says which units: boundary k names the unit after it, "last K" the last K units. Each run trains copies of
its own (see `unit_tuner`). They start as the encoder's own parameters, so that the untrained model is the frozen one to
the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ...config import settings_class
from ...errors import SettingsError
from ...extract.encoders.encoder import Encoder
from ...extract.encoders.unit_replacement import UnitCopies, is_norm
from .registry import register_adapter
from .unit_tuner import UnitTuner


@settings_class
class BitFitSettings:
    """No choices: every bias of the units named."""


@settings_class
class NormSettings:
    """Which parameters of the normalisations.

    Args:
        bias: train their biases, too; false: the gains alone.
    """

    bias: bool = True


@settings_class
class FinetuneSettings:
    """No choices: every parameter of the units named."""


class _OwnParameters(UnitTuner):
    """Some of the units' own parameters; the others are held as those of frozen units are."""

    def __init__(self, settings: Any, encoders: Mapping[str, Encoder], units: Mapping[str, Sequence[int]]) -> None:
        super().__init__(settings, encoders, units)
        self.narrow_frozen()


class BitFit(_OwnParameters):
    """The biases."""

    def prepare(self, modality: str, copies: UnitCopies) -> None:
        """Train every parameter whose name ends in `bias`."""
        biases = [p for n, p in copies.tree.named_parameters() if n.rpartition(".")[2].endswith("bias")]
        _train(biases, "bias", modality, copies)


class Norms(_OwnParameters):
    """The normalisations."""

    def prepare(self, modality: str, copies: UnitCopies) -> None:
        """Train what modules own whose class is called a norm."""
        found = [
            p
            for module in copies.tree.modules()
            if is_norm(module)
            for n, p in module.named_parameters(recurse=False)
            if self.settings.bias or not n.endswith("bias")
        ]
        _train(found, "normalisation with parameters", modality, copies)


class Finetune(_OwnParameters):
    """Everything."""

    def prepare(self, modality: str, copies: UnitCopies) -> None:
        """Train every parameter."""
        _train(list(copies.tree.parameters()), "parameter", modality, copies)


def _train(parameters: list[nn.Parameter], what: str, modality: str, copies: UnitCopies) -> None:
    if not parameters:
        named = ", ".join(map(str, copies.units))
        raise SettingsError(f"{modality}: no {what} in units {named}; leave {modality} out of the insertion")
    for parameter in parameters:
        parameter.requires_grad_(parameter.is_floating_point())


register_adapter("bitfit", BitFitSettings, BitFit)
register_adapter("norm", NormSettings, Norms)
register_adapter("finetune", FinetuneSettings, Finetune)
