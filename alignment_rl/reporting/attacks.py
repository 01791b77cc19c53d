"""Does it last under training against it? Levels and changes along an attack.

An attack is finetuning on violating replies, or RL with the reward turned
round, on where other arms ended. The same with none of that in its slots is the
attack's own control: what is left after taking it away is net. Whether an
attack spills over from its domain in the control arm comes first: where nothing
spills over, no arm can be shown to keep it out.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from alignment_rl.errors import UserError
from alignment_rl.reporting import contrasts, curves, hostility
from alignment_rl.reporting.arms import Arm, partners, start
from alignment_rl.reporting.contrasts import Estimate
from alignment_rl.reporting.figures import Figure, Number, Plot, Point, Series
from alignment_rl.reporting.wording import interval, percent, said
from alignment_rl.reporting.workdirs import Scores

CHANGE, NET = 'change', 'net change'
ABLE = 'on capability'  # what an attack breaks besides


@dataclasses.dataclass(frozen=True)
class Attacked:
  """An arm along an attack; estimates are by side (or ABLE) and step.

  Attributes:
    began: the arm that it was before; None if that was not evaluated.
    share: of the slots that attack.
    levels: mean scores, of items that all of its group scored at every step;
      step 0 is before the attack.
    moved: CHANGE is the score minus that before, NET minus that under the same
      attack with a share of 0; each where there is such a score.
    against: the same minus the control's, at the last step.
  """

  arm: Arm
  began: Arm | None
  share: float
  levels: dict[str, dict[int, Estimate]]
  moved: dict[str, dict[str, dict[int, Estimate]]]
  against: dict[str, dict[str, Estimate]]

  @property
  def sharpest(self) -> str:
    """Of what moved, that which tells most; '' if nothing is known."""
    return NET if NET in self.moved else CHANGE if CHANGE in self.moved else ''


def _before(arm, others):
  """The arm that an attacked one began from, and run -> its scores there."""
  runs = [run for other in others for run in other.runs]
  began = {run.name: start(run, runs) for run in arm.runs}
  if not all(began.values()):
    return None, {}
  names = {run.name for run in began.values()}
  for other in others:
    if names <= {run.name for run in other.runs}:
      return other, {name: run.last for name, run in began.items()}
  return None, {}


def _origin(arm, others):
  began, _ = _before(arm, others)
  return began.name if began else arm.runs[0].config['model']['weights']


def follow(
  arm: Arm,
  others: Sequence[Arm],
  steps: Sequence[int],
  versus: Arm | None = None,
  group: Sequence[Arm] = (),
) -> Attacked:
  """An arm along its attack.

  Args:
    others: arms that it may have begun from.
    steps: rising; all its runs were evaluated there.
    versus: the control under the same attack at the same share; None where
      there is none, or it is the arm.
    group: arms under this attack at any share. Levels are of items that all of
      these scored, whenever they were evaluated.
  """
  began, before = _before(arm, others)
  # With a weight of 0: an item counts where every term scored it.
  scored = [
    (0.0, scores) for one in group for scores in _evaluated(one, others, steps)
  ]
  level = lambda step: lambda run: [
    (1.0, run.steps[step] if step else before[run.name]), *scored
  ]  # fmt: skip
  mine = _bases(arm, others, steps, group)
  theirs = _bases(versus, others, steps, group) if versus else {}
  looked_at = hostility.sides(arm)
  able = contrasts.of_table('capability')
  if contrasts.alone(arm, level(steps[-1]), able).items.n:
    looked_at[ABLE] = able
  levels, moved, against = {}, {}, {}
  for side, keep in looked_at.items():
    levels[side] = {
      step: contrasts.alone(arm, level(step), keep)
      for step in ([0] if began else []) + list(steps)
    }
    for what, base in mine.items():
      moved.setdefault(what, {})[side] = {
        s: contrasts.alone(arm, _at(s, base[s]), keep) for s in steps
      }
      if what in theirs:
        last = _at(steps[-1], base[steps[-1]] | theirs[what][steps[-1]])
        against.setdefault(what, {})[side] = contrasts.against(
          arm, versus, last, keep
        )
  return Attacked(arm, began, hostility.share(arm), levels, moved, against)


def _evaluated(arm, others, steps):
  """Every evaluation of an arm along its attack, and of before it."""
  _, before = _before(arm, others)
  for run in arm.runs:
    yield from (run.steps[step] for step in steps)
    if before:
      yield before[run.name]


def _at(step: int, base: Mapping[str, Scores]) -> contrasts.Of:
  """Terms of the score at a step, minus a base's."""
  return lambda run: [(1.0, run.steps[step]), (-1.0, base[run.name])]


