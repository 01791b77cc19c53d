"""The set in figures: its make-up, and what gives the right reply away.

`make_up` needs nothing but the rows; `shortcuts` fits the probes of
`alignment_rl/probes.py`, each on six domains and read on the seventh. The
bounds are those the data set promises (DATASHEET.md).
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from alignment_rl import probes
from alignment_rl.scenarios import duplicates, schema

Rows = Sequence[Mapping[str, Any]]
# (better reply, worse reply) texts -> two arrays of features.
Features = Callable[
  [Sequence[str], Sequence[str]], tuple[np.ndarray, np.ndarray]
]


class Figure(NamedTuple):
  """A figure beside its bound; `ok` is None where the set promises nothing."""

  name: str
  value: float
  bound: str = ''
  ok: bool | None = None


def at_least(name: str, value: float, bound: float) -> Figure:
  return Figure(name, float(value), f'>= {bound:g}', bool(value >= bound))


def at_most(name: str, value: float, bound: float) -> Figure:
  return Figure(name, float(value), f'<= {bound:g}', bool(value <= bound))


def core(rows: Rows) -> list[Mapping[str, Any]]:
  """The scenarios of the seven traits that are trained and tested on."""
  return [r for r in rows if r['trait'] in schema.TRAITS]


def make_up(rows: Rows) -> list[Figure]:
  """Counts and shares of the seven traits' scenarios, and of the unseen."""
  mine = core(rows)
  cells = collections.Counter(
    (r['trait'], r['domain'], r['split']) for r in mine
  )
  fewest = lambda split: min(
    cells[trait, domain, split]
    for trait in schema.TRAITS
    for domain in schema.DOMAINS
  )
  mirrors = [r for r in mine if r['mirror']]
  rest = [r for r in mine if not r['mirror']]
  covered = lambda field, values: min(
    sum(r[field] == value for r in mirrors) for value in values
  )
  share = lambda test, among: sum(map(test, among)) / max(len(among), 1)
  unseen = collections.Counter(
    (r['trait'], r['domain']) for r in rows if r['trait'] in schema.UNSEEN
  )
  return [
    at_least('scenarios of the seven traits', len(mine), 490),
    at_least('train, fewest in a trait and domain', fewest('train'), 8),
    at_least('held out, fewest in a trait and domain', fewest('held_out'), 2),
    at_least('unseen traits, cells with a scenario', len(unseen), 56),
    at_least('mirrors', len(mirrors), 150),
    at_least('mirrors, fewest in a trait', covered('trait', schema.TRAITS), 1),
    at_least(
      'mirrors, fewest in a domain', covered('domain', schema.DOMAINS), 1
    ),
    at_least('mirrors, fewer split', covered('split', schema.SPLITS), 1),
    at_least(
      'rest, beneficial reply agrees', share(lambda r: r['agrees'], rest), 0.3
    ),
    at_least(
      'more than one turn', share(lambda r: len(r['turns']) > 1, mine), 0.4
    ),
    at_least(
      'planted error',
      share(lambda r: r['pressure'] == 'planted_error', mine),
      0.15,
    ),
    *(
      at_least(
        f'pressure {p}', sum(r['pressure'] == p for r in mine), len(mine) / 70
      )
      for p in schema.PRESSURES
    ),
    *(
      at_least(f'voice {v}', sum(r['voice'] == v for r in mine), 10)
      for v in schema.VOICES
    ),
    Figure(
      'a criterion of negative points',
      share(lambda r: any(c['points'] < 0 for c in r['rubric']), mine),
    ),
    at_most('prompts too much alike', len(duplicates.within(rows)), 0),
  ]


def shortcuts(
  rows: Rows, features: Mapping[str, Features] | None = None
) -> list[Figure]:
  """How often something shallow picks the beneficial reply, left-out domains.

  Args:
    features: further probes of the reply alone, by name; `word_features` is
      always among them.

  Raises:
    UserError: the seven traits' rows are of fewer than two domains.
  """
  mine = core(rows)
  domains = [r['domain'] for r in mine]
  mirrored = np.array([bool(r['mirror']) for r in mine])
  reply = lambda name: [r['replies'][name] for r in mine]
  better, worse = reply('beneficial'), reply('violating')
  out = []
  for other, bound in (('violating', 0.55), ('refusal', 0.6)):
    found = probes.length_wins(better, reply(other), domains)
    for unit, wins in found.items():
      out.append(at_most(f'length in {unit}, over {other}', wins.mean(), bound))
  every = {'tf-idf of the reply': probes.word_features} | dict(features or {})
  for name, of in every.items():
    wins = probes.left_out_wins(*of(better, worse), domains)
    out.append(at_most(f'{name}, over violating', wins.mean(), 0.7))
    for part, mask in (('mirrors', mirrored), ('rest', ~mirrored)):
      if mask.any():
        out.append(Figure(f'  of which {part}', float(wins[mask].mean())))
  return out


def telling(rows: Rows) -> dict[str, list[tuple[str, int, int]]]:
  """The most telling words of the non-mirrors, over each other reply."""
  rest = [r for r in core(rows) if not r['mirror']]
  reply = lambda name: [r['replies'][name] for r in rest]
  return {
    other: probes.telling_words(reply('beneficial'), reply(other))
    for other in ('violating', 'refusal')
  }
