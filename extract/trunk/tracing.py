"""Recording one forward: every module call, what it took and returned, and which tensors were written to meanwhile."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import TrunkError

Taken = tuple[tuple[Any, ...], dict[str, Any]]

forwards_lock = threading.RLock()
"""Held by whoever replaces the `forward` of modules, which are the same for all threads."""


@dataclass(eq=False)
class Call:
    """One execution of one module, and the calls made inside it.

    Attributes:
        name, ordinal: the module's name, and how many calls of it came before.
        taken, returned: arguments and output; tensors stay referenced, so that no object's identity is used twice.
        taken_versions, returned_versions: how often each tensor (by id) had been written to at that moment.
        mutated: ids of arguments that the call wrote to.
    """

    module: nn.Module
    name: str
    ordinal: int
    taken: Taken
    taken_versions: dict[int, int]
    parent: Call | None
    children: list[Call] = field(default_factory=list)
    returned: Any = None
    returned_versions: dict[int, int] = field(default_factory=dict)
    mutated: set[int] = field(default_factory=set)

    def entering(self) -> list[Tensor]:
        """Return the floating-point tensors among the arguments."""
        return [t for _, t in tensors(self.taken) if t.is_floating_point()]

    def leaving(self) -> list[Tensor]:
        """Return the floating-point tensors among what is returned."""
        return [t for _, t in tensors(self.returned) if t.is_floating_point()]

    def takes(self, tensor: Tensor, version: int) -> bool:
        """Say whether this very tensor, at that version, is among the arguments."""
        return self.taken_versions.get(id(tensor)) == version

    def gives(self, tensor: Tensor, version: int) -> bool:
        """Say whether this very tensor, at that version, is among what is returned."""
        return self.returned_versions.get(id(tensor)) == version

    def walk(self) -> list[Call]:
        """Return this call and all calls inside it, in order."""
        return [self, *(inner for child in self.children for inner in child.walk())]


def record(model: nn.Module, forward: Callable[[], Any]) -> tuple[Call, Any]:
    """Run `forward` once with the `forward` of every module watched; return the root call and the output.

    Calls of other threads are not recorded; a pass that one of them begins waits for the end.

    Raises:
        TrunkError: the forward does not begin with a call of `model`.
    """
    roots: list[Call] = []
    stack: list[Call] = []
    counts: dict[int, int] = {}
    names = {id(module): name for name, module in reversed(list(model.named_modules(remove_duplicate=False)))}

    def watch(module: nn.Module) -> None:
        original = module.forward

        def watched(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != this_thread:
                return original(*args, **kwargs)
            parent = stack[-1] if stack else None
            call = _begin(module, names[id(module)], counts, _snapshot((args, kwargs)), parent)
            (stack[-1].children if stack else roots).append(call)
            stack.append(call)
            try:
                output = original(*args, **kwargs)
            finally:
                stack.pop()
            call.returned = _snapshot(output)
            call.returned_versions = {id(t): t._version for _, t in tensors(call.returned)}
            call.mutated = {id(t) for _, t in tensors(call.taken) if t._version != call.taken_versions[id(t)]}
            return output

        module.__dict__["forward"] = watched

    this_thread, modules = threading.get_ident(), list(model.modules())
    with forwards_lock:
        own = {id(m): m.__dict__["forward"] for m in modules if "forward" in m.__dict__}
        try:
            for module in modules:
                watch(module)
            with torch.inference_mode(False), torch.no_grad():
                output = forward()
        finally:
            for module in modules:
                if id(module) in own:
                    module.__dict__["forward"] = own[id(module)]
                else:
                    module.__dict__.pop("forward", None)
    if len(roots) != 1:
        raise TrunkError(f"{type(model).__name__}: its forward called {len(roots)} modules at the top, expected 1")
    return roots[0], output


def release(root: Call) -> None:
    """Let go of the tensors of a recorded forward at once (calls refer to each other, so they would linger)."""
    for call in root.walk():
        call.children, call.parent = [], None
        call.taken, call.returned = ((), {}), None


def _snapshot(tree: Any) -> Any:
    """Copy the containers, which a model may change later, and keep the leaves."""
    return map_leaves(tree, lambda _, leaf: leaf)


def _begin(module: nn.Module, name: str, counts: dict[int, int], taken: Taken, parent: Call | None) -> Call:
    ordinal = counts.get(id(module), 0)
    counts[id(module)] = ordinal + 1
    return Call(module, name, ordinal, taken, {id(t): t._version for _, t in tensors(taken)}, parent)


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
