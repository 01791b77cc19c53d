"""Is the final answer of a reasoning-gym problem right?

Source: the scorer of the problem's own task in `reasoning_gym` (Stojanovski et
al. 2025, arXiv:2505.24760). Its partial credit is dropped: it pays for any
answer that has the right one in it, so listing guesses would earn. A part of
the reward is for ending on `Answer: X`, which a group reaches before it is
right, so groups differ early. Cost: microseconds, after an import of seconds.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from alignment_rl import scoring
from alignment_rl.errors import UserError
from alignment_rl.types import Example, Judge, Message, RewardFn


def make(*, format_share: float = 0.1) -> RewardFn:
  """A reward of (1 - format_share) * right + format_share * ends on `Answer:`.

  Args:
    format_share: in [0, 1].

  Raises:
    UserError: `format_share` is out of range; on a call, an example carries no
      problem of the reasoning stream.
  """
  if not 0 <= format_share <= 1:
    raise UserError(
      f'format_share is {format_share}, expected a number in [0, 1]; the rest '
      'is for the right answer'
    )

  def reward(
    examples: Sequence[Example],
    completions: Sequence[str],
    *,
    judge: Judge | None,
  ) -> np.ndarray:
    del judge
    out = np.zeros(len(examples), np.float32)
    pairs = zip(examples, completions, strict=True)
    for i, (example, completion) in enumerate(pairs):
      answer, marked = scoring.final_answer(completion)
      right = is_right(example, answer)
      out[i] = (1 - format_share) * right + format_share * bool(
        marked and answer
      )
    return out

  return reward


def is_right(example: Example, answer: str) -> bool:
  """Whether the task's scorer gives an answer full marks.

  Raises:
    UserError: the example carries no problem of the reasoning stream.
  """
  if not {'task', 'entry'} <= set(example.metadata):
    raise UserError(
      f'{example.id} has no task and entry in its metadata; the reasoning '
      'reward scores the reasoning stream, so give this stream another reward'
    )
  score = _scorer(example.metadata['task'])
  entry = example.metadata['entry']
  # Some scorers compare case; 'yes' is as right as 'Yes'.
  return any(score(a, entry) >= 1 for a in (answer, answer.capitalize()))


@functools.cache
def _scorer(task: str) -> Callable[[str, dict], float]:
  # Imported here: it loads sympy and matplotlib, seconds for every program.
  import reasoning_gym

  return reasoning_gym.get_score_answer_fn(task)


def _case(task: str, question: str, answer: str) -> Example:
  return Example(
    id=f'reasoning/case/{task}',
    messages=(Message('user', question),),
    metadata={
      'task': task,
      'entry': {'question': question, 'answer': answer, 'metadata': {}},
    },
  )


CASES = (
  (
    _case('chain_sum', 'State the result: 4 + 3 =', '7'),
    'Four and three make seven.\nAnswer: 7',
    'Four and three make eight.\nAnswer: 8',
  ),
  (
    _case('spell_backward', 'Spell this word backward: sun', 'nus'),
    'The letters are s, u, n.\nAnswer: nus',
    'The letters are s, u, n.\nAnswer: nuss',
  ),
  (
    _case('syllogism', 'Does it follow? (Answer Yes or No)', 'No'),
    'Answer: no',
    'Answer: Yes or No',
  ),
)
