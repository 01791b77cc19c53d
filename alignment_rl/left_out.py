"""Trains the reward model without one domain, trait or voice at a time.

What a reward learned of a group it never saw says whether it learned the task
or the group. Every training starts from the same trunk and shares its frozen
lower layers' states.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from alignment_rl import (
  checkpoint,
  forward,
  learner,
  mixture,
  optimizers,
  reward_learner,
  sharding,
)
from alignment_rl.rewards import criterion
from alignment_rl.types import Example


@dataclasses.dataclass(frozen=True)
class Settings:
  """How the reward is trained without a group, and how it is read there.

  Attributes:
    steps: of two scenarios, or one a device.
    layers: upper layers that learn.
    rate: peak learning rate.
    most: scenarios of a group that are read, at most, twins together.
  """

  steps: int
  layers: int
  rate: float
  most: int


def train_without(
  model: checkpoint.Model,
  params: Any,
  mesh: jax.sharding.Mesh,
  examples: Sequence[Example],
  groups: Sequence[tuple[str, str]],
  settings: Settings,
  progress: Callable[[], None] = lambda: None,
) -> Iterator[tuple[tuple[str, str], list[Example], Any]]:
  """One training for each group, on the train split of all others.

  Args:
    examples: of both splits, as metadata['split'].
    groups: (field, value) each, such as ('domain', 'health').
    progress: called after every step.

  Yields:
    The group, its own scenarios, of both splits, and parameters that never saw
    it.
  """
  model = model.with_dtype('float32')
  frozen = model.config.layers - settings.layers
  (lower, fixed), (upper, top) = forward.cut(model.decoder, params, frozen)
  shelf = reward_learner.Shelf(lower, fixed, mesh, model.tokenizer.pad_id)
  tx = optimizers.make_optimizer(
    name='adamw', learning_rate=settings.rate, warmup=5, steps=settings.steps,
    schedule='linear', clip_norm=1.0, weight_decay=0.0, b1=0.9, b2=0.99,
  )  # fmt: skip
  trainable = 'layers/.*|final_norm'
  _, shardings = learner.state_shardings(upper, tx, mesh, trainable)
  update = reward_learner.make_update(
    upper, tx, shardings, mesh, trainable, criterion.SCALE
  )
  items = {
    e.id: reward_learner.make_item(e, 'scenario', model.tokenizer, 4096)
    for e in examples
    if e.metadata['split'] == 'train'
  }
  for field, value in groups:
    mine = [e for e in examples if e.metadata[field] == value]
    own = {e.id for e in mine}
    rest = [item for name, item in items.items() if name not in own]
    deck = mixture.Mixture(
      {'rest': mixture.Stream(len(rest), weight=1.0)},
      slots=max(2, sharding.row_shards(mesh)),
      seed=0,
    )
    state = learner.fresh_state(top, tx, shardings, trainable)
    for step in range(settings.steps):
      batch = shelf.batch([rest[i] for _, i in deck.at(step)])
      batch = sharding.to_global(batch, sharding.rows(mesh))
      state, _ = update(state, {}, batch)
      progress()
    yield (
      (field, value),
      spread(mine, settings.most),
      forward.join(fixed, state.params),
    )


def spread(examples: Sequence[Example], most: int) -> list[Example]:
  """At most `most` of the examples, evenly spread, twins kept together."""
  taken, cases = set(), {}
  for e in examples:
    cases.setdefault(min(e.id, e.metadata['mirror'] or e.id), []).append(e)
  cases = list(cases.values())
  # The golden ratio's multiples mod 1 spread any prefix over the cases.
  golden = (5**0.5 - 1) / 2
  for i in np.argsort((np.arange(len(cases)) * golden) % 1, kind='stable'):
    if len(taken) + len(cases[i]) <= most:
      taken |= {e.id for e in cases[i]}
  return [e for e in examples if e.id in taken]
