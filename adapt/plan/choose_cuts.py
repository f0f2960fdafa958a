"""Choose the boundaries to cache: the set that makes all variants together cheapest under a disk budget, or none.

For every modality each set of candidate boundaries has its bytes and its seconds: the extraction once, then, pass by
pass, reading a state and running the units from there to where a variant starts. Sets are compared exhaustively; the
modalities are independent but for the budget and for the decoding, which is paid once if anything is cached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from .cost_model import EncoderCosts, MachineCosts, VariantCosts

MAX_CANDIDATES = 10  # of one modality: 2^10 sets


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Boundaries to cache.

    Args:
        cuts: boundaries by modality, ascending; empty where nothing is to be cached.
        num_bytes: of the store.
        extraction: seconds of stage 1; 0 without a cache.
        reason: why nothing is cached; "" otherwise.
    """

    cuts: Mapping[str, tuple[int, ...]]
    num_bytes: int = 0
    extraction: float = 0.0
    reason: str = ""

    @property
    def cached(self) -> bool:
        """Whether anything is to be cached."""
        return bool(self.cuts)


@dataclass(frozen=True)
class _Option:
    cut: tuple[int, ...]
    num_bytes: int
    extraction: float
    use: float

    @property
    def seconds(self) -> float:
        return self.extraction + self.use


def choose(
    machine: MachineCosts,
    encoders: Mapping[str, EncoderCosts],
    variants: Sequence[VariantCosts],
    *,
    budget_bytes: int | None = None,
) -> Choice:
    """Choose the cheapest sets of boundaries whose states fit, or none, with the reason.

    Args:
        machine, encoders, variants: measured costs; every modality that a variant starts from is in `encoders`.
        budget_bytes: bytes that the store may take; None for no limit.
    """
    wanted = {m: e for m, e in encoders.items() if any(m in v.starts for v in variants)}
    options = {m: _options(machine, e, variants) for m, e in wanted.items()}
    best = _cheapest(list(options.items()), budget_bytes)
    if best is None:
        least = sum(min(o.num_bytes for o in found) for found in options.values())
        return Choice(cuts={}, reason=f"the smallest states need {least / 1e9:.2f} GB, more than the disk budget")
    decoding = decode_seconds(machine, set(best)) * _num_clips(wanted)
    extraction = decoding + sum(o.extraction for o in best.values())
    cached = extraction + sum(o.use for o in best.values())
    live = sum(v.num_seeds * live_seconds(machine, wanted, v) for v in variants)
    if live <= cached:
        return Choice(
            cuts={},
            reason=f"computing the states anew takes {live:.0f} s in all, extracting and reading them {cached:.0f} s",
        )
    return Choice(
        cuts={m: o.cut for m, o in best.items()},
        num_bytes=sum(o.num_bytes for o in best.values()),
        extraction=extraction,
    )


def decode_seconds(machine: MachineCosts, modalities: set[str]) -> float:
    """Look up the seconds of decoding one clip for these modalities in one pass over its file."""
    names = [m for m in ("visual", "audio") if m in modalities]
    return machine.decode["+".join(names)] if names else 0.0


def live_seconds(machine: MachineCosts, encoders: Mapping[str, EncoderCosts], variant: VariantCosts) -> float:
    """Predict one run's seconds below a variant's starts when every batch is decoded and encoded anew."""
    per_pass = decode_seconds(machine, set(variant.starts)) * max(
        (variant.distinct[m] for m in variant.starts if m != "text"), default=0.0
    )
    for modality, start in variant.starts.items():
        encoder = encoders[modality]
        per_pass += variant.runs(modality) * (encoder.embed + encoder.run(0, start))
    return per_pass * variant.passes


def cached_seconds(
    machine: MachineCosts,
    encoders: Mapping[str, EncoderCosts],
    cuts: Mapping[str, tuple[int, ...]],
    variants: Sequence[VariantCosts],
) -> float:
    """Predict the seconds below the starts of variants in lockstep, one run each, from the cached boundaries."""
    return sum(_below(machine, encoders[m], cuts[m], [v for v in variants if m in v.starts]) for m in cuts)


