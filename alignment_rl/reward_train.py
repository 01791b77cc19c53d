"""Trains the reward model: a language model that reads criteria in replies.

  python -m alignment_rl.reward_train --config=configs/reward_model.py:smollm2 \
      --workdir=DIR

Bradley-Terry on contrasting replies, each criterion by itself (see
reward_learner.py). One model learns the scenarios' own rubrics and, for a share
of its steps, the helpfulness rubric of the control arm. The workdir then goes
into `config.judge.weights`; `reward_report.py` measures what it is worth.
"""

import jax
from absl import flags

from alignment_rl import (
  checkpoint,
  forward,
  learner,
  lora,
  metrics,
  mixture,
  optimizers,
  programs,
  reward_learner,
  sharding,
  train,
)
from alignment_rl import config as config_lib
from alignment_rl.errors import UserError
from alignment_rl.types import Example, Purpose, TrainState


def reward_train(config, workdir: str) -> None:
  """Trains into `workdir`, from its last checkpoint if it has one."""
  # --------------------------------------------------------- plan, no array yet
  folder, r = config_lib.folder(workdir, 'workdir'), config.reward_model
  optimizer = config.optimizer.to_dict()
  trainable = optimizer.pop('trainable')
  tx = optimizers.make_optimizer(steps=config.steps, **optimizer)
  examples = keep(make_examples(config), r.leave_out)
  mesh, _ = sharding.make_meshes(config.mesh)
  model = programs.load_model(config)
  sharding.check_fit(
    mesh, model.config, {'3 x config.reward_model.batch': 3 * r.batch}
  )
  layers = r.layers or model.config.layers
  if not 0 < layers <= model.config.layers:
    raise UserError(
      f'config.reward_model.layers is {r.layers}, expected 0 (all) to '
      f'{model.config.layers}'
    )
  make = lambda e, rubric: reward_learner.make_item(
    e, rubric, model.tokenizer, r.length
  )
  items = {
    'scenario': [make(e, 'scenario') for e in examples if is_scenario(e)],
    'helpfulness': [make(e, 'helpfulness') for e in examples],
  }
  deck = mixture.Mixture(
    {
      'scenario': mixture.Stream(len(items['scenario']), weight=1.0),
      'helpfulness': mixture.Stream(
        len(items['helpfulness']), fraction=r.helpfulness
      ),
    },
    slots=r.batch,
    seed=config.seed,
  )
  frozen = model.config.layers - layers
  upper = type(model.decoder)(model.config.part(slice(frozen, None)))
  abstract, shardings = learner.state_shardings(upper, tx, mesh, trainable)
  train.prepare_workdir(folder, config, model)

  # ------------------------------------------- state of the upper, trained part
  root = jax.random.key(config.seed)
  start = train.place_start(
    folder, model, mesh, jax.random.fold_in(root, Purpose.INIT)
  )
  (lower, fixed), (_, params) = forward.cut(model.decoder, start, frozen)
  base, held = lora.split(params)
  state = learner.fresh_state(held, tx, shardings, trainable)
  saver = checkpoint.Checkpointer(folder, keep=config.checkpoint.keep)
  # On disk are the parameters of all layers, so that a workdir is a model.
  below = lora.split(fixed)[1]
  whole = lambda state: state.replace(params=forward.join(below, state.params))
  if saver.latest() is not None:
    target = TrainState(
      abstract.step,
      jax.eval_shape(lambda: lora.split(start)[1]),
      abstract.opt_state,
    )
    every = learner.param_shardings(model.decoder, mesh)
    placed = shardings.replace(params=lora.split(every)[1])
    found, _ = saver.restore(target, placed)
    _, (_, held) = forward.cut(model.decoder, found.params, frozen)
    state = found.replace(params=held)
  update = reward_learner.make_update(
    upper, tx, shardings, mesh, trainable, r.scale
  )
  shelf = reward_learner.Shelf(lower, fixed, mesh, model.tokenizer.pad_id)

  # ----------------------------------------------------------------------- loop
  step, active = int(state.step), sharding.is_main()
  writer = metrics.Writer(folder, step=step, active=active)
  bar = metrics.progress(config.steps, step, folder.name, active)
  compiled = metrics.Compilations()
  while step < config.steps:
    picked = [items[name][i] for name, i in deck.at(step)]
    batch = (
      shelf.batch(picked)
      if frozen
      else reward_learner.pad(picked, model.tokenizer.pad_id)
    )
    batch = sharding.to_global(batch, sharding.rows(mesh))
    state, measured = update(state, base, batch)
    measured = {k: float(v) for k, v in sharding.to_host(measured).items()}
    measured['compilations'] = compiled.total  # of this process, so far
    step += 1
    metrics.check_finite(step, measured)
    writer.scalars(step - 1, measured)
    if step % config.checkpoint.every == 0 or step == config.steps:
      saver.save(step, whole(state), {})
    bar.set_postfix_str(f'loss {measured["loss"]:.4f}')
    bar.update()
  bar.close()
  compiled.close()
  writer.close()
  saver.close()


def make_examples(config) -> list[Example]:
  """The examples of all streams of the config, in its order."""
  return [
    e
    for c in config.streams.values()
    for e in config_lib.make('streams', c.module, c.kwargs.to_dict())
  ]


def is_scenario(example: Example) -> bool:
  return 'rubric' in example.metadata


def keep(examples: list[Example], leave_out: str) -> list[Example]:
  """The examples without those of one domain, trait or voice.

  Args:
    leave_out: such as 'domain=health'; '' leaves nothing out.

  Raises:
    UserError: it matches no example, or all.
  """
  if not leave_out:
    return examples
  field, _, value = leave_out.partition('=')
  kept = [e for e in examples if e.metadata.get(field) != value]
  if len(kept) in (0, len(examples)):
    raise UserError(
      f'config.reward_model.leave_out={leave_out!r} leaves {len(kept)} of '
      f'{len(examples)} examples; give a value that some have, such as '
      'domain=health, trait=corrigibility or voice=terse'
    )
  return kept


def main() -> None:
  sharding.start_distributed(flags.FLAGS.distributed)
  reward_train(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == '__main__':
  config_lib.define_config_flags()
  config_lib.run(main, required=('config', 'workdir'))
