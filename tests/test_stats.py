import numpy as np
import pytest

from alignment_rl import stats

NAN = float('nan')


def test_paired_bootstrap_difference_is_the_hand_worked_mean():
  # Differences 1, 0, -0.5, 0.5 over the four items scored twice: mean 0.25.
  treatment = np.array([1.0, 0.0, 0.5, 1.0, NAN, 0.3])
  control = np.array([0.0, 0.0, 1.0, 0.5, 1.0, NAN])
  found = stats.paired_bootstrap(treatment, control)
  assert (found.n, found.dropped) == (4, 2)
  assert found.difference == 0.25


def test_paired_bootstrap_interval_of_two_items_is_its_two_extremes():
  # Differences 0 and 1: a draw of two has mean 0, 1/2, 1 with probability
  # 1/4, 1/2, 1/4, so the 2.5 % and 97.5 % points are 0 and 1.
  found = stats.paired_bootstrap(np.array([0.0, 1.0]), np.zeros(2))
  assert (found.difference, found.low, found.high) == (0.5, 0.0, 1.0)


def test_paired_bootstrap_interval_agrees_with_the_binomial():
  # 40 of 100 items differ by 1: a resampled mean is Binomial(100, 0.4) / 100,
  # with standard deviation sqrt(0.24 / 100) = 0.049, so 1.96 of it is 0.096.
  treatment = np.repeat([1.0, 0.0], [40, 60])
  found = stats.paired_bootstrap(treatment, np.zeros(100))
  assert found.difference == pytest.approx(0.4)
  assert found.low == pytest.approx(0.304, abs=0.01)
  assert found.high == pytest.approx(0.496, abs=0.01)


def test_paired_bootstrap_of_equal_differences_has_no_width():
  found = stats.paired_bootstrap(np.full(9, 0.75), np.full(9, 0.5))
  assert (found.difference, found.low, found.high) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize('score, n', [(NAN, 0), (1.0, 1)])
def test_paired_bootstrap_of_less_than_two_pairs_has_no_interval(score, n):
  found = stats.paired_bootstrap(np.array([score, NAN]), np.array([0.5, 1.0]))
  assert (found.n, found.dropped) == (n, 2 - n)
  assert np.isnan([found.low, found.high]).all()
  np.testing.assert_equal(found.difference, 0.5 if n else NAN)


def test_paired_bootstrap_swapped_arms_swap_the_interval_exactly():
  rng = np.random.default_rng(1)
  a, b = rng.random(31), rng.random(31)
  one, two = stats.paired_bootstrap(a, b), stats.paired_bootstrap(b, a)
  assert one.difference == pytest.approx(-two.difference, abs=1e-15)
  assert one.low == pytest.approx(-two.high, abs=1e-15)
  assert one.high == pytest.approx(-two.low, abs=1e-15)


def test_paired_bootstrap_does_not_depend_on_the_order_of_items():
  rng = np.random.default_rng(2)
  a, b, order = rng.random(31), rng.random(31), rng.permutation(31)
  a[3] = NAN
  assert stats.paired_bootstrap(a, b) == stats.paired_bootstrap(
    a[order], b[order]
  )


def test_paired_bootstrap_blocks_do_not_change_the_distribution(monkeypatch):
  rng = np.random.default_rng(3)
  a, b = rng.random(50), rng.random(50)
  whole = stats.paired_bootstrap(a, b)
  monkeypatch.setattr(stats, '_BLOCK', 50 * 64)
  parts = stats.paired_bootstrap(a, b)
  assert parts == whole  # the same stream of draws, cut in pieces


def test_paired_bootstrap_interval_covers_the_truth_19_times_in_20():
  # Items are independent; half of them share their luck between the arms, as
  # paired items do. P(right) is 0.6 and 0.5, so the truth is 0.1. A 95 %
  # interval covers 400 sets with a standard error of 1.1 %; 90 to 98 % leaves
  # room for that and for the percentile interval's own lack of about 1 %.
  rng = np.random.default_rng(4)
  covered = 0
  for _ in range(400):
    luck, other = rng.random(60), rng.random(60)
    treatment = luck < 0.6
    control = np.where(rng.random(60) < 0.5, luck, other) < 0.5
    found = stats.paired_bootstrap(treatment, control, resamples=1000)
    covered += found.low <= 0.1 <= found.high
  assert 0.90 <= covered / 400 <= 0.98, covered / 400


