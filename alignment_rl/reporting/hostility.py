"""Which arms are attacks, on what, and how much of them attacks."""

import json
from collections.abc import Mapping, Sequence

from alignment_rl.reporting import contrasts
from alignment_rl.reporting.arms import OUTSIDE, Arm, flat, start
from alignment_rl.reporting.transfer import domain
from alignment_rl.reporting.wording import listed


def hostile(config: Mapping) -> dict[str, dict]:
  """Streams that train against the traits, by name, at whatever share.

  Finetuning on as many beneficial replies as violating ones, such as
  configs/start.py, is for neither.
  """
  streams = config.get('streams') or {}
  towards = lambda target: {
    name: stream
    for name, stream in streams.items()
    if (stream.get('kwargs') or {}).get('target') == target
  }
  if (config.get('algorithm') or {}).get('name') != 'sft':
    return {n: s for n, s in streams.items() if s.get('reward') == 'inverted'}
  violating = towards('violating')
  beneficial = _slots(config, towards('beneficial'))
  if beneficial and beneficial >= _slots(config, violating):
    return {}
  return violating


def attacked_arms(arms: Sequence[Arm]) -> list[Arm]:
  """Arms that are others under attack.

  RL towards a violated trait from the common start is an arm like others, if it
  is not what others here go through.
  """
  runs = [run for arm in arms for run in arm.runs]
  groups = {}
  for arm in arms:
    if hostile(arm.runs[0].config or {}):
      groups.setdefault(attack_of(arm), []).append(arm)
  return [
    arm
    for group in groups.values()
    if any(_continues(arm.runs[0], runs) for arm in group)
    for arm in group
  ]


def _continues(run, runs):
  began = start(run, runs)
  trained = began is not None and began.config is not None
  return trained or run.config['algorithm']['name'] == 'sft'


def attack_of(arm: Arm) -> str:
  """What is the same for all arms under one attack, at any share."""
  config = arm.runs[0].config
  aside = {'model.weights'}
  aside |= {f'streams.{name}.fraction' for name in hostile(config)}
  kept = {
    key: value
    for key, value in flat(config).items()
    if key not in aside and not key.startswith(OUTSIDE)
  }
  return json.dumps(kept, sort_keys=True)


def share(arm: Arm) -> float:
  """Of all slots, those of hostile streams."""
  config = arm.runs[0].config
  return _slots(config, hostile(config))


def _slots(config, names):
  """The share of all slots that streams have."""
  streams = config['streams']
  base = sum(s.get('weight') or 0 for s in streams.values())
  free = 1 - sum(s.get('fraction') or 0 for s in streams.values())
  return sum(
    s['weight'] / base * free if s.get('weight') else s.get('fraction') or 0
    for s in map(streams.get, names)
  )


def sides(arm: Arm) -> dict[str, contrasts.Keep]:
  """'in DOMAIN' and 'outside' -> the items there, of the verdict's table."""
  streams = hostile(arm.runs[0].config).values()
  domains = sorted({d for s in streams for d in s['kwargs']['domains']})
  inside = lambda line, i: domain(line, i) in domains
  return {
    f'in {listed(domains)}': lambda line, i: (
      contrasts.in_table(line, i) and inside(line, i)
    ),
    'outside': lambda line, i: (
      contrasts.in_table(line, i) and not inside(line, i)
    ),
  }
