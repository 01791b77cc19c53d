"""Sums and differences of evaluations, paired by item.

A level is one evaluation, a difference two, a slope two of one arm, and the
difference of two slopes four: (a under pressure - a) - (b under pressure - b).
Each is worked out item by item, so that what makes an item hard cancels.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from alignment_rl import stats
from alignment_rl.reporting import verdicts
from alignment_rl.reporting.arms import (
  Arm,
  clusters,
  item_ids,
  partners,
  score_table,
)
from alignment_rl.reporting.workdirs import TABLES, Run, Scores

# Weighted evaluations of one run: their sum is the number asked for.
Terms = Sequence[tuple[float, Scores]]
Of = Callable[[Run], Terms]
# (line of results.jsonl, item id) -> whether the item counts.
Keep = Callable[[dict, str], bool]

RESAMPLES = 2000  # there are hundreds of numbers


def of_table(table: str) -> Keep:
  """Every item of one of the `TABLES`."""
  return lambda line, item: line['table'] == table


in_table = of_table(TABLES[0])  # the one that a verdict is about


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A number made of scores, and how sure it is.

  Attributes:
    items: the mean over benchmarks of the mean over their items; its interval
      and p ask whether other items would agree.
    benchmarks: how many have an item.
    seeds: the same mean with runs as the unit; None for one run.
    by_seed: the means that it is over.
    floor: how far the control's own runs are apart in that number; NaN if that
      is not known.
  """

  items: stats.PairedDifference
  benchmarks: int
  seeds: stats.PairedDifference | None
  by_seed: tuple[float, ...]
  floor: float = math.nan

  @property
  def value(self) -> float:
    return self.items.difference

  @property
  def above(self) -> bool:
    """The whole interval over items is above 0."""
    return self.items.low > 0

  @property
  def below(self) -> bool:
    return self.items.high < 0

  @property
  def inside_floor(self) -> bool:
    """The control's seeds alone differ by as much: nothing can be claimed."""
    return abs(self.value) <= self.floor


def alone(arm: Arm, of: Of, keep: Keep = in_table) -> Estimate:
  """A number of an arm."""
  return estimate([of(run) for run in arm.runs], keep)


def against(arm: Arm, control: Arm, of: Of, keep: Keep = in_table) -> Estimate:
  """A number of an arm minus that of the control, by item and by seed.

  Raises:
    UserError: a seed has no partner.
  """
  minus = lambda terms: [(-weight, scores) for weight, scores in terms]
  pairs = partners(arm, control)
  found = estimate([[*of(a), *minus(of(c))] for a, c in pairs], keep)
  own = seed_means([of(run) for run in control.runs], keep)
  floor = max(own) - min(own) if len(own) > 1 else math.nan
  return dataclasses.replace(found, floor=floor)


def estimate(
  rows: Sequence[Terms], keep: Keep = in_table, resamples: int = RESAMPLES
) -> Estimate:
  """The mean over benchmarks of a sum of evaluations.

  Items are the unit of chance, each benchmark weighs the same, and how many
  items a benchmark has is drawn as well: where benchmarks differ that makes the
  interval wider, never narrower. An item counts if all terms of a row scored
  it, and is averaged over the rows that have it.

  Args:
    rows: the terms of each run, or pair of runs, by seed.
    keep: which items count.
    resamples: of the interval and p.
  """
  values, groups, means = [], [], []
  for table, group in _tables(rows, keep):
    item = stats.known_mean(table)
    known = ~np.isnan(item)
    values.append(item[known] / known.sum())
    groups.append([(len(groups), g) for g in np.array(group)[known]])
    means.append(stats.known_mean(table.T))
  # Scaled so that their plain mean is the mean over benchmarks.
  scale = sum(map(len, values)) / max(len(values), 1)
  scaled = np.concatenate([np.zeros(0), *values]) * scale
  numbers = {}
  flat = [numbers.setdefault(g, len(numbers)) for part in groups for g in part]
  return Estimate(
    items=stats.paired_difference(
      scaled, np.zeros(len(scaled)), flat, resamples=resamples
    ),
    benchmarks=len(values),
    seeds=verdicts.across_seeds(means) if len(rows) > 1 and means else None,
    by_seed=_over_benchmarks(means),
  )


def seed_means(rows: Sequence[Terms], keep: Keep) -> tuple[float, ...]:
  """The number in each row: the mean over the benchmarks that all rows have."""
  return _over_benchmarks(
    [stats.known_mean(table.T) for table, _ in _tables(rows, keep)]
  )


def _over_benchmarks(means):
  means = np.array([m for m in means if not np.isnan(m).any()])
  return tuple(means.mean(0).tolist()) if len(means) else ()


def _tables(rows, keep):
  """For each benchmark float [rows, n], and the clusters of its n items."""
  scores = [one for terms in rows for _, one in terms]
  for name, line in scores[0].results.items():
    ids = [i for i in item_ids(scores, name) if keep(line, i)]
    table = np.array(
      [
        sum(w * score_table([one], name, ids)[0] for w, one in terms)
        for terms in rows
      ]
    )
    if not np.isnan(table).all():
      yield table, clusters(scores, name, ids)
