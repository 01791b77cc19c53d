"""Benchmarks and rewards as plug-ins, and the two protocols by hand."""

import numpy as np
import pytest

from alignment_rl import config as config_lib
from alignment_rl import suite
from alignment_rl.errors import UserError
from alignment_rl.types import Example, Message

CHOICE = [b for b in suite.discover().values() if b.protocol == 'choice']
GENERATE = [b for b in suite.discover().values() if b.protocol == 'generate']


class FixedJudge:
  """Log-probabilities by text, so that a score can be worked by hand."""

  def __init__(self, table):
    self.table = table

  def logprobs(self, contexts, continuations, progress=lambda done: None):
    return [
      np.array([self.table[c] for c in group], np.float32)
      for group in continuations
    ]


def choose(normalise):
  benchmark = suite.Benchmark('a/b', 'a', 'choice', list, normalise=normalise)
  item = Example('x', (Message('user', 'q'),), choices=('yes!', 'no'))
  # log p: 'yes!' -2, 'no' -1; tokens (characters here) and bytes 4 and 2.
  judge = FixedJudge({'yes!': -2.0, 'no': -1.0})
  return suite.choose(benchmark, [item], judge, lambda e: 'q', len)[0]


def test_choice_probability_by_hand():
  # Summed: e^-2 / (e^-2 + e^-1) = 1 / (1 + e) = 0.2689.
  assert choose('sum')['score'] == pytest.approx(0.268941, abs=1e-6)
  assert choose('sum')['accuracy'] == 0
  # Per token and per byte: -0.5 against -0.5, so even, and no win.
  for normalise in ('token', 'byte'):
    assert choose(normalise)['score'] == pytest.approx(0.5)
    assert choose(normalise)['accuracy'] == 0


def test_unscored_is_none_and_leaves_the_mean():
  benchmark = suite.Benchmark(
    'a/b', 'a', 'generate', list,
    score=lambda examples, texts, judge: np.array([1.0, np.nan, 0.5]),
  )  # fmt: skip
  items = [Example(str(i), ()) for i in range(3)]
  records = suite.generate(benchmark, items, ['x', 'y', 'z'], None)
  assert [r['score'] for r in records] == [1.0, None, 0.5]
  line = suite.summarise(benchmark, records)
  assert (line['n'], line['unscored'], line['score']) == (2, 1, 0.75)


def test_select_by_name_area_and_all():
  names = [b.name for b in suite.select('traits/mirrors,capability')]
  assert names[0] == 'traits/mirrors'
  assert all(n.startswith('capability/') for n in names[1:]) and len(names) > 2
  assert len(suite.select('all')) == len(suite.discover()) >= 6
  with pytest.raises(UserError, match="unknown benchmark 'nope'"):
    suite.select('nope')


@pytest.mark.parametrize('benchmark', CHOICE, ids=lambda b: b.name)
def test_choice_benchmarks_have_paired_choices(benchmark):
  items = list(benchmark.load())
  assert items and [e.id for e in items] == [e.id for e in benchmark.load()]
  assert len({e.id for e in items}) == len(items)
  for e in items:
    assert len(e.choices) >= 2 and len(set(e.choices)) == len(e.choices)
    assert e.messages[-1].role == 'user'


def test_on_mirrors_each_reply_is_right_as_often_as_wrong():
  """A preference for a reply, whatever the prompt, scores one half."""
  items = suite.discover()['traits/mirrors'].load()
  right = sorted(e.choices[0] for e in items)
  wrong = sorted(e.choices[1] for e in items)
  assert right == wrong and len(items) >= 10


def test_held_out_items_are_not_trained_on():
  for stream, module in (
    ('traits', {}),
    ('reasoning', {'size': 300, 'seed': 0}),
    ('instructions', {'size': 300, 'seed': 0}),
  ):
    train, held = (
      {
        e.messages
        for e in config_lib.make('streams', stream, {'split': s} | module)
      }
      for s in ('train', 'held_out')
    )
    assert train and held and not train & held


@pytest.mark.parametrize(
  'benchmark',
  [b for b in GENERATE if b.area == 'capability'],
  ids=lambda b: b.name,
)
def test_demo_right_scores_over_wrong(benchmark):
  example, right, wrong = benchmark.demo()
  scores = benchmark.score([example, example], [right, wrong], judge=None)
  assert scores[0] > scores[1]


@pytest.mark.parametrize('name', ['reasoning', 'instructions'])
def test_reward_cases_good_over_bad(name):
  module = config_lib.load('rewards', name)
  assert module.CASES
  for example, good, bad in module.CASES:
    scores = module.make()([example, example], [good, bad], judge=None)
    assert scores.dtype == np.float32 and scores[0] > scores[1]


class SaysMet:
  """A judge that finds each reply to raise `met` by a fixed number of nats."""

  def __init__(self, gain):
    self.gain = gain

  def logprobs(self, contexts, continuations, progress=lambda done: None):
    neutral = ['"..."' in c for c in contexts]
    return [
      np.array(
        [0.0 if n or 'failed' in c else self.gain for c in group], np.float32
      )
      for n, group in zip(neutral, continuations, strict=True)
    ]


def rubric_example(*points):
  rubric = [
    {
      'criterion': f'c{i}',
      'points': p,
      'met': f'met {i}',
      'failed': f'failed {i}',
    }
    for i, p in enumerate(points)
  ]
  return Example('x', (Message('user', 'q'),), metadata={'rubric': rubric})


def test_rubric_points_become_a_share_by_hand():
  reward = config_lib.make('rewards', 'criterion', {'scale': 2.0})
  # A contrast of 2 nats at scale 2 is met by sigmoid(1).
  judge = SaysMet(2.0)
  met = 1 / (1 + np.exp(-1.0))
  score = lambda *points: reward(
    [rubric_example(*points)], ['a reply'], judge=judge
  )[0]
  assert score(1, 3) == pytest.approx(met, abs=1e-6)
  # +2 and -1: from -1 (only the failure) to 2, so (2 met - met + 1) / 3.
  assert score(2, -1) == pytest.approx((met + 1) / 3, abs=1e-6)


def test_a_blank_reply_meets_nothing():
  reward = config_lib.make('rewards', 'criterion', {})
  example = rubric_example(1, 1)
  found = reward([example, example], [' \n', 'a reply'], judge=SaysMet(3.0))
  assert found[0] == 0 < found[1]


def test_the_helpfulness_rubric_ignores_the_scenario():
  seen = []

  class Watching(SaysMet):
    def logprobs(self, contexts, continuations, progress=None):
      seen.extend(text for group in continuations for text in group)
      return super().logprobs(contexts, continuations)

  reward = config_lib.make('rewards', 'criterion', {'rubric': 'helpfulness'})
  reward([rubric_example(1)], ['a reply'], judge=Watching(1.0))
  assert seen and not any('met 0' in text for text in seen)
