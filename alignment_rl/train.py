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
import time

import jax
import numpy as np
from absl import flags

from alignment_rl import (
  checkpoint, config as config_lib, learner, metrics, mixture, objectives,
  rollout, sharding, text,
)  # fmt: skip
from alignment_rl.errors import UserError
from alignment_rl.types import Batch, Example, Purpose, Rollout, TrainState

ALGORITHMS = ('grpo', 'dr_grpo', 'rloo', 'ppo', 'sft')


@dataclasses.dataclass(frozen=True)
class Stream:
  """A stream as the loop sees it; `reward` None = its slots are demonstrations."""

  name: str
  examples: list[Example]
  reward: object | None


def train(config, workdir: str) -> None:
  """Runs `config` into `workdir`, from its last checkpoint if it has one."""
  # ------------------------------------------------------- plan, no array yet
  folder = pathlib.Path(workdir)
  a, b = config.algorithm, config.batch
  config_lib.choose(a.name, ALGORITHMS, 'algorithm.name')
  config_lib.choose(a.kl_in, ('loss', 'reward'), 'algorithm.kl_in')
  tx = learner.make_optimizer(
    steps=config.steps * a.epochs, **config.optimizer.to_dict()
  )
  streams = make_streams(config)
  plan = mixture.Mixture(
    {
      s.name: mixture.Stream(len(s.examples), c.weight, c.fraction)
      for s, c in zip(streams, config.streams.values(), strict=True)
    },
    slots=b.prompts,
    seed=config.seed,
  )
  mesh = sharding.make_mesh(config.mesh)
  model = checkpoint.load_model(
    config.model.weights,
    family=config.model.module,
    dtype=config.model.dtype,
    remat=config.model.remat,
  )
  if b.prompts % b.micro_batches:
    raise UserError(
      f'config.batch.prompts={b.prompts} is not a multiple of '
      f'config.batch.micro_batches={b.micro_batches}'
    )
  rows = {'config.batch.prompts / micro_batches': b.prompts // b.micro_batches}
  sharding.check_fit(mesh, model.config, rows)
  check_lengths(streams, model.tokenizer, b.prompt_length, b.completion_length)
  prepare_workdir(folder, config, model)

  # ------------------------------------------------- state: resume or initialise
  abstract, shardings = learner.state_shardings(model.decoder, tx, mesh)
  root = jax.random.key(config.seed)
  # The reference is where the run began, never a resumed checkpoint.
  if model.params is None:
    key = jax.random.fold_in(root, Purpose.INIT)
    start = learner.init_params(model.decoder, shardings.params, key)
  else:
    start = sharding.to_global(model.params, shardings.params)
    model = dataclasses.replace(model, params=None)
  saver = checkpoint.Checkpointer(folder, keep=config.checkpoint.keep)
  ledger = mixture.DoseLedger([s.name for s in streams])
  if saver.latest() is None:
    state = jax.jit(
      lambda p: TrainState(np.int32(0), p, tx.init(p)), out_shardings=shardings
    )(start)
  else:
    state, host = saver.restore(abstract, shardings)
    ledger.restore(host['ledger'])
  step = int(state.step)

  # --------------------------------------------------------- compiled functions
  sampler = rollout.Sampler(
    model.decoder, mesh, group=b.group, length=b.completion_length,
    eos_ids=model.tokenizer.eos_ids, temperature=a.temperature,
  )  # fmt: skip
  scores = learner.make_scores(model.decoder, mesh, a.temperature)
  loss = learner.LossSettings(
    temperature=a.temperature, clip_low=a.clip_low, clip_high=a.clip_high,
    kl=a.kl if a.kl_in == 'loss' else 0.0,
    value=a.value if a.name == 'ppo' else 0.0, value_clip=a.value_clip,
  )  # fmt: skip
  update = learner.make_update(
    model.decoder, tx, loss, shardings, mesh,
    micro_batches=b.micro_batches, n_streams=len(streams),
  )  # fmt: skip
  judge = make_judge(config, model, start, mesh)

  # ----------------------------------------------------------------------- loop
  main_process = jax.process_index() == 0
  writer = metrics.Writer(folder, step=step, active=main_process)
  bar = metrics.progress(config.steps, step, folder.name, main_process)
  while step < config.steps:
    seconds = Stopwatch()
    slots = [
      (index, streams[index].examples[record])
      for index, record in named(plan.at(step), streams)
    ]
    owner = np.array([index for index, _ in slots], np.int32)
    key = jax.random.fold_in(jax.random.fold_in(root, Purpose.SAMPLE), step)
    rolled, demonstration = roll(
      slots, streams, sampler, state.params, key, model.tokenizer, b
    )
    host = sharding.to_host(rolled)
    seconds.lap('sample')
    texts = decode(host, model.tokenizer)
    rewards = score(slots, streams, texts, demonstration, judge)
    seconds.lap('reward')
    reference, _ = scores(start, rolled)
    values = scores(state.params, rolled)[1] if a.name == 'ppo' else None
    reference, values = sharding.to_host((reference, values))
    seconds.lap('reference')

    batch, credit = make_batch(
      host, rewards, demonstration, owner, reference, values, a,
      model.tokenizer.eos_ids,
    )  # fmt: skip
    every = config.log.gradient_every
    per_stream = bool(every) and step % every == 0
    counted = batch.weights.any((1, 2))
    passes, n = learner.make_passes(
      owner, counted, b.micro_batches, len(streams), per_stream
    )
    batch = sharding.to_global(batch, sharding.rows(mesh))
    for _ in range(a.epochs):
      state, measured = update(state, batch, passes, np.int32(n))
    step += 1
    state = state.replace(
      step=sharding.to_global(np.int32(step), sharding.replicated(mesh))
    )
    measured = sharding.to_host(measured)
    seconds.lap('update')

    line = describe(
      host, rewards, credit, measured, owner, streams, model.tokenizer.eos_ids
    )
    ledger.add(
      slots=np.bincount(owner, minlength=len(streams)),
      tokens=np.bincount(owner, host.lengths.sum(1), len(streams)),
      advantage=np.bincount(owner, np.abs(credit).sum(1), len(streams)),
      gradient=np.nan_to_num(measured['by_stream']['gradient']),
    )
    tokens = int(host.prompt_lengths.sum() + host.lengths.sum())
    line |= ledger.shares() | seconds.laps
    line['tokens_per_second'] = tokens / seconds.laps['secs/step']
    metrics.check_finite(step, line)
    if step % config.log.every == 0 or step == config.steps:
      writer.scalars(step - 1, line)
    if (
      config.log.rollouts_every and (step - 1) % config.log.rollouts_every == 0
    ):
      writer.rollouts(
        step - 1, groups(slots, streams, texts, rewards, credit, host, b)
      )
    if step % config.checkpoint.every == 0 or step == config.steps:
      saver.save(step, state, {'ledger': ledger.state()})
    bar.set_postfix_str(
      f'{line["tokens_per_second"]:.0f} tokens/s, loss {line["loss"]:.4f}'
    )
    bar.update()
  bar.close()
  writer.close()
  saver.close()


def make_streams(config) -> list[Stream]:
  """Loads the streams and rewards that the config names, in its order."""
  out = []
  for name, c in config.streams.items():
    examples = config_lib.load('streams', c.module).make(**c.kwargs.to_dict())
    reward = None
    if c.reward and config.algorithm.name != 'sft':
      reward = config_lib.load('rewards', c.reward).make(
        **c.reward_kwargs.to_dict()
      )
    out.append(Stream(name, examples, reward))
    if reward is None and any(e.target is None for e in examples):
      raise UserError(
        f'stream {name!r} has no reward and some of its records no target; name '
        f'a reward in config.streams.{name}.reward or give demonstrations'
      )
  return out


def check_lengths(streams, tokenizer, prompt_length, completion_length):
  """Every prompt and demonstration fits, or says which does not."""
  for stream in streams:
    for example in stream.examples:
      n = len(tokenizer.encode(tokenizer.render(example.messages)))
      if n > prompt_length:
        raise UserError(
          f'{example.id} has a prompt of {n} tokens, over '
          f'config.batch.prompt_length={prompt_length}; raise it'
        )
      if stream.reward is None:
        n = len(tokenizer.encode(example.target)) + 1
        if n > completion_length:
          raise UserError(
            f'{example.id} has a target of {n} tokens, over '
            f'config.batch.completion_length={completion_length}; raise it'
          )


def prepare_workdir(folder, config, model) -> None:
  """Writes config and model description, or checks that they are the same."""
  given = json.loads(config.to_json_best_effort())
  path = folder / 'config.json'
  if path.exists():
    found = json.loads(path.read_text())
    free = ('steps', 'log', 'checkpoint', 'mesh')
    different = [k for k in given if k not in free and given[k] != found.get(k)]
    if different:
      raise UserError(
        f'{folder} holds a run with another config (it differs in {different}); '
        'give another --workdir, or delete it'
      )
  if jax.process_index() == 0:
    folder.mkdir(parents=True, exist_ok=True)
    metrics.write_json(path, given)
    checkpoint.save_hf(folder / 'model', model, None)


def make_judge(config, model, start, mesh) -> rollout.TextScorer | None:
  """The frozen model of the rewards: the start, or a trained reward model."""
  decoder, params, tokenizer = model.decoder, start, model.tokenizer
  if config.judge.weights:
    judge = checkpoint.load_model(
      config.judge.weights,
      family=config.model.module,
      dtype=config.model.dtype,
    )
    decoder, tokenizer = judge.decoder, judge.tokenizer
    sgd = learner.state_shardings(decoder, learner.optax.identity(), mesh)
    params = sharding.to_global(judge.params, sgd[1].params)
  return rollout.TextScorer(
    decoder, params, tokenizer, mesh, rows=config.judge.rows
  )


def named(pairs, streams):
  index = {s.name: i for i, s in enumerate(streams)}
  return [(index[name], record) for name, record in pairs]


def roll(slots, streams, sampler, params, key, tokenizer, b):
  """Completions of every slot: sampled, or for a demonstration its target.

  Returns:
    Rollout of global arrays, and bool [B, G]: rows that demonstrate. A
    demonstrated slot has its target first and G - 1 empty rows.
  """
  prompts, prompt_lengths = text.pad(
    [tokenizer.encode(tokenizer.render(e.messages)) for _, e in slots],
    b.prompt_length,
    tokenizer.pad_id,
  )
  shape = (len(slots), b.group, b.completion_length)
  demonstrated = np.array([streams[i].reward is None for i, _ in slots])
  if demonstrated.all():
    rolled = Rollout(
      prompts, prompt_lengths, np.zeros(shape, np.int32),
      np.zeros(shape[:2], np.int32), np.zeros(shape, np.float32),
    )  # fmt: skip
  else:
    rolled = sampler(
      params, prompts, prompt_lengths, np.arange(len(slots)), key
    )
  rows = np.zeros(shape[:2], bool)
  if demonstrated.any():
    rolled = sharding.to_host(rolled)
    completions, lengths = rolled.completions.copy(), rolled.lengths.copy()
    for i in np.flatnonzero(demonstrated):
      target = tokenizer.encode(slots[i][1].target) + [tokenizer.eos_ids[0]]
      completions[i], lengths[i] = 0, 0
      completions[i, 0, : len(target)], lengths[i, 0] = target, len(target)
      rows[i, 0] = True
    rolled = rolled.replace(completions=completions, lengths=lengths)
    rolled = sharding.to_global(rolled, sampler.rows)
  return rolled, rows


def decode(host: Rollout, tokenizer) -> list[list[str]]:
  """Completions as text, without special tokens: [B][G]."""
  return [
    [tokenizer.decode(row[:n]) for row, n in zip(rows, ns, strict=True)]
    for rows, ns in zip(host.completions, host.lengths, strict=True)
  ]


def score(slots, streams, texts, demonstration, judge) -> np.ndarray:
  """Each stream's reward of its own completions: float32 [B, G], NaN = none."""
  out = np.full(demonstration.shape, np.nan, np.float32)
  for index, stream in enumerate(streams):
    mine = [i for i, (owner, _) in enumerate(slots) if owner == index]
    if stream.reward is None or not mine:
      continue
    G = out.shape[1]
    found = stream.reward(
      [slots[i][1] for i in mine for _ in range(G)],
      [completion for i in mine for completion in texts[i]],
      judge=judge,
    )
    out[mine] = np.asarray(found, np.float32).reshape(-1, G)
  return out


def make_batch(
  host, rewards, demonstration, owner, reference, values, a, eos_ids
):
  """Rewards to credit for every token, and what each token weighs.

  Returns:
    Batch of host arrays, and the credit of each completion, float32 [B, G]: its
    advantage, or for PPO the mean over its tokens.
  """
  C = host.completions.shape[-1]
  scored = ~np.isnan(rewards)
  if a.name == 'ppo':
    token_rewards = objectives.kl_in_reward(
      rewards, host.logprobs, reference, host.lengths,
      coefficient=a.kl if a.kl_in == 'reward' else 0.0,
    )  # fmt: skip
    token_rewards = np.where(scored[..., None], token_rewards, 0.0)
    terminated = ~truncated(host, eos_ids)
    advantages, returns = objectives.gae(
      token_rewards, values, host.lengths, terminated,
      discount=a.discount, trace=a.trace,
    )  # fmt: skip
    advantages, returns = np.asarray(advantages), np.asarray(returns)
    credit = advantages.sum(-1) / np.maximum(host.lengths, 1)
  else:
    values = returns = np.zeros_like(host.logprobs)
    if a.kl_in == 'reward':
      k1 = np.where(mask(host), host.logprobs - reference, 0.0).sum(-1)
      rewards = rewards - a.kl * k1
    method = 'dr_grpo' if a.name == 'sft' else a.name
    credit = objectives.group_advantages(rewards, method=method)
    credit = np.asarray(credit)
    advantages = np.broadcast_to(credit[..., None], host.logprobs.shape)
  credit = np.where(demonstration, 1.0, credit).astype(np.float32)
  advantages = np.where(demonstration[..., None], 1.0, advantages)
  counted = scored | demonstration
  if a.skip_zero_spread and a.name != 'ppo':
    # A group that teaches nothing does not thin out those that do (DAPO,
    # arXiv:2503.14476); its KL pull goes with it, and its count is logged.
    counted = counted & (np.abs(credit).sum(1, keepdims=True) > 0)
  weights = objectives.token_weights(host.lengths, counted, C, a.name)
  batch = Batch(
    host, reference, advantages.astype(np.float32), returns, values,
    np.asarray(weights), demonstration, owner,
  )  # fmt: skip
  return batch, credit


def mask(host: Rollout) -> np.ndarray:
  return np.arange(host.completions.shape[-1]) < host.lengths[..., None]


def truncated(host: Rollout, eos_ids) -> np.ndarray:
  """Cut at C without an EOS: bool [B, G]. A demonstration ends in one."""
  full = host.lengths == host.completions.shape[-1]
  return full & ~np.isin(host.completions[..., -1], eos_ids)


def describe(host, rewards, credit, measured, owner, streams, eos_ids) -> dict:
  """One line of metrics: `area/name[/stream]`. Means over completions."""
  line = {k: float(v) for k, v in measured.items() if k != 'by_stream'}
  spread = np.abs(rewards - rewards[:, :1]).max(1)
  cut = truncated(host, eos_ids)
  for i, stream in enumerate(streams):
    mine = owner == i
    if not mine.any():
      continue
    name, scored = stream.name, rewards[mine][~np.isnan(rewards[mine])]
    if stream.reward is not None:
      line[f'reward/{name}'] = scored.mean() if scored.size else np.nan
      line[f'reward_spread/{name}'] = np.nanstd(rewards[mine], 1).mean()
      line[f'unscored/{name}'] = np.isnan(rewards[mine]).mean()
      line[f'zero_spread/{name}'] = (spread[mine] == 0).mean()
      line[f'advantage/{name}'] = np.abs(credit[mine]).mean()
    line[f'length/{name}'] = host.lengths[mine].mean()
    line[f'truncated/{name}'] = cut[mine].mean()
    for k, v in measured['by_stream'].items():
      line[f'{k}/{name}'] = float(v[i])
  return line


def groups(slots, streams, texts, rewards, credit, host, b) -> list[dict]:
  """Groups as rollouts.jsonl holds them, for people to read."""
  listed = lambda x: [None if np.isnan(v) else round(float(v), 4) for v in x]
  full = host.lengths == b.completion_length
  return [
    {
      'stream': streams[index].name,
      'id': example.id,
      'messages': [dataclasses.asdict(m) for m in example.messages],
      'completions': texts[i],
      'rewards': listed(rewards[i]),
      'advantages': listed(credit[i]),
      'lengths': host.lengths[i].tolist(),
      'truncated': full[i].tolist(),
    }
    for i, (index, example) in enumerate(slots)
  ]


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
