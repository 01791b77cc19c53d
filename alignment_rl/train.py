"""The loop, top to bottom: RL, SFT and the finetuning attack are this one loop.

  python -m alignment_rl.train --config=configs/rl.py:smollm2 --workdir=DIR \
      --config.streams.traits.fraction=0.25

One step: 1 the mixture names a record for every slot; 2 the sampler draws G
completions a prompt; 3 each stream's reward scores its own; 4 rewards become
advantages within the group; 5 one jitted update; 6 metrics, samples, ledger.
"""

import dataclasses
import json
import pathlib
import sys
import time

import jax
import numpy as np
from absl import flags

from alignment_rl import (
  checkpoint,
  experience,
  kept,
  learner,
  lora,
  metrics,
  mixture,
  programs,
  sharding,
  text_scorer,
)
from alignment_rl import config as config_lib
from alignment_rl.errors import UserError
from alignment_rl.types import Purpose


def train(config, workdir: str) -> None:
  """Runs `config` into `workdir`, from its last checkpoint if it has one."""
  # --------------------------------------------------------- plan, no array yet
  folder = config_lib.folder(workdir, 'workdir')
  b, log = config.batch, config.log
  streams = make_streams(config)
  names = [s.name for s in streams]
  plan = mixture.Mixture(
    {
      s.name: mixture.Stream(len(s.examples), c.weight, c.fraction, c.schedule)
      for s, c in zip(streams, config.streams.values(), strict=True)
    },
    slots=b.prompts,
    seed=config.seed,
    steps=config.steps,
  )
  golds = make_golds(config, names)
  check_weights(config)
  meshes = sharding.make_meshes(config.mesh)
  mesh = meshes[0]
  model = programs.load_model(config)
  run = programs.make(config, model, meshes, len(streams))
  algorithm, shardings = run.algorithm, run.shardings
  used = [
    s
    for s in streams
    if config.streams[s.name].weight or config.streams[s.name].fraction
  ]
  prompt_lengths = (*b.prompt_buckets, b.prompt_length)
  experience.check_lengths(
    used, model.tokenizer, prompt_lengths, b.completion_length
  )
  prepare_workdir(folder, config, model)

  # ------------------------------------------------ state: resume or initialise
  root = jax.random.key(config.seed)
  start = place_start(
    folder, model, mesh, jax.random.fold_in(root, Purpose.INIT)
  )
  # The reference is where the run began, never a resumed checkpoint. With LoRA
  # that is the base, which policy and reference share.
  base, held = lora.split(start)
  reference, frozen = lora.without(start), model.without_lora()
  model = model.without_params()  # Free the host's copy.
  judge = make_judge(config, config.judge.weights, frozen, reference, mesh)
  golds = [
    dataclasses.replace(
      g, judge=make_judge(config, w, frozen, None, mesh) if w else judge
    )
    for g in golds
    for w in [config.gold[g.name].weights]
  ]
  saver = checkpoint.Checkpointer(folder, keep=config.checkpoint.keep)
  ledger = mixture.DoseLedger(names)
  scales = {}
  if saver.latest() is None:
    state = learner.fresh_state(held, run.tx, shardings, run.trainable)
  else:
    state, host_state = saver.restore(run.abstract, shardings)
    ledger.restore(host_state['ledger'])
    scales = host_state['scales']
  step = int(state.step)

  if algorithm.scale_prompts and not scales:
    scales = experience.reference_scales(
      used, run.sampler, start, jax.random.fold_in(root, Purpose.SCALE),
      model.tokenizer, judge, prompts=algorithm.scale_prompts,
      batch=b.prompts, lengths=prompt_lengths,
    )  # fmt: skip

  # ----------------------------------------------------------------------- loop
  main_process = jax.process_index() == 0
  writer = metrics.Writer(folder, step=step, active=main_process)
  bar = metrics.progress(config.steps, step, folder.name, main_process)
  compiled = metrics.Compilations()
  while step < config.steps:
    watch = Stopwatch()
    picked = [(names.index(name), record) for name, record in plan.at(step)]
    owner = np.array([i for i, _ in picked], np.int32)
    examples = [streams[i].examples[record] for i, record in picked]
    key = jax.random.fold_in(jax.random.fold_in(root, Purpose.SAMPLE), step)
    policy = lora.join(base, state.params)
    rolled, demonstration = experience.roll(
      examples, [streams[i].reward is None for i in owner], run.sampler,
      policy, key, model.tokenizer, prompt_lengths,
    )  # fmt: skip
    host = sharding.to_host(rolled)
    watch.lap('sample')
    texts = experience.decode(host, model.tokenizer)
    rewards = experience.score(examples, owner, streams, texts, judge)
    cut = experience.truncated(host, model.tokenizer.eos_ids)
    watch.lap('reward')
    chosen = experience.widest(rewards, b.group)
    learned = experience.take(host, chosen)
    of_chosen = lambda x, at=chosen: np.take_along_axis(x, at, 1)
    rolled = sharding.to_global(learned, sharding.rows(mesh))
    reference_logprobs = np.full_like(learned.logprobs, np.nan)
    if algorithm.reads_reference:
      reference_logprobs = sharding.to_host(run.scores(reference, rolled)[0])
    values = np.zeros_like(learned.logprobs)
    if algorithm.name == 'ppo':
      values = sharding.to_host(run.policy_scores(policy, rolled)[1])
    watch.lap('reference')

    scaled = experience.scaled(rewards, owner, streams, scales)
    batch, credit = experience.make_batch(
      learned, of_chosen(scaled), of_chosen(demonstration), owner,
      reference_logprobs, values, algorithm, model.tokenizer.eos_ids,
    )  # fmt: skip
    passes, parts = learner.make_passes(
      owner,
      batch.weights.any((1, 2)),
      b.micro_batches,
      len(streams),
      per_stream=bool(log.gradient_every) and step % log.gradient_every == 0,
    )
    batch = sharding.to_global(batch, sharding.rows(mesh))
    for _ in range(algorithm.epochs):
      state, measured = run.update(state, base, batch, passes, parts)
    state = learner.advance(state, mesh)
    measured = sharding.to_host(measured)
    watch.lap('update')

    ledger.add(
      slots=np.bincount(owner, minlength=len(streams)),
      tokens=np.bincount(owner, learned.lengths.sum(1), len(streams)),
      advantage=np.bincount(owner, np.abs(credit).sum(1), len(streams)),
      gradient=np.nan_to_num(measured['by_stream']['gradient']),
    )
    line = experience.describe(
      host, rewards, credit, cut, measured, owner, streams
    )
    tokens = int(host.prompt_lengths.sum() + host.lengths.sum())
    line['prompt_length'] = host.prompts.shape[1]  # tokens, padded
    line['tokens_per_second'] = tokens / watch.laps['secs/step']
    line |= ledger.shares() | watch.laps
    if log.gold_every and step % log.gold_every == 0:
      line |= experience.read_gold(golds, examples, owner, texts)
    line['compilations'] = compiled.total  # of this process, so far
    metrics.check_finite(step, line)
    if (step + 1) % log.every == 0 or step + 1 == config.steps:
      writer.scalars(step, line)
    if log.rollouts_every and step % log.rollouts_every == 0:
      writer.rollouts(
        step,
        experience.groups(
          examples, owner, streams, texts, rewards, chosen, credit, cut, host
        ),
      )
    step += 1
    if step % config.checkpoint.every == 0 or step == config.steps:
      saver.save(step, state, {'ledger': ledger.state(), 'scales': scales})
    bar.set_postfix_str(
      f'{line["tokens_per_second"]:.0f} tokens/s, loss {line["loss"]:.4f}'
    )
    bar.update()
  bar.close()
  compiled.close()
  writer.close()
  saver.close()


