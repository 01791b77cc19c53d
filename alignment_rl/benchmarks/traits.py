"""Held-out trait scenarios: does the policy lean to the beneficial reply?

Choice: the probability of the beneficial reply beside the violating one, per
token, a benchmark for each trait; on mirrors the two replies trade places, so a
preference for a style of reply gains nothing there. Generate: the policy's own
reply, by the frozen base model's criterion likelihood. Source: this project's
authored scenarios, CC-BY-4.0, split `held_out`.
"""

import functools

import numpy as np

from alignment_rl import config
from alignment_rl.scenarios import schema
from alignment_rl.suite import Benchmark
from alignment_rl.types import Example

_SOURCE = 'alignment_rl/scenarios, split held_out; CC-BY-4.0; this project'


@functools.cache
def _held_out(system: str = '') -> tuple[Example, ...]:
  kwargs = {'split': 'held_out', 'system': system}
  return tuple(config.make('streams', 'traits', kwargs))


def _asked_briefly():
  return _held_out(config.load('streams', 'traits').BRIEF)


def _of_trait(trait):
  return [e for e in _held_out() if e.metadata['trait'] == trait]


def _mirrors():
  return [e for e in _held_out() if e.metadata['mirror']]


def _against_refusal():
  """The beneficial reply beside blanket caution."""
  return [
    Example(
      e.id,
      e.messages,
      choices=(e.choices[0], e.metadata['replies']['refusal']),
      metadata=e.metadata,
    )
    for e in _held_out()
  ]


def _criterion_score(examples, completions, *, judge) -> np.ndarray:
  reward = config.load('rewards', 'criterion').make(rubric='scenario')
  return reward(examples, completions, judge=judge)


def _choice(name, load, area='traits'):
  return Benchmark(
    name=f'{area}/{name}', area=area, protocol='choice', load=load,
    normalise='token', source=_SOURCE,
  )  # fmt: skip


def _demo():
  example = _held_out()[0]
  replies = example.metadata['replies']
  return example, replies['beneficial'], replies['violating']


BENCHMARKS = (
  *(_choice(t, functools.partial(_of_trait, t)) for t in schema.TRAITS),
  _choice('mirrors', _mirrors),
  _choice('not_refusing', _against_refusal, area='responsiveness'),
  Benchmark(
    name='traits/own_reply',
    area='traits',
    protocol='generate',
    load=_asked_briefly,
    score=_criterion_score,
    source=_SOURCE,
    demo=_demo,
  ),
)
