"""Is an arm ahead of the control, on what, and at which dose? One page.

  python -m alignment_rl.report DIR... --control=NAME --output=FILE.html

Reads what train and evaluate left in each workdir; an arm is called as its
folder. `trait_0` and `trait_1` are runs of the arm `trait` if their configs
differ in the seed alone. What else is drawn follows from the configs: dose
curves, transfer, pressure, attacks. The page stands alone; its tables lie
beside it as FILE.csv, and the numbers of its figures as FILE.figures.csv.
"""

import argparse
import os
import pathlib
import sys

from alignment_rl.errors import UserError
from alignment_rl.reporting import (
  attacks,
  comparison,
  contrasts,
  doses,
  hostility,
  page,
  pressure,
  tables,
  transfer,
)
from alignment_rl.reporting.arms import as_arms
from alignment_rl.reporting.workdirs import read_run


def report(folders: list[pathlib.Path], control: str, output: pathlib.Path):
  """Writes the page and its CSVs, each whole; returns the tables as text.

  Raises:
    UserError: a folder cannot be read, or names do not fit.
  """
  folders_named = [folder.resolve().name for folder in folders]
  if len(set(folders_named)) < len(folders_named):
    raise UserError(
      f'the folders are called {folders_named}; expected different names'
    )
  if output.suffix != '.html':
    raise UserError(f'--output={output} does not end in .html; name a page')
  every = as_arms([read_run(folder) for folder in folders])
  names = [arm.name for arm in every]
  if control not in names:
    raise UserError(
      f'--control={control} and the arms are called {names}; expected the '
      'control among them'
    )
  every.sort(key=lambda arm: arm.name != control)
  base = every[0]
  attacked = [a for a in hostility.attacked_arms(every) if a is not base]
  arms = [arm for arm in every if arm not in attacked]
  rows = comparison.compare(arms, base)
  judged = comparison.judge(rows, arms[1:])
  floor = comparison.noise_floor(rows, base)
  last = lambda run: [(1.0, run.last)]
  overall = {a.name: contrasts.against(a, base, last) for a in arms[1:]}
  figures = [
    *pressure.figures(arms, base),
    *attacks.figures(attacked, arms, base),
    *doses.figures(arms, base),
    *transfer.figures(arms, base),
  ]
  files = {
    output.with_suffix('.csv'): tables.comma_separated(
      rows, control, judged, floor
    ),
    output.with_suffix('.figures.csv'): tables.of_figures(figures),
    output: page.render(arms, attacked, rows, judged, floor, figures, overall),
  }
  output.parent.mkdir(parents=True, exist_ok=True)
  for path, text in files.items():
    partial = pathlib.Path(f'{path}.partial')
    try:
      partial.write_text(text, encoding='utf-8')
      os.replace(partial, path)
    finally:
      partial.unlink(missing_ok=True)
  return tables.plain(rows, control, judged, floor, figures)


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog='python -m alignment_rl.report')
  parser.add_argument('folders', nargs='+', type=pathlib.Path, metavar='DIR')
  parser.add_argument('--control', required=True, help='name of a folder')
  parser.add_argument('--output', required=True, type=pathlib.Path)
  args = parser.parse_args(argv)
  try:
    print(report(**vars(args)))
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'report: {args.output}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
