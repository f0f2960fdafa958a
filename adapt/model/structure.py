"""What two modules have in common that differ in their numbers alone: the key of a structure.

Modules of one key compute the same operations on tensors of the same shapes. Their parameters differ, and so may plain
floats that they keep as attributes (a scale, a temperature).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import nn

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
_PLAIN = (bool, int, str, bytes, type(None), torch.dtype, torch.device, type)


def structure_of(module: nn.Module | None) -> Hashable:
    """Return a key that is equal for modules that differ only in parameters and in floats among their attributes.

    A module with hooks, or with an attribute that cannot be compared by value, has a key of its own.

    >>> structure_of(nn.Linear(2, 3)) == structure_of(nn.Linear(2, 3)), structure_of(nn.Linear(3, 2)) == ("other",)
    (True, False)
    """
    if module is None:
        return None
    named = dict(module.named_modules(remove_duplicate=False))
    places: dict[int, str] = {}  # of each parameter, the first: what is tied in one is tied in the other
    return tuple((name, _own(part, places, name)) for name, part in named.items())


def floats_of(module: nn.Module) -> dict[tuple[str, str], float]:
    """Return the float attributes that the key leaves out, by the submodule's name and the attribute's."""
    parts = module.named_modules(remove_duplicate=False)
    return {(name, key): v for name, part in parts for key, v in _attributes(part) if _is_free(part, v)}


def _own(module: nn.Module, places: dict[int, str], name: str) -> Hashable:
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return id(module)
    given = (*module._parameters.items(), *module._buffers.items())
    tensors = tuple(
        (k, None if t is None else (places.setdefault(id(t), f"{name}.{k}"), tuple(t.shape), t.dtype, t.requires_grad))
        for k, t in given
    )
    attributes = tuple((k, "float" if _is_free(module, v) else _key(v)) for k, v in _attributes(module))
    return (type(module), tensors, tuple(module._buffers), attributes)


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from ((key, v) for key, v in sorted(vars(module).items()) if key not in _OF_EVERY_MODULE)


def _is_free(module: nn.Module, value: object) -> bool:
    """Whether a float may differ: torch's own modules hand theirs (eps, p) to kernels that take plain numbers."""
    return type(value) is float and not type(module).__module__.startswith("torch.")


def _key(value: Any) -> Hashable:
    if isinstance(value, (*_PLAIN, float)):
        return (type(value), value)
    if isinstance(value, (tuple, list)):
        return (type(value), *map(_key, value))
    if isinstance(value, dict):
        return (dict, *((_key(k), _key(v)) for k, v in value.items()))
    return id(value)  # a function of a module, or something of this one alone
