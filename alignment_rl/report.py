"""Is an arm ahead of the control, on what, and at which dose? One page.

  python -m alignment_rl.report DIR... --control=NAME --output=FILE.html

Reads what train and evaluate left in each workdir; an arm is called as its
folder. The page stands alone; its main table lies beside it as FILE.csv.
"""

import argparse
import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import sys
import zlib

import jinja2
import numpy as np

from alignment_rl import stats
from alignment_rl.errors import UserError

GROUPS = 200  # rollout groups embedded per arm: about 0.5 MB
POINTS = 200  # points of a curve; longer ones are averaged in equal parts


@dataclasses.dataclass(frozen=True)
class Arm:
  """What a workdir holds; `scores` is benchmark -> item id -> score or None."""

  name: str
  config: dict | None
  metrics: list[dict]
  rollouts: list[dict]
  results: dict[str, dict]
  scores: dict[str, dict[str, float | None]]


@dataclasses.dataclass(frozen=True)
class Cell:
  """An arm on a benchmark."""

  score: float  # mean of the n scored items, NaN if there are none
  n: int
  unscored: int
  pair: stats.PairedDifference  # against the control; its n may be 0


def read_arm(folder: pathlib.Path) -> Arm:
  """Reads a workdir.

  Raises:
    UserError: it does not exist, was not evaluated, or holds a broken file.
  """
  if not folder.is_dir():
    raise UserError(
      f'{folder} is no folder; give workdirs of `python -m alignment_rl.train`'
    )
  path = folder / 'evaluation' / 'results.jsonl'
  results = {line['benchmark']: line for line in _lines(path)}
  if not results:
    raise UserError(
      f'{path} is missing or empty; run `python -m alignment_rl.evaluate '
      f'--checkpoint={folder} --output={path.parent}` first'
    )
  scores = {}
  for name in results:
    path = folder / f'evaluation/scores/{name.replace("/", "__")}.jsonl'
    items = _lines(path)
    scores[name] = {item['id']: item['score'] for item in items}
    if not items or len(scores[name]) < len(items):
      raise UserError(
        f'{path} has {len(items)} lines and {len(scores[name])} different ids, '
        f'expected a line for each item; evaluate {folder} again'
      )
  path = folder / 'config.json'
  return Arm(
    folder.resolve().name,
    json.loads(path.read_text(encoding='utf-8')) if path.exists() else None,
    _lines(folder / 'metrics.jsonl', growing=True),
    _lines(folder / 'rollouts.jsonl', growing=True),
    results,
    scores,
  )


def _lines(path, growing=False):
  """Records of a JSONL file, none if it is absent; NaN and infinity are None.

  A `growing` file may end in half a line, which a run is writing.
  """
  text = path.read_text(encoding='utf-8') if path.exists() else ''
  lines = text.split('\n')
  out = []
  for number, line in enumerate(lines, 1):
    try:
      if line.strip():
        out.append(json.loads(line, parse_constant=lambda name: None))
    except json.JSONDecodeError:
      if not growing or number < len(lines):
        raise UserError(
          f'line {number} of {path} is no JSON; write that file again'
        ) from None
  return out


def compare(arms: list[Arm], control: Arm) -> list[dict]:
  """A row per benchmark, by area: `name`, `line` of results, `cells` by arm.

  Raises:
    UserError: arms measured a benchmark in different ways.
  """
  known = {n: line for arm in arms for n, line in arm.results.items()}
  rows = []
  for name, line in sorted(known.items(), key=lambda x: (x[1]['area'], x[0])):
    those = [arm for arm in arms if name in arm.results]
    for key in ('protocol', 'metric', 'version'):
      found = {arm.name: arm.results[name].get(key) for arm in those}
      if len(set(found.values())) > 1:
        raise UserError(
          f'{name} has another {key} in some arms, {found}; evaluate all arms '
          'with the same code'
        )
    cells = {arm.name: _cell(arm, control, name) for arm in those}
    rows.append({'name': name, 'line': line, 'cells': cells})
  return rows


def _cell(arm, control, benchmark):
  mine, other = arm.scores[benchmark], control.scores.get(benchmark, {})
  ids = sorted(mine.keys() | other.keys())
  a, b = (np.array([s.get(i) for i in ids], float) for s in (mine, other))
  n = int((~np.isnan(a)).sum())
  mean = float(np.nanmean(a)) if n else math.nan
  return Cell(mean, n, len(mine) - n, stats.paired_bootstrap(a, b))


def chart(arms: list[Arm], name: str) -> dict:
  """A metric of all arms: `curves` of (step, value, average), and y `ticks`."""
  # A running share is smooth already, and its start is worth seeing.
  window = 0.0 if name.startswith('dose/') else 1 / 12
  curves = {}
  for arm in arms:
    steps = [line['step'] for line in arm.metrics]
    values = [line.get(name) for line in arm.metrics]
    found = stats.curve(steps, values, points=POINTS, window=window)
    if found.size:
      curves[arm.name] = found.T.tolist()
  values = [value for curve in curves.values() for _, value, _ in curve]
  ticks = stats.ticks(min(values), max(values))
  return {'name': name, 'curves': curves, 'ticks': ticks}


