"""What share of its formatting constraints does a reply satisfy?

Source: the checkers of `scoring`, in the manner of IFEval (Zhou et al. 2023,
arXiv:2311.07911). Blank, noisy or looping text scores 0, or it would satisfy
"no commas" for free. Whether the reply is about the request is not read.
Cost: microseconds.
"""

from collections.abc import Sequence

import numpy as np

from alignment_rl import scoring
from alignment_rl.errors import UserError
from alignment_rl.types import Example, Judge, Message, RewardFn


def make() -> RewardFn:
  """A reward of satisfied / all constraints, 0 if the text is not well formed.

  Raises:
    UserError: on a call, an example carries no constraint, or an unknown one.
  """

  def reward(
    examples: Sequence[Example],
    completions: Sequence[str],
    *,
    judge: Judge | None,
  ) -> np.ndarray:
    del judge
    pairs = zip(examples, completions, strict=True)
    return np.array([share(e, text) for e, text in pairs], np.float32)

  return reward


def share(example: Example, text: str) -> float:
  """The share of an example's constraints that a text satisfies, in [0, 1].

  Raises:
    UserError: the example carries no constraint, or an unknown one.
  """
  constraints = example.metadata.get('constraints')
  if not constraints:
    raise UserError(
      f'{example.id} has no constraints in its metadata; the instructions '
      'reward scores the instructions stream; give this stream another reward'
    )
  met = [scoring.satisfies(text, c) for c in constraints]
  return scoring.well_formed(text) * sum(met) / len(met)


def _case(prompt: str, *constraints: dict) -> Example:
  return Example(
    id='instructions/case/' + '+'.join(c['kind'] for c in constraints),
    messages=(Message('user', prompt),),
    metadata={'constraints': list(constraints)},
  )


CASES = (
  (
    _case(
      'Name some fruits. Use a bulleted list of exactly 2 items.',
      {'kind': 'bullets', 'n': 2},
    ),
    'Here you go:\n- ripe apples\n- sweet pears',
    'Here you go: ripe apples and sweet pears',
  ),
  (
    _case(
      'How do I boil an egg? Do not use any commas. Use at most 12 words.',
      {'kind': 'no_commas'},
      {'kind': 'max_words', 'n': 12},
    ),
    'Boil it in water for nine minutes.',
    'First, boil the water, and then add the egg, and wait nine minutes or so.',
  ),
  (
    _case('Describe the sea. Do not use any commas.', {'kind': 'no_commas'}),
    'The sea is wide and grey today.',
    'sea sea sea sea sea sea sea sea',
  ),
)
