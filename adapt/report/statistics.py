"""Paired cluster bootstrap of accuracy differences, t-intervals over seeds, Holm's correction for many comparisons.

    S  seeds of a variant      Q  questions      C  clips      R  resamples

Two sources make an observed difference uncertain: which clips the test set happens to hold (with all their questions,
which are not independent), and which seeds were trained. `compare` draws R differences from both and reads the
interval off them:

* Clips are resampled with replacement, both variants on the same draw (a paired cluster bootstrap; Efron and
  Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13).
* Seeds are too few to resample (three seeds give ten distinct draws, and a bootstrap interval of three values is far
  too narrow: Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015). Their
  part is drawn from the t distribution of the two-sample t-test instead, with the variance pooled over both variants.
* Noise that belongs to one seed on one clip is in both of these parts. Resampling both at once would count it three
  times (Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1, 2007); it is estimated from the seeds' spread
  within clips and taken out of the clips' part, which leaves it counted once.

With one seed each, only the clips' part remains: the interval is about these two trained models, not about their
training, and `Difference.covers_seeds` is False.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import compress
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t

from ...errors import RunError, SettingsError

Spread = Literal["interval", "sd"]

_BLOCK_COUNTS = 2_000_000
_REMEMBERED_COUNTS = 50_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """What the answers of one variant on a test set score.

    Attributes:
        question_ids: Q distinct ids.
        clip_ids: the clip of each question.
        values: float64 (S, Q), a row a seed: 1 for a right answer, 0 for a wrong one, or something between.
        trained: False for a rule that has no seeds (the blind baseline); then S is 1.
    """

    question_ids: tuple[str, ...]
    clip_ids: tuple[str, ...]
    values: NDArray[np.float64]
    trained: bool = True

    def __post_init__(self) -> None:
        num, shape, dtype = len(self.question_ids), self.values.shape, self.values.dtype
        if num == 0 or len(set(self.question_ids)) != num or len(self.clip_ids) != num:
            found = f"{num} question and {len(self.clip_ids)} clip ids"
            raise RunError(f"found {found}; expected distinct questions, a clip each")
        if len(shape) != 2 or shape[1] != num or dtype != np.float64:
            raise RunError(f"outcomes of shape {shape} {dtype}; expected float64 (seeds, {num})")
        if shape[0] < 1 or (not self.trained and shape[0] != 1):
            raise RunError(f"outcomes of {shape[0]} seeds; expected at least 1, just 1 for an untrained rule")

    @property
    def num_seeds(self) -> int:
        """Number of seeds, S."""
        return int(self.values.shape[0])

    def only(self, wanted: Sequence[bool]) -> Outcomes:
        """Select questions by a mask of Q truth values, at least one of them true."""
        return Outcomes(
            question_ids=tuple(compress(self.question_ids, wanted)),
            clip_ids=tuple(compress(self.clip_ids, wanted)),
            values=self.values[:, np.asarray(wanted, dtype=np.bool_)],
            trained=self.trained,
        )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Accuracy of one variant minus another's on the same questions, in percentage points."""

    points: float
    low: float
    high: float
    p_value: float
    level: float
    covers_seeds: bool

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies wholly on one side of zero."""
        return self.low > 0 or self.high < 0

    def reversed(self) -> Difference:
        """Swap the two variants."""
        return replace(self, points=-self.points, low=-self.high, high=-self.low)

    @property
    def half_width(self) -> float:
        """Half the interval's width, in points."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, kw_only=True)
