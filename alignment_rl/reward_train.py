"""Trains the reward model, and measures every reward on pairs of replies.

  python -m alignment_rl.reward_train --config=configs/reward_model.py:smollm2 \
      --workdir=DIR

Bradley-Terry on the three replies of a scenario under one criterion: the
beneficial reply beats the violating one and the refusal. On a mirror the same
two replies are read under exchanged criteria, so no style of reply wins. Ends
with the pair accuracy on held-out scenarios, mirrors and the rest, of the
learned model and of the untrained criterion likelihood.
"""

import pathlib

import jax
import numpy as np
import optax
from absl import flags

from alignment_rl import (
  checkpoint,
  learner,
  metrics,
  mixture,
  objectives,
  optimizers,
  rollout,
  rubrics,
  sharding,
  text,
  train,
)
from alignment_rl import config as config_lib
from alignment_rl.errors import UserError
from alignment_rl.rewards import criterion, reward_model
from alignment_rl.types import Example, Judge, Purpose, RewardFn, TrainState

# (better, worse) replies by rubric. Helpfulness gives the user what they push
# for rather than refuse, and has no opinion on beneficial against violating.
PAIRS = {
  'scenario': (('beneficial', 'violating'), ('beneficial', 'refusal')),
  'helpfulness': (('beneficial', 'refusal'), ('violating', 'refusal')),
}
REPLIES = ('beneficial', 'violating', 'refusal')


def make_update(model, tx, shardings, mesh, pairs, trainable):
  """Compiles `update(state, batch) -> (state, measured)`; `state` is donated.

  `batch` is (prompts [B, P], lengths [B], replies [B, G, C], lengths [B, G]),
  G in the order of REPLIES.
  """
  better = np.array([REPLIES.index(b) for b, _ in pairs])
  worse = np.array([REPLIES.index(w) for _, w in pairs])

  def loss_fn(chosen, rest, batch):
    params = optimizers.join(chosen, rest)
    scores = rollout.reward_scores(model, params, *batch)
    good, bad = scores[:, better], scores[:, worse]
    loss = objectives.bradley_terry_loss(good, bad).mean()
    return loss, {'loss': loss, 'accuracy': (good > bad).mean()}

  def update(state, batch):
    chosen, rest = optimizers.split(state.params, trainable)
    grads, measured = jax.grad(loss_fn, has_aux=True)(chosen, rest, batch)
    updates, opt_state = tx.update(grads, state.opt_state, chosen)
    params = optimizers.join(optax.apply_updates(chosen, updates), rest)
    measured['gradient_norm'] = optax.tree.norm(grads)
    return TrainState(state.step + 1, params, opt_state), measured

  rows, one = sharding.rows(mesh), sharding.replicated(mesh)
  return jax.jit(
    update,
    in_shardings=(shardings, rows),
    out_shardings=(shardings, one),
    donate_argnums=0,
  )


def pair_table(
  reward: RewardFn, examples: list[Example], judge: Judge
) -> dict[str, dict[str, float]]:
  """How often the beneficial reply outscores the others; ties count half.

  Returns:
    {'mirrors' | 'rest': {'n', 'violating', 'refusal'}}.
  """
  scores = reward(
    [e for e in examples for _ in REPLIES],
    [e.metadata['replies'][name] for e in examples for name in REPLIES],
    judge=judge,
  ).reshape(-1, len(REPLIES))
  mirrored = np.array([bool(e.metadata['mirror']) for e in examples])
  out = {}
  for name, mine in (('mirrors', mirrored), ('rest', ~mirrored)):
    wins = np.sign(scores[mine, :1] - scores[mine, 1:]) / 2 + 0.5
    out[name] = {'n': int(mine.sum())} | {
      other: float(wins[:, i].mean()) if mine.any() else float('nan')
      for i, other in enumerate(REPLIES[1:])
    }
  return out


