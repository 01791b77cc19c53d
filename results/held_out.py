"""The differences of RESULTS.md, from held_out.csv, with their intervals.

  python results/held_out.py

A line of the CSV is an arm's score on a scenario: the mean reward of its own
replies there, or the choice in nats. A mirror names its twin, with which it is
one cluster.
"""

import csv
import pathlib

import numpy as np

from alignment_rl import stats

PAIRS = (
  ('trait', 'standard'),
  ('trait', 'start'),
  ('standard', 'start'),
  ('told_beneficial', 'told_violating'),
  ('told_beneficial', 'start'),
  ('told_violating', 'start'),
)
PARTS = {
  'all': lambda row: True,
  'mirrors': lambda row: row['mirror'],
  'rest': lambda row: not row['mirror'],
}


def main():
  with pathlib.Path(__file__).with_name('held_out.csv').open() as file:
    rows = list(csv.DictReader(file))
  for measure in dict.fromkeys(row['measure'] for row in rows):
    every = None
    for part, holds in PARTS.items():
      scores, twins = {}, {}
      for row in rows:
        if row['measure'] == measure and holds(row):
          item = row['item']
          scores.setdefault(row['arm'], {})[item] = float(row['score'])
          twins[item] = min(item, row['mirror'] or item)
      if twins in ({}, every):
        continue  # There are no mirrors.
      every = every or twins
      n = len(twins)
      print(f'\n{measure}, {part} (n = {n})')
      for arm, found in scores.items():
        print(f'  {arm}: {np.mean(list(found.values())):+.3f}')
      for arm, control in PAIRS:
        of = lambda name, scores=scores, twins=twins: [
          scores[name][item] for item in twins
        ]
        d = stats.paired_difference(of(arm), of(control), list(twins.values()))
        print(
          f'  {arm} - {control}: {d.difference:+.3f} '
          f'[{d.low:+.3f}, {d.high:+.3f}], p = {d.p:.3f}'
        )


if __name__ == '__main__':
  main()
