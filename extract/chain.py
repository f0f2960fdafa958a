"""Finding the chain of units: in a recorded forward, modules that hand each other the same tensor object are links.

A call is one execution of one module; calls form a tree (who called whom). Inside a calling module, its direct callees
form a chain where the tensor that one returns *is*, untouched, the tensor that the next takes. A callee that is itself
such a chain from its input to its output (a Sequential, a stage) is opened; one that is not (a block with a residual
path) is a unit. Units are children of a ModuleList or Sequential; what lies between two units (a down-sampling module,
an Identity) joins the unit after it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..cache.errors import TrunkError
from .tree import Path, paths_of, tensors

MIN_SHARE = 0.8


@dataclass(eq=False)
class Call:
    """One execution of one module: what it took, what it returned, and the calls made inside it."""

    module: nn.Module
    name: str
    ordinal: int
    taken: tuple[tuple[Any, ...], dict[str, Any]]
    taken_versions: dict[int, int]
    parent: Call | None
    children: list[Call] = field(default_factory=list)
    returned: Any = None
    returned_versions: dict[int, int] = field(default_factory=dict)
    mutated: set[int] = field(default_factory=set)

    def takes(self, tensor: Tensor, version: int) -> bool:
        """Say whether this very tensor, not written to since, is among the arguments."""
        return self.taken_versions.get(id(tensor)) == version

    def gives(self, tensor: Tensor) -> bool:
        """Say whether this very tensor, in its last state, is among what is returned."""
        return self.returned_versions.get(id(tensor)) == tensor._version


@dataclass(frozen=True, eq=False)
class Link:
    """One module call of the chain: where the hidden tensor lies among its arguments and in what it returns."""

    module: nn.Module
    name: str
    ordinal: int
    slots: frozenset[Path]
    exit: frozenset[Path]
    is_unit: bool
    mutates: bool


def record(model: nn.Module, forward: Callable[[], Any]) -> tuple[Call, Any]:
    """Run `forward` once with every module watched; return the root call and the output.

    Tensors stay referenced by the calls, so that the identity of an object cannot be taken by a later one.
    """
    root: list[Call] = []
    stack: list[Call] = []
    counts: dict[int, int] = {}
    names = {id(module): name for name, module in reversed(list(model.named_modules(remove_duplicate=False)))}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ordinal = counts.get(id(module), 0)
        counts[id(module)] = ordinal + 1
        versions = {id(t): t._version for _, t in tensors((args, kwargs))}
        parent = stack[-1] if stack else None
        call = Call(module, names[id(module)], ordinal, (args, kwargs), versions, parent)
        if parent is not None:
            parent.children.append(call)
        else:
            root.append(call)
        stack.append(call)

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = stack.pop()
        call.returned = output
        call.returned_versions = {id(t): t._version for _, t in tensors(output)}
        call.mutated = {id(t) for _, t in tensors(call.taken) if t._version != call.taken_versions[id(t)]}

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        with torch.inference_mode(False), torch.no_grad():
            output = forward()
    finally:
        for handle in handles:
            handle.remove()
    if len(root) != 1:
        raise TrunkError(f"{type(model).__name__}: its forward called {len(root)} modules at the top, expected 1")
    return root[0], output


@dataclass(frozen=True)
class _Grain:
    """What counts as a unit: a child of a list that holds parameters, and, unless leaves count, has children."""

    members: frozenset[int]
    with_leaves: bool

    def holds(self, module: nn.Module) -> bool:
        if id(module) not in self.members or next(module.parameters(), None) is None:
            return False
        return self.with_leaves or next(module.children(), None) is not None


@dataclass(frozen=True, eq=False)
class Chain:
    """A chain of links with the calls that they were found by (which hold the probe's tensors)."""

    links: list[Link]
    calls: list[Call]
    share: float
    root: Call

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of the hidden tensor before each link, and after the last."""
        return [tuple(t.shape) for t in self._crossings()]

    def _crossings(self) -> list[Tensor]:
        entering = [next(t for p, t in tensors(c.taken) if p in k.slots) for k, c in self._pairs()]
        return [*entering, next(t for p, t in tensors(self.calls[-1].returned) if p in self.links[-1].exit)]

    def _pairs(self) -> list[tuple[Link, Call]]:
        return list(zip(self.links, self.calls, strict=True))

    def writes_exit(self) -> bool:
        """Say whether what follows the last unit writes into the tensor that it returned."""
        leaving = self._crossings()[-1]
        return self.calls[-1].returned_versions[id(leaving)] != leaving._version

    def handing(self, *, everything: bool = False) -> frozenset[int]:
        """Return the links that return tensors, beside the hidden one, which later links take (or may take)."""
        found = set()
        for i, (link, call) in enumerate(self._pairs()):
            own = {id(t) for _, t in tensors(call.taken)}
            beside = {id(t) for p, t in tensors(call.returned) if p not in link.exit} - own
            later = {id(t) for c in self.calls[i + 1 :] for _, t in tensors(c.taken)}
            if beside if everything else beside & later:
                found.add(i)
        return frozenset(found)


def find_chains(
    model: nn.Module, root: Call, backbone: Sequence[nn.Parameter], excluded: Sequence[nn.Module]
) -> list[Chain]:
    """Return the chains that may be the trunk, the best first: at least 80 % of the backbone, then the most units.

    Chains of blocks come before chains of bare layers (convolutions, activations) in a Sequential.

    Args:
        model: the encoder.
        root: its recorded forward.
        backbone: the parameters that the share is taken of.
        excluded: modules in which no unit may lie (a classifier).

    Raises:
        TrunkError: no chain holds that share; the message names the widest one and where it lies.
    """
    lists = (m for m in model.modules() if isinstance(m, nn.ModuleList | nn.Sequential))
    members = frozenset(id(child) for parent in lists for child in parent.children())
    barred = frozenset(id(m) for e in excluded for m in e.modules())
    total = {id(p): p.numel() for p in backbone}
    found: list[Chain] = []
    widest: tuple[float, list[Call]] = (0.0, [])
    for with_leaves in (False, True):
        grain = _Grain(members - barred, with_leaves)
        ranked: list[tuple[int, float, list[Call]]] = []
        for host in _walk(root):
            for opening in (True, False):
                calls = _trim(_longest(host.children, grain, opening), grain)
                share = _share(calls, total)
                widest = max(widest, (share, calls), key=lambda pair: pair[0])
                if share >= MIN_SHARE and _num_units(calls, grain) >= 2:
                    ranked.append((_num_units(calls, grain), share, calls))
        ranked.sort(key=lambda entry: entry[:2], reverse=True)
        for _, share, calls in ranked:
            if not any([c.name for c in calls] == [c.name for c in other.calls] for other in found):
                found.append(Chain(_links(calls, grain), calls, share, root))
    if not found:
        raise TrunkError(_refusal(model, widest[1], widest[0]))
    return found


def _refusal(model: nn.Module, chain: list[Call], share: float) -> str:
    where = f"{chain[0].name} … {chain[-1].name}" if chain else "nowhere"
    return (
        f"{type(model).__name__}: no chain of modules that hand each other one tensor holds {MIN_SHARE:.0%} of its "
        f"parameters; the widest found holds {share:.0%} ({where})"
    )


def _walk(call: Call) -> list[Call]:
    return [call, *(inner for child in call.children for inner in _walk(child))]


def _follows(earlier: Call, later: Call) -> bool:
    """Say whether `later` takes a tensor that `earlier` returned, untouched in between."""
    shared = (t for _, t in tensors(earlier.returned) if t.is_floating_point())
    return any(later.takes(t, earlier.returned_versions[id(t)]) for t in shared)


def _longest(calls: list[Call], grain: _Grain, opening: bool = True) -> list[Call]:
    """Return the chain with the most units among sibling calls, each opened where it is a chain itself."""
    opened = [_open(call, grain) if opening else [call] for call in calls]
    weights = [
        (_num_units(chain, grain), sum(p.numel() for p in call.module.parameters()))
        for chain, call in zip(opened, calls, strict=True)
    ]
    reach: list[tuple[int, int]] = []
    before: list[int | None] = []
    for j, later in enumerate(calls):
        links = [i for i in range(j) if _follows(calls[i], later)]
        previous = max(links, key=lambda i: reach[i], default=None)
        base = reach[previous] if previous is not None else (0, 0)
        reach.append((base[0] + weights[j][0], base[1] + weights[j][1]))
        before.append(previous)
    end: int | None = max(range(len(calls)), key=lambda j: reach[j], default=None)
    path: list[Call] = []
    while end is not None:
        path[:0] = opened[end]
        end = before[end]
    return path


def _open(call: Call, grain: _Grain) -> list[Call]:
    """Return the chain inside `call` if it leads from its input to its output through units, else the call itself."""
    if not call.children:
        return [call]
    chain = _longest(call.children, grain)
    num_units = _num_units(chain, grain)
    if num_units < (2 if grain.holds(call.module) else 1):
        return [call]
    first, last = _edge(call.children, chain[0]), _edge(call.children, chain[-1])
    starts = any(first.takes(t, call.taken_versions[id(t)]) for _, t in tensors(call.taken) if t.is_floating_point())
    ends = any(call.gives(t) for _, t in tensors(last.returned))
    return chain if starts and ends else [call]


def _edge(siblings: list[Call], inner: Call) -> Call:
    """Return the sibling in which `inner` lies."""
    known = {id(s) for s in siblings}
    call: Call = inner
    while id(call) not in known and call.parent is not None:
        call = call.parent
    return call


def _num_units(chain: Sequence[Call], grain: _Grain) -> int:
    return sum(grain.holds(call.module) for call in chain)


def _trim(chain: list[Call], grain: _Grain) -> list[Call]:
    places = [i for i, call in enumerate(chain) if grain.holds(call.module)]
    return chain[places[0] : places[-1] + 1] if places else []


def _share(chain: Sequence[Call], total: dict[int, int]) -> float:
    held = {id(p) for call in chain for p in call.module.parameters()}
    whole = sum(total.values())
    return sum(size for key, size in total.items() if key in held) / whole if whole else 0.0


def _links(chain: list[Call], grain: _Grain) -> list[Link]:
    links: list[Link] = []
    crossing = [_crossing(a, b) for a, b in itertools.pairwise(chain)]
    for i, call in enumerate(chain):
        entering = crossing[i - 1] if i else _first_taken(call, chain, crossing)
        leaving = crossing[i] if i < len(crossing) else _last_returned(call, chain, crossing)
        links.append(
            Link(
                module=call.module,
                name=call.name,
                ordinal=call.ordinal,
                slots=paths_of(call.taken, entering),
                exit=paths_of(call.returned, leaving),
                is_unit=grain.holds(call.module),
                mutates=id(entering) in call.mutated,
            )
        )
    return links


def _crossing(earlier: Call, later: Call) -> Tensor:
    """Return the tensor that `earlier` hands to `later`."""
    for _, tensor in tensors(earlier.returned):
        if tensor.is_floating_point() and later.takes(tensor, earlier.returned_versions[id(tensor)]):
            return tensor
    raise TrunkError(f"{later.name} takes nothing that {earlier.name} returned")


def _first_taken(call: Call, chain: list[Call], crossing: list[Tensor]) -> Tensor:
    """Return what the first unit takes as hidden: where a later unit of its class takes it, else the first tensor."""
    places: list[Path] = []
    for other, tensor in zip(chain[1:], crossing, strict=True):
        if type(other.module) is type(call.module):
            places.extend(paths_of(other.taken, tensor))
    found = [t for path, t in tensors(call.taken) if path in places and t.is_floating_point()]
    return found[0] if found else next(t for _, t in tensors(call.taken) if t.is_floating_point())


def _last_returned(call: Call, chain: list[Call], crossing: list[Tensor]) -> Tensor:
    """Return what the last unit gives as hidden, by the same rule."""
    places: list[Path] = []
    for other, tensor in zip(chain[:-1], crossing, strict=True):
        if type(other.module) is type(call.module):
            places.extend(paths_of(other.returned, tensor))
    found = [t for path, t in tensors(call.returned) if path in places]
    return found[0] if found else next(t for _, t in tensors(call.returned) if t.is_floating_point())