def pick(groups: list[dict]) -> list[dict]:
  """At most GROUPS of them, in their order, with equal room for every stream.

  Chance by step and id chooses, so that arms show the same ones.
  """
  key = lambda i: zlib.crc32(f'{groups[i]["step"]} {groups[i]["id"]}'.encode())
  seen, turn = {}, {}
  for i in sorted(range(len(groups)), key=key):
    stream = groups[i]['stream']
    turn[i] = seen[stream] = seen.get(stream, 0) + 1
  return [groups[i] for i in sorted(sorted(turn, key=turn.get)[:GROUPS])]


def flat(config: dict, prefix: str = '') -> dict[str, object]:
  """{'a': {'b': 1}} as {'a.b': 1}."""
  out = {}
  for key, value in config.items():
    inner = isinstance(value, dict) and value
    out |= flat(value, f'{prefix}{key}.') if inner else {prefix + key: value}
  return out


def points(x: float | None, sign: str = '') -> str:
  """Hundredths: '41.3', with sign '+' also '+3.1'; '–' if there is none."""
  text = '–' if x is None or math.isnan(x) else f'{100 * x:{sign}.1f}'
  return '0.0' if text in ('+0.0', '-0.0') else text


def interval(p: stats.PairedDifference) -> str:
  bounds = f' [{points(p.low, "+")}, {points(p.high, "+")}]' if p.n > 1 else ''
  return points(p.difference, '+') + bounds


def plain(rows: list[dict], control: str, verdicts: dict) -> str:
  """The table as text: benchmark, control, each arm and its difference."""
  heads = [x for arm in verdicts for x in (arm, 'difference [95 %]')]
  lines = [['score, points', control, *heads]]
  for row in rows:
    base, others = row['cells'].get(control), map(row['cells'].get, verdicts)
    lines.append([row['name'], points(base and base.score)])
    for cell in others:
      known = cell and (points(cell.score), interval(cell.pair))
      lines[-1] += known or ('–', '–')
  means = [x for v in verdicts.values() for x in ('', interval(v.mean))]
  lines.append(['mean over benchmarks', '', *means])
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  pad = lambda x: '  '.join(map(str.ljust, x, widths)).rstrip()
  return '\n'.join(map(pad, lines))


def comma_separated(rows: list[dict], control: str) -> str:
  """A line per arm and benchmark; scores are in [0, 1], n counts the pairs."""
  out = io.StringIO()
  write = csv.writer(out, lineterminator='\n').writerow
  write('arm benchmark area n score control_score difference low high'.split())
  text = lambda x: '' if x is None or math.isnan(x) else f'{x:.6f}'
  for row in rows:
    base = row['cells'].get(control)
    for arm, cell in row['cells'].items():
      p = cell.pair
      found = (None,) * 3 if arm == control else (p.difference, p.low, p.high)
      numbers = map(text, (cell.score, base and base.score, *found))
      write([arm, row['name'], row['line']['area'], p.n, *numbers])
  return out.getvalue()


def page(arms: list[Arm], rows: list[dict], verdicts: dict) -> str:
  """The HTML; `arms` has the control first."""
  picked = [{'arm': arm.name} | g for arm in arms for g in pick(arm.rollouts)]
  final = {
    arm.name: {k: v for m in arm.metrics for k, v in m.items() if v is not None}
    for arm in arms
  }
  names = {name for values in final.values() for name in values} - {'step'}
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True, trim_blocks=True, lstrip_blocks=True,
  )  # fmt: skip
  environment.filters |= {'points': points}
  # In the JSON every '<' is an escape, so that no text ends the script element.
  return environment.get_template('report.html.j2').render(
    arms=arms, control=arms[0].name, rows=rows, verdicts=verdicts,
    charts=[chart(arms, name) for name in sorted(names)], final=final,
    configs={a.name: flat(a.config) if a.config else {} for a in arms},
    rollouts=json.dumps(picked).replace('<', '\\u003c'),
    groups=GROUPS, few=stats.FEW,
  )  # fmt: skip


def report(folders: list[pathlib.Path], control: str, output: pathlib.Path):
  """Writes the page and its CSV, each whole; returns the table as text.

  Raises:
    UserError: a folder cannot be read, or names do not fit.
  """
  names = [folder.resolve().name for folder in folders]
  if control not in names or len(set(names)) < len(names):
    raise UserError(
      f'--control={control} and the folders are called {names}; expected '
      'different names and the control among them'
    )
  if output.suffix != '.html':
    raise UserError(f'--output={output} does not end in .html; name a page')
  arms = [read_arm(folder) for folder in folders]
  arms.sort(key=lambda arm: arm.name != control)
  rows = compare(arms, arms[0])
  verdicts = {}
  for arm in (a.name for a in arms[1:]):
    mine = {r['name']: r['cells'][arm] for r in rows if arm in r['cells']}
    verdicts[arm] = stats.judge({name: c.pair for name, c in mine.items()})
  files = {
    output.with_suffix('.csv'): comma_separated(rows, control),
    output: page(arms, rows, verdicts),
  }
  output.parent.mkdir(parents=True, exist_ok=True)
  for path, text in files.items():
    partial = pathlib.Path(f'{path}.partial')
    try:
      partial.write_text(text, encoding='utf-8')
      os.replace(partial, path)
    finally:
      partial.unlink(missing_ok=True)
  return plain(rows, control, verdicts)


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
