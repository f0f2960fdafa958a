"""LoRA that starts from the frozen weights themselves (PiSSA, OLoRA): what was taken out of them, kept and exported.

Such a start takes s·B₀A₀ out of a weight W and trains A, B from A₀, B₀, so that the layer computes W − s·B₀A₀ + s·BA
(Meng et al. 2024, arXiv 2404.02948; Büyükakyüz 2024, arXiv 2406.01775). PEFT does it again whenever the adapter is
loaded, and then finds other A₀, B₀ where they are drawn (`pissa_niter_…`) or where another library computes them. Here
A₀ and B₀ are kept with what is trained, and exported is a plain LoRA of twice the rank on W: s·[B, −B₀]·[A; A₀].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import SettingsError
from ...extract.encoders.unit_replacement import UnitCopies


@dataclass(frozen=True)
class ChangedLayer:
    """One linear layer whose frozen weight PEFT changed.

    Attributes:
        weight: (out, in), or (in, out) if `transposed`: the frozen weight that the layer runs with.
        original: the encoder's own, of that shape.
        a, b: A₀ (r, in) and B₀ (out, r) as they were at the start.
        scaling: s.
        rank: r.
    """

    weight: Tensor
    original: Tensor
    a: Tensor
    b: Tensor
    scaling: float
    rank: int
    transposed: bool

    def set_weight(self) -> None:
        """Take s·B₀A₀ out of the encoder's own weight, as PEFT did."""
        taken = self.scaling * self.b @ self.a
        whole = self.original.to(torch.float32)
        self.weight.copy_((whole - (taken.T if self.transposed else taken)).to(self.weight.dtype))


class ChangedWeights:
    """The layers of one encoder's copied units whose frozen weights PEFT changed at the start.

    Args:
        copies: with PEFT's layers in them, as PEFT made them.
        adapter: PEFT's name of the adapter.

    Attributes:
        layers: by the layer's name in the encoder's model; empty where the start changed nothing.

    Raises:
        SettingsError: a changed weight that is no matrix of a linear layer.
    """

    @torch.no_grad()
    def __init__(self, copies: UnitCopies, adapter: str) -> None:
        self.layers: dict[str, ChangedLayer] = {}
        for name, module in copies.tree.named_modules():
            if adapter not in getattr(module, "lora_A", ()) or not hasattr(module, "get_base_layer"):
                continue
            weight, original = module.get_base_layer().weight, copies.encoder.model.get_parameter(f"{name}.weight")
            if torch.equal(weight, original):
                continue
            if weight.ndim != 2:
                raise SettingsError(
                    f"{name}: this init_lora_weights changes the frozen weight of a layer that is not linear, which "
                    "could not be loaded again; leave the layer out of target_modules"
                )
            self.layers[name] = ChangedLayer(
                weight=weight.data,
                original=original.data,
                a=module.lora_A[adapter].weight.detach().clone(),
                b=module.lora_B[adapter].weight.detach().clone(),
                scaling=module.scaling[adapter],
                rank=module.r[adapter],
                transposed=bool(getattr(module, "fan_in_fan_out", False)),
            )
        self.set_weights()

    def tensors(self) -> dict[str, Tensor]:
        """Return A₀ and B₀ of each layer by name."""
        pairs = ((name, layer) for name, layer in self.layers.items())
        return {f"{n}.{key}": t for n, layer in pairs for key, t in (("initial_A", layer.a), ("initial_B", layer.b))}

    @torch.no_grad()
    def set_weights(self) -> None:
        """Set every changed weight from the encoder's own and from A₀, B₀ as they are now."""
        for layer in self.layers.values():
            layer.set_weight()


def as_plain_lora(
    changed: ChangedWeights, state: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return PEFT's state and config of the LoRA of twice the rank that does the same on the encoder's own weights.

    The scale is multiplied into B, so that the config's own is 1 whatever `lora_alpha` and `use_rslora` were.

    Args:
        changed: the layers.
        state: `lora_A` (r, in) and `lora_B` (out, r) of each, and what else PEFT saves, under PEFT's names.
        config: PEFT's.
    """
    found = dict(state)
    for name, layer in changed.layers.items():
        a, b = (f"base_model.model.{name}.lora_{x}.weight" for x in "AB")
        found[a] = torch.cat([state[a], layer.a])  # (2r, in)
        found[b] = layer.scaling * torch.cat([state[b], -layer.b], dim=1)  # (out, 2r)
    ranks = {re.escape(name): 2 * layer.rank for name, layer in changed.layers.items()}
    widest = max(ranks.values())
    several = ranks if len(set(ranks.values())) > 1 else {}
    patterns = {"rank_pattern": several, "alpha_pattern": several}
    plain = {"init_lora_weights": True, "use_rslora": False, "r": widest, "lora_alpha": widest, **patterns}
    return found, {**config, **plain}
