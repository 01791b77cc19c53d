"""A researcher's own prompts, from any source of `sources.py`.

A prompt is text (one user turn) or a list of {role, content}. Rows keep their
order; nothing is filtered. Further fields go to the metadata, where a reward
finds them: 'constraints' for rewards/instructions.py, 'rubric' for the others.
"""

import pathlib
from collections.abc import Sequence

from alignment_rl import sources
from alignment_rl.errors import UserError
from alignment_rl.types import Example, Message

_ROLES = ('system', 'user', 'assistant')

# The rows that ship with the stream of everyday requests.
_CHAT = pathlib.Path(__file__).with_name('chat.jsonl')
SAMPLE = {
  'source': f'jsonl:{_CHAT}', 'prompt': 'turns', 'target': 'helpful', 'first': 9
}  # fmt: skip


def make(
  *,
  source: str,
  prompt: str = 'prompt',
  target: str = '',
  metadata: Sequence[str] = (),
  first: int = 0,
) -> list[Example]:
  """One example a row.

  Args:
    source: such as 'jsonl:prompts.jsonl', see `sources.py`.
    prompt: the field with the prompt.
    target: the field with the demonstration; '' = there is none.
    metadata: fields that the reward reads.
    first: how many rows to take; 0 = all.

  Raises:
    UserError: no such source or field, or a prompt or target of another form.
  """
  rows = sources.rows(source)
  if first:
    rows = [rows[i] for i in range(min(first, len(rows)))]
  names = [prompt, *([target] if target else []), *metadata]
  out = []
  for index, values in enumerate(sources.columns(rows, names)):
    found = dict(zip(names, values, strict=True))
    where = f'{source}, row {index}'
    if target and not _is_text(found[target]):
      raise UserError(
        f'{where}: {target} is {found[target]!r:.80}, expected text to imitate'
      )
    out.append(
      Example(
        id=f'records/{source}/{index}',
        messages=_messages(found[prompt], f'{where}: {prompt}'),
        target=found[target] if target else None,
        metadata={name: found[name] for name in metadata},
      )
    )
  return out


def _messages(value, where: str) -> tuple[Message, ...]:
  if _is_text(value):
    return (Message('user', value),)
  try:
    turns = tuple(Message(t['role'], t['content']) for t in value)
  except (TypeError, KeyError):
    turns = ()
  fine = all(t.role in _ROLES and _is_text(t.content) for t in turns)
  if not (turns and fine and turns[-1].role == 'user'):
    raise UserError(
      f'{where} is {value!r:.80}, expected text, or a list of role (one of '
      f'{list(_ROLES)}) and content that ends with the user'
    )
  return turns


def _is_text(value) -> bool:
  return isinstance(value, str) and bool(value.strip())
