"""What the statistics promise, on data whose truth is known.

Bounds are what is promised plus three standard errors of a simulated share.
"""

import math

import numpy as np
import pytest
from statsmodels.stats import power

from alignment_rl import stats
from alignment_rl.reporting import verdicts

SUITES, BENCHMARKS = 2000, 53


def error(share, n):
  return math.sqrt(share * (1 - share) / n)


def exchangeable(rng, shape):
  """Scores of two arms that share what makes an item hard, and no more."""
  hard = rng.normal(0, 2, shape)
  first, second = 1 / (1 + np.exp(-hard - rng.normal(0, 1, (2, *shape))))
  return first, second


def normal(rng, n):
  return rng.normal(size=n), np.arange(n)


def exponential(rng, n):
  return rng.exponential(size=n) - 1, np.arange(n)


def right_or_wrong(rng, n):
  """P(right) 0.6 and 0.5; in half of the items the arms share their luck."""
  luck, other = rng.random((2, n))
  control = np.where(rng.random(n) < 0.5, luck, other) < 0.5
  return (luck < 0.6) - control.astype(float) - 0.1, np.arange(n)


def twins(rng, n):
  return clustered(rng, np.full(n // 2, 2))


def uneven(rng, n):
  """Clusters of 1, 2, ... items, mean 4, cut to n items."""
  ends = np.cumsum(rng.geometric(0.25, n))
  return clustered(rng, np.diff(np.minimum(ends, n), prepend=0))


def clustered(rng, sizes):
  """Half of an item's variance is its cluster's."""
  clusters = np.repeat(np.arange(len(sizes)), sizes)
  own = rng.normal(size=len(clusters))
  return rng.normal(size=len(sizes))[clusters] + own, clusters


@pytest.mark.parametrize(
  'draw, n',
  [
    (normal, 20), (exponential, 20), (exponential, 200), (right_or_wrong, 20),
    (right_or_wrong, 100), (twins, 40), (uneven, 50), (uneven, 200),
  ],
)  # fmt: skip
def test_intervals_cover_the_truth_in_93_to_97_of_100_sets(draw, n):
  """The mean is 0. All cases here are known from 4,000 sets to lie in between.

  A percentile interval has 89.5 % of exponential differences at n = 20.
  """
  rng = np.random.default_rng(n)
  covered = 0
  for seed in range(2000):
    difference, clusters = draw(rng, n)
    found = stats.paired_difference(
      difference, np.zeros(n), clusters, seed=seed, resamples=500
    )
    covered += found.low <= 0 <= found.high
  assert 0.93 <= covered / 2000 <= 0.97, covered / 2000


def test_clusters_that_are_ignored_are_paid_for():
  rng = np.random.default_rng(0)
  covered, below = 0, 0
  for _ in range(500):
    difference, clusters = uneven(rng, 100)
    found = stats.paired_difference(difference, np.zeros(100), resamples=500)
    covered += found.low <= 0 <= found.high
    below += found.p <= 0.05
  assert covered / 500 < 0.85 and below / 500 > 0.15


def test_intervals_over_seeds_cover_the_truth():
  """Student's t is exact for normal seeds: 95 % of 2,000 sets of 3."""
  rng = np.random.default_rng(1)
  covered = 0
  for _ in range(2000):
    # What a seed does to all benchmarks alike, which items do not show.
    table = rng.normal(size=3) + 0.1 * rng.normal(size=(BENCHMARKS, 3))
    found = verdicts.across_seeds(table)
    covered += found.low <= 0 <= found.high
  assert abs(covered / 2000 - 0.95) < 3 * error(0.95, 2000)


@pytest.mark.parametrize('n, clusters', [(12, 12), (30, 12), (40, 40)])
def test_p_is_below_a_level_at_most_as_often_as_that(n, clusters):
  """Exact by all patterns for 12 values, by random ones for 40."""
  rng = np.random.default_rng(n)
  first, second = exchangeable(rng, (2000, n))
  group = np.arange(n) % clusters
  ps = np.array(
    [
      stats.sign_flip_p(np.bincount(group, d), resamples=500)
      for d in first - second
    ]
  )
  for level in (0.01, 0.05, 0.2, 0.5):
    share = (ps <= level).mean()
    assert share < level + 3 * error(level, 2000), (level, share)
    assert share > 0.8 * level - 3 * error(level, 2000), (level, share)


@pytest.mark.parametrize('real', [0, 13])
def test_false_discoveries_are_at_most_5_of_100_over_2000_suites(real):
  """53 benchmarks of 12 items, of which `real` truly differ.

  Benjamini and Hochberg: the expected share of false ones among all gains and
  regressions is at most 5 % of (53 - real) / 53.
  """
  rng = np.random.default_rng(real)
  first, second = exchangeable(rng, (SUITES, BENCHMARKS, 12))
  difference = first - second
  difference[:, :real] += 0.3
  means = difference.mean(-1)
  false, found, level = np.zeros(SUITES), np.zeros(SUITES), 0
  for i in range(SUITES):
    pairs = {
      str(b): stats.PairedDifference(
        12, means[i, b], -1, 1, stats.sign_flip_p(difference[i, b]), 12
      )
      for b in range(BENCHMARKS)
    }
    verdict = verdicts.judge(pairs, resamples=50)
    named = [int(b) for b in verdict.gains + verdict.regressions]
    found[i] = len(named)
    false[i] = sum(b >= real for b in named) / max(len(named), 1)
    level += verdict.mean.p <= 0.05
  nominal = 0.05 * (BENCHMARKS - real) / BENCHMARKS
  assert false.mean() < nominal + 3 * false.std() / math.sqrt(SUITES)
  if real:
    assert found.mean() > 0.5 * real  # with power, so that it says something
  else:
    # Nothing differs: a discovery is a false one, and the suite's own test
    # rejects in 5 % too.
    assert false.max() == 1
    assert level / SUITES < 0.05 + 3 * error(0.05, SUITES)


@pytest.mark.parametrize('n, effect', [(30, 0.5), (100, 0.3), (100, 0.0)])
def test_power_is_that_of_the_t_test(n, effect):
  """For normal differences the permutation test is as strong, within 2 %."""
  rng = np.random.default_rng(n)
  values = rng.normal(effect, 1, (1500, n))
  found = np.mean([stats.sign_flip_p(v, resamples=500) <= 0.05 for v in values])
  known = power.TTestPower().power(effect, n, 0.05)
  assert abs(found - known) < 0.02 + 3 * error(known, 1500)
