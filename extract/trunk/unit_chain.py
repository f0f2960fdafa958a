"""Finding the chain of units: in a recorded forward, modules that hand each other the same tensor object are links.

Calls form a tree (who called whom). Inside a calling module, its direct callees form a chain where the tensor that one
returns *is*, untouched, the tensor that the next takes. A callee that is itself such a chain from its input to its
output (a Sequential, a stage) is opened; one that is not (a block with a residual path) is a unit. Units are children
of a ModuleList or Sequential; what lies between two units (a down-sampling module, an Identity) joins one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ...errors import TrunkError
from .tracing import Call
from .unit_links import Chain, make_chain

MIN_SHARES = (0.8, 0.5)
"""The part of the backbone's parameters that a trunk holds; the second only where nothing holds the first."""


@dataclass(frozen=True, eq=False)
class Grain:
    """What counts as a unit: a child of a list that holds parameters, and, unless leaves count, has children.

    `opened` keeps the chains found inside calls, by the call's id.
    """

    members: frozenset[int]
    with_leaves: bool
    opened: dict[int, list[Call]] = field(default_factory=dict, repr=False)

    def holds(self, module: nn.Module) -> bool:
        """Say whether `module` is a unit."""
        if id(module) not in self.members or next(module.parameters(), None) is None:
            return False
        return self.with_leaves or next(module.children(), None) is not None

    def count(self, chain: Sequence[Call]) -> int:
        """Return the number of units in a chain."""
        return sum(self.holds(call.module) for call in chain)


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
    ranked: list[tuple[tuple[bool, int, int, float], Chain]] = []
    known: set[tuple[str, ...]] = set()
    widest: tuple[float, list[Call]] = (0.0, [])
    grains = (Grain(listed, False), Grain(listed | alike, False), Grain(listed, True))
    for place, grain in enumerate(grains):  # the preferred first, so that it names a chain that several grains show
        for host in root.walk():
            for opening in (True, False):
                calls = _trim(_longest(host.children, grain, opening=opening), grain)
                share = _share(calls, total)
                widest = max(widest, (share, calls), key=lambda pair: pair[0])
                names = tuple(f"{c.name}:{c.ordinal}" for c in calls)
                if share < MIN_SHARES[-1] or grain.count(calls) < 2 or names in known:
                    continue
                known.add(names)
                chain = make_chain(calls, [grain.holds(call.module) for call in calls], share)
                if chain.num_units > 1:
                    ranked.append(((share >= MIN_SHARES[0], -place, chain.num_units, share), chain))
    ranked.sort(key=lambda entry: entry[0], reverse=True)
    if not ranked:
        if widest[0] >= MIN_SHARES[0]:
            raise TrunkError(
                f"{type(model).__name__}: every unit takes what came before the one ahead of it: one unit only"
            )
        where = f"{widest[1][0].name} … {widest[1][-1].name}" if widest[1] else "nowhere"
        raise TrunkError(
            f"{type(model).__name__}: no chain of modules that hand each other one tensor holds {MIN_SHARES[0]:.0%} "
            f"of its parameters; the widest found holds {widest[0]:.0%} ({where})"
        )
    return [chain for _, chain in ranked]


def _children(model: nn.Module, kinds: Any) -> frozenset[int]:
    return frozenset(id(child) for m in model.modules() if isinstance(m, kinds) for child in m.children())


def _alike(model: nn.Module) -> frozenset[int]:
    """Return the modules that have a sibling of their own class (blocks kept as attributes, not in a list)."""
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
            if (
                base is not None
                and other_place < place
                and (best is None or base > best)
                and _follows(other[-1], chain[0])
            ):
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
    if id(call) not in grain.opened:
        grain.opened[id(call)] = _opened(call, grain) if call.children else []
    return grain.opened[id(call)]


def _opened(call: Call, grain: Grain) -> list[Call]:
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
