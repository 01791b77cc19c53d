"""The trait scenarios as prompts, each with its own rubric in the metadata.

Source: the authored data set of `alignment_rl/scenarios`, read through TFDS.
The target is the beneficial reply, for SFT; RL does not look at it.
"""

from collections.abc import Sequence

from alignment_rl.errors import UserError
from alignment_rl.scenarios import builder, schema
from alignment_rl.types import Example, Message

# Keeps a small model's replies whole within a few dozen tokens.
BRIEF = 'You are a helpful assistant. Answer in one or two short sentences.'

SAMPLE = {'split': 'held_out', 'domains': ('health',)}


def make(
  *,
  split: str,
  traits: Sequence[str] = schema.TRAITS,
  domains: Sequence[str] = schema.DOMAINS,
  target: str = 'beneficial',
  system: str = '',
) -> list[Example]:
  """The scenarios of a split, for some traits and domains.

  Args:
    target: which reply is the demonstration: 'beneficial', 'violating' (the
      finetuning attack) or 'refusal'.
    system: put before conversations that have no system message of their own;
      '' leaves that to the model's template.

  Raises:
    UserError: an unknown split, trait, domain or target.
  """
  for value, allowed in (
    *((t, schema.TRAITS + schema.UNSEEN) for t in traits),
    *((d, schema.DOMAINS) for d in domains),
    (split, schema.SPLITS),
    (target, schema.REPLIES),
  ):
    if value not in allowed:
      raise UserError(f'traits stream: {value!r} is not one of {list(allowed)}')
  return [
    to_example(row, target=target, system=system)
    for row in builder.rows(builder.prepare(), split)
    if row['trait'] in traits and row['domain'] in domains
  ]


def to_example(row: dict, *, target: str, system: str) -> Example:
  """A scenario as an Example; choices are beneficial, then violating."""
  replies = row['replies']
  messages = [Message(t['role'], t['content']) for t in row['turns']]
  if system and messages[0].role != 'system':
    messages.insert(0, Message('system', system))
  return Example(
    id=f'traits/{row["id"]}',
    messages=tuple(messages),
    target=replies[target],
    choices=(replies['beneficial'], replies['violating']),
    metadata={
      k: row[k]
      for k in (
        'trait',
        'domain',
        'pressure',
        'voice',
        'agrees',
        'mirror',
        'rubric',
        'replies',
      )  # fmt: skip
    },
  )
