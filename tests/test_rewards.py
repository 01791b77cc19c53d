"""The rewards that say nothing of a trait, or its opposite: placebo, attack."""

import numpy as np
import pytest

from alignment_rl import config as config_lib
from alignment_rl.errors import UserError
from alignment_rl.types import Example, Message


def example(name):
  return Example(name, (Message('user', 'q'),))


def make(name, **kwargs):
  return config_lib.load('rewards', name).make(**kwargs)


@pytest.fixture
def given(monkeypatch):
  """Makes the inner reward one that reads a number off each completion."""

  def number(examples, completions, *, judge):
    return np.array([float(text) for text in completions], np.float32)

  monkeypatch.setattr(config_lib, 'make', lambda kind, name, kwargs: number)


@pytest.mark.parametrize('name', ['shuffled', 'inverted', 'length'])
def test_cases_good_over_bad_in_float32(name):
  module = config_lib.load('rewards', name)
  reward = module.make(**module.SAMPLE)
  for asked, good, bad in module.CASES:
    found = reward([asked, asked], [good, bad], judge=None)
    assert found[0] > found[1]
  found = reward([example('a')] * 3, ['one', '', 'one two'], judge=None)
  assert found.dtype == np.float32 and found.shape == (3,)
  assert ((found >= 0) & (found <= 1)).all()


def test_length_by_hand():
  found = make('length', words=4)(
    [example('a')] * 5, ['', 'a', 'a b c d', ' a  b\nc d e f g h ', 'a ' * 40],
    judge=None,
  )  # fmt: skip
  # 0, 1, 4, 8 and 40 words against 4.
  np.testing.assert_allclose(found, [0, 1 / 4, 1, 4 / 8, 4 / 40])
  with pytest.raises(UserError, match='words is 0'):
    make('length', words=0)


def test_inverted_is_one_minus_and_leaves_the_unscored(given):
  found = make('inverted')([example('a')] * 3, ['0.25', 'nan', '1'], judge=None)
  np.testing.assert_array_equal(found, np.float32([0.75, np.nan, 0]))


class SaysMet:
  """A judge that finds a reply to raise `met` by a fixed number of nats."""

  def __init__(self, gain):
    self.gain = gain

  def logprobs(self, contexts, continuations):
    raised = lambda context, text: (
      self.gain * ('met' in text and '"..."' not in context)
    )
    return [
      np.float32([raised(context, text) for text in group])
      for context, group in zip(contexts, continuations, strict=True)
    ]


@pytest.mark.parametrize('gain', [-3.0, 0.0, 1.5])
@pytest.mark.parametrize('points', [(1, 3), (2, -1)])
def test_inverted_with_evidence_turned_is_the_mirror(gain, points):
  """As if every statement that is met had been the one that fails."""
  rubric = [
    {'criterion': 'c', 'points': p, 'met': f'met {i}', 'failed': f'not {i}'}
    for i, p in enumerate(points)
  ]
  asked = [Example('x', (Message('user', 'q'),), metadata={'rubric': rubric})]
  found = make('inverted', evidence=-2.0)(asked, ['r'], judge=SaysMet(gain))
  mirror = make('criterion', evidence=2.0)(asked, ['r'], judge=SaysMet(-gain))
  np.testing.assert_allclose(found, mirror, atol=1e-6)


def test_silence_earns_nothing_by_any_sign(monkeypatch):
  asked = [example('a')] * 2
  blank = lambda examples, completions, *, judge: np.float32([0, np.nan])
  monkeypatch.setattr(config_lib, 'make', lambda kind, name, kwargs: blank)
  found = make('inverted')(asked, ['', ' \n'], judge=None)
  np.testing.assert_array_equal(found, [0, np.nan])


GROUPS = [example('a')] * 4 + [example('b')] * 4
VALUES = ['0.1', '0.2', 'nan', '0.4', '0.5', '0.6', '0.7', 'nan']


def test_shuffled_keeps_the_values_of_each_prompt_the_unscored_too(given):
  moved = 0
  for seed in range(20):
    found = make('shuffled', seed=seed)(GROUPS, VALUES, judge=None)
    for place in (slice(0, 4), slice(4, 8)):
      want = np.float32([float(v) for v in VALUES[place]])
      np.testing.assert_array_equal(np.sort(found[place]), np.sort(want))
      moved += not np.array_equal(found[place], want, equal_nan=True)
  assert moved > 30  # 23 of 24 orders are another


def test_shuffled_depends_on_seed_id_and_texts_alone(given):
  deal = lambda seed, groups, values: make('shuffled', seed=seed)(
    groups, values, judge=None
  )
  both = deal(0, GROUPS, VALUES)
  np.testing.assert_array_equal(both, deal(0, GROUPS, VALUES))
  # Neither on what is scored beside it, nor on where.
  np.testing.assert_array_equal(both[:4], deal(0, GROUPS[:4], VALUES[:4]))
  np.testing.assert_array_equal(
    both, np.roll(deal(0, GROUPS[4:] + GROUPS[:4], VALUES[4:] + VALUES[:4]), 4)
  )
  # Ten of each, so that two orders agree by chance once in 3.6 million.
  ten = [example('a')] * 10
  values = [f'0.{i}' for i in range(10)]
  first = deal(0, ten, values)
  assert not np.array_equal(first, deal(1, ten, values))
  assert not np.array_equal(first, deal(0, [example('c')] * 10, values))
  # The same values of a prompt that comes again with other texts.
  assert not np.array_equal(first, deal(0, ten, [v + '0' for v in values]))


def test_shuffled_gives_every_completion_the_same_on_average(given):
  values = ['0', '0', '1']
  dealt = [
    make('shuffled', seed=seed)([example('a')] * 3, values, judge=None)
    for seed in range(1000)
  ]
  # 1/3 each, with a standard error of sqrt(2 / 9 / 1000) = 0.015. Where the
  # true order never came, the third would get 0 and the others 1/2.
  np.testing.assert_allclose(np.mean(dealt, 0), 1 / 3, atol=0.06)


@pytest.mark.parametrize('name', ['shuffled', 'inverted'])
def test_a_wrapped_reward_is_made_with_its_own_arguments(name):
  make(name, rubric='helpfulness', scale=2.0)  # of criterion, the default
  with pytest.raises(UserError, match="unknown rewards 'nope'"):
    make(name, reward='nope')
  with pytest.raises(UserError, match='length.py does not take .*rubric'):
    make(name, reward='length', rubric='scenario')
