import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats import multitest

from alignment_rl import stats
from alignment_rl.reporting import verdicts

NAN = float('nan')


def pair(difference, p=1.0, n=50, half=0.1):
  return stats.PairedDifference(
    n, difference, difference - half, difference + half, p, n
  )


def test_benchmarks_are_counted_and_their_mean_is_unweighted():
  found = verdicts.judge(
    {
      'a': pair(0.3, n=500, half=0.1),
      'b': pair(-0.1, n=20, half=0.2),
      'c': pair(0.0, half=0.4),
      'd': pair(0.2, half=NAN),
      'none': stats.PairedDifference(0, NAN, NAN, NAN, NAN, 0),
    }
  )
  assert (found.ahead, found.behind, found.mean.n) == (2, 1, 4)
  assert found.mean.difference == pytest.approx((0.3 - 0.1 + 0 + 0.2) / 4)
  assert found.half_width == pytest.approx(0.2)
  assert found.seeds is None and 'none' not in found.q


def test_gains_and_regressions_are_what_the_false_discovery_rate_leaves():
  # Benjamini-Hochberg by hand, p * 6 / rank: 0.006, 0.03, 0.06, 0.06 (the least
  # from above), 0.9, 1: significant are the first two.
  ps = [0.001, 0.01, 0.03, 0.04, 0.75, 1.0]
  signs = [1, -1, 1, 1, 1, -1]
  pairs = {f'b{i}': pair(0.1 * signs[i], ps[i]) for i in range(6)}
  found = verdicts.judge(pairs)
  assert list(found.q.values()) == pytest.approx(
    [0.006, 0.03, 0.06, 0.06, 0.9, 1.0]
  )
  assert (found.gains, found.regressions) == (['b0'], ['b1'])


def test_q_agrees_with_statsmodels():
  ps = np.random.default_rng(0).random(53) ** 3
  found = verdicts.judge({str(i): pair(0.1, p) for i, p in enumerate(ps)})
  _, reference, _, _ = multitest.multipletests(ps, method='fdr_bh')
  assert list(found.q.values()) == pytest.approx(reference)


def test_swapped_arms_swap_gains_and_regressions():
  ps = [0.001, 0.002, 0.003, 0.5, 0.6, 0.7]
  signs = [1, 1, -1, 1, 0, -1]
  pairs = {str(i): pair(0.1 * signs[i], ps[i]) for i in range(6)}
  swapped = {
    name: dataclasses.replace(
      p, difference=-p.difference, low=-p.high, high=-p.low
    )
    for name, p in pairs.items()
  }
  one, two = verdicts.judge(pairs), verdicts.judge(swapped)
  assert (one.gains, one.regressions) == (two.regressions, two.gains)
  assert (one.ahead, one.behind) == (two.behind, two.ahead) == (3, 2)
  assert one.q == two.q and one.mean.p == two.mean.p
  assert one.mean.low == pytest.approx(-two.mean.high)


def test_suite_test_is_the_sign_flip_of_benchmark_differences():
  # Of 2^6 patterns of signs only all + and all - reach the observed mean.
  found = verdicts.judge({str(i): pair(0.1 + 0.01 * i) for i in range(6)})
  assert found.mean.p == 2 / 64


def test_nothing_to_judge():
  found = verdicts.judge({'none': stats.PairedDifference(0, *[NAN] * 4, 0)})
  assert (found.mean.n, found.ahead, found.q, found.gains) == (0, 0, {}, [])
  assert math.isnan(found.half_width)


def test_seeds_are_the_unit():
  # Means of the three seeds 0.1, 0.2, 0.6: mean 0.3, sd 0.2646, t(2) = 4.303.
  table = [[0.0, 0.1, 0.5], [0.2, 0.3, 0.7], [NAN, 0.9, 0.9]]
  found = verdicts.across_seeds(table)
  assert (found.n, found.clusters, found.dropped) == (3, 3, 1)
  assert found.difference == pytest.approx(0.3)
  half = 4.3027 * 0.264575 / math.sqrt(3)
  assert found.low == pytest.approx(0.3 - half, abs=1e-4)
  assert found.high == pytest.approx(0.3 + half, abs=1e-4)
  assert found.p == pytest.approx(
    scipy.stats.ttest_rel([0.1, 0.2, 0.6], [0, 0, 0]).pvalue
  )


