"""From the rows of public files to benchmark items: what readers share."""

import collections
import csv
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from alignment_rl.errors import UserError
from alignment_rl.types import Example, Message

LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'


def rows(folder: pathlib.Path, name: str, form: str = '') -> Iterator[Any]:
  """The records of a file, by its ending: csv, tsv, jsonl, json or txt.

  A .json file is its list, or its mapping as (key, value); a .txt its lines
  that are not blank.

  Args:
    form: such as '.jsonl', for a file whose ending says something else.

  Raises:
    UserError: the file is missing, or is not what its ending says.
  """
  path = folder / name
  if not path.is_file():
    raise UserError(
      f'{path} is missing; get its set again with python -m alignment_rl.fetch '
      f'{pathlib.PurePath(name).parts[0]} --data_dir={folder}'
    )
  form = form or path.suffix
  try:
    text = path.read_text('utf-8-sig')
    if form in ('.csv', '.tsv'):
      # Quotes in a tab-separated file are quotes, not marks of a field.
      tabs = {'delimiter': '\t', 'quoting': csv.QUOTE_NONE}
      yield from csv.DictReader(
        text.splitlines(keepends=True), **tabs if form == '.tsv' else {}
      )
    elif form == '.jsonl':
      # Not splitlines: JSON text may hold other separators of lines.
      yield from (json.loads(x) for x in text.split('\n') if x.strip())
    elif form == '.json':
      found = json.loads(text)
      yield from found.items() if isinstance(found, dict) else found
    else:
      yield from filter(str.strip, text.splitlines())
  except (ValueError, csv.Error) as e:
    raise UserError(
      f'{path} cannot be read as {form}: {e}; fetch it again'
    ) from e


def said(text: str, system: str = '') -> tuple[Message, ...]:
  """A conversation of one user turn, after a system message if there is one."""
  before = (Message('system', system),) if system else ()
  return (*before, Message('user', text.strip()))


def choice(
  id: str, prompt: str, aligned: str | Sequence[str], others: Sequence[str],
  **metadata,
) -> Example:  # fmt: skip
  """An item whose replies are texts; none of them stands in the prompt.

  Args:
    id: '<set>/<key>'.
    prompt: the user's turn; '' for texts that are read by themselves.
    aligned: the aligned reply, or several of them.
    others: the other replies.
  """
  aligned = (aligned,) if isinstance(aligned, str) else tuple(aligned)
  many = {} if len(aligned) == 1 else {'aligned': len(aligned)}
  return Example(
    id,
    said(prompt) if prompt else (),
    choices=(*aligned, *others),
    metadata=many | metadata,
  )


def listed(
  id: str,
  question: str,
  options: Sequence[str],
  right: int | Sequence[int],
  *,
  ask: str = 'Answer with the letter of one option.',
  **metadata,
) -> list[Example]:
  """An item whose options stand in the prompt and are answered by letter.

  It is asked twice, with the options in their order and in the reverse, so that
  a taste for a letter or for a place gains nothing.

  Args:
    id: '<set>/<key>'; the askings are '<id>#0' and '<id>#1'.
    right: place of the aligned option, or of several, in `options`.

  Returns:
    Two examples with one `metadata['item']`.
  """
  aligned = (right,) if isinstance(right, int) else tuple(right)
  out = []
  for turn, order in enumerate(
    (range(len(options)), range(len(options) - 1, -1, -1))
  ):
    lines = [f'{LETTERS[i]}. {options[o]}' for i, o in enumerate(order)]
    letter = {o: LETTERS[i] for i, o in enumerate(order)}
    others = [letter[o] for o in order if o not in aligned]
    out.append(
      choice(
        f'{id}#{turn}',
        '\n'.join([question.strip(), *lines, ask]),
        [letter[o] for o in aligned],
        others,
        item=id,
        **metadata,
      )
    )
  return out


_OPTION = re.compile(r'^\s*\(?([A-Z])[).]\s+', re.MULTILINE)


def split_options(text: str) -> tuple[str, dict[str, str]]:
  """'Question (A) one (B) two' as the question and {'A': 'one', 'B': 'two'}.

  Options begin a line, as '(A) ', 'A) ' or 'A. ', in alphabetical order.
  """
  marks = []
  for match in _OPTION.finditer(text):
    if match.group(1) == LETTERS[len(marks)]:
      marks.append(match)
  ends = [m.start() for m in marks[1:]] + [len(text)] if marks else []
  question = text[: marks[0].start()] if marks else text
  return (
    re.sub(r'\s*Choices:\s*$', '', question).strip(),
    {
      m.group(1): re.sub(r'\s*Answer:\s*$', '', text[m.end() : end]).strip()
      for m, end in zip(marks, ends, strict=True)
    },
  )


def contrastive(
  folder: pathlib.Path, name: str
) -> Iterator[tuple[str, list[str], int]]:
  """Rows with a question, its options, and a letter that is not the behaviour.

  Yields:
    The question, the options' texts, and the place of the aligned one.

  Raises:
    UserError: a row has fewer than two options, or its letter is none of them.
  """
  for i, row in enumerate(rows(folder, name)):
    question, options = split_options(row['question'])
    aligned = row['answer_not_matching_behavior'].strip(' ()')
    if len(options) < 2 or aligned not in options:
      raise UserError(
        f'{name}, row {i}: the answer {aligned!r} is not one of the options '
        f'{list(options)}; get its set again with python -m '
        f'alignment_rl.fetch {pathlib.PurePath(name).parts[0]} '
        f'--data_dir={folder}'
      )
    yield question, list(options.values()), list(options).index(aligned)


# (group, the examples that stay together: the askings of an item, or twins).
Found = Iterator[tuple[str, Sequence[Example]]]


def as_many(keyed: Iterable[tuple[str, Example]]) -> Found:
  """As many items of every key as of the rarest one, picked by a hash."""
  by_key = collections.defaultdict(list)
  for key, item in keyed:
    by_key[key].append([item])
  fewest = min(map(len, by_key.values()), default=0)
  for key, items in by_key.items():
    for together in sorted(items, key=_by_hash)[:fewest]:
      yield key, together


def mixed(found: Found) -> list[Example]:
  """Items in an order of which any first part is a fair sample.

  Every group has its share of it; within a group the order is by a hash of the
  id, since the files themselves are often sorted.
  """
  groups = collections.defaultdict(list)
  for group, together in found:
    groups[group].append(together)
  placed = [
    ((i + 0.5) / len(members), group, together)
    for group, members in groups.items()
    for i, together in enumerate(sorted(members, key=_by_hash))
  ]
  placed.sort(key=lambda place: place[:2])
  return [example for *_, together in placed for example in together]


def in_turn(groups: Sequence[Sequence[Example]]) -> list[Example]:
  """One of each group, then the next of each: any first part is of many."""
  rounds = max(map(len, groups))
  return [g[i] for i in range(rounds) for g in groups if i < len(g)]


def by_hash(examples: Iterable[Example]) -> list[Example]:
  """By a hash of the id: any first part is a fair sample of them."""
  return [e for (e,) in sorted(((e,) for e in examples), key=_by_hash)]


def _by_hash(together):
  return hashlib.sha256(together[0].id.encode()).digest()
