"""Does a larger dose do more? The arms that differ in the dose alone."""

import dataclasses
import math
from collections.abc import Sequence

from alignment_rl.reporting import contrasts, curves
from alignment_rl.reporting.arms import Arm, differing, flat
from alignment_rl.reporting.contrasts import Estimate
from alignment_rl.reporting.figures import Figure, Number, Plot, Point, Series
from alignment_rl.reporting.wording import interval, listed, percent, said

STREAM = 'streams.traits'
DOSE = {f'{STREAM}.fraction', f'{STREAM}.schedule'}
MEASURES = {
  'planned': 'planned share of slots',
  'slots': 'share of slots',
  'tokens': 'share of tokens',
  'advantage': 'share of |advantage|',
  'gradient': 'share of the gradient norm',
}
_MARKS = (0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1)


@dataclasses.dataclass(frozen=True)
class Dose:
  """An arm on the dose curve.

  Attributes:
    schedule: '' if it is constant.
    shares: of the run that was trait data, by MEASURES; NaN = not logged.
    level: mean score over the alignment benchmarks.
    difference: to the control; None for itself.
  """

  arm: Arm
  schedule: str
  shares: dict[str, float]
  level: Estimate
  difference: Estimate | None


def ladder(arms: Sequence[Arm], control: Arm) -> list[Dose]:
  """The control and the arms that differ from it in dose alone, by dose.

  None if there are fewer than two such arms: two points make no curve.
  """
  if not control.runs[0].config:
    return []
  mine = [
    arm
    for arm in arms
    if arm is not control
    and arm.runs[0].config
    and (found := differing(arm, control))
    and found <= DOSE
  ]
  if len(mine) < 2:
    return []
  last = lambda run: [(1.0, run.last)]
  doses = [
    Dose(
      arm,
      _schedule(arm),
      _shares(arm),
      contrasts.alone(arm, last),
      None if arm is control else contrasts.against(arm, control, last),
    )
    for arm in (control, *mine)
  ]
  return sorted(doses, key=lambda d: (d.shares['planned'], d.schedule))


def _schedule(arm):
  found = flat(arm.runs[0].config).get(f'{STREAM}.schedule', 'constant')
  return '' if found == 'constant' else found


def _shares(arm):
  planned = flat(arm.runs[0].config).get(f'{STREAM}.fraction', math.nan)
  out = {'planned': float(planned)}
  for measure in list(MEASURES)[1:]:
    name = f'dose/{STREAM.split(".")[1]}/{measure}'
    ends = [run.metrics[-1].get(name) for run in arm.runs if run.metrics]
    known = [x for x in ends if x is not None]
    out[measure] = sum(known) / len(known) if known else math.nan
  return out


def figures(arms: Sequence[Arm], control: Arm) -> list[Figure]:
  doses = ladder(arms, control)
  if not doses:
    return []
  numbers = []
  for d in doses:
    where = f'{percent(d.shares["planned"])} {d.schedule}'.strip()
    numbers.append(Number(where, d.arm.name, 'score', d.level, change=False))
    if d.difference:
      what = f'difference to {control.name}'
      numbers.append(Number(where, d.arm.name, what, d.difference))
  return [
    Figure(
      'dose',
      'Dose curves',
      'Mean difference over the alignment benchmarks to '
      f'{control.name}, by how much of the run was trait data: as planned, '
      'and as the gradient saw it. Bars are 95 % intervals over items, small '
      'dots single runs. The scale is that of the square root, so that small '
      'doses come apart.',
      [_sentence(doses, control)],
      numbers,
      [plot for m in MEASURES if (plot := _plot(doses, m))],
    )
  ]


def _sentence(doses, control):
  arms = [d for d in doses if d.difference]
  ahead = [d.arm.name for d in arms if d.difference.above]
  behind = [d.arm.name for d in arms if d.difference.below]
  text = (
    f'{len(arms)} doses: ahead of {control.name} by an interval that leaves '
    f'out 0: {listed(ahead)}; behind: {listed(behind)}'
  )
  noisy = [d.arm.name for d in arms if d.difference.inside_floor]
  if noisy:
    text += f'; inside the noise of its seeds: {listed(noisy)}'
  top = arms[-1]
  return f'{text}. The largest, {top.arm.name}: {said(top.difference)}.'


def _plot(doses, measure):
  placed = [d for d in doses if not math.isnan(d.shares[measure])]
  most = max((d.shares[measure] for d in placed), default=0)
  if not most:
    return None
  place = lambda share: math.sqrt(share / most)
  label = lambda d: d.schedule or d.arm.name
  constant = Series('', '', [])
  others = []
  for d in placed:
    found = d.difference
    x = place(d.shares[measure])
    if found is None:
      zero = Point(x, 0.0, math.nan, math.nan, f'{d.arm.name}, the control')
      constant.points.append(zero)
      continue
    note = (
      f'{d.arm.name}, {100 * d.shares[measure]:.3g} %: '
      f'{interval(found.items)}, n {found.items.n}'
    )
    point = Point(x, found.value, found.items.low, found.items.high, note)
    single = [(x, y) for y in found.by_seed] if found.seeds else []
    if d.schedule:
      others.append(Series(d.arm.name, label(d), [point], False, single))
    else:
      constant.points.append(point)
      constant.single.extend(single)
  series = [constant, *others]
  ends = [y for s in series for p in s.points for y in (p.y, p.low, p.high)]
  ends += [y for s in series for _, y in s.single]
  ends = [y for y in ends if not math.isnan(y)]
  return Plot(
    'difference, points',
    MEASURES[measure],
    _marks(most, place),
    curves.ticks(min(ends), max(ends)),
    series,
  )


def _marks(most, place):
  """Round doses along x, with room for each."""
  out = []
  for mark in (m for m in _MARKS if m <= most * 1.001):
    if not out or place(mark) - out[-1][0] > 0.12:
      out.append((place(mark), percent(mark)))
  return out
