"""Choosing what to cache: against every possible choice counted out by hand, under budgets, and the choice of none."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from talik.adapt.plan.choose_cuts import cached_seconds, choose, groups_of, live_seconds
from talik.adapt.plan.cost_model import EncoderCosts, MachineCosts, VariantCosts

MACHINE = MachineCosts(decode={"visual": 0.02, "audio": 0.01, "visual+audio": 0.025}, read=1e-9, write=4e-9)


def encoder(modality: str, num_units: int, rng: random.Random, *, num_items: int = 100) -> EncoderCosts:
    return EncoderCosts(
        modality=modality,
        num_items=num_items,
        embed=rng.uniform(1e-4, 1e-2),
        forward=tuple(rng.uniform(1e-4, 1e-2) for _ in range(num_units)),
        forward_backward=(0.0,) * num_units,
        finish=0.0,
        state_bytes=tuple(rng.randrange(10_000, 10_000_000) for _ in range(num_units + 1)),
    )


def variant(name: str, starts: dict[str, int], *, group: str = "16", epochs: int = 3, seeds: int = 1) -> VariantCosts:
    return VariantCosts(
        name=name,
        group=group,
        starts=starts,
        num_seeds=seeds,
        epochs=epochs,
        num_train=400,
        num_val=50,
        num_test=80,
        train=0.01,
        answer=0.004,
        distinct=dict.fromkeys(starts, 0.5),
        peak_bytes=0,
    )


def total_by_hand(encoders: dict[str, EncoderCosts], cuts: dict[str, tuple[int, ...]], variants: list) -> float:
    clips = max(e.num_items for e in encoders.values())
    seconds = MACHINE.decode["+".join(m for m in ("visual", "audio") if m in encoders)] * clips
    for m, e in encoders.items():
        seconds += e.num_items * (e.embed + sum(e.forward[: max(cuts[m])]))
        seconds += e.num_items * sum(e.state_bytes[k] for k in cuts[m]) * MACHINE.write
    for group in groups_of(variants):
        seconds += group[0].num_seeds * cached_seconds(MACHINE, encoders, cuts, group)
    return seconds


def size_of(encoders: dict[str, EncoderCosts], cuts: dict[str, tuple[int, ...]]) -> int:
    return sum(e.num_items * e.state_bytes[k] for m, e in encoders.items() for k in cuts[m])


@pytest.mark.parametrize("seed", range(8))
def test_no_other_set_of_boundaries_is_cheaper(seed: int) -> None:
    rng = random.Random(seed)
    encoders = {"visual": encoder("visual", 4, rng), "audio": encoder("audio", 3, rng)}
    variants = [
        variant(f"v{i}", {"visual": rng.randrange(1, 5), "audio": rng.randrange(1, 4)}, group=rng.choice("ab"))
        for i in range(4)
    ]
    every = [
        dict(zip(encoders, pair, strict=True))
        for pair in itertools.product(*(_sets(e, variants) for e in encoders.values()))
    ]
    budget = sorted(size_of(encoders, cuts) for cuts in every)[len(every) // 3]
    for limit in (None, budget):
        chosen = choose(MACHINE, encoders, variants, budget_bytes=limit)
        assert chosen.cached
        fitting = [cuts for cuts in every if limit is None or size_of(encoders, cuts) <= limit]
        best = min(total_by_hand(encoders, cuts, variants) for cuts in fitting)
        assert chosen.num_bytes == size_of(encoders, dict(chosen.cuts))
        assert limit is None or chosen.num_bytes <= limit
        # Boundaries that no variant starts from and that are not the smallest below one are not tried.
        assert total_by_hand(encoders, dict(chosen.cuts), variants) <= 1.1 * best
        if limit is None:
            assert total_by_hand(encoders, dict(chosen.cuts), variants) == pytest.approx(best)


def _sets(e: EncoderCosts, variants: list) -> list[tuple[int, ...]]:
    lowest = min(v.starts[e.modality] for v in variants)
    boundaries = range(len(e.forward) + 1)
    return [
        cut
        for count in range(1, len(boundaries) + 1)
        for cut in itertools.combinations(boundaries, count)
        if cut[0] <= lowest
    ]


def test_a_group_pays_its_shared_prefix_once() -> None:
    e = encoder("visual", 6, random.Random(1))
    low, high = variant("low", {"visual": 4}), variant("high", {"visual": 6})
    alone = sum(cached_seconds(MACHINE, {"visual": e}, {"visual": (2,)}, [v]) for v in (low, high))
    together = cached_seconds(MACHINE, {"visual": e}, {"visual": (2,)}, [low, high])
    shared = low.passes * 0.5 * (e.state_bytes[2] * MACHINE.read + e.run(2, 4))
    assert alone - together == pytest.approx(shared)


def test_what_is_read_once_runs_for_every_question_unless_batches_hold_clips_together() -> None:
    e = encoder("visual", 6, random.Random(4))
    plain = variant("plain", {"visual": 5})
    for computed, runs in (({"visual": 1.0}, 1.0), ({"visual": 0.25}, 0.25), (None, 0.5)):
        seconds = cached_seconds(MACHINE, {"visual": e}, {"visual": (2,)}, [replace(plain, computed=computed)])
        a_question = 0.5 * e.state_bytes[2] * MACHINE.read + runs * e.run(2, 5)
        assert seconds == pytest.approx(plain.passes * a_question)


def test_nothing_is_cached_where_it_would_not_pay() -> None:
    e = encoder("visual", 2, random.Random(2), num_items=100_000)
    once = variant("once", {"visual": 1}, epochs=1)  # 400 questions about 100,000 clips
    chosen = choose(MACHINE, {"visual": e}, [once])
    assert not chosen.cached
    assert "anew" in chosen.reason
    often = variant("often", {"visual": 1}, epochs=10_000)
    assert choose(MACHINE, {"visual": e}, [often]).cached
    assert live_seconds(MACHINE, {"visual": e}, often) > live_seconds(MACHINE, {"visual": e}, once)


def test_a_budget_too_small_for_anything_says_what_is_needed() -> None:
    e = encoder("visual", 2, random.Random(3))
    chosen = choose(MACHINE, {"visual": e}, [variant("v", {"visual": 2})], budget_bytes=10)
    assert not chosen.cached
    assert "disk budget" in chosen.reason
