"""Units trained themselves: a run's own copies of an encoder's units, of which some parameters are trained.

The frozen encoder is shared by all variants and is never written to. An adapter that trains inside units (biases,
norms, whole units, PEFT's tuners) copies the units that it touches; a copy of the encoder, sharing all else, runs them
in their places. What lies below the first touched unit is the frozen encoder's, and may come from the store.

The copied units stay in eval mode (no dropout of the encoder's, no batch statistics); what an adapter puts into them
follows the model's mode. The encoder's embedding and what follows its last unit are never trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ...errors import SettingsError
from ..trunk.forward_patching import copy_module
from .encoder import Encoder

if TYPE_CHECKING:
    from .pretrained_encoder import PretrainedEncoder

CompiledUnits = dict[int, tuple[nn.Module, Any]]
"""By a module's id: the module, kept alive so that its id stays its own, and its compiled form."""


class UnitCopies:
    """Copies of some units of one encoder, under the names that their modules have in the encoder's own model.

    Args:
        encoder: left as it is. The copies have the weights of `encoder.full`.
        units: the indices of the units to copy, rising.

    Attributes:
        tree: a module holding the copies alone, by their names in `encoder.model`.

    Raises:
        SettingsError: a unit that shares weights with one that is not copied, or that hands more than the hidden state
            to later units (those are rebuilt from the frozen encoder).
    """

    def __init__(self, encoder: PretrainedEncoder, units: Sequence[int]) -> None:
        self.encoder = encoder
        self.units = tuple(units)
        trunk = encoder.full.trunk
        self._links = [i for k in units for i in range(trunk.bounds[k], trunk.bounds[k + 1])]
        self._check()
        memo: dict[int, Any] = {}  # a module that several units share is shared by their copies
        self.tree = nn.Module()
        for index in self._links:
            link = trunk.links[index]
            _put(self.tree, link.name, copy_module(link.module, memo))
        self.tree.requires_grad_(False).eval()
        self._own = {id(m): m for m in self.tree.modules()}

    def _check(self) -> None:
        trunk, modality = self.encoder.full.trunk, self.encoder.modality
        others = [link for i, link in enumerate(trunk.links) if i not in self._links]
        elsewhere = {id(p) for link in others for p in link.module.parameters()}
        for k in self.units:
            for index in range(trunk.bounds[k], trunk.bounds[k + 1]):
                if any(id(p) in elsewhere for p in trunk.links[index].module.parameters()):
                    raise SettingsError(
                        f"unit {k} of the {modality} encoder shares its weights with units that are not named; name all"
                    )
                if index in trunk.passes.rebuilt:
                    raise SettingsError(
                        f"unit {k} of the {modality} encoder hands more than its hidden state to later units, which "
                        "cannot follow its training; name later units only"
                    )

    def train(self, mode: bool) -> None:
        """Set the mode of the modules that were put into the copies; the encoder's own stay in eval mode."""
        for module in self.tree.modules():
            module.training = mode and id(module) not in self._own

    def in_place(self) -> Encoder:
        """An encoder that runs the copies where the originals were, and shares everything else with the original."""
        trunk = self.encoder.full.trunk
        copies = {i: self.tree.get_submodule(trunk.links[i].name) for i in self._links}
        return self.encoder.with_modules(copies)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation: its class name holds "norm" (LayerNorm, T5LayerNorm, BatchNorm2d)."""
    return "norm" in type(module).__name__.lower()


def _put(tree: nn.Module, name: str, module: nn.Module) -> None:
    path, _, last = name.rpartition(".")
    _branch(tree, path).add_module(last, module)


def _branch(tree: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path, made where it is not there."""
    for part in path.split(".") if path else ():
        if part not in tree._modules:
            tree.add_module(part, nn.Module())
        tree = tree.get_submodule(part)
    return tree
