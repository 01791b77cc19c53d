"""The report's tables as text and as CSV."""

import csv
import io
import math

from alignment_rl import stats
from alignment_rl.reporting import verdicts
from alignment_rl.reporting.figures import Figure
from alignment_rl.reporting.wording import interval, points, probability
from alignment_rl.reporting.workdirs import TABLES

COLUMNS = (
  'arm table benchmark area n clusters score above_chance control_score '
  'difference low high p q noise_floor matched_n matched_difference '
  'matched_low matched_high'
).split()
FIGURE_COLUMNS = (
  'figure where arm what n clusters benchmarks value low high p seeds '
  'seeds_low seeds_high seeds_p noise_floor'
).split()


def sentence(v: verdicts.Verdict, arm: str, control: str, floor=None) -> str:
  """A verdict in a line of text.

  Args:
    floor: `verdicts.NoiseFloor` of the control; None if it is not known.
  """
  text = (
    f'{arm}: ahead of {control} on {v.ahead} of {v.mean.n}, significantly on '
    f'{len(v.gains)}, significantly behind on {len(v.regressions)} '
    f'(q <= {verdicts.RATE}); mean {interval(v.mean)}, '
    f'sign-flip p {probability(v.mean.p)}'
  )
  if v.seeds:
    text += (
      f'; over {v.seeds.n} seeds {interval(v.seeds)}, '
      f'p {probability(v.seeds.p)}'
    )
  if floor and floor.holds(v.mean.difference):
    text += f'; inside what the seeds of {control} alone show'
  return text


def plain(
  rows: list[dict], control: str, judged: dict, floor, figures: list[Figure]
) -> str:
  """The page's tables as text; verdicts and what figures say before them."""
  arms = list(judged[rows[0]['line']['table']])
  first = judged.get(TABLES[0], {})
  lines = [sentence(v, arm, control, floor) for arm, v in first.items()]
  lines += [floor.sentence()] if floor else []
  for figure in figures:
    lines += ['', figure.title, *figure.sentences]
  heads = [x for arm in arms for x in (arm, 'difference [95 %]', 'p', 'q')]
  for table, found in judged.items():
    cells = [[f'{table}, points', control, *heads]]
    for row in (r for r in rows if r['line']['table'] == table):
      base = row['cells'].get(control)
      cells.append([row['name'], points(base and base.score)])
      for arm in arms:
        cell, q = row['cells'].get(arm), found[arm].q.get(row['name'])
        cells[-1] += (
          points(cell.score) if cell else '–',
          interval(cell.pair) if cell else '–',
          probability(cell.pair.p) if cell else '–',
          probability(q),
        )
    means = [found[arm].mean for arm in arms]
    last = [x for m in means for x in ('', interval(m), probability(m.p), '')]
    cells.append(['mean over benchmarks', '', *last])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines.append('')
    lines += ['  '.join(map(str.ljust, x, widths)).rstrip() for x in cells]
  return '\n'.join(lines).lstrip('\n')


def comma_separated(rows: list[dict], control: str, judged: dict, floor) -> str:
  """A line per arm and benchmark; scores are in [0, 1], n counts the pairs.

  `above_chance` is the score corrected for chance; `matched` means the
  difference over items that neither side refuses; `noise_floor` is how far the
  control's own seeds are apart.
  """
  lines = []
  for row in rows:
    line, base = row['line'], row['cells'].get(control)
    chance = line.get('chance')
    chance = math.nan if chance is None else chance
    for arm, cell in row['cells'].items():
      p, m = cell.pair, cell.matched
      numbers = {
        'score': cell.score,
        'above_chance': stats.chance_corrected(cell.score, chance),
        'control_score': base and base.score,
      }
      counts = {'n': p.n if p else cell.n}
      if p:
        counts['clusters'] = p.clusters
        numbers |= {
          x: getattr(p, x) for x in ('difference', 'low', 'high', 'p')
        }
        numbers['q'] = judged[line['table']][arm].q.get(row['name'])
        if floor:
          numbers['noise_floor'] = floor.benchmarks.get(row['name'])
      if m:
        counts['matched_n'] = m.n
        numbers |= {
          f'matched_{x}': getattr(m, x) for x in ('difference', 'low', 'high')
        }
      named = {
        'arm': arm, 'table': line['table'], 'benchmark': row['name'],
        'area': line['area'],
      }  # fmt: skip
      lines.append(named | counts | _texts(numbers))
  return _written(lines, COLUMNS)


def of_figures(figures: list[Figure]) -> str:
  """A line for every number of the figures, as CSV."""
  lines = []
  for figure in figures:
    for number in figure.numbers:
      e = number.estimate
      numbers = {
        'value': e.value,
        **{x: getattr(e.items, x) for x in ('low', 'high', 'p')},
        'noise_floor': e.floor,
      }
      named = {
        'figure': figure.title,
        **{x: getattr(number, x) for x in ('where', 'arm', 'what')},
        'n': e.items.n,
        'clusters': e.items.clusters,
        'benchmarks': e.benchmarks,
        'seeds': len(e.by_seed),
      }
      if e.seeds:
        numbers |= {
          f'seeds_{x}': getattr(e.seeds, x) for x in ('low', 'high', 'p')
        }
      lines.append(named | _texts(numbers))
  return _written(lines, FIGURE_COLUMNS)


def _texts(numbers):
  known = lambda x: x is not None and not math.isnan(x)
  return {k: f'{x:.6f}' if known(x) else '' for k, x in numbers.items()}


def _written(lines, columns):
  out = io.StringIO()
  write = csv.DictWriter(out, columns, restval='', lineterminator='\n')
  write.writeheader()
  write.writerows(lines)
  return out.getvalue()