def _bases(arm, others, steps, group):
  """CHANGE and NET -> step -> run -> what its score is measured from."""
  out = {}
  began, before = _before(arm, others)
  if began:
    out[CHANGE] = {step: before for step in steps}
  for other in group:
    if (
      hostility.share(arm)
      and not hostility.share(other)
      and _origin(other, others) == _origin(arm, others)
    ):
      pairs = partners(arm, other)
      out[NET] = {s: {a.name: b.steps[s] for a, b in pairs} for s in steps}
  return out


def figures(
  attacked: Sequence[Arm], others: Sequence[Arm], control: Arm
) -> list[Figure]:
  """A figure for each attack, with all its shares.

  Args:
    attacked: of `attacked_arms`.
    others: the arms they may have begun from.

  Raises:
    UserError: arms under one attack share no step or no item.
  """
  same = {}
  for arm in attacked:
    same.setdefault(hostility.attack_of(arm), []).append(arm)
  return [_figure(group, others, control) for group in same.values()]


def _figure(group, others, control):
  runs = [run for arm in group for run in arm.runs]
  steps = sorted(set.intersection(*(set(run.steps) for run in runs)) - {0})
  names = [run.name for run in runs]
  if not steps:
    raise UserError(
      f'{names} are under one attack and were evaluated at no common step; '
      'evaluate them at the same checkpoints'
    )
  under = {
    hostility.share(a): a for a in group if _origin(a, others) == control.name
  }
  found = [
    follow(arm, others, steps, None if arm is versus else versus, group)
    for arm in sorted(group, key=hostility.share, reverse=True)
    for versus in [under.get(hostility.share(arm))]
  ]
  # The same of every arm: all levels are of what all scored.
  seen = [
    side
    for side, levels in found[0].levels.items()
    if levels[steps[-1]].items.n
  ]
  if not seen:
    raise UserError(
      f'{names} are under one attack and share no item that was scored before '
      f'and at steps {steps} of all; evaluate them on the same benchmarks'
    )
  sft = group[0].runs[0].config['algorithm']['name'] == 'sft'
  way = 'finetuning on violating replies' if sft else 'RL with a turned reward'
  return Figure(
    'attack',
    f'Attack: {way}',
    'Mean score over the alignment benchmarks, in the domain that the attack '
    'knows and outside, of items that all of these scored at every step; the '
    'percentage is the share of slots that attack. '
    f'Step 0 is before. {CHANGE.capitalize()}: the score minus that before. '
    f'{NET.capitalize()}: minus that after as many steps of the same with a '
    'share of 0 %. Arms start at different heights: read levels beside '
    'changes. What an attack takes from capability tells forgetting from harm.',
    list(_sentences(found, others, control, steps)),
    list(_numbers(found, control, steps[-1])),
    [
      _plot(what, side, drawn, steps)
      for share in dict.fromkeys(one.share for one in found)
      for what, drawn in _drawn([o for o in found if o.share == share])
      for side in seen
    ],
  )