def test_one_seed_has_no_interval_and_no_benchmark_no_seeds():
  found = verdicts.across_seeds([[0.1], [0.3]])
  assert (found.n, found.difference) == (1, pytest.approx(0.2))
  assert np.isnan([found.low, found.high, found.p]).all()
  found = verdicts.across_seeds([[NAN, 0.3]])
  assert (found.n, found.dropped) == (0, 1)
  assert math.isnan(found.difference)


def test_a_verdict_of_several_seeds_has_their_interval():
  by_seed = {'a': [0.1, 0.3], 'b': [0.3, 0.5]}
  found = verdicts.judge({'a': pair(0.2), 'b': pair(0.4)}, by_seed)
  assert found.seeds == verdicts.across_seeds([[0.1, 0.3], [0.3, 0.5]])


def test_noise_floor_by_hand():
  # 'a': items 0.2, 0.4 / 0.4, 0.4 / 0.2, 0.8: means apart 0.1, 0.2, 0.1.
  # 'b': 0.5, NaN / 0.2, 0.9 / 0.4, 0.1: over shared items -0.3, -0.1, -0.3.
  scores = {
    'a': [[0.2, 0.4], [0.4, 0.4], [0.2, 0.8]],
    'b': [[0.5, NAN], [0.2, 0.9], [0.4, 0.1]],
    'unscored': [[0.5], [NAN], [0.5]],
  }
  found = verdicts.noise_floor(scores)
  assert found.runs == 3
  assert found.benchmarks == pytest.approx({'a': 0.2, 'b': 0.3})
  # Means of (0.1, -0.3), (0.2, -0.1), (0.1, -0.3).
  assert found.mean == pytest.approx(0.1)
  assert found.ahead == (1, 1)


def test_noise_floor_counts_who_is_ahead_in_both_directions():
  first, second = np.zeros((2, 5, 3))
  second[:4] = 0.1
  scores = {str(i): [first[i], second[i]] for i in range(5)}
  assert verdicts.noise_floor(scores).ahead == (0, 4)


def test_a_difference_is_inside_or_outside_of_the_floor():
  floor = verdicts.NoiseFloor(2, {'a': 0.02, 'b': 0.0}, 0.008, (0, 2))
  assert floor.holds(0.008) and floor.holds(-0.008)
  assert not floor.holds(-0.0081)
  assert floor.holds(0.015, 'a') and not floor.holds(0.001, 'b')
  assert floor.sentence() == (
    '2 control runs that differ in seed alone are up to 0.8 points apart in '
    'the mean over benchmarks; one is ahead of another on 0 to 2 of 2.'
  )


@pytest.mark.parametrize('scores', [{}, {'a': [[1]]}, {'a': [[1]] * 2, 'b': 1}])
def test_noise_floor_takes_two_runs(scores):
  scores = {k: np.zeros((3, 1)) if v == 1 else v for k, v in scores.items()}
  with pytest.raises(ValueError, match='two or more runs'):
    verdicts.noise_floor(scores)


def test_a_floor_of_two_runs_is_left_by_chance_half_of_the_time():
  """As `NoiseFloor.holds` says; 2,000 cases have a standard error of 1.1 %."""
  rng = np.random.default_rng(1)
  outside = 0
  for _ in range(2000):
    first, second, other = rng.normal(size=3)
    floor = verdicts.noise_floor({'a': [[first], [second]]})
    outside += not floor.holds(other - first)
  assert abs(outside / 2000 - 0.5) < 3 * math.sqrt(0.25 / 2000)
