"""Runs as the arms of a report: who belongs together, who is compared."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from alignment_rl.errors import UserError
from alignment_rl.reporting.workdirs import Run, Scores

# Fields that say how a run is run and watched, not what is trained.
OUTSIDE = ('seed', 'log.', 'checkpoint.', 'mesh.')


@dataclasses.dataclass(frozen=True)
class Arm:
  """One run, or runs that differ in seed alone, by seed."""

  name: str
  runs: list[Run]


def as_arms(runs: list[Run]) -> list[Arm]:
  """Runs of one arm together: names equal but for a number, configs for a seed.

  'trait_0', 'trait-seed1' and 'trait_s2' are runs of 'trait' if their configs
  differ in `seed`, and in nothing else; where a run begins from another of
  these, in that one's seed too.

  Raises:
    UserError: two arms have one name, or seeds of one other benchmarks.
  """
  alike = {}
  for run in runs:
    key = run.name
    if _stem(run.name) and 'seed' in (run.config or {}):
      unseeded = json.dumps(_without_seed(run, runs), sort_keys=True)
      key = _stem(run.name), unseeded
    alike.setdefault(key, []).append(run)
  arms = []
  for key, group in alike.items():
    if len(group) == 1 or len({r.config['seed'] for r in group}) < len(group):
      arms += [Arm(run.name, [run]) for run in group]
      continue
    names = [run.last.results.keys() for run in group]
    counts = {r.name: len(found) for r, found in zip(group, names, strict=True)}
    if any(found != names[0] for found in names):
      raise UserError(
        f'these are seeds of one arm and have different benchmarks, {counts} '
        'of them; evaluate all on the same'
      )
    arms.append(Arm(key[0], sorted(group, key=lambda r: r.config['seed'])))
  names = [arm.name for arm in arms]
  if len(set(names)) < len(names):
    raise UserError(
      f'arms are called {names}; expected different names, rename a folder'
    )
  return arms


def _stem(name):
  return re.sub(r'([-_.]?(seed)?|[-_.]s)[-_.]?\d+$', '', name)


def _without_seed(run, runs):
  config = run.config | {'seed': None}
  began = start(run, runs)
  # A start that has no seeds beside it is the same one for all.
  if (
    began
    and (began.config or {}).get('seed') == run.config['seed']
    and any(_stem(r.name) == _stem(began.name) for r in runs if r is not began)
  ):
    config['model'] = config['model'] | {'weights': _stem(began.name)}
  return config


def start(run: Run, runs: Sequence[Run]) -> Run | None:
  """The one of `runs` whose last checkpoint `run` began from."""
  weights = ((run.config or {}).get('model') or {}).get('weights')
  if not weights:
    return None
  name = pathlib.PurePath(weights).name
  for other in runs:
    if other is not run and (
      (other.config and other.name == name)
      or other.last['checkpoint'] == weights
    ):
      return other
  return None


def flat(config: Mapping, prefix: str = '') -> dict[str, object]:
  """{'a': {'b': 1}} as {'a.b': 1}."""
  out = {}
  for key, value in config.items():
    inner = isinstance(value, dict) and value
    out |= flat(value, f'{prefix}{key}.') if inner else {prefix + key: value}
  return out


def differing(one: Arm, other: Arm) -> set[str]:
  """Fields in which what two arms train differs, their seeds left aside."""
  a, b = (flat(arm.runs[0].config or {}) for arm in (one, other))
  none = object()
  return {
    key
    for key in a.keys() | b.keys()
    if a.get(key, none) != b.get(key, none) and not key.startswith(OUTSIDE)
  }


def score_table(
  scores: Sequence[Scores], benchmark: str, ids: Sequence[str]
) -> np.ndarray:
  """float64 [S, n] of items in S evaluations; NaN = unscored or absent."""
  items = [s.items.get(benchmark, {}) for s in scores]
  score = lambda mine, i: mine[i].score if i in mine else None
  return np.array([[score(mine, i) for i in ids] for mine in items], float)


def item_ids(scores: Sequence[Scores], benchmark: str) -> list[str]:
  """The items that any of these evaluations has."""
  return sorted(set().union(*(s.items.get(benchmark, ()) for s in scores)))


def clusters(
  scores: Sequence[Scores], benchmark: str, ids: Sequence[str]
) -> list[int]:
  """A number for each item, equal where items share a source.

  Raises:
    UserError: an item has two sources.
  """
  source = {}
  for one in scores:
    for name, item in one.items.get(benchmark, {}).items():
      if source.setdefault(name, item.cluster) != item.cluster:
        raise UserError(
          f'item {name} of {benchmark} is in cluster {item.cluster!r} and '
          f'{source[name]!r}; evaluate all arms with the same code'
        )
  numbers = {}
  own = lambda i: (i, None) if source[i] is None else (None, source[i])
  return [numbers.setdefault(own(i), len(numbers)) for i in ids]


def partners(arm: Arm, control: Arm) -> list[tuple[Run, Run]]:
  """Pairs of runs to compare: of one seed, or with the only run of a side.

  Raises:
    UserError: both have several runs, and a seed of the arm's is missing.
  """
  seeded = {(run.config or {}).get('seed'): run for run in control.runs}
  mine = [(run.config or {}).get('seed') for run in arm.runs]
  if len(control.runs) > 1 and set(mine) <= set(seeded):
    return [(r, seeded[s]) for r, s in zip(arm.runs, mine, strict=True)]
  if len(arm.runs) > 1 and len(control.runs) > 1:
    raise UserError(
      f'{arm.name} has seeds {mine} and {control.name} {list(seeded)}; runs '
      'are paired by seed: add a run of the control, or leave one of the arm'
    )
  return [(one, other) for one in arm.runs for other in control.runs]
