import numpy as np

from alignment_rl.reporting import curves

NAN = float('nan')


def test_curve_averages_parts_and_leaves_out_what_was_not_measured():
  values = np.array([1.0, NAN, 3.0, 5.0, 7.0])
  found = curves.curve(np.arange(5.0), values, points=2, window=0.0)
  # Steps 0, 2 and 3, 4 remain: means (1, 2) and (3.5, 6), unsmoothed.
  np.testing.assert_array_equal(found, [[1, 3.5], [2, 6], [2, 6]])


def test_curve_average_at_the_ends_is_over_what_there_is():
  found = curves.curve(
    np.arange(6.0), np.array([6.0, 0, 0, 0, 0, 9]), points=100, window=0.5
  )
  # A window of 3: (6 + 0) / 2, (6 + 0 + 0) / 3, 0, 0, 9 / 3, (0 + 9) / 2.
  np.testing.assert_allclose(found[2], [3, 2, 0, 0, 3, 4.5])


def test_curve_of_nothing_is_empty():
  nothing = np.array([NAN, NAN])
  assert curves.curve(np.arange(2), nothing, points=9, window=0.1).size == 0


def test_ticks_enclose_the_values_in_few_equal_steps():
  rng = np.random.default_rng(6)
  spans = np.sort(rng.normal(size=(300, 2)), 1) * 10.0 ** rng.integers(
    -8, 8, size=(300, 1)
  )
  for low, high in [(0, 0), (1, 1), (-3, -3), (0.8, 8.2), *spans]:
    found = curves.ticks(low, high)
    slack = 1e-9 * max(abs(low), abs(high))
    assert found[0] <= low + slack and found[-1] >= high - slack
    assert 4 <= len(found) <= 10
    np.testing.assert_allclose(np.diff(found), found[1] - found[0])


def test_ticks_are_round():
  assert curves.ticks(3, 58) == [0, 10, 20, 30, 40, 50, 60]
