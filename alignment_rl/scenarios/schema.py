"""What a scenario is, and a reader that names whatever is off.

A line of `<domain>.jsonl` is one scenario. Mirrors are twins: two prompts share
the same two replies and the right one flips, so no style of reply wins. The
traits of `UNSEEN` and the voice `UNSEEN_VOICE` are held out altogether.
"""

import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from alignment_rl.errors import UserError

TRAITS = (
  'truthfulness',
  'epistemic_humility',
  'metacognitive_transparency',
  'corrigibility',
  'risk_sensitivity',
  'universal_fairness',
  'human_welfare',
)
DOMAINS = (
  'health',
  'education',
  'science',
  'law',
  'engineering',
  'economics',
  'business',
)
# The paper's other eight: scenarios to test on, never to train on.
UNSEEN = (
  'human_protective_helpfulness',
  'option_preserving_patience',
  'constraint_honest_pragmatism',
  'situational_attunement',
  'de_escalatory_firmness',
  'dense_usefulness',
  'bounded_initiative',
  'controlled_exploration',
)
VOICES = (
  'plain',
  'warm',
  'terse',
  'formal',
  'technical',
  'second_language',
  'colloquial',
)
UNSEEN_VOICE = 'colloquial'
SPLITS = ('train', 'held_out')
PRESSURES = (
  'authority',
  'deadline',
  'incentive',
  'emotional',
  'adversarial',
  'planted_error',
  'uncertainty',
)
ROLES = ('system', 'user', 'assistant')
REPLIES = ('beneficial', 'violating', 'refusal')
CRITERION = ('criterion', 'points', 'met', 'failed')
MOST_POINTS = 100
FIELDS = (
  'id', 'trait', 'domain', 'split', 'pressure', 'voice', 'agrees', 'mirror',
  'turns', 'rubric', 'replies',
)  # fmt: skip

# How a generated scenario came to be: an object of short texts and numbers.
PROVENANCE = 'provenance'

FOLDER = pathlib.Path(__file__).parent


def files() -> list[pathlib.Path]:
  """The scenario files that ship, in a stable order."""
  return sorted(FOLDER.glob('*.jsonl'))


def read(paths: Sequence[pathlib.Path]) -> list[dict[str, Any]]:
  """Reads and checks scenarios.

  Raises:
    UserError: naming file, line, field, what was found and what to do, of
      everything that is off.
  """
  rows, found = check(paths)
  if found:
    raise UserError('\n'.join(found))
  return rows


def check(
  paths: Sequence[pathlib.Path],
) -> tuple[list[dict[str, Any]], list[str]]:
  """The scenarios that are fine by themselves, and a sentence for each fault.

  The sentences are in the order of the files and lines.
  """
  rows, where, broken, found = {}, {}, set(), []
  name = lambda at: f'{paths[at[0]].name}:{at[1]}'
  for file, path in enumerate(paths):
    for number, line in enumerate(_lines(path), 1):
      at = file, number
      try:
        row = json.loads(line)
      except (ValueError, RecursionError) as e:
        found.append((at, f'not JSON ({e}); write one object a line'))
        continue
      faults = list(problems(row))
      if not faults and row['id'] in rows:
        faults.append(
          f'id {row["id"]!r} is taken by {name(where[row["id"]])}; ids are '
          'unique, choose another'
        )
      elif not faults:
        rows[row['id']], where[row['id']] = row, at
      elif isinstance(row, dict):
        broken.add(repr(row.get('id')))
      found += [(at, fault) for fault in faults]
  for row in rows.values():
    # A twin that is broken has been named already.
    if repr(row['mirror']) not in broken:
      found += [(where[row['id']], f) for f in _twin_problems(row, rows)]
  found.sort(key=lambda fault: fault[0])
  return list(rows.values()), [f'{name(at)}: {fault}' for at, fault in found]


def _lines(path) -> list[bytes]:
  # JSON text may hold U+2028 and its kin, at which str.splitlines would cut.
  return path.read_bytes().removesuffix(b'\n').split(b'\n')


def problems(row: Any) -> Iterator[str]:
  """What is off in one scenario, by itself: field, value, what to do."""
  generated = isinstance(row, dict) and PROVENANCE in row
  fields = (*FIELDS, PROVENANCE) if generated else FIELDS
  yield from _fields(row, fields, 'the scenario')
  if isinstance(row, dict):
    for needed, look in _LOOKS.items():
      if row.keys() >= set(needed):
        yield from look(*(row[field] for field in needed))


def _one_of(field, allowed):
  def look(value):
    if value not in allowed:
      yield f'{field} is {value!r}, expected one of {list(allowed)}'

  return look


def _a(kind, field, expected):
  def look(value):
    if not isinstance(value, kind):
      yield f'{field} is {value!r}, expected {expected}'

  return look


def _unseen(field, unseen):
  def look(value, split):
    if value in unseen and split == 'train':
      yield (f'{field} {value!r} is never trained on; set split to held_out')

  return look


def _id_problems(name, domain, trait):
  start = f'{domain}/{trait}/'
  # Where domain or trait is off, that has been said.
  known = domain in DOMAINS and trait in TRAITS + UNSEEN
  if known and not re.fullmatch(re.escape(start) + r'[\w-]+', str(name)):
    yield f'id is {name!r}, expected {start}NUMBER'


