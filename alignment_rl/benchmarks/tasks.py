"""Held-out tasks of the base streams: is the capability still there?

Reasoning tasks scored by reasoning-gym (Apache-2.0) and instruction-following
constraints scored by this project's checkers, on items that training never
draws.
"""

import functools

from alignment_rl import config
from alignment_rl.suite import Benchmark

_SIZE = 200


def _load(stream):
  return config.load('streams', stream).make(
    split='held_out', size=_SIZE, seed=0
  )


def _score(reward, examples, completions, *, judge):
  return config.load('rewards', reward).make()(
    examples, completions, judge=judge
  )


def _demo(reward):
  return config.load('rewards', reward).CASES[0]


def _task(name, chance, source):
  return Benchmark(
    name=f'capability/{name}', area='capability', protocol='generate',
    load=functools.partial(_load, name), score=functools.partial(_score, name),
    chance=chance, source=source, demo=functools.partial(_demo, name),
  )  # fmt: skip


BENCHMARKS = (
  _task('reasoning', 0.0, 'reasoning-gym, Apache-2.0'),
  _task('instructions', 0.0, 'this project, Apache-2.0'),
)
