"""Finding the chain of units: in a recorded forward, modules that hand each other the same tensor object are links.

Calls form a tree (who called whom). Inside a calling module, its direct callees form a chain where the tensor that one
returns *is*, untouched, the tensor that the next takes. A callee that is itself such a chain from its input to its
output (a Sequential, a stage) is opened; one that is not (a block with a residual path) is a unit. Units are children
of a ModuleList or Sequential; what lies between two units (a down-sampling module, an Identity) joins one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..cache.errors import TrunkError
from .recording import Call
from .tree import Path, paths_of, tensors

MIN_SHARES = (0.8, 0.5)
"""The part of the backbone's parameters that a trunk holds; the second only where nothing holds the first."""


@dataclass(frozen=True)
class Grain:
    """What counts as a unit: a child of a list that holds parameters, and, unless leaves count, has children."""

    members: frozenset[int]
    with_leaves: bool

    def holds(self, module: nn.Module) -> bool:
        """Say whether `module` is a unit."""
        if id(module) not in self.members or next(module.parameters(), None) is None:
            return False
        return self.with_leaves or next(module.children(), None) is not None

    def count(self, chain: Sequence[Call]) -> int:
        """Return the number of units in a chain."""
        return sum(self.holds(call.module) for call in chain)


@dataclass(frozen=True, eq=False)
class Link:
    """One module call of the chain.

    Attributes:
        slots: where the hidden tensor lies among the arguments.
        exit: where it lies in what is returned.
        earlier: arguments that are the hidden tensor before an earlier link: path to the link's index.
        is_unit: whether it makes a unit, or joins one.
        mutates: whether it writes into the hidden tensor that it takes.
    """

    module: nn.Module
    name: str
    ordinal: int
    slots: frozenset[Path]
    exit: frozenset[Path]
    earlier: dict[Path, int]
    is_unit: bool
    mutates: bool