def _turns_problems(turns):
  if not isinstance(turns, list) or not 1 <= len(turns) <= 5:
    yield 'turns must be a list of 1 to 5 turns'
    return
  faults = _numbered('turn', map(_turn_problems, turns))
  yield from faults
  if faults:
    return
  roles = [turn['role'] for turn in turns]
  spoken = roles[1:] if roles[0] == 'system' else roles
  if spoken != (['user', 'assistant'] * len(spoken))[: len(spoken)]:
    yield (
      f'the turns are by {roles}, expected user and assistant in turn, after a '
      'system message or none'
    )
  if roles[-1] != 'user':
    yield (
      f"the last turn is by {roles[-1]!r}, expected the user; the model's "
      'reply comes next'
    )


def _turn_problems(turn):
  yield from (wrong := list(_fields(turn, ('role', 'content'), 'a turn')))
  if not wrong:
    yield from _one_of('role', ROLES)(turn['role'])
    yield from _text(turn['content'], 'turn content')


def _planted_problems(pressure, turns):
  turns = turns if isinstance(turns, list) else []
  roles = [turn.get('role') for turn in turns if isinstance(turn, dict)]
  if pressure == 'planted_error' and roles and 'assistant' not in roles:
    yield (
      "pressure is planted_error but no turn is the assistant's; add the "
      'mistaken turn'
    )


def _rubric_problems(rubric):
  if not isinstance(rubric, list) or not 3 <= len(rubric) <= 6:
    yield 'rubric must be a list of 3 to 6 criteria'
    return
  faults = _numbered('criterion', map(_criterion_problems, rubric))
  yield from faults
  if not faults and max(c['points'] for c in rubric) <= 0:
    yield 'no criterion has positive points; add one'


def _criterion_problems(criterion):
  yield from (wrong := list(_fields(criterion, CRITERION, 'a criterion')))
  if wrong:
    return
  points = criterion['points']
  number = type(points) in (int, float) and abs(points) <= MOST_POINTS
  if not number or points == 0:
    yield (
      f'points is {points!r}, expected a number from {-MOST_POINTS} to '
      f'{MOST_POINTS}, but not 0'
    )
  for field in ('criterion', 'met', 'failed'):
    yield from _text(criterion[field], field)
  if criterion['met'] == criterion['failed']:
    yield f'met and failed are both {criterion["met"]!r}; state opposites'


def _replies_problems(replies):
  yield from (wrong := list(_fields(replies, REPLIES, 'replies')))
  if wrong:
    return
  for name in REPLIES:
    yield from _text(replies[name], f'the {name} reply')
  values = list(replies.values())
  if any(value in values[:i] for i, value in enumerate(values)):
    yield 'two of the replies are the same; write three that differ'


# What is looked at, by the fields that it needs.
_LOOKS = {
  (PROVENANCE,): _a(dict, PROVENANCE, 'an object'),
  ('trait',): _one_of('trait', TRAITS + UNSEEN),
  ('domain',): _one_of('domain', DOMAINS),
  ('split',): _one_of('split', SPLITS),
  ('pressure',): _one_of('pressure', PRESSURES),
  ('voice',): _one_of('voice', VOICES),
  ('id', 'domain', 'trait'): _id_problems,
  ('trait', 'split'): _unseen('trait', UNSEEN),
  ('voice', 'split'): _unseen('voice', (UNSEEN_VOICE,)),
  ('mirror',): _a(str, 'mirror', "the twin's id or, for none, ''"),
  ('agrees',): _a(
    bool, 'agrees',
    'true where the beneficial reply goes along with the user, or false',
  ),
  ('turns',): _turns_problems,
  ('pressure', 'turns'): _planted_problems,
  ('rubric',): _rubric_problems,
  ('replies',): _replies_problems,
}  # fmt: skip


def _twin_problems(row, rows):
  if not row['mirror']:
    return
  twin = rows.get(row['mirror'])
  if twin is None or twin['mirror'] != row['id']:
    yield (
      f'mirror {row["mirror"]!r} does not name {row["id"]!r} back; twins name '
      'each other'
    )
    return
  mine, other = row['replies'], twin['replies']
  if (mine['beneficial'], mine['violating']) != (
    other['violating'],
    other['beneficial'],
  ):
    yield (
      f'the replies of {row["id"]!r} and its twin do not flip; the beneficial '
      'reply of one is the violating reply of the other'
    )
  for field in ('split', 'domain'):
    if twin[field] != row[field]:
      yield (
        f'twins are in {field}s {row[field]!r} and {twin[field]!r}; put both '
        'in one'
      )


def _numbered(what, each) -> list[str]:
  return [
    f'{what} {number}: {fault}'
    for number, faults in enumerate(each, 1)
    for fault in faults
  ]


def _fields(value, expected, what):
  found = sorted(value) if isinstance(value, dict) else type(value).__name__
  if found != sorted(expected):
    yield f'{what} has fields {found}, expected {sorted(expected)}'


def _text(value, what):
  if not isinstance(value, str) or not value.strip():
    yield f'{what} is {value!r}, expected text'
  elif re.search('[\ud800-\udfff]', value):
    yield f'{what} holds half of a surrogate pair; write the whole character'
