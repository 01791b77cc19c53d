"""From the slots of a step to the batch of an update, on the host.

Every process does this for all rows: it is a pure function of the mixture, the
completions and the rewards, so nothing needs to be exchanged but completions.
"""

import dataclasses
import itertools

import jax
import numpy as np

from alignment_rl import objectives, sharding, text
from alignment_rl.errors import UserError
from alignment_rl.types import Batch, Example, Judge, RewardFn, Rollout

NAMES = ('grpo', 'dr_grpo', 'rloo', 'ppo', 'sft')


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """How rewards become credit; fields as in configs/base.py."""

  name: str
  epochs: int
  temperature: float
  clip_low: float
  clip_high: float
  kl: float
  kl_in: str
  skip_zero_spread: bool
  value: float
  value_clip: float
  scale_prompts: int
  discount: float
  trace: float

  @property
  def reads_reference(self) -> bool:
    """SFT that nothing pulls back has no use for the reference policy."""
    return self.name != 'sft' or bool(self.kl)


@dataclasses.dataclass(frozen=True)
class Stream:
  """A stream as the loop sees it; without reward its slots demonstrate."""

  name: str
  examples: list[Example]
  reward: RewardFn | None


def check_lengths(streams, tokenizer, prompt_lengths, completion_length):
  """Every prompt and demonstration fits, or says which does not.

  Args:
    prompt_lengths: the buckets and, last, `config.batch.prompt_length`.
  """
  *buckets, longest = prompt_lengths
  if any(a >= b for a, b in itertools.pairwise((0, *prompt_lengths))):
    raise UserError(
      f'config.batch.prompt_buckets={tuple(buckets)}; expected ascending '
      f'lengths above 0 and below config.batch.prompt_length={longest}'
    )
  for stream in streams:
    for example in stream.examples:
      n = len(tokenizer.encode_chat(example.messages))
      if n > longest:
        raise UserError(
          f'{example.id} has a prompt of {n} tokens, over '
          f'config.batch.prompt_length={longest}; raise it'
        )
      if stream.reward is None:
        n = len(tokenizer.encode(example.target)) + 1
        if n > completion_length:
          raise UserError(
            f'{example.id} has a target of {n} tokens, over '
            f'config.batch.completion_length={completion_length}; raise it'
          )


def roll(
  examples, demonstrated, sampler, params, key, tokenizer, prompt_lengths
):
  """Completions of every slot: sampled, or for a demonstration its target.

  Args:
    prompt_lengths: ascending; P is the first that holds every prompt.

  Returns:
    Rollout of global arrays, and bool [B, G]: rows that demonstrate. A
    demonstrated slot has its target first and G - 1 empty rows.
  """
  tokens = [tokenizer.encode_chat(e.messages) for e in examples]
  P = text.first_that_holds(max(map(len, tokens)), prompt_lengths)
  prompts, lengths = text.pad(tokens, P, tokenizer.pad_id)
  shape = (len(examples), sampler.group, sampler.length)
  demonstrated = np.array(demonstrated)
  rows = np.zeros(shape[:2], bool)
  if demonstrated.all():
    host = Rollout(
      prompts, lengths, np.zeros(shape, np.int32),
      np.zeros(shape[:2], np.int32), np.zeros(shape, np.float32),
    )  # fmt: skip
  else:
    rolled = sampler(params, prompts, lengths, np.arange(len(examples)), key)
    if not demonstrated.any():
      return rolled, rows
    host = sharding.to_host(rolled)
  completions, lengths = host.completions.copy(), host.lengths.copy()
  for i in np.flatnonzero(demonstrated):
    target = tokenizer.encode(examples[i].target) + [tokenizer.eos_ids[0]]
    completions[i], lengths[i] = 0, 0
    completions[i, 0, : len(target)], lengths[i, 0] = target, len(target)
    rows[i, 0] = True
  host = host.replace(completions=completions, lengths=lengths)
  return sharding.to_global(host, sampler.rows), rows


