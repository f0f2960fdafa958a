"""How long an extraction will take on this machine, by what an earlier one took there, or by what a plan measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache.write.outline import BoundaryOutline
from ...errors import counted
from ..media.augment_settings import view_number
from .run_records import ExtractionCost, read_costs


@dataclass(frozen=True, kw_only=True)
class ExpectedTime:
    """An expected time.

    Attributes:
        seconds: wall time of the whole extraction.
        basis: what it is known from, in words.
    """

    seconds: float
    basis: str


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be computed at one boundary.

    Attributes:
        path: of the boundary.
        modality, boundary, view: which.
        items: how many.
        size_bytes: of the files to be written.
    """

    path: str
    modality: str
    boundary: int
    view: int
    items: int
    size_bytes: int

    @classmethod
    def of(cls, outlined: BoundaryOutline) -> Work:
        """Return the work at a boundary that was outlined."""
        spec = outlined.spec
        return cls(
            path=spec.path,
            modality=spec.modality,
            boundary=spec.boundary,
            view=view_number(spec.identity),
            items=len(outlined.missing),
            size_bytes=outlined.size_bytes,
        )


def expected_time(
    work: Sequence[Work], *, num_clips: int, store: Path, machine: str, plan: Mapping[str, Any]
) -> ExpectedTime | None:
    """Return how long some work will take; None where neither an earlier extraction nor the plan tells.

    Args:
        work: of every boundary that misses items.
        num_clips: distinct clips to decode.
        store: its path, beside which earlier extractions are recorded.
        machine: this one, as records name it; "" where other machines work, of which nothing is known.
        plan: of `talik plan`, as plain values; {} where there is none.
    """
    if not work or not machine:
        return None
    return _by_earlier(work, read_costs(store), machine) or _by_plan(work, num_clips, machine, plan)


def _by_earlier(work: Sequence[Work], costs: Sequence[ExtractionCost], machine: str) -> ExpectedTime | None:
    """By the largest earlier run that computed at least these boundaries: its seconds for each clip, or text."""
    clips = [one for one in work if one.modality != "text"]
    kind, wanted = ("clip", clips) if clips else ("text", work)
    best: tuple[int, float] = (0, 0.0)
    for cost in costs:
        counts = {p: n for p, n in cost.items.items() if n and (kind == "text") == p.startswith("text/")}
        others = kind == "text" and any(n for p, n in cost.items.items() if p not in counts)
        if cost.machine == machine and not others and counts.keys() >= {one.path for one in wanted}:
            best = max(best, (max(counts.values()), cost.seconds))
    count, seconds = best
    if not count:
        return None
    items = max(one.items for one in wanted)
    return ExpectedTime(
        seconds=seconds * items / count, basis=f"an extraction of {counted(count, kind)} on this machine"
    )


def _by_plan(work: Sequence[Work], num_clips: int, machine: str, plan: Mapping[str, Any]) -> ExpectedTime | None:
    """By what a plan measured: decoding, the units below the cuts, writing, and opening the encoders."""
    try:
        if plan["machine"] != machine:
            return None
        machine_costs, encoders = plan["machine_costs"], plan["encoder_costs"]
        decoded = [m for m in ("visual", "audio") if any(one.modality == m for one in work)]
        seconds = float(plan["opening"]) + sum(one.size_bytes for one in work) * machine_costs["write"]
        if decoded:
            seconds += num_clips * machine_costs["decode"]["+".join(decoded)]
        for modality, view in {(one.modality, one.view) for one in work}:
            of_view = [one for one in work if (one.modality, one.view) == (modality, view)]
            costs, cut = encoders[modality], max(one.boundary for one in of_view)
            below = costs["embed"] + sum(costs["forward"][:cut])
            seconds += max(one.items for one in of_view) * below
    except (KeyError, TypeError, ValueError):
        return None
    return ExpectedTime(seconds=seconds, basis="what talik plan measured on this machine")
