"""Another reward's values, dealt anew among the completions of a prompt.

The placebo of a reward: every group keeps its values, so its mean, its spread
and the sizes of its advantages, and which reply they go to is chance. Every
order is as likely, the true one among them, so a reply's expected credit is 0;
leaving that one out would punish what the reward likes. Cost: that reward's.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from alignment_rl import config
from alignment_rl.types import Example, Judge, RewardFn

SAMPLE = {'reward': 'length', 'words': 4}
CASES = ()  # No reply is better than another.


def make(*, reward: str = 'criterion', seed: int = 0, **kwargs) -> RewardFn:
  """A reward whose values are another's, permuted within each prompt.

  The order is drawn from `seed`, the example's id and its completions, so it
  does not depend on what else is scored. An unscored completion (NaN) is a
  value like any other: as many stay unscored.

  Args:
    reward: file of this folder.
    seed: of the order.
    **kwargs: arguments of that reward's make().

  Raises:
    UserError: there is no such reward, or it does not take these arguments.
  """
  inner = config.make('rewards', reward, kwargs)

  def shuffled(
    examples: Sequence[Example],
    completions: Sequence[str],
    *,
    judge: Judge | None,
  ) -> np.ndarray:
    values = np.asarray(inner(examples, completions, judge=judge), np.float32)
    prompts = {}
    for i, example in enumerate(examples):
      prompts.setdefault(example.id, []).append(i)
    out = np.empty_like(values)
    for name, places in prompts.items():
      # The texts too: a prompt that comes again gets another order.
      said = '\0'.join([name, *(completions[i] for i in places)])
      rng = np.random.default_rng((seed, zlib.crc32(said.encode())))
      out[places] = values[rng.permutation(places)]
    return out

  return shuffled
