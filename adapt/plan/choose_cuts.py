"""Choose the boundaries to cache: the set that makes all variants together cheapest under a disk budget, or none.

For every modality each set of candidate boundaries has its bytes and its seconds: the extraction once, then, pass by
pass, reading a state and running the units from there to where a variant starts. Sets are compared exhaustively; the
modalities are independent but for the budget and for the decoding, which is paid once if anything is cached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from .cost_model import EncoderCosts, MachineCosts, VariantCosts

MAX_CANDIDATES = 10  # of one modality: 2^10 sets


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Boundaries to cache, and their cost.

    Args:
        cuts: boundaries by modality, ascending; empty where nothing is to be cached.
        num_bytes: of the store.
        extraction: seconds of stage 1; 0 without a cache.
        use: seconds below the variants' starts, in all runs.
        reason: why nothing is cached; "" otherwise.
    """

    cuts: Mapping[str, tuple[int, ...]]
    num_bytes: int = 0
    extraction: float = 0.0
    use: float = 0.0
    reason: str = ""

    def __add__(self, other: Choice) -> Choice:
        return Choice(
            cuts={**self.cuts, **other.cuts},
            num_bytes=self.num_bytes + other.num_bytes,
            extraction=self.extraction + other.extraction,
            use=self.use + other.use,
        )

    @property
    def cached(self) -> bool:
        """Whether anything is to be cached."""
        return bool(self.cuts)

    @property
    def seconds(self) -> float:
        """Extraction and use together."""
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
    found, least = [Choice(cuts={})], 0
    for encoder in wanted.values():
        options = _undominated(_options(machine, encoder, variants))
        least += options[0].num_bytes
        found = _undominated(
            a + b for a in found for b in options if budget_bytes is None or a.num_bytes + b.num_bytes <= budget_bytes
        )
    if not found:
        return Choice(cuts={}, reason=f"the smallest states need {least / 1e9:.2f} GB, more than the disk budget")
    num_clips = max((e.num_items for m, e in wanted.items() if m != "text"), default=0)
    best = replace(found[-1], extraction=found[-1].extraction + _decode_seconds(machine, wanted) * num_clips)
    live = sum(v.num_seeds * live_seconds(machine, wanted, v) for v in variants)
    if live > best.seconds:
        return best
    reason = f"computing the states anew takes {live:.0f} s in all, extracting and reading them {best.seconds:.0f} s"
    return Choice(cuts={}, reason=reason)


def live_seconds(machine: MachineCosts, encoders: Mapping[str, EncoderCosts], variant: VariantCosts) -> float:
    """Predict one run's seconds below a variant's starts when every batch is decoded and encoded anew."""
    clips = max((variant.distinct[m] for m in variant.starts if m != "text"), default=0.0)
    per_pass = _decode_seconds(machine, variant.starts) * clips
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


def groups_of(variants: Sequence[VariantCosts]) -> list[list[VariantCosts]]:
    """Group the variants that can train on the same batches, in the order given."""
    groups: dict[str, list[VariantCosts]] = {}
    for variant in variants:
        groups.setdefault(variant.group, []).append(variant)
    return list(groups.values())


def _decode_seconds(machine: MachineCosts, modalities: Iterable[str]) -> float:
    """Look up the seconds of decoding one clip for these modalities in one pass over its file."""
    names = [m for m in ("visual", "audio") if m in modalities]
    return machine.decode["+".join(names)] if names else 0.0


def _below(machine: MachineCosts, encoder: EncoderCosts, cut: Sequence[int], together: Sequence[VariantCosts]) -> float:
    """Predict the seconds below the starts of variants that train on the same batches, in one modality."""
    reads = max((v.passes * v.distinct[encoder.modality] for v in together), default=0.0)
    runs = max((v.passes * v.runs(encoder.modality) for v in together), default=0.0)
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


def _options(machine: MachineCosts, encoder: EncoderCosts, variants: Sequence[VariantCosts]) -> list[Choice]:
    """List the sets of candidate boundaries that every variant can start from, decoding left out."""
    using = [v for v in variants if encoder.modality in v.starts]
    lowest = min(v.starts[encoder.modality] for v in using)
    candidates = _candidates(encoder, using)
    sets = [cut for count in range(1, len(candidates) + 1) for cut in combinations(candidates, count)]
    found = []
    for cut in sets:
        if cut[0] > lowest:
            continue
        num_bytes = encoder.num_items * sum(encoder.state_bytes[k] for k in cut)
        extraction = encoder.num_items * (encoder.embed + encoder.run(0, cut[-1])) + num_bytes * machine.write
        use = sum(max(v.num_seeds for v in group) * _below(machine, encoder, cut, group) for group in groups_of(using))
        found.append(Choice(cuts={encoder.modality: cut}, num_bytes=num_bytes, extraction=extraction, use=use))
    return found


def _candidates(encoder: EncoderCosts, using: Sequence[VariantCosts]) -> list[int]:
    """List the boundaries worth caching: starts of variants, and, below each start, the one of the smallest state."""
    starts = sorted({v.starts[encoder.modality] for v in using})
    smallest = {min(range(s + 1), key=lambda k: (encoder.state_bytes[k], -k)) for s in starts}
    if len(starts) + len(smallest) > MAX_CANDIDATES:
        step = len(starts) / (MAX_CANDIDATES - len(smallest) or 1)
        starts = sorted({starts[int(i * step)] for i in range(max(1, MAX_CANDIDATES - len(smallest)))})
    return sorted({*starts, *smallest})


def _undominated(choices: Iterable[Choice]) -> list[Choice]:
    """Sort by bytes, and leave out each that takes as long as a smaller one."""
    best: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.num_bytes, c.seconds)):
        if not best or choice.seconds < best[-1].seconds:
            best.append(choice)
    return best