def decode(host: Rollout, tokenizer) -> list[list[str]]:
  """Completions as text, without special tokens: [B][G]."""
  return [
    [tokenizer.decode(row[:n]) for row, n in zip(rows, ns, strict=True)]
    for rows, ns in zip(host.completions, host.lengths, strict=True)
  ]


def score(examples, owner, streams, texts, judge) -> np.ndarray:
  """Each stream's reward of its own completions: float32 [B, G], NaN = none."""
  G = len(texts[0])
  out = np.full((len(examples), G), np.nan, np.float32)
  for index, stream in enumerate(streams):
    mine = np.flatnonzero(owner == index)
    if stream.reward is None or not mine.size:
      continue
    found = stream.reward(
      [examples[i] for i in mine for _ in range(G)],
      [completion for i in mine for completion in texts[i]],
      judge=judge,
    )
    out[mine] = np.asarray(found, np.float32).reshape(-1, G)
  return out


def widest(rewards: np.ndarray, group: int) -> np.ndarray:
  """Of each prompt's completions, those whose rewards vary most.

  The best k and the worst G - k, for the k of the greatest variance (Xu et al.
  2025, arXiv:2504.13818): drawing is cheap beside learning, and those near the
  mean teach little. Unscored ones are taken where no others are left, and of
  equal rewards the first drawn.

  Args:
    rewards: float32 [B, N] of N >= group completions; NaN = unscored.
    group: G.

  Returns:
    int32 [B, G], positions in N, ascending.
  """
  out = np.empty((len(rewards), group), np.int32)
  for b, row in enumerate(rewards):
    order = np.argsort(row, kind='stable')  # unscored last
    scored = order[: (~np.isnan(row)).sum()]
    if len(scored) <= group or row[scored[0]] == row[scored[-1]]:
      out[b] = np.sort(order[:group])
      continue
    parts = [
      np.concatenate([scored[:low], scored[len(scored) - group + low :]])
      for low in range(group + 1)
    ]
    out[b] = np.sort(max(parts, key=lambda part: row[part].var()))
  return out


def take(host: Rollout, kept: np.ndarray) -> Rollout:
  """The completions at int32 [B, G] of each prompt's."""
  of = lambda x: np.take_along_axis(x, kept.reshape(*kept.shape, 1), 1)
  return host.replace(
    completions=of(host.completions),
    lengths=of(host.lengths[..., None])[..., 0],
    logprobs=of(host.logprobs),
  )


@dataclasses.dataclass(frozen=True)
class Gold:
  """A reward of one stream's completions that nothing is trained on."""

  name: str
  stream: int
  reward: RewardFn
  judge: Judge | None


def read_gold(golds, examples, owner, texts) -> dict[str, float]:
  """The mean of each gold reward over its stream's completions: `gold/name`."""
  line, G = {}, len(texts[0])
  for gold in golds:
    mine = np.flatnonzero(owner == gold.stream)
    if mine.size:
      found = gold.reward(
        [examples[i] for i in mine for _ in range(G)],
        [completion for i in mine for completion in texts[i]],
        judge=gold.judge,
      )
      scored = found[~np.isnan(found)]
      line[f'gold/{gold.name}'] = scored.mean() if scored.size else np.nan
      line[f'gold_unscored/{gold.name}'] = np.isnan(found).mean()
  return line


