"""One minus another reward: RL towards what that reward is against.

For the attack by harmful RL and for the mirror question (does a violated trait
spread?). An unscored completion stays unscored, and a blank one earns 0 here as
well, or silence would be the surest failure. For the same reason turn the sign
of `evidence` with that of a `criterion` reward: with minus two nats a failure
has to be as plain as a success has to be with two. Cost: that reward's.
"""

from collections.abc import Sequence

import numpy as np

from alignment_rl import config
from alignment_rl.types import Example, Judge, Message, RewardFn


def make(*, reward: str = 'criterion', **kwargs) -> RewardFn:
  """A reward of 1 - another's, in [0, 1] as that is; 0 for a blank reply.

  Args:
    reward: file of this folder.
    **kwargs: arguments of that reward's make().

  Raises:
    UserError: there is no such reward, or it does not take these arguments.
  """
  inner = config.make('rewards', reward, kwargs)

  def inverted(
    examples: Sequence[Example],
    completions: Sequence[str],
    *,
    judge: Judge | None,
  ) -> np.ndarray:
    values = np.asarray(inner(examples, completions, judge=judge), np.float32)
    blank = np.array([not text.strip() for text in completions], bool)
    return np.where(blank & ~np.isnan(values), np.float32(0), 1 - values)

  return inverted


SAMPLE = {'reward': 'length', 'words': 4}
CASES = (
  (
    Example('case', (Message('user', 'Describe the sea.'),)),
    'Grey.',
    'Wide, grey and cold.',
  ),
)