class MeanInterval:
    """Mean over `num` seeds with its spread, which is None for one seed.

    Attributes:
        half: half the width of the mean's t-interval.
        sd: standard deviation of the seeds, with S - 1 in its denominator.
    """

    mean: float
    half: float | None
    num: int
    sd: float | None = None

    def spread(self, kind: Spread) -> float | None:
        """Return what stands after ±: `half` or `sd`."""
        return self.sd if kind == "sd" else self.half


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> MeanInterval:
    """Average one value per seed, with the half-width of Student's t-interval at `level` (0 < level < 1) and sd.

    >>> mean_interval([60.0, 62.0]).mean
    61.0

    Raises:
        RunError: no value.
    """
    if len(values) == 0:
        raise RunError("no value to average; expected one a seed")
    half = sd = None
    if len(values) > 1:
        sd = float(np.std(values, ddof=1))
        half = sd / math.sqrt(len(values)) * float(t.ppf((1 + level) / 2, len(values) - 1))
    return MeanInterval(mean=float(np.mean(values)), half=half, num=len(values), sd=sd)


def compare(a: Outcomes, b: Outcomes, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0) -> Difference:
    """Test the accuracy of `a` minus the accuracy of `b`: percentage points, interval at `level`, two-sided p-value.

    Args:
        a, b: outcomes on the same questions, in any order; seeds need not match in number.
        resamples: R, at least 100.
        level: of the interval, 0 < level < 1.
        seed: of the draws; the same seed gives the same interval.

    >>> ids, clips = ("q0", "q1", "q2"), ("c0", "c1", "c2")
    >>> a = Outcomes(question_ids=ids, clip_ids=clips, values=np.array([[1.0, 1.0, 0.0]]))
    >>> b = Outcomes(question_ids=ids, clip_ids=clips, values=np.array([[0.0, 1.0, 0.0]]))
    >>> round(compare(a, b).points, 1)
    33.3

    Raises:
        RunError: the two do not answer the same questions.
        SettingsError: `resamples` or `level` out of range.
    """
    if resamples < 100 or not 0 < level < 1:
        raise SettingsError(f"resamples {resamples}, level {level}: expected at least 100, and 0 < level < 1")
    values_a, values_b, clips = _aligned(a, b)
    sums_a, sums_b = _clip_sums(values_a, clips), _clip_sums(values_b, clips)  # (S, C) each
    sizes = np.bincount(clips).astype(np.float64)  # (C,)
    points = 100.0 * float(values_a.mean() - values_b.mean())
    num_clips = len(sizes)
    if num_clips < 2:
        return Difference(points=points, low=-100.0, high=100.0, p_value=1.0, level=level, covers_seeds=False)

    weights = (1.0 / a.num_seeds if a.trained else 0.0) + (1.0 / b.num_seeds if b.trained else 0.0)
    freedom = a.num_seeds + b.num_seeds - 2
    seed_variance, noise_variance = _seed_variances(sums_a, sums_b, sizes) if freedom else (0.0, 0.0)
    mean_sums = sums_a.mean(axis=0) - sums_b.mean(axis=0)  # (C,)
    clip_variance = float(np.sum(_residuals(mean_sums[None], sizes) ** 2)) / (num_clips * (num_clips - 1))
    shared = noise_variance * weights / clip_variance if clip_variance > 0 else 0.0
    scale = math.sqrt(max(0.0, 1.0 - shared) * num_clips / (num_clips - 1))

    drawn = points + scale * (100.0 * _resampled_means(mean_sums, sizes, resamples, seed) - points)  # (R,)
    if freedom:
        rng = np.random.default_rng([seed, 1])
        drawn += 100.0 * math.sqrt(seed_variance * weights) * rng.permutation(_t_strata(freedom, resamples))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    tail = min(int(np.sum(drawn <= 0)), int(np.sum(drawn >= 0)))
    p_value = min(1.0, 2.0 * (tail + 1) / (resamples + 1))
    covers = freedom > 0 or not (a.trained or b.trained)
    return Difference(
        points=points, low=float(low), high=float(high), p_value=p_value, level=level, covers_seeds=covers
    )


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Correct p-values for their number by Holm's step-down method, in the order given.

    Source: Holm, Scandinavian Journal of Statistics 6, 1979.

    >>> holm([0.01, 0.5, 0.02])
    (0.03, 0.5, 0.04)
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values)
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, values[order] * np.arange(len(values), 0, -1)))
    return tuple(corrected.tolist())


