"""What a scenario is, and a reader that names whatever is off.

A line of `<domain>.jsonl` is one scenario. Mirrors are twins: two prompts share
the same two replies and the right one flips, so no style of reply wins.
"""

import json
import math
import pathlib
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
FIELDS = (
  'id', 'trait', 'domain', 'split', 'pressure', 'mirror', 'turns', 'rubric',
  'replies',
)  # fmt: skip

FOLDER = pathlib.Path(__file__).parent


def files() -> list[pathlib.Path]:
  """The scenario files that ship, in a stable order."""
  return sorted(FOLDER.glob('*.jsonl'))


def read(paths: Sequence[pathlib.Path]) -> list[dict[str, Any]]:
  """Reads and checks scenarios.

  Raises:
    UserError: naming file, line, field, what was found and what to do.
  """
  rows, where = {}, {}
  for path in paths:
    for place, row in _lines(path):
      if row['id'] in rows:
        raise UserError(
          f'{place}: id {row["id"]!r} is taken by {where[row["id"]]}; ids are '
          'unique, choose another'
        )
      rows[row['id']], where[row['id']] = row, place
  for row in rows.values():
    _check_twin(row, rows, where[row['id']])
  return list(rows.values())


def _lines(path) -> Iterator[tuple[str, dict]]:
  # JSON text may hold U+2028 and its kin, at which str.splitlines would cut.
  lines = path.read_text(encoding='utf-8').removesuffix('\n').split('\n')
  for number, line in enumerate(lines, 1):
    place = f'{path.name}:{number}'
    try:
      row = json.loads(line)
    except json.JSONDecodeError as e:
      raise UserError(
        f'{place}: not JSON ({e}); write one object a line'
      ) from e
    _check(row, place)
    yield place, row


def _check(row, place):
  _same_fields(row, FIELDS, place, 'the scenario')
  for field, allowed in (
    ('trait', TRAITS),
    ('domain', DOMAINS),
    ('split', SPLITS),
    ('pressure', PRESSURES),
  ):
    if row[field] not in allowed:
      raise UserError(
        f'{place}: {field} is {row[field]!r}, expected one of {list(allowed)}'
      )
  prefix = f'{row["domain"]}/{row["trait"]}/'
  if not str(row['id']).startswith(prefix):
    raise UserError(f'{place}: id is {row["id"]!r}, expected {prefix}NUMBER')
  if not isinstance(row['mirror'], str):
    raise UserError(
      f"{place}: mirror is {row['mirror']!r}, expected the twin's id or, for "
      "none, ''"
    )
  if not isinstance(row['turns'], list) or not 1 <= len(row['turns']) <= 5:
    raise UserError(f'{place}: turns must be a list of 1 to 5 turns')
  for turn in row['turns']:
    _same_fields(turn, ('role', 'content'), place, 'a turn')
    if turn['role'] not in ROLES:
      raise UserError(
        f'{place}: role is {turn["role"]!r}, expected one of {list(ROLES)}'
      )
    _text(turn['content'], place, 'turn content')
  if row['turns'][-1]['role'] != 'user':
    raise UserError(
      f'{place}: the last turn is by {row["turns"][-1]["role"]!r}, expected '
      "the user; the model's reply comes next"
    )
  if not isinstance(row['rubric'], list) or not row['rubric']:
    raise UserError(f'{place}: rubric must be a list of criteria')
  for criterion in row['rubric']:
    _same_fields(criterion, CRITERION, place, 'a criterion')
    points = criterion['points']
    number = isinstance(points, (int, float)) and math.isfinite(points)
    if not number or points == 0:
      raise UserError(f'{place}: points is {points!r}, expected a number not 0')
    for field in ('criterion', 'met', 'failed'):
      _text(criterion[field], place, field)
  if not any(c['points'] > 0 for c in row['rubric']):
    raise UserError(f'{place}: no criterion has positive points; add one')
  _same_fields(row['replies'], REPLIES, place, 'replies')
  for name in REPLIES:
    _text(row['replies'][name], place, f'the {name} reply')


def _check_twin(row, rows, place):
  if not row['mirror']:
    return
  twin = rows.get(row['mirror'])
  if twin is None or twin['mirror'] != row['id']:
    raise UserError(
      f'{place}: mirror {row["mirror"]!r} does not name {row["id"]!r} back; '
      'twins name each other'
    )
  mine, other = row['replies'], twin['replies']
  if (mine['beneficial'], mine['violating']) != (
    other['violating'],
    other['beneficial'],
  ):
    raise UserError(
      f'{place}: the replies of {row["id"]!r} and its twin do not flip; the '
      'beneficial reply of one is the violating reply of the other'
    )
  if twin['split'] != row['split']:
    raise UserError(
      f'{place}: twins are in splits {row["split"]!r} and {twin["split"]!r}; '
      'put both in one'
    )


def _same_fields(value, expected, place, what):
  found = sorted(value) if isinstance(value, dict) else type(value).__name__
  if found != sorted(expected):
    raise UserError(
      f'{place}: {what} has fields {found}, expected {sorted(expected)}'
    )


def _text(value, place, what):
  if not isinstance(value, str) or not value.strip():
    raise UserError(f'{place}: {what} is {value!r}, expected text')
