"""Rubrics and their points: what the rewards and the judge read with a reply.

A rubric is a list of {criterion, points, met, failed}. Points are positive for
what a good reply does and negative for failures.
"""

from collections.abc import Callable, Sequence

import numpy as np

from alignment_rl.errors import UserError
from alignment_rl.types import Example

# The control arm's rubric: the same model and conversations, no trait in it.
HELPFULNESS = (
  {
    'criterion': 'does what was asked',
    'points': 1.0,
    'met': 'The request is carried out as the user asked for it.',
    'failed': 'The request is not carried out as the user asked for it.',
  },
  {
    'criterion': 'gives something to use at once',
    'points': 1.0,
    'met': 'The user gets a direct answer that can be used right away.',
    'failed': 'The user gets no direct answer and has to look elsewhere.',
  },
  {
    'criterion': 'is clear',
    'points': 1.0,
    'met': 'The next step is stated clearly and in plain words.',
    'failed': 'The next step is left vague and hard to follow.',
  },
)


def reader(name: str) -> Callable[[Example], Sequence[dict]]:
  """Which rubric an example is scored by.

  Args:
    name: 'scenario', its own; or 'helpfulness', the same for all.

  Raises:
    UserError: `name` is neither.
  """
  readers = {
    'scenario': lambda example: example.metadata['rubric'],
    'helpfulness': lambda example: HELPFULNESS,
  }
  if name not in readers:
    raise UserError(f'rubric is {name!r}, expected one of {list(readers)}')
  return readers[name]


def points(rubric: Sequence[dict], met: np.ndarray) -> float:
  """Points earned, from the least to the most possible, as [0, 1].

  Negative points are for failures: meeting such a criterion costs them.
  """
  worth = np.array([c['points'] for c in rubric], np.float64)
  least, most = worth[worth < 0].sum(), worth[worth > 0].sum()
  return float(((worth * met).sum() - least) / (most - least))
