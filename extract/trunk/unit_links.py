"""Links and chains: where the hidden tensor lies in every call, and where one unit ends and the next begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from .tracing import Call, Path, paths_of, tensors


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

    @property
    def num_units(self) -> int:
        """The number of units."""
        return len(self.bounds) - 1

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


def make_chain(calls: list[Call], is_unit: Sequence[bool], share: float) -> Chain:
    """Find the hidden tensor before every call and after the last, and describe each as a link."""
    between = [_crossing(a, b) for a, b in pairwise(calls)]
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
                is_unit=is_unit[i],
                mutates=id(hidden[i]) in call.mutated,
            )
        )
    return Chain(links, calls, hidden, share, _bounds(links))


def _bounds(links: Sequence[Link]) -> list[int]:
    """Return where units begin: after each unit's own call, moved on or merged where a later link looks back."""
    places = [i for i, link in enumerate(links) if link.is_unit]
    looks = [(j, i) for i, link in enumerate(links) for j in link.earlier.values()]
    bounds = [0]
    for place, following in pairwise(places):
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
