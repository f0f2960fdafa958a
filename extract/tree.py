"""Nested arguments and outputs of modules (tuples, lists, dicts, dataclasses): leaves found and replaced by path."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

Path = tuple[Any, ...]
"""Where a leaf lies: an index for a tuple or list, a key for a dict, a field name for a dataclass."""


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield (path, leaf) in a fixed order; whatever is not a plain container is a leaf."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    elif isinstance(tree, tuple | list):
        for index, value in enumerate(tree):
            yield from leaves(value, (*path, index))
    elif _is_record(tree):
        for field in dataclasses.fields(tree):
            yield from leaves(getattr(tree, field.name), (*path, field.name))
    else:
        yield path, tree


def tensors(tree: Any) -> Iterator[tuple[Path, torch.Tensor]]:
    """Yield (path, tensor) of every tensor in `tree`."""
    return ((path, leaf) for path, leaf in leaves(tree) if isinstance(leaf, torch.Tensor))


def map_leaves(tree: Any, change: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """Return a copy of `tree` with every leaf replaced by `change(path, leaf)`; containers keep their types."""
    if isinstance(tree, dict):
        changed = {key: map_leaves(value, change, (*path, key)) for key, value in tree.items()}
        return changed if type(tree) is dict else type(tree)(**changed)
    if isinstance(tree, tuple | list):
        values = [map_leaves(value, change, (*path, index)) for index, value in enumerate(tree)]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    if _is_record(tree):
        values_by_name = {
            f.name: map_leaves(getattr(tree, f.name), change, (*path, f.name)) for f in dataclasses.fields(tree)
        }
        return dataclasses.replace(tree, **values_by_name)
    return change(path, tree)


def map_tensors(tree: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Return a copy of `tree` with every tensor replaced."""
    return map_leaves(tree, lambda _, leaf: change(leaf) if isinstance(leaf, torch.Tensor) else leaf)


def put(tree: Any, paths: frozenset[Path], value: Any) -> Any:
    """Return a copy of `tree` with `value` at each of `paths`."""
    return map_leaves(tree, lambda path, leaf: value if path in paths else leaf)


def at(tree: Any, path: Path) -> Any:
    """Return what lies at `path`; None where the path does not exist."""
    for key in path:
        try:
            tree = tree[key] if isinstance(tree, dict | tuple | list) else getattr(tree, key)
        except (KeyError, IndexError, AttributeError, TypeError):
            return None
    return tree


def paths_of(tree: Any, tensor: torch.Tensor) -> frozenset[Path]:
    """Return the paths at which this very tensor object lies."""
    return frozenset(path for path, leaf in tensors(tree) if leaf is tensor)


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type | dict) and type(value).__module__ != "torch"