def _below(machine: MachineCosts, encoder: EncoderCosts, cut: Sequence[int], together: Sequence[VariantCosts]) -> float:
    """Predict the seconds below the starts of variants that train on the same batches, in one modality."""
    if not together:
        return 0.0
    reads = max(v.passes * v.distinct[encoder.modality] for v in together)
    runs = max(v.passes * v.runs(encoder.modality) for v in together)
    seconds, at = 0.0, -1
    for start in sorted({v.starts[encoder.modality] for v in together}):
        ways = [
            reads * encoder.state_bytes[k] * (machine.read + machine.to_device) + runs * encoder.run(k, start)
            for k in cut
            if k <= start
        ]
        if at >= 0:
            ways.append(runs * encoder.run(at, start))
        seconds += min(ways)
        at = start
    return seconds


def groups_of(variants: Sequence[VariantCosts]) -> list[list[VariantCosts]]:
    """Group the variants that can train on the same batches, in the order given."""
    groups: dict[str, list[VariantCosts]] = {}
    for variant in variants:
        groups.setdefault(variant.group, []).append(variant)
    return list(groups.values())


def _options(machine: MachineCosts, encoder: EncoderCosts, variants: Sequence[VariantCosts]) -> list[_Option]:
    modality = encoder.modality
    using = [v for v in variants if modality in v.starts]
    lowest = min(v.starts[modality] for v in using)
    found = []
    for cut in _sets(_candidates(encoder, using)):
        if cut[0] > lowest:
            continue
        num_bytes = encoder.num_items * sum(encoder.state_bytes[k] for k in cut)
        extraction = encoder.num_items * (encoder.embed + encoder.run(0, cut[-1])) + num_bytes * machine.write
        use = sum(max(v.num_seeds for v in group) * _below(machine, encoder, cut, group) for group in groups_of(using))
        found.append(_Option(cut, num_bytes, extraction, use))
    return found


def _candidates(encoder: EncoderCosts, using: Sequence[VariantCosts]) -> list[int]:
    """List the boundaries worth caching: starts of variants, and, below each start, the one of the smallest state."""
    starts = sorted({v.starts[encoder.modality] for v in using})
    smallest = {min(range(s + 1), key=lambda k: (encoder.state_bytes[k], -k)) for s in starts}
    if len(starts) + len(smallest) > MAX_CANDIDATES:
        step = len(starts) / (MAX_CANDIDATES - len(smallest) or 1)
        starts = sorted({starts[int(i * step)] for i in range(max(1, MAX_CANDIDATES - len(smallest)))})
    return sorted({*starts, *smallest})


def _sets(candidates: Sequence[int]) -> list[tuple[int, ...]]:
    return [cut for count in range(1, len(candidates) + 1) for cut in combinations(candidates, count)]


def _cheapest(options: Sequence[tuple[str, list[_Option]]], budget: int | None) -> dict[str, _Option] | None:
    partial: list[tuple[float, int, dict[str, _Option]]] = [(0.0, 0, {})]
    for modality, found in options:
        grown = [
            (seconds + o.seconds, num_bytes + o.num_bytes, {**chosen, modality: o})
            for seconds, num_bytes, chosen in partial
            for o in _undominated(found)
            if budget is None or num_bytes + o.num_bytes <= budget
        ]
        partial = _undominated_sums(grown)
    return min(partial, key=lambda p: (p[0], p[1]))[2] if partial else None


def _undominated(options: Sequence[_Option]) -> list[_Option]:
    best: list[_Option] = []
    for option in sorted(options, key=lambda o: (o.num_bytes, o.seconds)):
        if not best or option.seconds < best[-1].seconds:
            best.append(option)
    return best


def _undominated_sums(
    sums: Sequence[tuple[float, int, dict[str, _Option]]],
) -> list[tuple[float, int, dict[str, _Option]]]:
    best: list[tuple[float, int, dict[str, _Option]]] = []
    for found in sorted(sums, key=lambda s: (s[1], s[0])):
        if not best or found[0] < best[-1][0]:
            best.append(found)
    return best


def _num_clips(encoders: Mapping[str, EncoderCosts]) -> int:
    return max((e.num_items for m, e in encoders.items() if m != "text"), default=0)
