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
  lora,
  optimizers,
  rollout,
  sharding,
)
from alignment_rl import config as config_lib
from alignment_rl.errors import UserError
from alignment_rl.models.decoder import DTYPES
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
    sampler: of the policy.
    scores: of the reference policy, `learner.make_scores`.
    policy_scores: the same of the policy; with LoRA another program.
    update: of `learner.make_update`.
  """

  algorithm: experience.Algorithm
  tx: optax.GradientTransformation
  trainable: str
  abstract: TrainState
  shardings: TrainState
  sampler: rollout.Sampler
  scores: Callable
  policy_scores: Callable
  update: Callable


def load_model(config) -> checkpoint.Model:
  """The policy's start, its weights included, with the adapters to be.

  Raises:
    UserError: nothing is there, it is not whole, or a setting is wrong.
  """
  m = config.model
  return checkpoint.load_model(
    m.weights, family=m.module, dtype=m.dtype, remat=m.remat,
    attention=m.attention,
    adapters=lora.settings(m.lora_rank, m.lora_alpha, m.lora_targets),
  )  # fmt: skip


def make(
  config,
  model: checkpoint.Model,
  meshes: tuple[jax.sharding.Mesh, jax.sharding.Mesh],
  n_streams: int,
) -> Programs:
  """The programs of a run.

  Args:
    meshes: of updates and of sampling, `sharding.make_meshes`.

  Raises:
    UserError: a field of the config is wrong, or does not fit the meshes.
  """
  b, m = config.batch, config.model
  mesh, sampling = meshes
  config_lib.choose(m.sample_dtype, ('', *DTYPES), 'model.sample_dtype')
  config_lib.choose(config.judge.dtype, DTYPES, 'judge.dtype')
  algorithm = config_lib.settings(
    experience.Algorithm, config.algorithm, 'algorithm'
  )
  config_lib.choose(algorithm.name, experience.NAMES, 'algorithm.name')
  config_lib.choose(algorithm.kl_in, ('loss', 'reward'), 'algorithm.kl_in')
  optimizer = config.optimizer.to_dict()
  trainable = optimizer.pop('trainable')
  if m.lora_rank and algorithm.name == 'ppo':
    trainable += '|value_head'  # It is new, so it is no part of any base.
  tx = optimizers.make_optimizer(
    steps=config.steps * algorithm.epochs, **optimizer
  )
  if b.prompts % b.micro_batches:
    raise UserError(
      f'config.batch.prompts={b.prompts} is not a multiple of '
      f'config.batch.micro_batches={b.micro_batches}'
    )
  if 0 < b.samples < b.group:
    raise UserError(
      f'config.batch.samples={b.samples} is less than config.batch.group='
      f'{b.group}, which are taken of them; raise it, or 0 draws just those'
    )
  rows = {'config.batch.prompts / micro_batches': b.prompts // b.micro_batches}
  sharding.check_fit(mesh, model.config, rows)
  sharding.check_fit(
    sampling, model.config, {'config.batch.prompts': b.prompts}
  )
  abstract, shardings = learner.state_shardings(
    model.decoder, tx, mesh, trainable
  )
  frozen = model.without_lora().decoder
  sampler = rollout.Sampler(
    model.decoder, mesh, group=b.samples or b.group, length=b.completion_length,
    eos_ids=model.tokenizer.eos_ids, temperature=algorithm.temperature,
    dtype=m.sample_dtype or m.dtype,
    layout=None if sampling is mesh
    else learner.param_shardings(frozen, sampling),
  )  # fmt: skip
  make_scores = lambda decoder: learner.make_scores(
    decoder, mesh, algorithm.temperature, b.micro_batches
  )
  scores = policy_scores = make_scores(frozen)
  if model.config.lora:
    policy_scores = make_scores(model.decoder)
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
    algorithm, tx, trainable, abstract, shardings, sampler, scores,
    policy_scores, update,
  )  # fmt: skip
