"""Modules of one structure, each with its own weights, as one batched module under `torch.vmap`.

The weights are stacked at each call, so that every member keeps its own parameters, gradients, optimiser and files.
What a layer does for all members at once stands here and in `scan.member_axis`: products and norms, which vmap would
run in more kernels and outside autocast, and dropout, which draws from each member's own random stream.

Letters: P members.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...extract.executors.device import sent
from ..scan.member_axis import at_once, has_members, of_each
from .structure import floats_of, structure_of

Turn = Callable[[], AbstractContextManager[None]]
Tensors = dict[str, Tensor]
Call = Callable[[Callable[..., Any], Tensors], Tensors]


class BatchedModule:
    """Modules of one structure that run as one.

    Args:
        modules: P of them, equal in `structure_of`, without buffers.

    >>> linears = [nn.Linear(3, 2) for _ in range(4)]
    >>> together = BatchedModule(linears)
    >>> x = torch.randn(5, 3)
    >>> found = together(lambda run, given: {"y": run(given["x"])}, {"x": x}, {"x"}, [])["y"]
    >>> found.shape, torch.allclose(found[1], linears[1](x), atol=1e-6)
    (torch.Size([4, 5, 2]), True)
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._members = [dict(module.named_parameters()) for module in modules]
        floats = [floats_of(module) for module in modules]
        device = next(iter(self._members[0].values())).device
        self._floats = {
            k: [given[k] for given in floats] for k, v in floats[0].items() if any(g[k] != v for g in floats)
        }
        numbers = {k: torch.tensor(v, dtype=torch.float32) for k, v in self._floats.items()}
        self._numbers = {k: sent(v, device) for k, v in numbers.items()}
        hollow = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in modules[0].parameters()}
        self._module = copy.deepcopy(modules[0], memo=hollow)  # without weights: the members' own take their place
        self._turns: Sequence[Turn] = ()
        for part in self._module.modules():
            forward = self._forward_of(part)
            if forward is not None:
                part.forward = forward

    def _forward_of(self, part: nn.Module) -> Callable[[Tensor], Tensor] | None:
        if type(part) is nn.Linear:
            return partial(_linear, part)
        if type(part) is nn.LayerNorm and part.bias is not None:
            return partial(_layer_norm, part)
        if type(part) is nn.Dropout and part.training and part.p:
            return partial(self._dropout, part.p)
        return None

    def __call__(self, call: Call, tensors: Mapping[str, Tensor], shared: set[str], turns: Sequence[Turn]) -> Tensors:
        """Run all members.

        Args:
            call: what one member does: takes its module, and its tensors by name, and returns tensors by name.
            tensors: by name: (P, …), or a tensor that all members take as it is.
            shared: the names of the latter.
            turns: of each member, what is open while it draws random numbers.

        Returns:
            By the names that `call` gives, (P, …).
        """
        first = self._members[0]
        weights = {name: torch.stack([own[name] for own in self._members]) for name in first}
        axes = {name: None if name in shared else 0 for name in tensors}

        def one(own: Tensors, numbers: dict[tuple[str, str], Tensor], given: Tensors) -> Tensors:
            with self._with_floats(numbers):
                return call(lambda *args: functional_call(self._module, own, args), given)

        self._turns = turns
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # has no batching rule, nor has fused attention
        try:
            with sdpa_kernel(SDPBackend.MATH):
                run = torch.vmap(one, in_dims=(0, 0, axes), randomness="error")
                return run(weights, self._numbers, dict(tensors))
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            self._turns = ()

    @contextmanager
    def _with_floats(self, numbers: Mapping[tuple[str, str], Tensor]) -> Iterator[None]:
        """While this is open, the floats that differ between members are tensors."""
        for (place, key), value in numbers.items():
            setattr(self._module.get_submodule(place), key, value)
        try:
            yield
        finally:
            for place, key in numbers:
                setattr(self._module.get_submodule(place), key, self._floats[place, key][0])

    def _dropout(self, p: float, x: Tensor) -> Tensor:
        if not has_members(x):
            raise RuntimeError("dropout: the members share what it is applied to, and each draws its own numbers")

        def each(_: Sequence[bool], whole: Tensor) -> Tensor:
            dropped = []
            for turn, own in zip(self._turns, whole.unbind(), strict=True):
                with turn():
                    dropped.append(F.dropout(own, p, training=True))
            return torch.stack(dropped)

        return at_once(each, x)


