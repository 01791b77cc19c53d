"""The differences of RESULTS.md, from held_out.csv, with their intervals.

  python results/held_out.py

A line of the CSV is an arm's score on a scenario: the mean reward of its own
replies there, or the choice in nats; collect.py made it. Arms that end in _40
are the second round. Seeds of an arm are averaged item by item, over those that
both arms have, and their differences stand beside. A mirror names its twin,
with which it is one cluster.
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
  ('trait_40', 'standard_40'),
  ('trait_40', 'shuffled_40'),
  ('trait_40', 'helpfulness_40'),
  ('helpfulness_40', 'standard_40'),
  ('shuffled_40', 'standard_40'),
)


def main():
  with pathlib.Path(__file__).with_name('held_out.csv').open() as file:
    rows = list(csv.DictReader(file))
  for measure in dict.fromkeys(row['measure'] for row in rows):
    mine = [row for row in rows if row['measure'] == measure]
    mirrors = [row for row in mine if row['mirror']]
    show(f'{measure}, all', mine)
    if mirrors:
      show(f'{measure}, mirrors', mirrors)
      show(f'{measure}, rest', [row for row in mine if not row['mirror']])


def show(title, rows):
  """Prints the arms' means, and how the pairs differ on the same items."""
  scores, twins = {}, {}
  for row in rows:
    of_seed = scores.setdefault(row['arm'], {}).setdefault(row['seed'], {})
    of_seed[row['item']] = float(row['score'])
    twins[row['item']] = min(row['item'], row['mirror'] or row['item'])
  print(f'\n{title} (n = {len(twins)})')
  for arm, seeds in scores.items():
    means = [np.mean(list(found.values())) for found in seeds.values()]
    print(f'  {arm}: {np.mean(means):+.3f}{by_seed(means)}')
  for arm, control in PAIRS:
    both = [seed for seed in scores[arm] if seed in scores[control]]
    one, other = (
      np.array([[scores[a][seed][item] for item in twins] for seed in both])
      for a in (arm, control)
    )
    d = stats.paired_difference(one.mean(0), other.mean(0), [*twins.values()])
    print(
      f'  {arm} - {control}: {d.difference:+.3f} '
      f'[{d.low:+.3f}, {d.high:+.3f}], p = {d.p:.3f}'
      + by_seed((one - other).mean(1))
    )


def by_seed(values):
  """Each seed's own value, where there are several."""
  if len(values) < 2:
    return ''
  return f', by seed {", ".join(f"{value:+.3f}" for value in values)}'


if __name__ == '__main__':
  main()
