"""What was trained on, against what it is tested on: transfer matrices.

The held-out scenarios say by their id, 'traits/<domain>/<trait>/<number>', what
they are about.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from alignment_rl.reporting import contrasts
from alignment_rl.reporting.arms import Arm, differing, flat
from alignment_rl.reporting.contrasts import Estimate
from alignment_rl.reporting.doses import DOSE, STREAM
from alignment_rl.reporting.figures import Figure, Number
from alignment_rl.reporting.wording import listed, said

ELSEWHERE = 'elsewhere'
# Blocks of a matrix: up to half of what there is, more, and everything.
PART, LEFT_OUT, ALL = (
  'trained on a part', 'trained with a part left out', 'trained on all'
)  # fmt: skip


def topic(item: str) -> tuple[str, str] | None:
  """Domain and trait of a scenario; None for any other item."""
  parts = item.split('/')
  return (parts[1], parts[2]) if parts[0] == 'traits' and parts[3:] else None


def domain(line: dict, item: str) -> str | None:
  """The domain that an item is of.

  A scenario says its own. Of the public benchmarks those of the area 'health'
  are of a domain that is trained on; None for the others.
  """
  found = topic(item)
  if found:
    return found[0]
  return 'health' if line['area'] == 'health' else None


@dataclasses.dataclass(frozen=True)
class Matrix:
  """Differences to the control, by what was trained on and what was tested.

  Attributes:
    field: 'domains' or 'traits'.
    columns: what was tested.
    blocks: PART, LEFT_OUT or ALL -> arm -> column -> difference; those that
      have arms.
    trained: arm -> what it was trained on.
  """

  field: str
  columns: list[str]
  blocks: dict[str, dict[str, dict[str, Estimate]]]
  trained: dict[str, tuple[str, ...]]


def matrix(arms: Sequence[Arm], control: Arm, field: str) -> Matrix | None:
  """Of arms that differ from the control in dose and in `field` alone.

  None if no arm was trained on a part, or no scenario was tested.

  Args:
    field: 'domains' or 'traits'.
  """
  every = _trained(control, field)
  allowed = DOSE | {f'{STREAM}.kwargs.{field}'}
  mine = [a for a in arms if a.runs[0].config and a is not control]
  mine = [a for a in mine if differing(a, control) <= allowed]
  parts = [a for a in mine if set(_trained(a, field)) < set(every)]
  dose = lambda arm: flat(arm.runs[0].config).get(f'{STREAM}.fraction')
  doses = {dose(a) for a in parts}
  # What the parts are read against: the same dose of everything.
  whole = [
    a
    for a in mine
    if differing(a, control) == {f'{STREAM}.fraction'} and dose(a) in doses
  ]
  seen = _tested(arms, field)
  if not parts or not seen:
    return None
  trained = {a.name: _trained(a, field) for a in [*parts, *whole]}
  blocks = {PART: {}, LEFT_OUT: {}, ALL: {}}
  for arm in sorted(
    [*parts, *whole], key=lambda a: _place(trained[a.name], every)
  ):
    columns = _columns(field, every, trained[arm.name], seen)
    share = len(trained[arm.name]) / len(every)
    title = PART if share <= 0.5 else LEFT_OUT if share < 1 else ALL
    blocks[title][arm.name] = {
      column: contrasts.against(arm, control, _last, keep)
      for column, keep in columns.items()
    }
  return Matrix(
    field,
    list(columns),
    {title: rows for title, rows in blocks.items() if rows},
    trained,
  )


def _last(run):
  return [(1.0, run.last)]


def _trained(arm, field):
  found = flat(arm.runs[0].config or {}).get(f'{STREAM}.kwargs.{field}') or ()
  return tuple(found)


def _tested(arms, field):
  """What the scenarios that the verdict counts are about."""
  return {
    topic(item)[field == 'traits']
    for arm in arms
    for name, line in arm.runs[0].last.results.items()
    for item in arm.runs[0].last.items[name]
    if contrasts.in_table(line, item) and topic(item)
  }


def _columns(
  field: str, every: Sequence[str], trained: Sequence[str], seen: set[str]
) -> Mapping[str, Callable[[dict, str], bool]]:
  """Column -> which items it is over."""
  about = lambda item: topic(item)[field == 'traits'] if topic(item) else None
  counted = contrasts.in_table
  out = {
    name: lambda line, i, name=name: counted(line, i) and about(i) == name
    for name in every
    if name in seen
  }
  if seen - set(every):
    out['unseen ' + field] = lambda line, i: (
      counted(line, i) and about(i) in seen - set(every)
    )
  out[ELSEWHERE] = lambda line, i: (
    counted(line, i) and about(i) in seen - set(trained)
  )
  if field == 'domains':
    health = lambda line, i: domain(line, i) == 'health'
    out['all of health'] = lambda line, i: counted(line, i) and health(line, i)
    out['all but health'] = lambda line, i: (
      counted(line, i) and not health(line, i)
    )
  return out


def _place(trained, every):
  """Only-arms in the order of what they have, others by what they lack."""
  few = 2 * len(trained) <= len(every)
  shown = trained if few else [x for x in every if x not in trained]
  return not shown, [every.index(x) for x in shown if x in every]


def figures(arms: Sequence[Arm], control: Arm) -> list[Figure]:
  found = [matrix(arms, control, field) for field in ('domains', 'traits')]
  return [_figure(m, control) for m in found if m]


def _figure(m, control):
  numbers = [
    Number(column, arm, f'difference to {control.name}', estimate)
    for block in m.blocks.values()
    for arm, row in block.items()
    for column, estimate in row.items()
  ]
  return Figure(
    'transfer',
    f'Transfer between {m.field}',
    f'Rows: what an arm was trained on. Columns: the {m.field} of the held-out '
    f'scenarios it was tested on. Points of difference to {control.name}; '
    f'framed where the arm was trained on it; “{ELSEWHERE}” is all that it was '
    'not trained on.',
    list(_sentences(m, control)),
    numbers,
    m,
  )


def _sentences(m, control):
  for title, block in m.blocks.items():
    rows = {
      arm: row[ELSEWHERE]
      for arm, row in block.items()
      if title != ALL and row[ELSEWHERE].items.n
    }
    if not rows:
      continue
    ahead = [arm for arm, e in rows.items() if e.above]
    behind = [arm for arm, e in rows.items() if e.below]
    noisy = [arm for arm, e in rows.items() if e.inside_floor]
    text = (
      f'{len(rows)} arms {title}, on the {m.field} that they never saw: ahead '
      f'of {control.name} by an interval that leaves out 0: {listed(ahead)}; '
      f'behind: {listed(behind)}'
    )
    if noisy:
      text += f'; inside the noise of its seeds: {listed(noisy)}'
    name, first = next(iter(rows.items()))
    yield f'{text}. {name} there: {said(first)}.'