def reward_train(config, workdir: str) -> dict:
  """Trains into `workdir` (resuming) and returns the measured accuracies."""
  folder, r = pathlib.Path(workdir), config.reward_model
  config_lib.choose(r.rubric, tuple(PAIRS), 'reward_model.rubric')
  optimizer = config.optimizer.to_dict()
  trainable = optimizer.pop('trainable')
  tx = optimizers.make_optimizer(steps=config.steps, **optimizer)
  examples = [
    e
    for c in config.streams.values()
    for e in config_lib.make('streams', c.module, c.kwargs.to_dict())
  ]
  if any('replies' not in e.metadata for e in examples):
    raise UserError(
      'config.streams names a stream without contrasting replies; use streams '
      "whose examples have metadata 'replies', such as traits"
    )
  read = rubrics.reader(r.rubric)
  items = [(e, c['criterion']) for e in examples for c in read(e)]
  deck = mixture.Mixture(
    {'items': mixture.Stream(len(items), weight=1.0)},
    slots=r.pairs,
    seed=config.seed,
  )
  mesh = sharding.make_mesh(config.mesh)
  model = checkpoint.load_model(
    config.model.weights,
    family=config.model.module,
    dtype=config.model.dtype,
    remat=config.model.remat,
  )
  sharding.check_fit(mesh, model.config, {'config.reward_model.pairs': r.pairs})
  encoded = _encode(items, model.tokenizer, r.length)
  train.prepare_workdir(folder, config, model)

  abstract, shardings = learner.state_shardings(
    model.decoder, tx, mesh, trainable
  )
  start = learner.place_params(
    model.decoder, model.params, shardings.params,
    jax.random.fold_in(jax.random.key(config.seed), Purpose.INIT),
  )  # fmt: skip
  saver = checkpoint.Checkpointer(folder, keep=config.checkpoint.keep)
  if saver.latest() is None:
    state = learner.fresh_state(start, tx, shardings, trainable)
  else:
    state, _ = saver.restore(abstract, shardings)
  update = make_update(
    model.decoder, tx, shardings, mesh, PAIRS[r.rubric], trainable
  )

  step, active = int(state.step), jax.process_index() == 0
  writer = metrics.Writer(folder, step=step, active=active)
  bar = metrics.progress(config.steps, step, folder.name, active)
  while step < config.steps:
    batch = _batch([encoded[i] for _, i in deck.at(step)], model.tokenizer)
    state, measured = update(
      state, sharding.to_global(batch, sharding.rows(mesh))
    )
    measured = {k: float(v) for k, v in sharding.to_host(measured).items()}
    step += 1
    metrics.check_finite(step, measured)
    writer.scalars(step - 1, measured)
    if step % config.checkpoint.every == 0 or step == config.steps:
      saver.save(step, state, {})
    bar.set_postfix_str(f'loss {measured["loss"]:.4f}')
    bar.update()
  bar.close()
  writer.close()
  saver.close()

  held_out = config_lib.make('streams', 'traits', {'split': 'held_out'})
  found = {}
  for name, params, reward in (
    ('criterion', start, criterion.make(rubric=r.rubric)),
    ('reward_model', state.params, reward_model.make(rubric=r.rubric)),
  ):
    judge = rollout.TextScorer(model.decoder, params, model.tokenizer, mesh)
    found[name] = pair_table(reward, held_out, judge)
  if active:
    metrics.write_json(folder / 'pairs.json', found)
  return found


def _encode(items, tokenizer, limit):
  """(context, three replies) as tokens, or says which is too long."""
  out = []
  for example, text_of_criterion in items:
    context = tokenizer.encode(reward_model.context(example, text_of_criterion))
    replies = [
      tokenizer.encode(
        reward_model.REPLY.format(reply=example.metadata['replies'][name])
      )
      for name in REPLIES
    ]
    n = len(context) + max(map(len, replies))
    if n > limit:
      raise UserError(
        f'{example.id} takes {n} tokens with criterion and reply, over '
        f'config.reward_model.length={limit}; raise it'
      )
    out.append((context, replies))
  return out


def _batch(rows, tokenizer):
  step = 64  # few shapes, few compilations
  P = text.bucket(max(len(c) for c, _ in rows), step)
  C = text.bucket(max(len(r) for _, rs in rows for r in rs), step // 2)
  prompts, prompt_lengths = text.pad([c for c, _ in rows], P, tokenizer.pad_id)
  replies, lengths = text.pad(
    [r for _, rs in rows for r in rs], C, tokenizer.pad_id
  )
  G = len(REPLIES)
  shape = (len(rows), G)
  return (
    prompts,
    prompt_lengths,
    replies.reshape(*shape, C),
    lengths.reshape(shape),
  )


def main() -> None:
  sharding.start_distributed(flags.FLAGS.distributed)
  found = reward_train(flags.FLAGS.config, flags.FLAGS.workdir)
  print('held-out pairs: how often the beneficial reply scores higher')
  for name, parts in found.items():
    for part, row in parts.items():
      wins = ', '.join(f'{row[k]:.2f} of {k}' for k in REPLIES[1:])
      print(f'{name:14s} {part:8s} n={row["n"]:<4d} {wins}')


if __name__ == '__main__':
  config_lib.define_config_flags()
  config_lib.run(main, required=('config', 'workdir'))
