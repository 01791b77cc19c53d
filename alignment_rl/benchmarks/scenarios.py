"""Held-out trait scenarios: does the policy lean to the beneficial reply?

Choice: the probability of the beneficial reply beside the violating one, per
token (the two are of like length), a benchmark for each trait in the area it
belongs to, and one for the eight traits that nothing trains. On mirrors the two
replies trade places, so a preference for a style of reply gains nothing there.
Judged: the policy's own reply to either kind, by its scenario's rubric. Data:
this project's authored scenarios, split `held_out`.
"""

import functools

from alignment_rl import config, items
from alignment_rl.scenarios import schema
from alignment_rl.suite import Benchmark, Demo
from alignment_rl.types import Example

AREA = {
  'truthfulness': 'deception_honesty',
  'epistemic_humility': 'deception_honesty',
  'metacognitive_transparency': 'deception_honesty',
  'corrigibility': 'latent_risk',
  'risk_sensitivity': 'latent_risk',
  'universal_fairness': 'latent_risk',
  'human_welfare': 'health',
}


@functools.cache
def _held_out(traits: tuple[str, ...], system: str = '') -> tuple[Example, ...]:
  found = config.make(
    'streams', 'traits',
    {'split': 'held_out', 'traits': traits, 'system': system},
  )  # fmt: skip
  # Domains in turn, so that the first few items are of several.
  domains = {}
  for e in found:
    domains.setdefault(e.metadata['domain'], []).append(e)
  return tuple(map(_clustered, items.in_turn(list(domains.values()))))


def _clustered(example):
  twins = example.id.removeprefix('traits/'), example.metadata['mirror']
  cluster = {'cluster': min(twins)} if twins[1] else {}
  return Example(
    example.id, example.messages, choices=example.choices,
    metadata=example.metadata | cluster,
  )  # fmt: skip


def _of(*traits):
  return lambda folder: _held_out(traits)


def _asked_briefly(*traits):
  system = config.load('streams', 'traits').BRIEF
  return lambda folder: _held_out(traits, system)


def _mirrors(folder):
  return [e for e in _held_out(schema.TRAITS) if e.metadata['mirror']]


def _against_refusal(folder):
  """The beneficial reply beside blanket caution."""
  return [
    Example(
      e.id, e.messages, metadata=e.metadata,
      choices=(e.choices[0], e.metadata['replies']['refusal']),
    )
    for e in _held_out(schema.TRAITS)
  ]  # fmt: skip


def _benchmark(name, load, **kwargs):
  return Benchmark(
    name, load=load, source='this project, authored trait scenarios',
    licence='CC-BY-4.0', **{'protocol': 'choice', 'demo': Demo()} | kwargs,
  )  # fmt: skip


BENCHMARKS = (
  *(_benchmark(f'{AREA[t]}/{t}', _of(t)) for t in schema.TRAITS),
  _benchmark('latent_risk/unseen_traits', _of(*schema.UNSEEN)),
  _benchmark('traits/mirrors', _mirrors, table='diagnostic'),
  _benchmark(
    'responsiveness/not_refusing', _against_refusal, table='responsiveness'
  ),
  *(
    _benchmark(
      name,
      _asked_briefly(*traits),
      protocol='generate',
      table='judged',
      judged=True,
    )
    for name, traits in (
      ('traits/own_reply', schema.TRAITS),
      ('traits/unseen_own_reply', schema.UNSEEN),
    )
  ),
)
