"""Everyday requests, with a helpful and an unhelpful reply each.

Source: chat.jsonl beside this file, written for this project (CC-BY-4.0; see
scenarios/DATASHEET.md). The helpful reply is the demonstration; RL scores
completions with the helpfulness rubric.
"""

import pathlib
from collections.abc import Sequence

from alignment_rl import sources
from alignment_rl.errors import UserError
from alignment_rl.types import Example, Message

PATH = pathlib.Path(__file__).with_name('chat.jsonl')
SPLITS = ('train', 'held_out')
REPLIES = ('helpful', 'unhelpful')

SAMPLE = {'split': 'train', 'topics': ('cooking', 'travel')}


def make(
  *, split: str, system: str = '', topics: Sequence[str] = ()
) -> list[Example]:
  """The requests of a split; choices are the helpful reply, then the other.

  Args:
    split: 'train' or 'held_out'.
    system: put before conversations that have no system message of their own;
      '' leaves that to the model's template.
    topics: such as 'cooking'; () = all.

  Raises:
    UserError: an unknown split, or a topic that no request has.
  """
  if split not in SPLITS:
    raise UserError(
      f'chat stream: split is {split!r}, expected one of {list(SPLITS)}'
    )
  rows = sources.rows(f'jsonl:{PATH}')
  unknown = set(topics) - {row['topic'] for row in rows}
  if unknown:
    raise UserError(f'chat stream: no request has the topic {sorted(unknown)}')
  return [
    _to_example(row, system)
    for row in rows
    if row['split'] == split and (not topics or row['topic'] in topics)
  ]


def _to_example(row, system: str) -> Example:
  messages = [Message(t['role'], t['content']) for t in row['turns']]
  if system and messages[0].role != 'system':
    messages.insert(0, Message('system', system))
  replies = {name: row[name] for name in REPLIES}
  return Example(
    id=row['id'],
    messages=tuple(messages),
    target=row['helpful'],
    choices=tuple(replies.values()),
    metadata={
      'topic': row['topic'],
      'voice': row['voice'],
      'replies': replies,
    },
  )
