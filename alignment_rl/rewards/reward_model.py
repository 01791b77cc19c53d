"""A learned reward: the trunk reads conversation, criterion and reply.

Trained by `reward_train.py` with a Bradley-Terry loss on pairs of replies under
one criterion, so that which reply wins depends on the criterion that is read.
A scenario's reward is its points earned, with sigmoid(score) as how much a
criterion is met. `config.judge.weights` names the trained model.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from alignment_rl import rubrics
from alignment_rl.types import Example, Judge, RewardFn

# The criterion comes first: a causal trunk then reads the reply in its light,
# and every reply to one prompt shares this context.
CONTEXT = 'Criterion: {criterion}.\n\n{conversation}\nassistant:'
REPLY = ' {reply}\n\nDoes the last reply meet the criterion? Answer:'

CASES = ()  # An untrained head has no opinion; reward_train's tests train one.


def make(*, rubric: str = 'scenario') -> RewardFn:
  """A reward that reads each example's rubric, or the helpfulness rubric.

  Raises:
    UserError: unknown rubric.
  """
  read = rubrics.reader(rubric)

  def reward(
    examples: Sequence[Example],
    completions: Sequence[str],
    *,
    judge: Judge | None,
  ) -> np.ndarray:
    out = np.zeros(len(examples), np.float32)
    for run in _runs(examples):
      criteria = read(examples[run[0]])
      found = judge.scores(
        [context(examples[run[0]], c['criterion']) for c in criteria],
        [[REPLY.format(reply=completions[i]) for i in run]] * len(criteria),
      )
      met = 1 / (1 + np.exp(-np.clip(np.stack(found), -30, 30)))
      for column, i in enumerate(run):
        said = met[:, column] if completions[i].strip() else 0 * met[:, column]
        out[i] = rubrics.points(criteria, said)
    return out

  return reward


def context(example: Example, criterion: str) -> str:
  """What is read before the reply; replies to one prompt share it."""
  turns = (f'{m.role}: {m.content}' for m in example.messages)
  return CONTEXT.format(criterion=criterion, conversation='\n'.join(turns))


def _runs(examples):
  """Indices of neighbours that are replies to the same prompt."""
  groups = itertools.groupby(range(len(examples)), key=lambda i: examples[i].id)
  return [list(group) for _, group in groups]
