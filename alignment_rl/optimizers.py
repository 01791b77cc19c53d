"""Optimizers by name, and which parameters they move."""

import re
from typing import Any

import jax
import optax
from flax import traverse_util

from alignment_rl.errors import UserError


def make_optimizer(
  *,
  name: str,
  learning_rate: float,
  warmup: int,
  steps: int,
  schedule: str,
  clip_norm: float,
  weight_decay: float,
  b1: float,
  b2: float,
) -> optax.GradientTransformation:
  """An optax chain: clip by global norm, optimizer, schedule.

  Args:
    name: 'adamw', 'adafactor', 'lion' or 'sgd'.
    learning_rate: peak.
    warmup: steps of linear warm-up from 0.
    steps: length of the schedule, warm-up included.
    schedule: 'constant', 'linear' or 'cosine' (both to 0).
    clip_norm: global gradient norm is cut to it; 0 = no clipping.
    weight_decay: decoupled, on matrices only.

  Raises:
    UserError: unknown `name` or `schedule`.
  """
  after = max(steps - warmup, 1)
  curve = _pick(
    {
      'constant': lambda: optax.constant_schedule(learning_rate),
      'linear': lambda: optax.linear_schedule(learning_rate, 0.0, after),
      'cosine': lambda: optax.cosine_decay_schedule(learning_rate, after),
    },
    schedule,
    'schedule',
  )
  if warmup:
    # Starts above 0: an update that cannot move anything would be wasted.
    ramp = optax.linear_schedule(learning_rate / warmup, learning_rate, warmup)
    curve = optax.join_schedules([ramp, curve], [warmup])
  matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
  decay = {'weight_decay': weight_decay, 'mask': matrices}
  optimizer = _pick(
    {
      'adamw': lambda: optax.adamw(curve, b1, b2, **decay),
      'lion': lambda: optax.lion(curve, b1, b2, **decay),
      'adafactor': lambda: optax.adafactor(
        curve,
        weight_decay_rate=weight_decay or None,
        weight_decay_mask=matrices,
      ),
      'sgd': lambda: optax.chain(
        optax.add_decayed_weights(**decay), optax.sgd(curve)
      ),
    },
    name,
    'name',
  )
  parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  return optax.chain(*parts, optimizer)


def _pick(options, value, field):
  if value not in options:
    raise UserError(
      f'config.optimizer.{field} is {value!r}, expected one of {list(options)}'
    )
  return options[value]()


def split(params: Any, trainable: str) -> tuple[dict, dict]:
  """Parameters whose path ('layers/q') `trainable` matches, and the rest.

  Both are flat, by path; `join` puts them together. No gradient and no
  optimizer state is made for the rest.

  Raises:
    UserError: `trainable` is no regular expression or matches nothing.
  """
  try:
    matches = re.compile(trainable).fullmatch
  except re.error as e:
    raise UserError(
      f'config.optimizer.trainable={trainable!r} is no regular expression: {e}'
    ) from e
  flat = traverse_util.flatten_dict(params, sep='/')
  chosen = {k: v for k, v in flat.items() if matches(k)}
  if not chosen:
    raise UserError(
      f'config.optimizer.trainable={trainable!r} matches none of {sorted(flat)}'
    )
  return chosen, {k: v for k, v in flat.items() if k not in chosen}


def join(chosen: dict, rest: dict) -> dict:
  """The inverse of `split`."""
  return traverse_util.unflatten_dict(chosen | rest, sep='/')