def _linear(part: nn.Linear, x: Tensor) -> Tensor:
    return at_once(_linear_of_members, x, part.weight, part.bias)


def _linear_of_members(shared: Sequence[bool], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply the maps (P, out, in) of several members to x (P, …, in), or to one x (…, in) in a single product."""
    num, width = len(weight), weight.shape[1]
    if shared[0]:
        one = F.linear(x, weight.flatten(0, 1), None if bias is None else bias.flatten())  # (…, P·out)
        return one.unflatten(-1, (num, width)).movedim(-2, 0)
    rows = x.flatten(1, -2) if x.ndim > 2 else x.unsqueeze(1)  # (P, R, in)
    out = torch.bmm(rows, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight.mT)
    return out.view(num, *x.shape[1:-1], width)


def _layer_norm(part: nn.LayerNorm, x: Tensor) -> Tensor:
    return at_once(partial(_norm_of_members, part.normalized_shape, part.eps), x, part.weight, part.bias)


def _norm_of_members(
    shape: tuple[int, ...], eps: float, shared: Sequence[bool], x: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Normalise x (P, …, D), or one x (…, D) once for all members, then apply the weights (P, D) of each."""
    normal = F.layer_norm(x, shape, eps=eps)
    normal = of_each(normal, shared[0], len(weight))
    places = (len(weight), *[1] * (normal.ndim - 1 - len(shape)), *shape)
    return torch.addcmul(bias.view(places), normal, weight.view(places)).to(normal.dtype)


class BatchedModules:
    """The batched modules of a group, made when first needed; those that cannot be batched are remembered.

    Args:
        told: takes a line when something cannot be batched.
    """

    def __init__(self, told: Callable[[str], object]) -> None:
        self._told = told
        self._keys: dict[tuple[int, bool], tuple[nn.Module, Hashable]] = {}  # the module held, so that its id stays
        self._made: dict[tuple[int | bool, ...], BatchedModule] = {}
        self._refused: set[Hashable] = set()

    @property
    def num_refused(self) -> int:
        """Count the structures that run by themselves."""
        return len(self._refused)

    def key(self, module: object) -> Hashable:
        """Return what is equal for modules that run as one; None for one that runs by itself."""
        if not isinstance(module, nn.Module):
            return None
        place = (id(module), module.training)
        if place not in self._keys:
            self._keys[place] = (module, _batch_key(module))
        key = self._keys[place][1]
        return None if key in self._refused else key

    def run(
        self,
        modules: Sequence[nn.Module],
        call: Call,
        tensors: Mapping[str, Tensor],
        shared: set[str],
        turns: Sequence[Turn],
    ) -> Tensors:
        """Run modules of one key on tensors (see `BatchedModule`).

        Raises:
            Exception: whatever the module raises, or vmap; then the key is none from here on, but for lack of memory.
        """
        place = (*map(id, modules), modules[0].training)
        if place not in self._made:
            self._made[place] = BatchedModule(modules)
        return self._made[place](call, tensors, shared, turns)

    def refuse(self, module: nn.Module, error: Exception) -> None:
        """Run modules of this one's structure by themselves from here on."""
        self._refused.add(self.key(module))
        reason = " ".join(str(error).split())[:200]
        self._told(f"{type(module).__name__}: members are not batched ({type(error).__name__}: {reason})")


def _batch_key(module: nn.Module) -> Hashable:
    buffers, weights = list(module.buffers()), list(module.parameters())
    return structure_of(module) if weights and not buffers else None  # a buffer may be written
