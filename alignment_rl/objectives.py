"""Every equation, as a pure function of arrays.

Entry t of a [B, G, C] array describes completion token t given all before it.
All in float32; sums over tokens use the caller's weights, whose denominator is
global, so micro-batches and devices add up to the batch exactly.
"""

import chex
import jax
import jax.numpy as jnp

# exp(20) is finite in float32 and far beyond any ratio that a clip lets pass.
MAX_LOG_RATIO = 20.0


def group_advantages(rewards: jax.Array, *, method: str) -> jax.Array:
  """Each completion's reward against the others of its group.

  'dr_grpo': reward minus the group's mean (Liu et al. 2025, arXiv:2503.20783).
  'grpo': also divided by the group's standard deviation, ddof=0 (Shao et al.
  2024, arXiv:2402.03300). 'rloo': reward minus the mean of the *other* scored
  completions (Ahmadian et al. 2024, arXiv:2402.14740).

  Unscored completions (NaN) get advantage 0 and do not move the mean. A group
  with equal rewards gets exactly 0, so it adds no gradient.

  Args:
    rewards: float32 [B, G]; NaN = unscored.
    method: 'dr_grpo', 'grpo' or 'rloo'.

  Returns:
    float32 [B, G], in units of reward, or of standard deviations for 'grpo'.

  Raises:
    ValueError: `method` is unknown.
  """
  chex.assert_rank(rewards, 2)
  scored = ~jnp.isnan(rewards)
  n = scored.sum(-1, keepdims=True)
  # Centring on a member first makes equal rewards cancel to 0 exactly.
  first = jnp.take_along_axis(rewards, scored.argmax(-1)[:, None], axis=-1)
  centred = jnp.where(scored, rewards - first, 0.0)
  mean = centred.sum(-1, keepdims=True) / jnp.maximum(n, 1)
  advantages = jnp.where(scored, centred - mean, 0.0)
  if method == 'dr_grpo':
    return advantages
  if method == 'rloo':
    return advantages * n / jnp.maximum(n - 1, 1)
  if method == 'grpo':
    variance = (advantages**2).sum(-1, keepdims=True) / jnp.maximum(n, 1)
    spread = jnp.sqrt(variance)
    return jnp.where(spread > 0, advantages / jnp.maximum(spread, 1e-8), 0.0)
  raise ValueError(f"unknown method {method!r}; have 'dr_grpo', 'grpo', 'rloo'")


def gae(
  rewards: jax.Array,
  values: jax.Array,
  lengths: jax.Array,
  terminated: jax.Array,
  *,
  discount: float,
  trace: float,
) -> tuple[jax.Array, jax.Array]:
  """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438).

  `values[t]` is the value before token t. After the last token there is nothing
  if the completion terminated; a truncated one bootstraps from its last value,
  since its future was cut off by us.

  Args:
    rewards: float32 [B, G, C], per token.
    values: float32 [B, G, C].
    lengths: int32 [B, G].
    terminated: bool [B, G], ended by an EOS.
    discount: gamma, per token.
    trace: lambda.

  Returns:
    Advantages and returns (targets of the value), float32 [B, G, C], 0 beyond
    the lengths.
  """
  chex.assert_equal_shape([rewards, values])
  C = rewards.shape[-1]
  t = jnp.arange(C)
  real = t < lengths[..., None]
  is_last = t == lengths[..., None] - 1
  following = jnp.concatenate([values[..., 1:], values[..., -1:]], -1)
  after = jnp.where(terminated, 0.0, _at_last(values, lengths))[..., None]
  following = jnp.where(is_last, after, following)
  delta = jnp.where(real, rewards + discount * following - values, 0.0)

  def back(carry, inputs):
    delta, real = inputs
    carry = jnp.where(real, delta + discount * trace * carry, 0.0)
    return carry, carry

  move = lambda x: jnp.moveaxis(x, -1, 0)
  _, advantages = jax.lax.scan(
    back, jnp.zeros_like(delta[..., 0]), (move(delta), move(real)), reverse=True
  )
  advantages = jnp.moveaxis(advantages, 0, -1)
  return advantages, jnp.where(real, advantages + values, 0.0)


