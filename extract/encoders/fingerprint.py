"""The weights that a prefix's result depends on, found by watching which are used before and in each unit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...cache.format.digests import digest_json
from ..trunk.tracing import tensors
from ..trunk.trunk import Trunk
from .peft_weights import tuner_settings


class _Uses(TorchDispatchMode):
    """Notes at which boundary each weight is first used."""

    def __init__(self, known: set[int]) -> None:
        TorchDispatchMode.__init__(self)
        self.known = known
        self.boundary = 0
        self.first: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for _, tensor in tensors((args, kwargs or {})):
            if id(tensor) in self.known:
                self.first.setdefault(id(tensor), self.boundary)
        return func(*args, **(kwargs or {}))


def used_parameters(model: nn.Module, forward: Callable[[], Any]) -> list[nn.Parameter]:
    """Return the parameters of `model` that `forward` uses."""
    uses = _Uses({id(p) for p in model.parameters()})
    with torch.inference_mode(False), torch.no_grad(), uses:
        forward()
    return [p for p in model.parameters() if id(p) in uses.first]


class PrefixWeights:
    """The weights of every prefix of a trunk, and their digests (each weight is hashed once).

    Args:
        trunk: of the model.
        forward: runs it once.
        digests: of weights, by name, that are known already.
    """

    def __init__(
        self, trunk: Trunk, forward: Callable[[], Any], digests: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._tensors = named_weights(trunk.model)
        self._first = _first_uses(trunk, forward, {id(t) for t in self._tensors.values()})
        self.digests = dict(digests)
        self._settings = tuner_settings(trunk.model)

    def names(self, boundary: int) -> list[str]:
        """Return the names of the weights that the embedding and the first `boundary` units use."""
        last = len(self._tensors)
        return sorted(n for n, t in self._tensors.items() if self._first.get(id(t), last) <= boundary)

    def digest(self, boundary: int) -> str:
        """Return the SHA-256 of those weights: names, types, shapes and every bit; and of their tuners' settings."""
        names = self.names(boundary)
        tuned = [[m, s] for m, s in self._settings.items() if any(name.startswith(f"{m}.") for name in names)]
        weights = [[name, self._weight_digest(name)] for name in names]
        return digest_json([*weights, *tuned])

    def end_digest(self, num_units: int) -> str | None:
        """Return the SHA-256 of the weights that only what follows the last unit uses; None where there are none."""
        names = sorted({*self.names(num_units + 1)} - {*self.names(num_units)})
        return digest_json([[name, self._weight_digest(name)] for name in names]) if names else None

    def _weight_digest(self, name: str) -> str:
        if name not in self.digests:
            self.digests[name] = weight_digest(self._tensors[name])
        return self.digests[name]


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and the buffers that are saved with the model (others follow from the configuration)."""
    found: dict[str, Tensor] = dict(model.named_parameters())
    saved = set(model.state_dict(keep_vars=True))
    found.update((name, buffer) for name, buffer in model.named_buffers() if name in saved)
    return found


def weight_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's type, shape and bits."""
    plain = tensor.detach().cpu().contiguous()
    found = hashlib.sha256(f"{plain.dtype} {list(plain.shape)}\n".encode())
    if plain.numel():
        found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def weight_digests(model: nn.Module) -> dict[str, str]:
    """Return the digest of every weight by name."""
    return {name: weight_digest(tensor) for name, tensor in named_weights(model).items()}


def _first_uses(trunk: Trunk, forward: Callable[[], Any], known: set[int]) -> dict[int, int]:
    """Run `forward` once; return for each weight the lowest boundary whose prefix has used it (n + 1: the finish)."""
    uses = _Uses(known)
    starts = {start: unit + 1 for unit, start in enumerate(trunk.bounds[:-1])}

    def began(index: int) -> None:
        if index in starts:
            uses.boundary = starts[index]

    def ended(index: int) -> None:
        if index == len(trunk.links) - 1:
            uses.boundary = trunk.num_units + 1

    with trunk.watched(began, ended), torch.inference_mode(False), torch.no_grad(), uses:
        forward()
    for start, stop in zip(trunk.bounds[:-1], trunk.bounds[1:], strict=True):  # used or not, they are the unit's own
        for link in trunk.links[start:stop]:
            for tensor in named_weights(link.module).values():
                uses.first.setdefault(id(tensor), starts[start])
    return uses.first