def _sentences(found, others, control, steps):
  """On the largest share: the control first, then the arms beside it."""
  most = [one for one in found if one.share == found[0].share]
  versus = [o for o in most if _origin(o.arm, others) == control.name]
  if not versus:
    yield (
      f'{control.name} was not attacked at the largest share, so whether the '
      'attack spills over where nothing keeps it out is not known: persistence '
      'cannot be told.'
    )
  for one in versus + [o for o in most if o not in versus]:
    what = one.sharpest
    if not what:
      yield (
        f'{one.arm.name}: the model it began from was not evaluated; levels '
        'alone are shown.'
      )
      continue
    moved = {
      side: by_step[steps[-1]] for side, by_step in one.moved[what].items()
    }
    text = f'{one.arm.name}, {what} after {steps[-1]} steps: {_both(moved)}'
    if one in versus:
      yield f'The control first. {text}. {_spill(*moved.values())}'
      if what == CHANGE:
        yield (
          f'{control.name} was not put through as much of the same with a '
          'share of 0 %: that alone may do as much.'
        )
      continue
    if what in one.against:
      text += f'. Minus the control’s: {_both(one.against[what])}'
    if versus:
      text += _reached(one, versus[0], control)
    yield f'{text}.'


def _both(by_side):
  return ', '.join(f'{side} {said(e)}' for side, e in by_side.items())


def _spill(inside, outside, able=None):
  """What the attack did to the control, first of all."""
  own = 'does' if inside.below else 'is not shown to do'
  text = f'The attack {own} damage in its own domain'
  if outside.below:
    text += ', and spills over outside: persistence can be measured here.'
    if able and able.below:
      text += ' Capability falls as well, so some of it may be forgetting.'
    return text
  return (
    f'{text}, and is not shown to spill over: whether an arm keeps it out '
    'cannot be told from this attack.'
  )


def _reached(one, versus, control):
  """After how many steps an arm is where the control began."""
  out = []
  for side in hostility.sides(one.arm):
    levels = one.levels[side]
    floor = versus.levels[side].get(0)
    if not floor or 0 not in levels or levels[0].value <= floor.value:
      continue
    steps = [s for s, e in levels.items() if e.value <= floor.value]
    out.append(
      f'{side} after {steps[0]} steps'
      if steps
      else f'{side} not in {max(levels)} steps'
    )
  return f'. Down where {control.name} began: {", ".join(out)}' if out else ''


def _numbers(found, control, last):
  for one in found:
    for side, levels in one.levels.items():
      for step, level in levels.items():
        row = f'{percent(one.share)} {side}, step {step}', one.arm.name
        yield Number(*row, 'score', level, change=False)
        for what, by_side in one.moved.items():
          if step:
            yield Number(*row, what, by_side[side][step])
          if step == last and what in one.against:
            label = f'{what} minus {control.name}’s'
            yield Number(*row, label, one.against[what][side])


def _drawn(found):
  """What is drawn -> (arm under attack, side -> its estimates), of one share.

  What moved stands beside levels, whose intervals, wide with how items differ,
  would hide it.
  """
  yield 'score', [(one, one.levels) for one in found]
  for what in (NET, CHANGE):
    known = [(o, o.moved[what]) for o in found if o.sharpest == what]
    if known:
      yield what, known


def _plot(what, side, drawn, steps):
  series, ends = [], []
  for one, by_side in drawn:
    name = one.began.name if one.began else one.arm.name
    placed = [
      Point(
        step / steps[-1], e.value, e.items.low, e.items.high,
        f'{one.arm.name}, step {step}: {interval(e.items, "")}, n {e.items.n}',
      )
      for step, e in by_side[side].items()
      if e.items.n
    ]  # fmt: skip
    ends += [y for p in placed for y in (p.y, p.low, p.high) if y == y]
    series.append(Series(name, name, placed))
  marks = sorted({s for _, by_side in drawn for s in by_side[side]})
  return Plot(
    f'{what} {side}, points',
    f'step of the attack at {percent(drawn[0][0].share)}',
    [(s / steps[-1], str(s)) for s in marks],
    curves.ticks(min(ends), max(ends)),
    series,
  )
