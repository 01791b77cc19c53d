"""Numbers in words: points, from 0 to 100, with intervals."""

import math
from collections.abc import Sequence

from alignment_rl import stats
from alignment_rl.reporting.contrasts import Estimate


def points(x: float | None, sign: str = '') -> str:
  """Hundredths: '41.3', with sign '+' also '+3.1'; '–' if there is none."""
  text = '–' if x is None or math.isnan(x) else f'{100 * x:{sign}.1f}'
  return '0.0' if text in ('+0.0', '-0.0') else text


def percent(share: float) -> str:
  """'0.5 %', '5 %'."""
  return f'{100 * share:g} %'


def interval(p: stats.PairedDifference, sign: str = '+') -> str:
  """'+3.1 [+1.0, +5.2]', in points."""
  known = not math.isnan(p.low)
  bounds = f' [{points(p.low, sign)}, {points(p.high, sign)}]' if known else ''
  return points(p.difference, sign) + bounds


def probability(p: float | None) -> str:
  """'0.032', or '<0.001'; '–' if there is none."""
  if p is None or math.isnan(p):
    return '–'
  return '<0.001' if p < 0.001 else f'{p:.3f}'


def tone(p: stats.PairedDifference | None) -> str:
  """'up', 'down', or '' for a difference that reads 0.0 or is none."""
  text = points(p.difference, '+') if p else '–'
  return {'+': 'up', '-': 'down'}.get(text[0], '')


def said(found: Estimate) -> str:
  """An estimate within a sentence: its interval, n, seeds and noise floor."""
  text = f'{interval(found.items)} points (n {found.items.n}'
  if found.seeds:
    text += f'; over {found.seeds.n} seeds {interval(found.seeds)}'
  text += ')'
  if found.inside_floor:
    text += f', inside the ±{points(found.floor)} of the control’s own seeds'
  return text


def listed(names: Sequence[str]) -> str:
  """'a', 'a and b', 'a, b and c'; 'none' of none."""
  *first, last = names or ['none']
  return f'{", ".join(first)} and {last}' if first else last