@dataclass(frozen=True, eq=False)
class Chain:
    """A chain of links with the calls that they were found by (which hold the probe's tensors).

    Attributes:
        share: the part of the backbone's parameters that the units hold.
        bounds: the link at which each unit begins, and the number of links.
    """

    links: list[Link]
    calls: list[Call]
    hidden: list[Tensor]
    share: float
    bounds: list[int]

    def writes_exit(self) -> bool:
        """Say whether what follows the last unit writes into the tensor that it returned."""
        return self.calls[-1].returned_versions[id(self.hidden[-1])] != self.hidden[-1]._version

    def handing(self, *, everything: bool = False) -> frozenset[int]:
        """Return the links that return tensors, beside the hidden one, which later links take (or may take)."""
        found = set()
        for i, (link, call) in enumerate(zip(self.links, self.calls, strict=True)):
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

    Chains of the children of lists come first, then those that also take siblings of one class kept as attributes,
    then those of bare layers (convolutions, activations) in a Sequential; chains with less than 80 % come last.

    Args:
        model: the encoder.
        root: its recorded forward.
        backbone: the parameters that the share is taken of.
        excluded: modules in which no unit may lie (a classifier).

    Raises:
        TrunkError: no chain holds enough; the message names the widest one and where it lies.
    """
    barred = frozenset(id(m) for e in excluded for m in e.modules())
    listed = _children(model, nn.ModuleList | nn.Sequential) - barred
    alike = _alike(model) - barred
    total = {id(p): p.numel() for p in backbone}
    ranked: list[tuple[tuple[bool, int, int, float], list[Call], Grain]] = []
    widest: tuple[float, list[Call]] = (0.0, [])
    for preference, grain in enumerate((Grain(listed, True), Grain(listed | alike, False), Grain(listed, False))):
        for host in root.walk():
            for opening in (True, False):
                calls = _trim(_longest(host.children, grain, opening=opening), grain)
                share = _share(calls, total)
                widest = max(widest, (share, calls), key=lambda pair: pair[0])
                if share >= MIN_SHARES[-1] and grain.count(calls) >= 2:
                    ranked.append(((share >= MIN_SHARES[0], preference, grain.count(calls), share), calls, grain))
    ranked.sort(key=lambda entry: entry[0], reverse=True)
    found: dict[tuple[str, ...], Chain] = {}
    for rank, calls, grain in ranked:
        names = tuple(f"{c.name}:{c.ordinal}" for c in calls)
        if names not in found:
            found[names] = _make(calls, grain, rank[-1])
    if not found:
        where = f"{widest[1][0].name} … {widest[1][-1].name}" if widest[1] else "nowhere"
        raise TrunkError(
            f"{type(model).__name__}: no chain of modules that hand each other one tensor holds {MIN_SHARES[0]:.0%} "
            f"of its parameters; the widest found holds {widest[0]:.0%} ({where})"
        )
    return list(found.values())


def _children(model: nn.Module, kinds: Any) -> frozenset[int]:
    return frozenset(id(child) for m in model.modules() if isinstance(m, kinds) for child in m.children())


def _alike(model: nn.Module) -> frozenset[int]:
    """Return the modules that have a sibling of their own class (stages or blocks kept as attributes, not in a list)."""
    found: set[int] = set()
    for parent in model.modules():
        kinds = Counter(type(child) for child in parent.children())
        found.update(id(child) for child in parent.children() if kinds[type(child)] > 1)
    return frozenset(found)


def _follows(earlier: Call, later: Call) -> bool:
    """Say whether `later` takes a tensor that `earlier` returned, untouched in between."""
    return any(later.takes(t, earlier.returned_versions[id(t)]) for t in earlier.leaving())


def _longest(
    calls: list[Call],
    grain: Grain,
    *,
    opening: bool = True,
    starts: Callable[[Call], bool] = lambda call: True,
    ends: Callable[[Call], bool] = lambda call: True,
) -> list[Call]:
    """Return the chain with the most units among sibling calls, each closed or opened; [] where there is none.

    `starts` and `ends` say where a chain may begin and end.
    """
    nodes: list[tuple[int, list[Call]]] = []
    for place, call in enumerate(calls):
        nodes.append((place, [call]))
        opened = _open(call, grain) if opening else []
        if opened:
            nodes.append((place, opened))
    reach: list[tuple[int, int] | None] = []
    before: list[int | None] = []
    for j, (place, chain) in enumerate(nodes):
        size = sum(p.numel() for p in calls[place].module.parameters())
        previous: int | None = None
        best: tuple[int, int] | None = (0, 0) if starts(chain[0]) else None
        for i, (other_place, other) in enumerate(nodes[:j]):
            base = reach[i]
            if base is not None and other_place < place and (best is None or base > best) and _follows(other[-1], chain[0]):
                previous, best = i, base
        reach.append(None if best is None else (best[0] + grain.count(chain), best[1] + size))
        before.append(previous)
    last = [j for j, (_, chain) in enumerate(nodes) if reach[j] is not None and ends(chain[-1])]
    end: int | None = max(last, key=lambda j: reach[j] or (0, 0), default=None)
    path: list[Call] = []
    while end is not None:
        path[:0] = nodes[end][1]
        end = before[end]
    return path


def _open(call: Call, grain: Grain) -> list[Call]:
    """Return the chain inside `call` that leads from its input to its output through units, or [].

    A module of its own kind (not a plain Sequential) that is a unit itself is opened only where a kind of unit repeats
    inside it: a stage of blocks is, a block of one attention and one feed-forward part is not.
    """
    if not call.children:
        return []
    chain = _longest(
        call.children,
        grain,
        starts=lambda inner: any(inner.takes(t, call.taken_versions[id(t)]) for t in call.entering()),
        ends=lambda inner: any(call.gives(t, inner.returned_versions[id(t)]) for t in inner.leaving()),
    )
    kinds = Counter(type(c.module) for c in chain if grain.holds(c.module))
    if not grain.holds(call.module):
        return chain if kinds else []
    plain = isinstance(call.module, nn.Sequential)
    return chain if kinds and (max(kinds.values()) > 1 or (plain and sum(kinds.values()) > 1)) else []


def _trim(chain: list[Call], grain: Grain) -> list[Call]:
    places = [i for i, call in enumerate(chain) if grain.holds(call.module)]
    return chain[places[0] : places[-1] + 1] if places else []


def _share(chain: Sequence[Call], total: dict[int, int]) -> float:
    held = {id(p) for call in chain for p in call.module.parameters()}
    whole = sum(total.values())
    return sum(size for key, size in total.items() if key in held) / whole if whole else 0.0


def _make(calls: list[Call], grain: Grain, share: float) -> Chain:
    """Find the hidden tensor before every call and after the last, and describe each as a link."""
    between = [_crossing(a, b) for a, b in zip(calls[:-1], calls[1:], strict=True)]
    hidden = [_first_taken(calls, between), *between, _last_returned(calls, between)]
    links = []
    for i, call in enumerate(calls):
        slots = paths_of(call.taken, hidden[i])
        known = {id(hidden[j]): j for j in range(i - 1, -1, -1)}
        earlier = {p: known[id(t)] for p, t in tensors(call.taken) if p not in slots and id(t) in known}
        links.append(
            Link(
                module=call.module,
                name=call.name,
                ordinal=call.ordinal,
                slots=slots,
                exit=paths_of(call.returned, hidden[i + 1]),
                earlier=earlier,
                is_unit=grain.holds(call.module),
                mutates=id(hidden[i]) in call.mutated,
            )
        )
    return Chain(links, calls, hidden, share, _bounds(links))


def _bounds(links: Sequence[Link]) -> list[int]:
    """Return where units begin: after each unit's own call, moved on or merged where a later link looks further back."""
    places = [i for i, link in enumerate(links) if link.is_unit]
    looks = [(j, i) for i, link in enumerate(links) for j in link.earlier.values()]
    bounds = [0]
    for place, following in zip(places[:-1], places[1:], strict=True):
        for cut in range(place + 1, following + 1):
            if not any(j < cut <= i for j, i in looks):
                bounds.append(cut)
                break
    return [*bounds, len(links)]


def _crossing(earlier: Call, later: Call) -> Tensor:
    """Return the tensor that `earlier` hands to `later`."""
    return next(t for t in earlier.leaving() if later.takes(t, earlier.returned_versions[id(t)]))


def _first_taken(calls: list[Call], between: list[Tensor]) -> Tensor:
    """Return what the first call takes as hidden: where a later one of its class takes it, else the first tensor."""
    places = _usual_places(calls[0], calls[1:], [call.taken for call in calls[1:]], between)
    found = [t for path, t in tensors(calls[0].taken) if path in places and t.is_floating_point()]
    return found[0] if found else calls[0].entering()[0]


def _last_returned(calls: list[Call], between: list[Tensor]) -> Tensor:
    """Return what the last call gives as hidden, by the same rule."""
    places = _usual_places(calls[-1], calls[:-1], [call.returned for call in calls[:-1]], between)
    found = [t for path, t in tensors(calls[-1].returned) if path in places and t.is_floating_point()]
    return found[0] if found else calls[-1].leaving()[0]


def _usual_places(call: Call, others: list[Call], trees: list[Any], crossing: list[Tensor]) -> list[Path]:
    pairs = zip(others, trees, crossing, strict=True)
    same = [(tree, t) for other, tree, t in pairs if type(other.module) is type(call.module)]
    return [path for tree, tensor in same for path in paths_of(tree, tensor)]
