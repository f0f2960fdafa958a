"""Adapters that train inside units: copies of the encoders' own units, of which some parameters are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...errors import SettingsError
from ...extract.encoders.encoder import Encoder
from ...extract.encoders.unit_replacement import UnitCopies
from .base import Adapter, Site


class UnitTuner(Adapter):
    """An adapter that trains inside units: the base of `bitfit`, `norm`, `finetune` and `peft:<tuner>`.

    A subclass says in `prepare` what is trained. `parameters()` and `state_dict()` hold that and nothing else.

    Args:
        settings: the subclass's own.
        encoders: the frozen encoders by modality.
        units: for each modality that is touched, the indices of its units.

    Attributes:
        copies: by modality, the copied units.
        encoders: by modality, encoders that run the copies in place of the originals.
    """

    tunes_units = True
    copies: dict[str, UnitCopies]
    encoders: dict[str, Encoder]

    def __init__(self, settings: Any, encoders: Mapping[str, Encoder], units: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.settings = settings
        copies = {m: encoders[m].copy_units(units[m]) for m in units}
        tuned = dict(encoders)
        for modality, own in copies.items():
            known = {id(p) for p in own.tree.parameters()}
            self.prepare(modality, own)
            trained = {n: p for n, p in own.tree.named_parameters() if p.requires_grad}
            if not trained:
                raise SettingsError(f"{modality}: nothing to train in units {', '.join(map(str, own.units))}")
            self.num_replaced += sum(p.numel() for p in trained.values() if id(p) in known)
            for name, parameter in trained.items():
                _put_parameter(self, f"{modality}.{name}", parameter)
            tuned[modality] = own.in_place()
        # Held beside the module's own tables: what is trained is registered above, the frozen rest is not.
        object.__setattr__(self, "copies", copies)
        object.__setattr__(self, "encoders", tuned)

    @classmethod
    def for_site(cls, settings: Any, site: Site) -> Adapter:
        """Build the adapter from the encoders and the units to train."""
        return cls(settings, site.encoders, site.units)

    def narrow_frozen(self) -> None:
        """Bring what is frozen in the copies to the type of the states that their encoders run on.

        A module of which some parameter is trained stays as it is: some of its kinds take parameters of one type only.
        """
        for modality, own in self.copies.items():
            dtype = self.encoders[modality].state_dtype
            for module in own.tree.modules():
                parameters = list(module.parameters(recurse=False))
                if not any(p.requires_grad for p in parameters):
                    for parameter in parameters:
                        if parameter.is_floating_point():
                            parameter.data = parameter.data.to(dtype)

    def prepare(self, modality: str, copies: UnitCopies) -> None:
        """Make what is to be trained in `copies.tree` require gradients; modules in it may be replaced by others."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> UnitTuner:
        """Set the mode of what the adapter put into the units; the encoder's own modules stay in eval mode."""
        super().train(mode)
        for own in self.copies.values():
            own.train(mode)
        return self


def put_buffer(tree: nn.Module, name: str, tensor: Tensor) -> None:
    """Register a buffer at a dotted path, with plain modules made on the way."""
    path, _, last = name.rpartition(".")
    _branch(tree, path).register_buffer(last, tensor)


def _put_parameter(tree: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter at a dotted path, with plain modules made on the way."""
    path, _, last = name.rpartition(".")
    _branch(tree, path).register_parameter(last, parameter)


def _branch(tree: nn.Module, path: str) -> nn.Module:
    for part in path.split("."):
        if part not in dict(tree.named_children()):
            tree.add_module(part, nn.Module())
        tree = tree.get_submodule(part)
    return tree
