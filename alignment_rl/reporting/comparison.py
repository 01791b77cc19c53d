"""Arms against the control, benchmark by benchmark and on the whole."""

import dataclasses
import math

import numpy as np

from alignment_rl import stats
from alignment_rl.errors import UserError
from alignment_rl.reporting import verdicts
from alignment_rl.reporting.arms import (
  Arm,
  clusters,
  item_ids,
  partners,
  score_table,
)
from alignment_rl.reporting.workdirs import TABLES

ANSWERED = ('none', 'partial')  # labels of a reply that is not all refusal


@dataclasses.dataclass(frozen=True)
class Cell:
  """An arm on a benchmark.

  Attributes:
    score: mean of the n items that a run has scored, NaN if there are none.
    n: their number.
    unscored: scores that are missing, in all runs together.
    pair: against the control; None for the control itself.
    by_seed: float [S], the mean difference of each pair of runs.
    matched: `pair` over items that neither side refuses; None without labels.
    left_out: items of `pair` which that leaves out.
  """

  score: float
  n: int
  unscored: int
  pair: stats.PairedDifference | None = None
  by_seed: np.ndarray | None = None
  matched: stats.PairedDifference | None = None
  left_out: int = 0


def compare(arms: list[Arm], control: Arm) -> list[dict]:
  """A row per benchmark, by table and area.

  Returns:
    `name`, `line` of results, `cells` by arm.

  Raises:
    UserError: runs measured a benchmark in different ways.
  """
  runs = [run for arm in arms for run in arm.runs]
  known = {n: line for run in runs for n, line in run.last.results.items()}
  order = lambda x: (TABLES.index(x[1]['table']), x[1]['area'], x[0])
  rows = []
  for name, line in sorted(known.items(), key=order):
    for key in ('table', 'protocol', 'metric', 'version'):
      found = {
        run.name: run.last.results[name].get(key)
        for run in runs
        if name in run.last.items
      }
      if len(set(found.values())) > 1:
        raise UserError(
          f'{name} has another {key} in some arms, {found}; evaluate all arms '
          'with the same code'
        )
    those = [arm for arm in arms if name in arm.runs[0].last.items]
    cells = {arm.name: _cell(arm, control, name) for arm in those}
    rows.append({'name': name, 'line': line, 'cells': cells})
  return rows


def _cell(arm, control, benchmark):
  mine = [run.last for run in arm.runs]
  scores = score_table(mine, benchmark, item_ids(mine, benchmark))
  means = stats.known_mean(scores)
  n = int((~np.isnan(means)).sum())
  alone = Cell(
    score=float(np.nanmean(means)) if n else math.nan,
    n=n,
    unscored=int(np.isnan(scores).sum()),
  )
  if arm is control:
    return alone
  pairs = zip(*partners(arm, control), strict=True)
  sides = [[run.last for run in side] for side in pairs]
  everything = [scores for side in sides for scores in side]
  ids = item_ids(everything, benchmark)
  a, b = (score_table(side, benchmark, ids) for side in sides)
  groups = clusters(everything, benchmark, ids)
  matched, left_out = None, 0
  if all(_labelled(side, benchmark) for side in sides):
    answered = [_answered(side, benchmark, ids) for side in sides]
    refused = ~np.logical_and(*answered)
    matched, left_out = stats.refusal_matched(a, b, refused, groups)
  return dataclasses.replace(
    alone,
    pair=stats.paired_difference(a, b, groups),
    by_seed=stats.known_mean((a - b).T),
    matched=matched,
    left_out=left_out,
  )


def _labelled(scores, benchmark):
  """Whether any item says if it was refused."""
  items = [i for s in scores for i in s.items.get(benchmark, {}).values()]
  return any(item.refused for item in items)


def _answered(scores, benchmark, ids):
  """bool [S, n]: the item is labelled as not refused, or in part only."""
  items = [s.items.get(benchmark, {}) for s in scores]
  known = lambda mine, i: i in mine and mine[i].refused in ANSWERED
  return np.array([[known(mine, i) for i in ids] for mine in items])


def judge(rows: list[dict], arms: list[Arm]) -> dict[str, dict]:
  """table -> arm -> its verdict over the benchmarks of that table."""
  out = {}
  for table in dict.fromkeys(row['line']['table'] for row in rows):
    out[table] = {}
    for arm in arms:
      cells = {
        row['name']: row['cells'][arm.name]
        for row in rows
        if row['line']['table'] == table and arm.name in row['cells']
      }
      several = any(len(cell.by_seed) > 1 for cell in cells.values())
      out[table][arm.name] = verdicts.judge(
        {name: cell.pair for name, cell in cells.items()},
        {name: c.by_seed for name, c in cells.items()} if several else None,
      )
  return out


def noise_floor(rows: list[dict], control: Arm) -> verdicts.NoiseFloor | None:
  """Of the first table, from the control's runs; None if they show none."""
  last = [run.last for run in control.runs]
  names = [r['name'] for r in rows if r['line']['table'] == TABLES[0]]
  names = [name for name in names if name in last[0].items]
  if len(last) < 2 or not names:
    return None
  floor = verdicts.noise_floor(
    {n: score_table(last, n, item_ids(last, n)) for n in names}
  )
  return floor if floor.benchmarks else None
