"""The numbers of one small run at fixed seeds, written down."""

import math

import jax
import numpy as np
import pytest

from alignment_rl import learner, objectives, optimizers, rollout, sharding
from alignment_rl.types import Batch

P, C = 6, 5


def test_golden_step(tiny, one_device):
  """Sampling, credit and the third of three updates on it."""
  rng = np.random.default_rng(0)
  prompts = rng.integers(0, 256, (4, P), dtype=np.int32)
  sampler = rollout.Sampler(
    tiny.decoder, one_device, group=4, length=C, eos_ids=(258,)
  )
  rolled = jax.device_get(
    sampler(
      tiny.params, prompts, np.full(4, P), np.arange(4), jax.random.key(1)
    )
  )
  # The reward is the share of even tokens.
  real = np.arange(C) < rolled.lengths[..., None]
  even = np.where(real, rolled.completions % 2 == 0, False).sum(-1)
  rewards = (even / rolled.lengths).astype(np.float32)
  advantages = objectives.group_advantages(rewards, method='grpo')
  zeros = np.zeros((4, 4, C), np.float32)
  batch = Batch(
    rolled, rolled.logprobs,
    np.asarray(advantages)[..., None].repeat(C, -1), zeros, zeros,
    np.asarray(
      objectives.token_weights(
        rolled.lengths, np.ones((4, 4), bool), C, 'grpo'
      )
    ),
    np.zeros((4, 4), bool), np.array([0, 1, 0, 1], np.int32),
  )  # fmt: skip
  tx = optimizers.make_optimizer(
    name='adamw', learning_rate=1e-2, warmup=2, steps=10, schedule='cosine',
    clip_norm=1.0, weight_decay=0.01, b1=0.9, b2=0.99,
  )  # fmt: skip
  _, shardings = learner.state_shardings(tiny.decoder, tx, one_device)
  start = sharding.to_global(tiny.params, shardings.params)
  state = learner.fresh_state(start, tx, shardings)
  update = learner.make_update(
    tiny.decoder, tx, learner.LossSettings(kl=0.05), shardings, one_device,
    micro_batches=2, n_streams=2,
  )  # fmt: skip
  passes = learner.make_passes(
    batch.stream, np.ones(4, bool), 2, 2, per_stream=True
  )
  for _ in range(3):
    state, measured = update(state, {}, batch, *passes)
  params, measured = jax.device_get((state.params, measured))

  found = {k: float(v) for k, v in measured.items() if k != 'by_stream'} | {
    f'{k}/{i}': float(v[i])
    for k, v in measured['by_stream'].items()
    for i in (0, 1)
  }
  found['reward'] = float(rewards.mean())
  found['params'] = float(sum(np.abs(p).sum() for p in jax.tree.leaves(params)))
  reference = {
    'gradient_norm': 0.786795, 'loss': 0.000374332, 'update_norm': 0.875274,
    'clip_fraction/0': 0.820513, 'clip_fraction/1': 0.425,
    # Nothing comes before the first stream.
    'cosine/0': math.nan, 'cosine/1': -0.016664, 'entropy/0': 3.87882,
    'entropy/1': 4.04227, 'gradient/0': 0.461072, 'gradient/1': 0.645271,
    'kl/0': 1.71655, 'kl/1': 0.738413, 'log_ratio_max/0': 5.90063,
    'log_ratio_max/1': 2.77032, 'log_ratio_mean/0': 1.41602,
    'log_ratio_mean/1': 0.89873, 'log_ratio_outside/0': 0.974359,
    'log_ratio_outside/1': 0.85, 'log_ratio_p95/0': 3.46684,
    'log_ratio_p95/1': 2.49481, 'nll/0': 4.62971, 'nll/1': 4.5655,
    'tokens/0': 39.0, 'tokens/1': 40.0, 'reward': 0.45625, 'params': 6599.83,
  }  # fmt: skip
  assert found == pytest.approx(reference, rel=1e-4, abs=1e-6, nan_ok=True), (
    'One step is no longer what it was. If that is meant, say in the commit '
    'which numbers moved and why, and update the `reference` dictionary to '
    f'{found}'
  )