def policy_loss(
  logprobs: jax.Array,
  sampled_logprobs: jax.Array,
  advantages: jax.Array,
  *,
  clip_low: float,
  clip_high: float,
) -> tuple[jax.Array, jax.Array]:
  """Clipped surrogate per token (Schulman et al. 2017, arXiv:1707.06347).

  With `sampled_logprobs` equal to `logprobs` (stopped) the gradient is
  -advantage * grad logprob: for advantage 1, the SFT gradient.

  Returns:
    Loss per token, and whether the clip binds: float32 and bool, as the inputs.
  """
  chex.assert_equal_shape([logprobs, sampled_logprobs, advantages])
  log_ratio = jnp.clip(
    logprobs - sampled_logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO
  )
  ratio = jnp.exp(log_ratio)
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  loss = -jnp.minimum(ratio * advantages, clipped * advantages)
  return loss, clipped * advantages < ratio * advantages


def kl_k2(logprobs: jax.Array, reference_logprobs: jax.Array) -> jax.Array:
  """Half the squared log-ratio, nats per token: Schulman's k2 (2020).

  Its on-policy gradient is that of KL(policy || reference); k1's is zero in
  expectation and k3's is that of KL(reference || policy), another objective.
  """
  return 0.5 * (logprobs - reference_logprobs) ** 2


def kl_in_reward(
  rewards: jax.Array,
  sampled_logprobs: jax.Array,
  reference_logprobs: jax.Array,
  lengths: jax.Array,
  *,
  coefficient: float,
) -> jax.Array:
  """Token rewards: -coefficient * k1 everywhere, the reward on the last token.

  Args:
    rewards: float32 [B, G]; NaN stays NaN.
    sampled_logprobs: float32 [B, G, C], as `reference_logprobs`.
    lengths: int32 [B, G].

  Returns:
    float32 [B, G, C], 0 beyond the lengths.
  """
  t = jnp.arange(sampled_logprobs.shape[-1])
  k1 = sampled_logprobs - reference_logprobs
  token = -coefficient * k1 + jnp.where(
    t == lengths[..., None] - 1, rewards[..., None], 0.0
  )
  return jnp.where(t < lengths[..., None], token, 0.0)


def value_loss(
  values: jax.Array, old_values: jax.Array, returns: jax.Array, *, clip: float
) -> jax.Array:
  """Half squared error per token, pessimistic within `clip` of `old_values`."""
  chex.assert_equal_shape([values, old_values, returns])
  near = old_values + jnp.clip(values - old_values, -clip, clip)
  return 0.5 * jnp.maximum((values - returns) ** 2, (near - returns) ** 2)


def bradley_terry_loss(better: jax.Array, worse: jax.Array) -> jax.Array:
  """-log sigmoid(better - worse), nats per pair (Bradley and Terry 1952)."""
  chex.assert_equal_shape([better, worse])
  return -jax.nn.log_sigmoid(better - worse)


def token_weights(lengths: jax.Array, rows: jax.Array, C: int, method: str):
  """What one token's loss counts for; sums over the global batch.

  'grpo' averages tokens within a completion, then completions; 'dr_grpo'
  divides by the constant C, so long completions are not diluted; 'rloo' sums
  tokens within a completion; 'ppo' and 'sft' average over all tokens.

  Args:
    lengths: int32 [B, G].
    rows: bool [B, G], completions that count (scored, not filtered).
    C: the length that completions are cut at, tokens.
    method: the algorithm's name.

  Returns:
    float32 [B, G, C]; 0 beyond the lengths and on rows that do not count.
  """
  mask = (jnp.arange(C) < lengths[..., None]) & rows[..., None]
  n = jnp.maximum(rows.sum(), 1)
  length = jnp.maximum(lengths[..., None], 1)
  scale = {
    'grpo': 1 / (n * length),
    'dr_grpo': 1 / (n * C),
    'rloo': 1 / n,
    'ppo': 1 / jnp.maximum(mask.sum(), 1),
    'sft': 1 / jnp.maximum(mask.sum(), 1),
  }[method]
  return jnp.where(mask, scale, 0.0).astype(jnp.float32)


def _at_last(x, lengths):
  return jnp.take_along_axis(x, jnp.maximum(lengths - 1, 0)[..., None], -1)[
    ..., 0
  ]
