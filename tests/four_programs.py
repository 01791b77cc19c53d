"""RL, SFT, reward training and evaluation, small, on whatever mesh is there.

As a program it is one process of several:
  python -m tests.four_programs START FOLDER COORDINATOR:PORT,PROCESSES,INDEX \
      DATA,FSDP,TENSOR SLICES ROLLOUT_DATA,ROLLOUT_FSDP,ROLLOUT_TENSOR
"""

import pathlib
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from alignment_rl import (
  conditions,
  evaluate,
  experience,
  reward_train,
  sharding,
  train,
)
from alignment_rl import config as config_lib
from alignment_rl.suite import Benchmark, Demo
from alignment_rl.types import Example, Message
from configs import reward_model, rl, sft

RUBRIC = (
  {'criterion': 'a', 'points': 3, 'met': 'It is up.', 'failed': 'It is down.'},
  {'criterion': 'b', 'points': -1, 'met': 'It ran.', 'failed': 'It stood.'},
)
EXAMPLES = [
  Example(
    f'toy/{i}',
    (Message('user', f'way {i}'),),
    target='up' * (i % 3 + 1),
    metadata={
      'rubric': RUBRIC,
      'mirror': '',
      'replies': {
        'beneficial': f'up {i}', 'violating': 'down', 'refusal': 'no',
      },
    },
  )
  for i in range(12)
]  # fmt: skip
SUITE = [
  Benchmark(
    'a/choice', 'choice',
    lambda folder: [
      Example(f'c/{i}', e.messages, choices=('up', 'down'))
      for i, e in enumerate(EXAMPLES[:6])
    ],
    'made here', 'none', Demo(),
  ),
  Benchmark(
    'b/reply', 'generate', lambda folder: EXAMPLES[:6], 'made here', 'none',
    Demo(), length=6,
    score=lambda examples, said, judge: [len(s) / 9 for s in said],
  ),
]  # fmt: skip


def streams(config):
  """One that samples and is judged, and one that demonstrates."""
  reward = config_lib.make(
    'rewards', 'criterion',
    {'rubric': 'scenario', 'scale': 1.0, 'evidence': 0.0},
  )  # fmt: skip
  made = {
    'sampled': experience.Stream('sampled', EXAMPLES, reward),
    'shown': experience.Stream('shown', EXAMPLES, None),
  }
  return [made[name] for name in config.streams]


def configs(start, mesh, slices, rollout, steps):
  """Program and folder -> config, all on one mesh."""
  found = {
    'rl': rl.get_config('tiny'),
    'sft': sft.get_config('tiny'),
    'reward': reward_model.get_config('tiny'),
  }
  for name, c in found.items():
    with c.unlocked():
      kept = c.streams.traits
      kept.weight, kept.fraction = 1.0, 0.0
      both = ('sampled', 'shown') if name == 'rl' else ('shown',)
      c.streams = ConfigDict({stream: kept for stream in both})
    c.steps = c.checkpoint.every = steps
    c.model.weights = str(start)
    # Plain gradient steps: Adam would blow rounding noise up to whole steps.
    c.optimizer.update(name='sgd', learning_rate=0.1)
    c.batch.update(
      prompts=8, group=2, prompt_length=64, completion_length=8,
      micro_batches=1,
    )  # fmt: skip
    c.mesh.slices = slices
    axes = lambda sizes: dict(zip(sharding.AXES, sizes, strict=True))
    c.mesh.update(axes(mesh))
    c.mesh.rollout.update(axes(rollout))
  return found


def run(start, folder, mesh, slices=1, rollout=(0, 0, 0), steps=2):
  """All four, into folder/rl, sft, reward and evaluation/<steps>."""
  every = configs(start, mesh, slices, rollout, steps)
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(train, 'make_streams', streams)
    patched.setattr(reward_train, 'make_examples', lambda config: EXAMPLES)
    train.train(every['rl'], folder / 'rl')
    train.train(every['sft'], folder / 'sft')
    reward_train.reward_train(every['reward'], folder / 'reward')
  evaluate.evaluate(
    str(folder / 'rl'), SUITE, [conditions.NONE], data=None,
    output=folder / 'evaluation' / str(steps),
    settings=evaluate.Settings(dtype='float32'),
  )  # fmt: skip


def attach(patched, n):
  """Meshes are of the first n devices alone, as long as it is patched."""
  make_mesh = sharding.make_mesh
  devices = jax.devices()[:n]
  patched.setattr(
    sharding, 'make_mesh',
    lambda sizes, **kwargs: make_mesh(sizes, **(kwargs | {'devices': devices})),
  )  # fmt: skip


def check_lines(found, wanted, name, apart=()):
  """Lines of metrics say the same, but for clocks and the fields `apart`."""
  assert len(found) == len(wanted) > 0
  apart = ('secs', 'tokens_per', 'compilations', *apart)
  for a, b in zip(found, wanted, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      if not key.startswith(apart):
        np.testing.assert_allclose(
          np.array(a[key], float), np.array(b[key], float),
          rtol=1e-3, atol=1e-4, err_msg=f'{name} {a["step"]} {key}',
        )  # fmt: skip


def main():
  start, folder, where, mesh, slices, rollout = sys.argv[1:]
  jax.config.update('jax_disable_most_optimizations', True)
  sharding.start_distributed(where)
  sizes = lambda text: tuple(map(int, text.split(',')))
  folder = pathlib.Path(folder)
  run(start, folder, sizes(mesh), int(slices), sizes(rollout))


if __name__ == '__main__':
  main()