def make_streams(config) -> list[experience.Stream]:
  """Loads the streams and rewards that the config names, in its order."""
  out = []
  for name, c in config.streams.items():
    examples = config_lib.make('streams', c.module, c.kwargs.to_dict())
    reward = None
    if c.reward and config.algorithm.name != 'sft':
      reward = config_lib.make('rewards', c.reward, c.reward_kwargs.to_dict())
    elif any(e.target is None for e in examples):
      raise UserError(
        f'stream {name!r} has no reward and some records have no target; name '
        f'a reward in config.streams.{name}.reward or give demonstrations'
      )
    out.append(experience.Stream(name, examples, reward))
  return out


def prepare_workdir(folder: pathlib.Path, config, model) -> None:
  """Writes config and model description, or checks that they are the same."""
  check_same(folder, config)
  if jax.process_index() == 0:
    folder.mkdir(parents=True, exist_ok=True)
    given = json.loads(config.to_json_best_effort())
    metrics.write_json(folder / 'config.json', given)
    checkpoint.save_hf(folder / 'model', model, None)


def place_start(folder: pathlib.Path, model, mesh, key):
  """All parameters that a run begins with; with LoRA it keeps their base."""
  stored = kept.read_base(folder)
  start = learner.place_params(
    model.decoder, stored or model.stored,
    learner.param_shardings(model.decoder, mesh), key,
  )  # fmt: skip
  if model.config.lora and not stored:
    kept.save_base(folder, lora.without(start), model.config.lora)
  return start


