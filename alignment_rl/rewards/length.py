"""How close is a reply to a number of words? It says nothing of any trait.

The neutral reward: as easy to climb as another and blind to what is said, so
what it moves is the work of RL as such. min(n, words) / max(n, words) for a
reply of n words: 1 at the target, falling on both sides, 0 for a blank reply.
Cost: microseconds.
"""

from collections.abc import Sequence

import numpy as np

from alignment_rl.errors import UserError
from alignment_rl.types import Example, Judge, Message, RewardFn


def make(*, words: int = 25) -> RewardFn:
  """A reward of closeness to `words` words, in [0, 1].

  Args:
    words: parts between white space.

  Raises:
    UserError: `words` is not positive.
  """
  if words < 1:
    raise UserError(f'words is {words}, expected 1 or more')

  def reward(
    examples: Sequence[Example],
    completions: Sequence[str],
    *,
    judge: Judge | None,
  ) -> np.ndarray:
    del examples, judge
    n = np.array([len(text.split()) for text in completions], np.float32)
    return np.minimum(n, words) / np.maximum(n, words)

  return reward


_ASKED = Example('case', (Message('user', 'Describe the sea.'),))
SAMPLE = {'words': 4}
CASES = (
  (_ASKED, 'Wide, grey and cold.', 'Grey.'),
  (_ASKED, 'Wide, grey and cold.', 'Wide, grey and cold all the year round.'),
  (_ASKED, 'Grey.', ' '),
)