def _aligned(a: Outcomes, b: Outcomes) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Order both outcomes (S, Q) as `a` has them, and number the clip of each question (Q,)."""
    place = {name: i for i, name in enumerate(b.question_ids)}
    if odd := place.keys() ^ set(a.question_ids):
        raise RunError(
            f"the two sides answer different questions (only one has {next(iter(odd))!r}); expected the same"
        )
    order = [place[name] for name in a.question_ids]
    if [b.clip_ids[i] for i in order] != list(a.clip_ids):
        raise RunError("the two sides name different clips for one question; were the data made anew in between?")
    return a.values, b.values[:, order], pd.factorize(np.array(a.clip_ids, dtype=object))[0]


def _clip_sums(values: NDArray[np.float64], clips: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum what the answers score by clip: (S, Q) -> (S, C)."""
    return np.stack([np.bincount(clips, weights=row) for row in values])


def _residuals(sums: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linearise each clip's contribution to its row's ratio sum / size: (S, C) -> (S, C), rows with mean zero."""
    rates = sums.sum(axis=1, keepdims=True) / sizes.sum()
    residuals: NDArray[np.float64] = (sums - rates * sizes) / sizes.mean()
    return residuals


def _seed_variances(
    sums_a: NDArray[np.float64], sums_b: NDArray[np.float64], sizes: NDArray[np.float64]
) -> tuple[float, float]:
    """Pool over both variants: the variance of a seed's accuracy, and its part that is noise of a seed on a clip."""
    num_clips, freedom = len(sizes), len(sums_a) + len(sums_b) - 2
    between = within = 0.0
    for sums in (sums_a, sums_b):
        rates = sums.sum(axis=1) / sizes.sum()
        between += float(np.sum((rates - rates.mean()) ** 2))
        residuals = _residuals(sums, sizes)
        within += float(np.sum((residuals - residuals.mean(axis=0)) ** 2))
    return between / freedom, within / (freedom * (num_clips - 1) * num_clips)


def _resampled_means(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Draw C clips with replacement R times: sum of `sums` over sum of `sizes` of each draw, (R,)."""
    both = np.stack([sums, sizes], axis=1)  # (C, 2)
    remembered = resamples * len(sizes) <= _REMEMBERED_COUNTS
    parts = (_remembered_counts if remembered else _drawn_counts)(len(sizes), resamples, seed)
    drawn = np.concatenate([counts.astype(np.float64) @ both for counts in parts])  # (R, 2)
    means: NDArray[np.float64] = drawn[:, 0] / drawn[:, 1]
    return means


def _drawn_counts(num_clips: int, resamples: int, seed: int) -> Iterator[NDArray[np.uint16]]:
    """Yield how often each resample holds each clip, (R, C) cut into blocks of rows."""
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK_COUNTS // num_clips)
    for start in range(0, resamples, step):
        num = min(step, resamples - start)
        picked = rng.integers(num_clips, size=(num, num_clips)) + np.arange(num)[:, None] * num_clips
        yield np.bincount(picked.ravel(), minlength=num * num_clips).reshape(num, num_clips).astype(np.uint16)


@lru_cache(maxsize=1)  # all comparisons of a table, and of each question type, resample the same number of clips
def _remembered_counts(num_clips: int, resamples: int, seed: int) -> tuple[NDArray[np.uint16], ...]:
    return tuple(_drawn_counts(num_clips, resamples, seed))


@lru_cache(maxsize=4)
def _t_strata(freedom: int, resamples: int) -> NDArray[np.float64]:
    """Take the middle of each of R equally likely strata of Student's t: steadier than random tails, (R,)."""
    quantiles: NDArray[np.float64] = t.ppf((np.arange(resamples) + 0.5) / resamples, freedom)
    return quantiles
