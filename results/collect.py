"""Puts what evaluations found on held-out scenarios into held_out.csv.

  python results/collect.py DIR... --suffix=_40

DIR is a workdir ARM_SEED that `evaluate` has read; its arm is called
ARM<suffix>. Rows of the same arm and seed are replaced.
"""

import argparse
import csv
import json
import pathlib

from alignment_rl.scenarios import schema
from alignment_rl.streams import traits

MEASURES = 'own_reply', 'choice', 'unseen_own_reply', 'unseen_choice'
FIELDS = 'measure', 'arm', 'seed', 'item', 'mirror', 'readings', 'score'
TABLE = pathlib.Path(__file__).with_name('held_out.csv')
# The scenarios' own benchmarks, but mirrors, which repeat some of the others.
FILES = {
  'traits__own_reply': 'own_reply',
  'traits__unseen_own_reply': 'unseen_own_reply',
  '*__unseen_traits': 'unseen_choice',
  **{f'*__{trait}': 'choice' for trait in schema.TRAITS},
}


def read(folder: pathlib.Path, arm: str, seed: str, mirrors: dict):
  """The rows of one workdir."""
  for file, measure in FILES.items():
    (path,) = folder.glob(f'evaluation/scores/{file}.jsonl')
    for line in path.read_text().splitlines():
      record = json.loads(line)
      item = record['id'].removeprefix('traits/')
      if measure.endswith('own_reply'):
        score, readings = record['score'], len(record['replies'])
      else:
        # The beneficial reply is the first as the reader was asked.
        logprobs = record['asked'][0]['logprobs']
        score, readings = logprobs[0] - logprobs[1], 1
      yield dict(
        zip(
          FIELDS,
          (measure, arm, seed, item, mirrors[item] or '', str(readings),
           f'{score:.3f}'),
          strict=True,
        )
      )  # fmt: skip


def main():
  parser = argparse.ArgumentParser(prog='python results/collect.py')
  parser.add_argument('folders', nargs='+', type=pathlib.Path, metavar='DIR')
  parser.add_argument('--suffix', default='', help='of the names of the arms')
  args = parser.parse_args()
  every = traits.make(split='held_out', traits=schema.TRAITS + schema.UNSEEN)
  mirrors = {e.id.removeprefix('traits/'): e.metadata['mirror'] for e in every}
  with TABLE.open(newline='') as file:
    rows = list(csv.DictReader(file))
  arms = [row['arm'] for row in rows]
  for folder in args.folders:
    name, seed = folder.resolve().name.rsplit('_', 1)
    arm = name + args.suffix
    arms.append(arm)
    rows = [row for row in rows if (row['arm'], row['seed']) != (arm, seed)]
    rows += read(folder, arm, seed, mirrors)
  rows.sort(
    key=lambda row: (
      MEASURES.index(row['measure']), arms.index(row['arm']), row['seed'],
      row['item'],
    )
  )  # fmt: skip
  with TABLE.open('w', newline='') as file:
    writer = csv.DictWriter(file, FIELDS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)


if __name__ == '__main__':
  main()
