"""Small reasoning problems with a checkable answer, one user turn each.

Source: tasks of `reasoning_gym` (Stojanovski et al. 2025, arXiv:2505.24760) at
easy settings, meant for a small model. Which split a problem is in follows from
its text, so splits are disjoint for every seed and size. Cost: 0.1 to 0.2 ms a
problem, after an import of seconds.
"""

import json
import zlib
from collections.abc import Iterator, Sequence

from alignment_rl.errors import UserError
from alignment_rl.types import Example, Message

# Task of reasoning_gym -> its settings. Each has over 2000 problems.
TASKS = {
  'chain_sum': {'min_terms': 2, 'max_terms': 2, 'max_digits': 2},
  'basic_arithmetic': {
    'min_terms': 2,
    'max_terms': 3,
    'max_digits': 1,
    'operators': ('+', '-', '*'),
    'allow_parentheses': False,
    'allow_negation': False,
  },
  'simple_equations': {
    'min_terms': 2,
    'max_terms': 2,
    'max_value': 10,
    'operators': ('+', '-'),
    'operators_weights': [0.5, 0.5],
  },
  'gcd': {'min_value': 2, 'max_value': 50},
  'leg_counting': {'min_animals': 1, 'max_animals': 2, 'max_instances': 4},
  'letter_counting': {'min_words': 1, 'max_words': 3},
  'spell_backward': {'min_word_len': 3, 'max_word_len': 4},
  'word_sequence_reversal': {'min_words': 2, 'max_words': 3},
  'syllogism': {},
  'calendar_arithmetic': {'tasks': ['is_leap_year'], 'leap_year_range': 1000},
  'family_relationships': {'min_family_size': 3, 'max_family_size': 4},
}

# What SmolLM2-135M-Instruct solves in 3 to 25 % of samples at temperature 1 (32
# samples a task); of the other tasks it solved none.
SOLVED = (
  'chain_sum',
  'basic_arithmetic',
  'gcd',
  'letter_counting',
  'syllogism',
  'calendar_arithmetic',
)

SAMPLE = {'split': 'train', 'size': 11, 'seed': 0}

SPLITS = ('train', 'held_out')
_FORMAT = 'End with a line `Answer: X`, where X is the answer alone.'
_HELD_OUT = 5  # one problem in this many is held out
_PATIENCE = 500  # problems in a row without a new one: the task is used up


def make(
  *, split: str, size: int, seed: int, tasks: Sequence[str] = SOLVED
) -> list[Example]:
  """`size` different problems, the tasks in turn.

  A smaller size gives the first problems of a larger one. The metadata hold
  'task' and 'entry', the problem as reasoning_gym made it, in plain JSON types.

  Args:
    split: 'train' or 'held_out'.
    tasks: names in TASKS.

  Raises:
    UserError: an unknown split or task, or more problems than a task has.
  """
  if split not in SPLITS:
    raise UserError(
      f'reasoning stream: split is {split!r}, expected one of {list(SPLITS)}'
    )
  unknown = sorted(set(tasks) - set(TASKS))
  if unknown or not tasks:
    raise UserError(
      f'reasoning stream: tasks are {list(tasks)}, expected some of '
      f'{list(TASKS)}; add settings to TASKS to define another'
    )
  problems = {task: _problems(task, split, seed) for task in tasks}
  out = []
  for index in range(size):
    task = tasks[index % len(tasks)]
    prompt, entry = next(problems[task], (None, None))
    if prompt is None:
      raise UserError(
        f'reasoning stream: task {task!r} has no new {split} problem at index '
        f'{index} of size {size}; lower the size or leave the task out of tasks'
      )
    out.append(
      Example(
        id=f'reasoning/{split}/{index}',
        messages=(Message('user', prompt),),
        metadata={'task': task, 'entry': entry},
      )
    )
  return out


def _problems(task: str, split: str, seed: int) -> Iterator[tuple[str, dict]]:
  """Prompts and entries of a task in a split, each prompt once."""
  # Imported here: it loads sympy and matplotlib, seconds for every program.
  import reasoning_gym

  # Problem i of a dataset is drawn with its seed + i. Splits draw from disjoint
  # ranges, but that alone would share: small tasks repeat under any seed.
  start = zlib.crc32(f'{task}/{seed}'.encode()) + (SPLITS.index(split) << 40)
  dataset = reasoning_gym.create_dataset(task, seed=start, **TASKS[task])
  seen, last, i = set(), 0, 0
  while i - last < _PATIENCE:
    entry = dataset[i]
    prompt = f'{entry["question"].strip()}\n{_FORMAT}'
    held_out = zlib.crc32(prompt.encode()) % _HELD_OUT == 0
    if held_out == (split == 'held_out') and prompt not in seen:
      seen.add(prompt)
      last = i
      yield prompt, json.loads(json.dumps(entry))
    i += 1
