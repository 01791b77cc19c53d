"""What a step runs on the devices, made from a config before any array exists.

`train` runs these programs; `preflight` compiles them for a slice that is not
there.
"""

import dataclasses
from collections.abc import Callable

import jax
import optax

from alignment_rl import (
  checkpoint,
  experience,
  learner,
  optimizers,
  rollout,
  sharding,
)
from alignment_rl import config as config_lib
from alignment_rl.errors import UserError
from alignment_rl.types import TrainState


@dataclasses.dataclass(frozen=True)
class Programs:
  """The state in shapes, and the functions that are compiled for it.

  Attributes:
    algorithm: how rewards become credit.
    tx: the optimizer.
    trainable: of `config.optimizer`.
    abstract: TrainState of ShapeDtypeStruct.
    shardings: TrainState of NamedSharding.
    sampler, scores, update: of `rollout.Sampler`, `learner.make_scores`,
      `learner.make_update`.
  """

  algorithm: experience.Algorithm
  tx: optax.GradientTransformation
  trainable: str
  abstract: TrainState
  shardings: TrainState
  sampler: rollout.Sampler
  scores: Callable
  update: Callable


def load_model(config) -> checkpoint.Model:
  """The policy's start, its weights included.

  Raises:
    UserError: nothing is there, or it is not whole.
  """
  return checkpoint.load_model(
    config.model.weights, family=config.model.module, dtype=config.model.dtype,
    remat=config.model.remat,
  )  # fmt: skip


def make(
  config, model: checkpoint.Model, mesh: jax.sharding.Mesh, n_streams: int
) -> Programs:
  """The programs of a run.

  Raises:
    UserError: a field of the config is wrong, or does not fit the mesh.
  """
  b = config.batch
  algorithm = config_lib.settings(
    experience.Algorithm, config.algorithm, 'algorithm'
  )
  config_lib.choose(algorithm.name, experience.NAMES, 'algorithm.name')
  config_lib.choose(algorithm.kl_in, ('loss', 'reward'), 'algorithm.kl_in')
  optimizer = config.optimizer.to_dict()
  trainable = optimizer.pop('trainable')
  tx = optimizers.make_optimizer(
    steps=config.steps * algorithm.epochs, **optimizer
  )
  if b.prompts % b.micro_batches:
    raise UserError(
      f'config.batch.prompts={b.prompts} is not a multiple of '
      f'config.batch.micro_batches={b.micro_batches}'
    )
  rows = {'config.batch.prompts / micro_batches': b.prompts // b.micro_batches}
  sharding.check_fit(mesh, model.config, rows)
  abstract, shardings = learner.state_shardings(
    model.decoder, tx, mesh, trainable
  )
  sampler = rollout.Sampler(
    model.decoder, mesh, group=b.group, length=b.completion_length,
    eos_ids=model.tokenizer.eos_ids, temperature=algorithm.temperature,
  )  # fmt: skip
  scores = learner.make_scores(model.decoder, mesh, algorithm.temperature)
  loss = learner.LossSettings(
    temperature=algorithm.temperature,
    clip_low=algorithm.clip_low,
    clip_high=algorithm.clip_high,
    kl=algorithm.kl if algorithm.kl_in == 'loss' else 0.0,
    value=algorithm.value if algorithm.name == 'ppo' else 0.0,
    value_clip=algorithm.value_clip,
  )
  update = learner.make_update(
    model.decoder, tx, loss, shardings, mesh,
    micro_batches=b.micro_batches, n_streams=n_streams, trainable=trainable,
  )  # fmt: skip
  return Programs(
    algorithm, tx, trainable, abstract, shardings, sampler, scores, update
  )  # fmt: skip
