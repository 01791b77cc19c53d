"""The report as one page of HTML that stands alone."""

import json
import pathlib
import zlib

import jinja2

from alignment_rl import stats
from alignment_rl.reporting import curves, verdicts
from alignment_rl.reporting.arms import Arm, flat
from alignment_rl.reporting.contrasts import Estimate
from alignment_rl.reporting.figures import Figure, Number
from alignment_rl.reporting.wording import points, probability, tone
from alignment_rl.reporting.workdirs import TABLES

GROUPS = 200  # rollout groups embedded per run: about 0.5 MB
POINTS = 200  # points of a curve; longer ones are averaged in equal parts


def chart(arms: list[Arm], name: str) -> dict:
  """A metric of all runs: `curves` of (step, value, average), and y `ticks`."""
  # A running share is smooth already, and its start is worth seeing.
  window = 0.0 if name.startswith('dose/') else 1 / 12
  drawn = {}
  for run in (run for arm in arms for run in arm.runs):
    steps = [line['step'] for line in run.metrics]
    values = [line.get(name) for line in run.metrics]
    found = curves.curve(steps, values, points=POINTS, window=window)
    if found.size:
      drawn[run.name] = found.T.tolist()
  values = [value for curve in drawn.values() for _, value, _ in curve]
  ticks = curves.ticks(min(values), max(values))
  return {'name': name, 'curves': drawn, 'ticks': ticks}


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


def grid(figure: Figure) -> tuple[list[str], dict[tuple, dict[str, Number]]]:
  """A figure's numbers as a table.

  Returns:
    The columns, and (where, arm) -> column -> number.
  """
  rows = {}
  for number in figure.numbers:
    rows.setdefault((number.where, number.arm), {})[number.what] = number
  return list(dict.fromkeys(n.what for n in figure.numbers)), rows


def render(
  arms: list[Arm],
  attacked: list[Arm],
  rows: list[dict],
  judged: dict,
  floor: verdicts.NoiseFloor | None,
  figures: list[Figure],
  overall: dict[str, Estimate],
) -> str:
  """The HTML.

  Args:
    arms: the control first.
    attacked: arms that are attacks, which have figures of their own.
    rows: of `comparison.compare`.
    judged: of `comparison.judge`.
    overall: arm -> its mean difference with items as the unit.
  """
  runs = [run for arm in arms for run in arm.runs]
  picked = [{'arm': run.name} | g for run in runs for g in pick(run.rollouts)]
  final = {
    run.name: {k: v for m in run.metrics for k, v in m.items() if v is not None}
    for run in runs
  }
  names = {name for values in final.values() for name in values} - {'step'}
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True, trim_blocks=True, lstrip_blocks=True,
  )  # fmt: skip
  environment.filters |= {
    'points': points, 'probability': probability, 'tone': tone, 'grid': grid
  }  # fmt: skip
  # In the JSON every '<' is an escape, so that no text ends the script element.
  return environment.get_template('report.html.j2').render(
    arms=arms, control=arms[0].name, rows=rows, judged=judged, floor=floor,
    attacked=attacked, figures=figures, overall=overall,
    charts=[chart(arms, name) for name in sorted(names)], final=final,
    configs={
      run.name: flat(run.config or {})
      for arm in [*arms, *attacked] for run in arm.runs
    },
    rollouts=json.dumps(picked).replace('<', '\\u003c'),
    groups=GROUPS, few=stats.FEW, rate=verdicts.RATE, main=TABLES[0],
  )  # fmt: skip