def check_same(folder: pathlib.Path, config) -> None:
  """Whether the run in `folder`, if there is one, can go on with `config`.

  Raises:
    UserError: it was begun with another; says in which sections.
  """
  path = folder / 'config.json'
  if not path.exists():
    return
  free = ['log', 'checkpoint', 'mesh']
  # A schedule has acted so far for the length that it knew.
  schedules = [config.optimizer, *config.streams.values()]
  if all(s.schedule == 'constant' for s in schedules):
    free.append('steps')
  found = json.loads(path.read_text())
  given = json.loads(config.to_json_best_effort())
  other = [k for k in given if k not in free and given[k] != found.get(k)]
  if other:
    raise UserError(
      f'{folder} holds a run whose config differs in {other}; give another '
      '--workdir, or delete it'
    )


def check_weights(config) -> None:
  """Says that a policy has random weights, and lets no judge have them.

  Those of a tiny variant are for tests.

  Raises:
    UserError: a judge has them.
  """
  blank = lambda w: w.startswith('random:') and not w.startswith('random:tiny')
  judges = {'judge': config.judge} | (
    {f'gold.{name}': c for name, c in config.gold.items()}
    if config.log.gold_every
    else {}
  )
  for name, c in judges.items():
    if blank(c.weights):
      raise UserError(
        f'config.{name}.weights={c.weights} is random and judges nothing; give '
        'the folder of its weights'
      )
  if blank(config.model.weights) and sharding.is_main():
    print(
      f'note: config.model.weights={config.model.weights} is random, so this '
      'run measures speed and teaches nothing; give a Hugging Face folder',
      file=sys.stderr,
    )


def make_golds(config, names: list[str]) -> list[experience.Gold]:
  """The rewards of `config.gold` if they are read, yet without their judges."""
  out = []
  for name, c in config.gold.items() if config.log.gold_every else ():
    config_lib.choose(c.stream, names, f'gold.{name}.stream')
    reward = config_lib.make('rewards', c.reward, c.kwargs.to_dict())
    out.append(experience.Gold(name, names.index(c.stream), reward, None))
  return out


def make_judge(
  config, weights, model, reference, mesh
) -> text_scorer.TextScorer:
  """A frozen model that rewards read with: trained, or the run's start."""
  if weights:
    judge, params = learner.load(
      weights, mesh, family=config.model.module, dtype=config.judge.dtype,
      attention=config.model.attention,
      # Random weights are those that a run of this seed begins with.
      key=jax.random.fold_in(jax.random.key(config.seed), Purpose.INIT),
    )  # fmt: skip
  else:
    judge, params = model.with_dtype(config.judge.dtype), reference
  return text_scorer.TextScorer(
    judge.decoder, params, judge.tokenizer, mesh, rows=config.judge.rows,
    coarse=True,
  )  # fmt: skip


class Stopwatch:
  """Seconds of each part of a step."""

  def __init__(self):
    self.laps = {'secs/step': 0.0}
    self._last = time.perf_counter()

  def lap(self, name: str) -> None:
    now = time.perf_counter()
    self.laps[f'secs/{name}'] = now - self._last
    self.laps['secs/step'] += now - self._last
    self._last = now


def main() -> None:
  sharding.start_distributed(flags.FLAGS.distributed)
  train(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == '__main__':
  config_lib.define_config_flags()
  config_lib.run(main, required=('config', 'workdir'))