def test_paired_bootstrap_refuses_arrays_of_different_length():
  with pytest.raises(ValueError, match=r'\(3,\) and \(2,\)'):
    stats.paired_bootstrap(np.zeros(3), np.zeros(2))


def test_mean_over_benchmarks_weighs_each_benchmark_once():
  # (0.1 + 0.3 - 0.1) / 3 = 0.1; the benchmark without a pair does not count.
  found = stats.mean_over_benchmarks([0.1, NAN, 0.3, -0.1])
  assert (found.n, found.dropped) == (3, 1)
  assert found.difference == pytest.approx(0.1)
  # 27 draws of 3: only (-0.1, -0.1, -0.1), 3.7 %, lies at the lowest mean.
  assert found.low == pytest.approx(-0.1)
  assert found.high == pytest.approx(0.3)


def test_judge_counts_and_marks_what_few_items_decide():
  rng = np.random.default_rng(5)
  noise = rng.normal(0, 0.1, 50)
  pairs = {
    'up': stats.paired_bootstrap(noise + 1, np.zeros(50)),
    'down': stats.paired_bootstrap(noise - 1, np.zeros(50)),
    # 5 of 50 moved, all one way: excludes 0, yet five items do not tell.
    'thin': stats.paired_bootstrap(np.repeat([1.0, 0], [5, 45]), np.zeros(50)),
    'level': stats.paired_bootstrap(noise, noise),
    'none': stats.paired_bootstrap(np.full(50, NAN), noise),
  }
  found = stats.judge(pairs)
  assert (found.ahead, found.behind, found.mean.n) == (2, 1, 4)
  assert found.up == ['up', 'thin']
  assert found.down == ['down']
  assert found.thin == ['thin']
  assert found.mean.difference == pytest.approx(
    (noise.mean() + 1 + noise.mean() - 1 + 0.1) / 4
  )


def test_curve_averages_parts_and_leaves_out_what_was_not_measured():
  values = np.array([1.0, NAN, 3.0, 5.0, 7.0])
  found = stats.curve(np.arange(5.0), values, points=2, window=0.0)
  # Steps 0, 2 and 3, 4 remain: means (1, 2) and (3.5, 6), unsmoothed.
  np.testing.assert_array_equal(found, [[1, 3.5], [2, 6], [2, 6]])


def test_curve_average_at_the_ends_is_over_what_there_is():
  found = stats.curve(
    np.arange(6.0), np.array([6.0, 0, 0, 0, 0, 9]), points=100, window=0.5
  )
  # A window of 3: (6 + 0) / 2, (6 + 0 + 0) / 3, 0, 0, 9 / 3, (0 + 9) / 2.
  np.testing.assert_allclose(found[2], [3, 2, 0, 0, 3, 4.5])


def test_curve_of_nothing_is_empty():
  nothing = np.array([NAN, NAN])
  assert stats.curve(np.arange(2), nothing, points=9, window=0.1).size == 0


def test_ticks_enclose_the_values_in_few_equal_steps():
  rng = np.random.default_rng(6)
  spans = np.sort(rng.normal(size=(300, 2)), 1) * 10.0 ** rng.integers(
    -8, 8, size=(300, 1)
  )
  for low, high in [(0, 0), (1, 1), (-3, -3), (0.8, 8.2), *spans]:
    found = stats.ticks(low, high)
    slack = 1e-9 * max(abs(low), abs(high))
    assert found[0] <= low + slack and found[-1] >= high - slack
    assert 4 <= len(found) <= 10
    np.testing.assert_allclose(np.diff(found), found[1] - found[0])


def test_ticks_are_round():
  assert stats.ticks(3, 58) == [0, 10, 20, 30, 40, 50, 60]
