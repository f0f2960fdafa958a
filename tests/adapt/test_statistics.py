"""Intervals and tests against scipy and statsmodels, and their error rates on made data."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.multitest import multipletests

from talik.adapt.report.build_table import build_table
from talik.adapt.report.runs import Prediction, Run
from talik.adapt.report.statistics import Outcomes, compare, holm, mean_interval
from talik.adapt.scoring.metrics import score
from talik.errors import RunError, SettingsError


def outcomes(correct: np.ndarray, clips: np.ndarray, *, trained: bool = True) -> Outcomes:
    """Outcomes (S, Q) with the questions numbered in order."""
    ids = tuple(f"q{i}" for i in range(correct.shape[1]))
    return Outcomes(question_ids=ids, clip_ids=tuple(map(str, clips)), values=correct.astype(float), trained=trained)


def simulated(
    rng: np.random.Generator, *, num_seeds: int, seed_sd: float, clip_sd: float, lift: float = 0.0
) -> tuple[Outcomes, Outcomes]:
    """Two variants on 50 clips of 5 questions, `b` better by `lift` on the logit scale.

    Questions differ in difficulty, variants differ on clips (sd `clip_sd`), seeds differ (`seed_sd`), answers vary.
    """
    clips = np.repeat(np.arange(50), 5)
    difficulty = rng.normal(0.3, 1.5, len(clips))
    pair = []
    for gain in (0.0, lift):
        on_clips = rng.normal(0, clip_sd, 50)[clips]
        of_seeds = rng.normal(0, seed_sd, (num_seeds, 1))
        logits = difficulty + on_clips + of_seeds + gain
        pair.append(outcomes(rng.random(logits.shape) < 1 / (1 + np.exp(-logits)), clips))
    return pair[0], pair[1]


def made_run(variant: str, right: Sequence[bool], *, seed: int, types: Sequence[str], num_a_clip: int) -> Run:
    """A run of len(right) questions, types in turn, `num_a_clip` questions a clip."""
    predictions = tuple(
        Prediction(
            question_id=f"q{i}",
            clip_id=f"c{i // num_a_clip}",
            type=types[i % len(types)],
            template="t",
            question="Is it?",
            answer="yes",
            prediction="yes" if ok else "no",
            probability=None,
            correct=bool(ok),
        )
        for i, ok in enumerate(right)
    )
    return Run(
        path=Path("runs") / variant,
        experiment="exp",
        variant=variant,
        seed=seed,
        config={},
        epochs=(),
        predictions=predictions,
        scores=score([p.type for p in predictions], [p.correct for p in predictions]),
        split="test",
        best_epoch=None,
        train_seconds=1.0,
        trainable_params=1,
    )


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 101])
@pytest.mark.parametrize("level", [0.2, 0.9, 0.95, 0.9998])
def test_half_widths_are_scipys_t_quantiles(freedom: int, level: float) -> None:
    values = np.random.default_rng(freedom).normal(60, 5, freedom + 1)
    found = mean_interval(values, level=level)
    expected = stats.t.interval(level, freedom, loc=np.mean(values), scale=stats.sem(values))[1] - np.mean(values)
    assert found.half == pytest.approx(expected, rel=1e-9)


def test_mean_interval_is_scipys() -> None:
    values = [61.2, 59.8, 63.1, 60.4]
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert found.half is not None
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert mean_interval([61.2]).half is None
    with pytest.raises(RunError, match="no value"):
        mean_interval([])


def test_holm_is_bonferroni_closed_over_all_subsets() -> None:
    p_values = [0.01, 0.04, 0.03, 0.005, 0.5]
    closed = []
    for i in range(5):
        subsets = [s for n in range(1, 6) for s in itertools.combinations(range(5), n) if i in s]
        closed.append(max(min(1.0, len(s) * min(p_values[k] for k in s)) for s in subsets))
    assert holm(p_values) == pytest.approx(closed)
    assert holm([]) == ()


def test_holm_is_statsmodels() -> None:
    rng = np.random.default_rng(0)
    for num in (1, 2, 13, 60):
        p_values = np.round(rng.random(num) ** 3, 2)  # with ties
        assert holm(list(p_values)) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_one_seed_gives_statsmodels_cluster_robust_interval() -> None:
    rng = np.random.default_rng(4)
    clips = np.repeat(np.arange(300), rng.integers(2, 12, 300))  # clips differ in their number of questions
    rate = rng.uniform(0.2, 0.7, 300)[clips]
    gain = rng.normal(0.03, 0.1, 300)[clips]
    a, b = (outcomes(rng.random((1, len(clips))) < r, clips) for r in (rate + gain, rate))
    found = compare(a, b)
    points = 100.0 * (a.values[0].astype(float) - b.values[0])
    fit = sm.OLS(points, np.ones(len(points))).fit(cov_type="cluster", cov_kwds={"groups": clips})
    ((low, high),) = fit.conf_int()
    assert found.points == pytest.approx(fit.params[0])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05 * (high - low))
    assert found.p_value == pytest.approx(fit.pvalues[0], abs=0.02)


def test_one_seed_gives_scipys_bootstrap_over_clips() -> None:
    rng = np.random.default_rng(0)
    a, b = simulated(rng, num_seeds=1, seed_sd=0, clip_sd=0.5, lift=0.4)
    found = compare(b, a)
    by_clip = [x.values[0].reshape(50, 5).mean(axis=1) for x in (b, a)]
    expected = stats.bootstrap(
        by_clip, lambda x, y, axis: x.mean(axis) - y.mean(axis), paired=True, method="percentile", rng=1
    )
    assert found.points == pytest.approx(100 * (b.values.mean() - a.values.mean()))
    assert found.low == pytest.approx(100 * expected.confidence_interval.low, abs=0.6)
    assert found.high == pytest.approx(100 * expected.confidence_interval.high, abs=0.6)  # a question is 0.4
    assert not found.covers_seeds


def test_seeds_that_differ_alike_on_every_clip_give_scipys_t_interval() -> None:
    clips = np.repeat(np.arange(30), 20)
    rates = {"a": [11, 13, 12], "b": [9, 8, 11]}  # right answers of 20, the same in every clip
    rows = {name: np.array([np.tile(np.arange(20) < k, 30) for k in counts]) for name, counts in rates.items()}
    found = compare(outcomes(rows["a"], clips), outcomes(rows["b"], clips), resamples=10_000)
    expected = stats.ttest_ind([100 * k / 20 for k in rates["a"]], [100 * k / 20 for k in rates["b"]])
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=0.01)
    assert found.p_value == pytest.approx(expected.pvalue, rel=0.01)
    assert found.covers_seeds


def test_a_rule_without_seeds_adds_no_seed_noise() -> None:
    clips = np.repeat(np.arange(30), 20)
    counts = [11, 13, 12]
    trained = outcomes(np.array([np.tile(np.arange(20) < k, 30) for k in counts]), clips)
    rule = outcomes(np.tile(np.arange(20) < 8, 30)[None], clips, trained=False)
    found = compare(trained, rule, resamples=10_000)
    interval = stats.ttest_1samp([100 * k / 20 for k in counts], 40.0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low - 40, interval.high - 40), rel=0.01)


def test_questions_that_repeat_a_clip_add_no_certainty() -> None:
    rng = np.random.default_rng(3)
    single = [rng.random((1, 80)) < p for p in (0.6, 0.5)]
    once = compare(*(outcomes(x, np.arange(80)) for x in single))
    tenfold = compare(*(outcomes(np.repeat(x, 10, axis=1), np.repeat(np.arange(80), 10)) for x in single))
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high), abs=1e-9)
    independent = compare(*(outcomes(np.repeat(x, 10, axis=1), np.arange(800)) for x in single))
    assert independent.half_width < 0.5 * once.half_width


@pytest.mark.parametrize(("num_seeds", "seed_sd"), [(1, 0.0), (3, 0.0), (3, 0.15)])
@pytest.mark.parametrize("clip_sd", [0.0, 0.7])
def test_variants_of_one_kind_are_called_different_at_most_as_often_as_said(
    num_seeds: int, seed_sd: float, clip_sd: float
) -> None:
    rng = np.random.default_rng(11)
    found = [
        compare(*simulated(rng, num_seeds=num_seeds, seed_sd=seed_sd, clip_sd=clip_sd), resamples=1000, seed=i)
        for i in range(200)
    ]
    assert sum(d.excludes_zero for d in found) <= 17  # 5 % of 200, and the 97th percentile of its own chance
    assert sum(d.p_value < 0.05 for d in found) <= 17
    assert sum(d.p_value < 0.5 for d in found) >= 70  # nor is the test so careful that it never speaks


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_reports_of_two_names_for_one_variant_call_them_different_as_seldom_as_said(num_seeds: int) -> None:
    rng = np.random.default_rng(21)
    types = ("A-count", "V-loc", "AV-exist", "AV-comp", "AV-temp")  # one of each a clip
    called = called_by_type = 0
    for _ in range(200):
        pair = simulated(rng, num_seeds=num_seeds, seed_sd=0.1 * (num_seeds > 1), clip_sd=0.5)
        runs = {
            name: tuple(made_run(name, list(row), seed=s, types=types, num_a_clip=5) for s, row in enumerate(o.values))
            for name, o in zip(("one", "other"), pair, strict=True)
        }
        (found,) = build_table(runs, baseline="one", resamples=1000).comparisons
        called += found.p_corrected < 0.05
        called_by_type += any(c.p_corrected < 0.05 for c in found.by_type.values())
    assert called <= 17  # 5 % of 200, and the 97th percentile of its own chance
    assert called_by_type <= 17


def test_intervals_hold_the_true_difference_as_often_as_said() -> None:
    rng = np.random.default_rng(12)
    clips, truth = np.repeat(np.arange(50), 4), 10.0
    held = 0
    for i in range(200):
        rate = rng.uniform(0.2, 0.7, 50)[clips]
        pair = []
        for gain in (truth / 100, 0.0):
            shift = rng.normal(0, 0.02, (3, 1))
            pair.append(outcomes(rng.random((3, 200)) < rate + shift + gain, clips))
        found = compare(pair[0], pair[1], resamples=1000, seed=i)
        held += found.low <= truth <= found.high
    assert 180 <= held <= 198


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(5)
    a, b = simulated(rng, num_seeds=3, seed_sd=0.05, clip_sd=0.2, lift=1.0)
    found = compare(b, a)
    assert found.low > 0
    assert found.excludes_zero
    assert found.p_value < 0.01


def test_the_same_seed_gives_the_same_interval_and_sides_can_be_swapped() -> None:
    a, b = simulated(np.random.default_rng(6), num_seeds=2, seed_sd=0.1, clip_sd=0.3, lift=0.3)
    assert compare(a, b) == compare(a, b)
    assert compare(a, b) != compare(a, b, seed=1)
    assert compare(b, a).points == -compare(a, b).points
    assert compare(b, a).low == pytest.approx(-compare(a, b).high, rel=0.05)


def test_questions_are_matched_by_id_whatever_their_order() -> None:
    a, b = simulated(np.random.default_rng(7), num_seeds=2, seed_sd=0.1, clip_sd=0.3)
    order = np.random.default_rng(8).permutation(len(b.question_ids))
    shuffled = Outcomes(
        question_ids=tuple(b.question_ids[i] for i in order),
        clip_ids=tuple(b.clip_ids[i] for i in order),
        values=b.values[:, order],
    )
    assert compare(a, shuffled) == compare(a, b)


def test_equal_answers_differ_by_nothing() -> None:
    a, _ = simulated(np.random.default_rng(9), num_seeds=1, seed_sd=0, clip_sd=0)
    found = compare(a, a)
    assert (found.points, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert not found.excludes_zero


def test_one_clip_can_tell_nothing() -> None:
    clips = np.zeros(20)
    found = compare(outcomes(np.ones((1, 20)), clips), outcomes(np.zeros((1, 20)), clips))
    assert found.points == 100
    assert not found.excludes_zero
    assert found.p_value == 1


def test_other_questions_or_other_clips_are_refused() -> None:
    a = outcomes(np.ones((1, 4)), np.arange(4))
    with pytest.raises(RunError, match="different questions"):
        compare(a, outcomes(np.ones((1, 5)), np.arange(5)))
    with pytest.raises(RunError, match="different clips"):
        compare(a, outcomes(np.ones((1, 4)), np.array([0, 1, 2, 2])))
    with pytest.raises(SettingsError, match="resamples 10"):
        compare(a, a, resamples=10)


def test_some_questions_of_a_test_set_are_compared_as_if_they_were_all() -> None:
    a, b = simulated(np.random.default_rng(9), num_seeds=2, seed_sd=0.1, clip_sd=0.3, lift=0.5)
    wanted = [i % 5 == 2 for i in range(250)]
    apart = [outcomes(o.values[:, 2::5], np.arange(50)) for o in (a, b)]
    assert compare(a.only(wanted), b.only(wanted)) == compare(*apart)


def test_malformed_outcomes_are_refused() -> None:
    with pytest.raises(RunError, match="distinct questions"):
        Outcomes(question_ids=("q", "q"), clip_ids=("a", "b"), values=np.ones((1, 2)))
    with pytest.raises(RunError, match=r"expected float64 \(seeds, 2\)"):
        Outcomes(question_ids=("p", "q"), clip_ids=("a", "b"), values=np.ones((1, 3)))
    with pytest.raises(RunError, match="just 1 for an untrained rule"):
        Outcomes(question_ids=("p", "q"), clip_ids=("a", "b"), values=np.ones((2, 2)), trained=False)


def test_two_thousand_resamples_of_twelve_hundred_questions_take_well_under_a_second() -> None:
    rng = np.random.default_rng(10)
    clips = np.repeat(np.arange(240), 5)
    a, b = (outcomes(rng.random((3, 1200)) < p, clips) for p in (0.6, 0.5))
    start = time.process_time()
    compare(a, b, resamples=2000)
    assert time.process_time() - start < 0.5
