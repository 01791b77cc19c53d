"""Rubric judging as a reward: points earned over points possible, in [0, 1].

`backend='model'` reads with `config.judge` (yes or no by log-likelihood);
`backend='endpoint'` asks an OpenAI-compatible server. A completion without a
verdict is NaN; a run with too many of them stops.
"""

import functools
from collections.abc import Sequence

import numpy as np

from alignment_rl import judge as judging
from alignment_rl import rubrics, sharding
from alignment_rl.endpoint import Endpoint
from alignment_rl.errors import UserError
from alignment_rl.types import Example, Judge, RewardFn

CASES = ()  # What a judge says is its own affair; tests bring judges.

BACKENDS = ('model', 'endpoint')
_FEWEST = 16  # completions, before a share of them says anything


def make(
  *,
  rubric: str = 'scenario',
  backend: str = 'model',
  max_unscored: float = 0.2,
  cache: str = '',
  **endpoint,
) -> RewardFn:
  """A reward that asks a rubric judge.

  Args:
    rubric: 'scenario', each example's own; or 'helpfulness'.
    backend: 'model' or 'endpoint'.
    max_unscored: share of all completions so far that may lack a verdict.
    cache: folder of the verdicts; '' = $ALIGNMENT_RL_CACHE or
      ~/.cache/alignment_rl.
    **endpoint: fields of `endpoint.Endpoint`: url, model, ...

  Raises:
    UserError: unknown rubric or backend, a share outside [0, 1], or an endpoint
      that cannot be.
  """
  read = rubrics.reader(rubric)
  if backend not in BACKENDS:
    raise UserError(f'backend is {backend!r}, expected one of {list(BACKENDS)}')
  if not 0 <= max_unscored <= 1:
    raise UserError(f'max_unscored is {max_unscored}, expected 0 to 1')
  ask = None
  if backend == 'endpoint':
    try:
      ask = judging.EndpointJudge(Endpoint(**endpoint))
    except TypeError as e:
      raise UserError(f'rubric reward, endpoint: {e}') from e
  elif endpoint:
    raise UserError(
      f'{sorted(endpoint)} are for an endpoint; set backend to endpoint'
    )
  seen = np.zeros(2, int)  # completions, and those without a verdict

  @functools.cache  # A fingerprint reads all weights.
  def cached(reader):
    return judging.CachedJudge(ask or judging.ModelJudge(reader), cache or None)

  def reward(
    examples: Sequence[Example],
    completions: Sequence[str],
    *,
    judge: Judge | None,
  ) -> np.ndarray:
    criteria = [read(e) for e in examples]
    found = cached(judge).verdicts(examples, completions, criteria)
    out = np.full(len(examples), np.nan, np.float32)
    for i, verdict in enumerate(found):
      if verdict.scored:
        out[i] = rubrics.points(criteria[i], np.array(verdict.met))
    out = sharding.from_main(out)
    _count(found, np.isnan(out), seen, max_unscored)
    return out

  return reward


def _count(found, unscored, seen, limit):
  seen += (len(found), unscored.sum())
  if seen[0] >= _FEWEST and seen[1] > limit * seen[0]:
    errors = [v.error for v in found if v.error] or ['of an earlier batch']
    raise UserError(
      f'the judge {found[0].judge} left {seen[1]} of {seen[0]} completions '
      f'unscored, over max_unscored={limit:g}; the last one: {errors[-1]}'
    )
