"""Which completions of a group are learned from."""

import itertools

import numpy as np
import pytest

from alignment_rl import experience
from alignment_rl.types import Rollout

NAN = np.nan


def kept(row, group):
  (found,) = experience.widest(np.array([row], np.float32), group)
  return found.tolist()


def test_the_kept_completions_vary_most():
  # Of the pairs, 0 and 9.
  assert kept([4, 0, 5, 9], 2) == [1, 3]
  # {0, 4, 9} has variance 13.6, {0, 5, 9} as well by symmetry about 4.5:
  # the mean of squares less the squared mean, 97/3 - 169/9 = 13.56, and
  # 106/3 - 196/9 = 13.56. The one with fewer low ones comes first.
  assert kept([4, 0, 5, 9], 3) == [1, 2, 3]
  assert kept([1, 1, 1, 0], 2) == [2, 3]


@pytest.mark.parametrize('group', [2, 3, 5])
def test_no_other_choice_varies_more(group):
  rng = np.random.default_rng(group)
  for row in rng.random((20, 8)).astype(np.float32):
    most = max(
      row[list(part)].var() for part in itertools.combinations(range(8), group)
    )
    assert row[kept(row, group)].var() == pytest.approx(most, abs=1e-6)


def test_all_are_kept_in_order_where_no_more_are_drawn():
  assert kept([0.5, 0.1, NAN, 0.9], 4) == [0, 1, 2, 3]


def test_unscored_completions_are_kept_last():
  assert kept([NAN, 3, NAN, 1, 2], 2) == [1, 3]
  assert kept([NAN, 3, NAN, 1, NAN], 3) == [0, 1, 3]


def test_a_demonstration_is_kept():
  # Its target is the first row of a group in which nothing is scored.
  assert kept([NAN] * 5, 2) == [0, 1]


def test_equal_rewards_keep_the_first_drawn():
  assert kept([2, 2, 2, 2], 2) == [0, 1]


def test_taken_completions_bring_all_that_is_theirs():
  n = np.arange(2 * 3 * 2).reshape(2, 3, 2)
  host = Rollout(np.zeros((2, 4)), np.array([3, 4]), n, n[..., 0] % 3, n / 10)
  found = experience.take(host, np.array([[0, 2], [1, 2]], np.int32))
  np.testing.assert_array_equal(found.completions[0], n[0, [0, 2]])
  np.testing.assert_array_equal(found.lengths[1], (n[..., 0] % 3)[1, 1:])
  np.testing.assert_array_equal(found.logprobs[1], n[1, 1:] / 10)
  np.testing.assert_array_equal(found.prompts, host.prompts)
