"""What do the differences on all benchmarks say together?

Over benchmarks, over seeds, and against what a seed alone does.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from alignment_rl import stats

RATE = 0.05  # of false discoveries among the gains and regressions


@dataclasses.dataclass(frozen=True)
class Verdict:
  """An arm against the control over benchmarks.

  Attributes:
    mean: unweighted mean of the benchmarks' differences; its n counts those
      that have a pair. Its interval asks whether another set of such benchmarks
      would agree, its p is the sign-flip test: the mean if the arms changed
      places in benchmarks chosen at random.
    ahead: benchmarks with a difference above 0.
    behind: below 0.
    q: name -> Benjamini-Hochberg adjusted p-value.
    gains: names of those ahead with q <= 0.05.
    regressions: of those behind.
    half_width: median over benchmarks of half an interval; NaN without any.
    seeds: mean of the runs' means, with seeds as the unit; None for one run.
  """

  mean: stats.PairedDifference
  ahead: int
  behind: int
  q: dict[str, float]
  gains: list[str]
  regressions: list[str]
  half_width: float
  seeds: stats.PairedDifference | None = None


def judge(
  pairs: Mapping[str, stats.PairedDifference],
  by_seed: Mapping[str, ArrayLike] | None = None,
  *,
  resamples: int = 10_000,
) -> Verdict:
  """Sums up an arm.

  Args:
    pairs: benchmark -> its difference.
    by_seed: benchmark -> float [S], the difference in each of S pairs of runs.
    resamples: of the mean's interval and p.
  """
  pairs = {name: p for name, p in pairs.items() if p.n}
  difference = {name: p.difference for name, p in pairs.items()}
  values = np.array(list(difference.values()))
  # Step-up procedure of Benjamini and Hochberg (1995).
  q = scipy_stats.false_discovery_control([p.p for p in pairs.values()])
  q = dict(zip(pairs, q.tolist(), strict=True))
  found = [name for name in pairs if q[name] <= RATE]
  halves = [(p.high - p.low) / 2 for p in pairs.values()]
  known = [half for half in halves if not math.isnan(half)]
  return Verdict(
    mean=stats.paired_difference(
      values, np.zeros(len(values)), resamples=resamples
    ),
    ahead=int((values > 0).sum()),
    behind=int((values < 0).sum()),
    q=q,
    gains=[name for name in found if difference[name] > 0],
    regressions=[name for name in found if difference[name] < 0],
    half_width=float(np.median(known)) if known else math.nan,
    seeds=across_seeds(list(by_seed.values())) if by_seed else None,
  )


def across_seeds(differences: ArrayLike) -> stats.PairedDifference:
  """The mean difference with seeds as the unit: would another seed agree?

  Student's t on one mean over benchmarks for each seed. It holds what differs
  between trainings, which no number of items or benchmarks shows.

  Args:
    differences: float [B, S], of B benchmarks in S pairs of runs. A benchmark
      that is NaN in one of them leaves all, so that all means are of the same.

  Returns:
    n and clusters count seeds, `dropped` the benchmarks left out. Interval and
    p are NaN below two seeds.
  """
  differences = np.asarray(differences, np.float64)
  kept = differences[~np.isnan(differences).any(1)]
  dropped = len(differences) - len(kept)
  n = differences.shape[1] if len(kept) else 0
  if not n:
    nan = math.nan
    return stats.PairedDifference(0, nan, nan, nan, nan, 0, dropped)
  means = kept.mean(0)
  low, high, p = (math.nan,) * 3
  if n > 1:
    test = scipy_stats.ttest_1samp(means, 0)
    low, high = test.confidence_interval(stats.LEVEL)
    p = test.pvalue
  return stats.PairedDifference(
    n, float(means.mean()), float(low), float(high), float(p), n, dropped
  )


@dataclasses.dataclass(frozen=True)
class NoiseFloor:
  """What control runs that differ in seed alone show.

  Attributes:
    runs: how many.
    benchmarks: name -> largest distance between two of them.
    mean: largest distance of their means over benchmarks.
    ahead: fewest and most benchmarks on which one of two is ahead.
  """

  runs: int
  benchmarks: dict[str, float]
  mean: float
  ahead: tuple[int, int]

  def holds(self, difference: float, benchmark: str | None = None) -> bool:
    """Whether seeds alone showed such a difference, by default of the mean.

    Inside, nothing can be claimed. Outside is little by itself: where nothing
    differs, a further run lies outside in 50 % of cases with two control runs,
    29 % with three, 14 % with five (normal noise); see `across_seeds`.
    """
    limit = self.mean if benchmark is None else self.benchmarks[benchmark]
    return abs(difference) <= limit

  def sentence(self) -> str:
    low, high = self.ahead
    return (
      f'{self.runs} control runs that differ in seed alone are up to '
      f'{100 * self.mean:.1f} points apart in the mean over benchmarks; one is '
      f'ahead of another on {low} to {high} of {len(self.benchmarks)}.'
    )


def noise_floor(scores: Mapping[str, ArrayLike]) -> NoiseFloor:
  """Compares every two of k control runs, paired by item.

  Args:
    scores: benchmark -> float [k, n], NaN = unscored. A benchmark where two
      runs share no scored item is left out.

  Raises:
    ValueError: fewer than two runs, or not the same number everywhere.
  """
  scores = {name: np.asarray(s, np.float64) for name, s in scores.items()}
  sizes = {len(s) for s in scores.values()}
  if len(sizes) != 1 or min(sizes) < 2:
    raise ValueError(f'expected two or more runs everywhere, got {sizes}')
  (k,) = sizes
  pairs = list(itertools.combinations(range(k), 2))
  apart = {  # float [pairs] for each
    name: stats.known_mean(np.stack([s[j] - s[i] for i, j in pairs], 1))
    for name, s in scores.items()
  }
  apart = {n: d for n, d in apart.items() if not np.isnan(d).any()}
  table = np.array(list(apart.values())).reshape(-1, len(pairs))
  ahead = [*(table > 0).sum(0), *(table < 0).sum(0)]
  return NoiseFloor(
    runs=k,
    benchmarks={name: float(np.abs(d).max()) for name, d in apart.items()},
    mean=float(np.abs(table.mean(0)).max()) if len(table) else math.nan,
    ahead=(int(min(ahead)), int(max(ahead))),
  )