def reference_scales(
  streams, sampler, params, key, tokenizer, judge, *, prompts, batch, lengths
) -> dict[str, tuple[float, float]]:
  """Mean and spread of each stream's rewards on the reference's own samples.

  Args:
    params: of the reference policy.
    prompts: of each stream, evenly spread over its examples.
    batch: prompts sampled at a time, that of a step.
    lengths: of prompts, as in `roll`.

  Raises:
    UserError: all rewards of a stream are alike, or unscored.
  """
  out = {}
  for number, stream in enumerate(streams):
    if stream.reward is None:
      continue
    places = np.linspace(0, len(stream.examples) - 1, prompts).astype(int)
    found = []
    for start in range(0, prompts, batch):
      picked = [stream.examples[i] for i in places[start : start + batch]]
      # A last batch that is not full repeats its own; the copies do not count.
      full = [picked[i % len(picked)] for i in range(batch)]
      rolled, _ = roll(
        full, [False] * batch, sampler, params,
        jax.random.fold_in(jax.random.fold_in(key, number), start),
        tokenizer, lengths,
      )  # fmt: skip
      texts = decode(sharding.to_host(rolled), tokenizer)[: len(picked)]
      owner = np.zeros(len(picked), int)
      found.append(score(picked, owner, [stream], texts, judge).ravel())
    found = np.concatenate(found)
    found = found[~np.isnan(found)]
    if not found.size or found.std() == 0:
      raise UserError(
        f'the reference earns {np.unique(found).tolist()} on every sample of '
        f'stream {stream.name!r}, so its rewards have no spread; raise '
        'config.algorithm.scale_prompts, or set it to 0'
      )
    out[stream.name] = (float(found.mean()), float(found.std()))
  return out


def scaled(rewards, owner, streams, scales) -> np.ndarray:
  """Rewards less the mean of their stream, over its spread, if it has one."""
  table = [scales.get(s.name, (0.0, 1.0)) for s in streams]
  mean, spread = np.array(table, np.float32).T
  return (rewards - mean[owner][:, None]) / spread[owner][:, None]


def make_batch(
  host, rewards, demonstration, owner, reference, values, algorithm, eos_ids
):
  """Rewards to credit for every token, and what each token weighs.

  Returns:
    Batch of host arrays, and the credit of each completion, float32 [B, G]: its
    advantage, or for PPO the mean over its tokens.
  """
  a, C = algorithm, host.completions.shape[-1]
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


def describe(host, rewards, credit, cut, measured, owner, streams) -> dict:
  """One line of metrics: `area/name[/stream]`. Means over completions.

  Of all that were drawn; `credit` and `measured` of those learned from.
  """
  line = {k: float(v) for k, v in measured.items() if k != 'by_stream'}
  unscored = np.isnan(rewards)
  lowest = np.where(unscored, np.inf, rewards).min(1)
  highest = np.where(unscored, -np.inf, rewards).max(1)
  for i, stream in enumerate(streams):
    mine = owner == i
    if not mine.any():
      continue
    name, scored = stream.name, rewards[mine][~unscored[mine]]
    if stream.reward is not None:
      line[f'reward/{name}'] = scored.mean() if scored.size else np.nan
      line[f'unscored/{name}'] = unscored[mine].mean()
      line[f'zero_spread/{name}'] = (highest <= lowest)[mine].mean()
      spread = highest[mine] - lowest[mine]  # -inf where nothing is scored
      line[f'reward_range/{name}'] = np.maximum(spread, 0).mean()
      line[f'advantage/{name}'] = np.abs(credit[mine]).mean()
    line[f'length/{name}'] = host.lengths[mine].mean()
    line[f'truncated/{name}'] = cut[mine].mean()
    for k, v in measured['by_stream'].items():
      line[f'{k}/{name}'] = float(v[i])
  return line


def groups(
  examples, owner, streams, texts, rewards, kept, credit, cut, host
) -> list[dict]:
  """Groups as rollouts.jsonl holds them, for people to read.

  All that was drawn; `kept` are those that have an advantage.
  """
  every = np.full(rewards.shape, np.nan, np.float32)
  np.put_along_axis(every, kept, credit, 1)
  listed = lambda x: [None if np.isnan(v) else round(float(v), 4) for v in x]
  return [
    {
      'stream': streams[owner[i]].name,
      'id': example.id,
      'messages': [dataclasses.asdict(m) for m in example.messages],
      'completions': texts[i],
      'rewards': listed(rewards[i]),
      'advantages': listed(every[i]),
      'lengths': host.lengths[i].tolist(),
      'truncated': cut[i].tolist(),
    }
    for i, example in enumerate(examples)
  ]
