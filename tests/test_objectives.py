"""The equations, against hand-worked numbers, slow loops and identities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment_rl import objectives

NAN = float('nan')
METHODS = ('dr_grpo', 'grpo', 'rloo')

advantages_of = jax.jit(objectives.group_advantages, static_argnames='method')
gae = jax.jit(objectives.gae)
policy_loss = jax.jit(objectives.policy_loss)
kl_in_reward = jax.jit(objectives.kl_in_reward)
token_weights = jax.jit(objectives.token_weights, static_argnums=(2, 3))


def close(found, expected, tolerance=1e-6):
  np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def normal(seed, shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
  'method, whole, part',
  [
    # Mean of 0, 1, 2, 5 is 2; of 1, 2, 6 it is 3.
    ('dr_grpo', [-2, -1, 0, 3], [-2, -1, 3]),
    # Variances, ddof=0: (4 + 1 + 0 + 9) / 4 and (4 + 1 + 9) / 3.
    ('grpo', [-2, -1, 0, 3] / np.sqrt(3.5), [-2, -1, 3] / np.sqrt(14 / 3)),
    # Means of the others: 8/3, 7/3, 6/3, 3/3; and 4, 3.5, 1.5.
    ('rloo', [-8 / 3, -4 / 3, 0, 4], [-3, -1.5, 4.5]),
  ],
)
def test_group_advantages_are_the_hand_worked_ones(method, whole, part):
  found = advantages_of(jnp.array([[0.0, 1.0, 2.0, 5.0]]), method=method)
  assert found.dtype == jnp.float32
  close(found, [whole])
  # Unscored completions get 0 and do not move the mean, wherever they are.
  rewards = jnp.array([[1, NAN, 2, 6], [NAN, 1, 2, 6], [1, 2, 6, NAN]])
  found = advantages_of(rewards, method=method)
  close(found, [np.insert(part, i, 0) for i in (1, 0, 3)])


@pytest.mark.parametrize('method', METHODS)
def test_groups_with_one_or_no_score_get_exactly_zero(method):
  rewards = jnp.array([[NAN, NAN, NAN], [NAN, 0.7, NAN]])
  assert not np.any(advantages_of(rewards, method=method))
  assert not np.any(advantages_of(rewards[1:, 1:2], method=method))


@pytest.mark.parametrize('method', METHODS)
def test_equal_rewards_get_exactly_zero(method):
  # Sums of G such numbers are rounded, so reward - mean would leave 1e-8, and
  # dividing it by a standard deviation of 1e-8 would make a real gradient.
  values = np.float32([0.1 + 0.2, 0.1, 1 / 3, 0.7, -1e-3, 1e6 / 7, 0.0])
  for G in (3, 10):
    rewards = np.repeat(values[:, None], G, axis=1)
    for f in (advantages_of, objectives.group_advantages):
      assert not np.any(f(rewards, method=method)), G
    rewards[:, 1] = NAN
    assert not np.any(advantages_of(rewards, method=method))
  # Three ways to the same float32.
  same = jnp.array([[0.3, 0.1 + 0.2, 0.6 / 2]], jnp.float32)
  assert not np.any(advantages_of(same, method=method))


@pytest.mark.parametrize('method', METHODS)
def test_adding_a_constant_to_a_group_changes_no_advantage(method):
  rewards = normal(0, (3, 5))
  rewards[0, 2] = NAN
  moved = rewards + np.float32([[4.0], [-0.3], [100.0]])
  found = advantages_of(moved, method=method)
  # float32 near 100 is spaced by 8e-6.
  close(found, advantages_of(rewards, method=method), 5e-5)


@pytest.mark.parametrize('method', METHODS)
def test_advantages_follow_a_permutation_of_the_group(method):
  rewards, order = normal(1, (4, 6)), np.array([5, 2, 0, 3, 1, 4])
  rewards[1, 0] = rewards[2, 5] = NAN
  found = advantages_of(rewards, method=method)
  permuted = advantages_of(rewards[:, order], method=method)
  close(permuted, found[:, order])


def test_group_advantages_refuses_an_unknown_method():
  with pytest.raises(ValueError, match="'reinforce'"):
    objectives.group_advantages(jnp.zeros((1, 2)), method='reinforce')


def slow_gae(rewards, values, length, terminated, discount, trace):
  """The definition of one row: sums of discounted temporal differences."""
  after = [*values[1:length], 0.0 if terminated else values[length - 1]]
  delta = [rewards[t] + discount * after[t] - values[t] for t in range(length)]
  decay = (discount * trace) ** np.arange(length)
  out = [decay[: length - t] @ delta[t:] for t in range(length)]
  return np.array(out + [0.0] * (len(rewards) - length))


def test_gae_is_the_hand_worked_one():
  # Deltas, gamma 0.5: 0 + 0.5 * 4 - 2 = 0, then the last token's: terminated
  # 1 + 0 - 4 = -3, truncated 1 + 0.5 * 4 - 4 = -1. Traced by 0.5 * 0.5 = 0.25.
  rewards, values = np.array([[[[0.0, 1.0, 9.0]] * 2], [[[2.0, 4.0, 9.0]] * 2]])
  found, returns = gae(
    rewards, values, jnp.array([[2, 2]]), jnp.array([[True, False]]),
    discount=0.5, trace=0.5,
  )  # fmt: skip
  close(found, [[[-0.75, -3.0, 0.0], [-0.25, -1.0, 0.0]]])
  close(returns, [[[1.25, 1.0, 0.0], [1.75, 3.0, 0.0]]])  # plus the values


@pytest.mark.parametrize('discount, trace', [(1.0, 0.95), (0.9, 0.5), (1, 1)])
def test_gae_equals_the_slow_loop(discount, trace):
  rewards, values = normal(3, (3, 4, 7)), normal(4, (3, 4, 7))
  lengths = np.array([[7, 1, 3, 5], [2, 7, 6, 4], [1, 1, 7, 2]])
  terminated = np.random.default_rng(5).random((3, 4)) < 0.5
  inputs = rewards, values, lengths, terminated
  found, returns = gae(*inputs, discount=discount, trace=trace)
  for b, g in np.ndindex(3, 4):
    expected = slow_gae(*(x[b, g] for x in inputs), discount, trace)
    close(found[b, g], expected, 1e-5)
    real = np.arange(7) < lengths[b, g]
    close(returns[b, g], np.where(real, expected + values[b, g], 0), 1e-5)


def test_gae_does_not_read_padding():
  rewards, values = normal(8, (1, 3, 6)), normal(9, (1, 3, 6))
  lengths, terminated = np.array([[2, 5, 6]]), np.array([[True, False, False]])
  padding = np.arange(6) >= lengths[..., None]
  found = gae(rewards, values, lengths, terminated, discount=0.9, trace=0.9)
  rewards[padding], values[padding] = NAN, NAN
  again = gae(rewards, values, lengths, terminated, discount=0.9, trace=0.9)
  assert np.array_equal(found, again)
  assert not np.any(np.array(found)[:, padding])


def test_policy_loss_clips_as_worked_by_hand():
  ratio, advantage, expected, binds = np.array(
    [
      (1.1, 2.0, -2.2, False),  # inside
      (1.5, 2.0, -2.6, True),  # 2 * 1.3: no reward for going further up
      (1.5, -2.0, 3.0, False),  # the pessimistic side is not clipped
      (0.5, -2.0, 1.6, True),  # -2 * 0.8
      (0.5, 2.0, -1.0, False),
    ]
  ).T
  loss, clipped = policy_loss(
    np.log(ratio) - 1, -np.ones(5), advantage, clip_low=0.2, clip_high=0.3
  )
  close(loss, expected)
  assert np.array_equal(clipped, binds)


def test_policy_loss_is_finite_for_any_ratio():
  logprobs = jnp.array([[[-1e4, 0.0, 0.0]]])
  sampled = jnp.array([[[0.0, -1e4, -1e4]]])
  advantages = jnp.array([[[1.0, 1.0, -1.0]]])
  total = lambda x: objectives.policy_loss(
    x, sampled, advantages, clip_low=0.2, clip_high=0.2
  )[0].sum()
  loss, gradient = jax.jit(jax.value_and_grad(total))(logprobs)
  assert np.isfinite(loss) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize('advantage', [1.0, 0.5, -2.0])
def test_policy_loss_at_ratio_one_has_the_sft_gradient(advantage):
  logits = normal(10, (1, 2, 3, 5))
  tokens = np.array([[[0, 4, 2], [1, 1, 3]]])

  def logprobs(logits):
    every = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(every, tokens[..., None], -1)[..., 0]

  def rl(logits):
    now = logprobs(logits)
    loss, _ = objectives.policy_loss(
      now, jax.lax.stop_gradient(now), jnp.full(now.shape, advantage),
      clip_low=0.2, clip_high=0.2,
    )  # fmt: skip
    return loss.sum()

  sft = lambda logits: -advantage * logprobs(logits).sum()
  close(jax.jit(jax.grad(rl))(logits), jax.jit(jax.grad(sft))(logits))


def test_kl_k2_is_half_the_squared_log_ratio():
  # Half of (-1 + 3)^2 and of (-2 + 0.5)^2.
  found = jax.jit(objectives.kl_k2)(
    jnp.array([-1.0, -2.0]), jnp.array([-3.0, -0.5])
  )
  close(found, [2.0, 1.125])


def expected_gradient(estimator, logits, reference):
  """Of an estimator, over all tokens that the policy itself would sample."""

  def mean(logits):
    logprobs = jax.nn.log_softmax(logits)
    # Sampling has no gradient: only what is computed of the sample has.
    probs = jax.lax.stop_gradient(jnp.exp(logprobs))
    return (probs * estimator(logprobs, reference)).sum()

  return jax.jit(jax.grad(mean))(logits)


def test_kl_k2_has_the_gradient_of_the_exact_kl_and_k1_has_none():
  logits, reference = normal(11, 5), jax.nn.log_softmax(normal(12, 5))

  def kl(logits, reverse=False):
    policy = jax.nn.log_softmax(logits)
    p, q = (reference, policy) if reverse else (policy, reference)
    return (jnp.exp(p) * (p - q)).sum()

  exact = jax.jit(jax.grad(kl))(logits)
  assert np.abs(exact).max() > 0.1  # so that equality says something
  close(expected_gradient(objectives.kl_k2, logits, reference), exact)
  k1 = lambda p, q: p - q
  close(expected_gradient(k1, logits, reference), np.zeros(5))
  # Why k3 is not used: its gradient is that of the other direction.
  k3 = lambda p, q: jnp.exp(q - p) - 1 - (q - p)
  other = jax.grad(functools.partial(kl, reverse=True))(logits)
  close(expected_gradient(k3, logits, reference), other)
  assert np.abs(other - exact).max() > 0.01


def test_kl_in_reward_is_hand_worked():
  # k1 is 1, -2, 3; times -0.5: -0.5, 1, -1.5; the reward on the last token.
  found = kl_in_reward(
    np.array([[10.0, 10.0, NAN]]), np.array([[[-1.0, -3.0, -1.0]] * 3]),
    np.array([[[-2.0, -1.0, -4.0]] * 3]), np.array([[3, 2, 2]]),
    coefficient=0.5,
  )  # fmt: skip
  # NaN stays NaN, on its own row.
  close(found, [[[-0.5, 1.0, 8.5], [-0.5, 11.0, 0.0], [-0.5, NAN, 0.0]]])


def test_kl_in_reward_sums_to_the_reward_minus_the_kl():
  rewards = normal(13, (2, 3))
  sampled, reference = normal(14, (2, 3, 6)), normal(15, (2, 3, 6))
  lengths = np.array([[6, 1, 4], [2, 3, 5]])
  real = np.arange(6) < lengths[..., None]
  sampled[~real] = NAN  # padding, of any content
  found = kl_in_reward(rewards, sampled, reference, lengths, coefficient=0.1)
  k1 = np.where(real, sampled - reference, 0)
  close(found.sum(-1), rewards - 0.1 * k1.sum(-1), 1e-5)


@pytest.mark.parametrize(
  'value, expected, gradient',
  [
    # Old value 1, return 3, clip 0.5.
    (1.2, 1.62, -1.8),  # inside: (1.2 - 3)^2 / 2
    (2.5, 1.125, 0.0),  # cut at 1.5, which is further away: (1.5 - 3)^2 / 2
    (0.0, 4.5, -3.0),  # cut at 0.5, which is nearer: (0 - 3)^2 / 2 counts
  ],
)
def test_value_loss_is_pessimistic_within_the_clip(value, expected, gradient):
  loss = functools.partial(objectives.value_loss, clip=0.5)
  found = jax.jit(jax.value_and_grad(loss))(value, 1.0, 3.0)
  close(found, (expected, gradient))


def test_bradley_terry_loss_is_minus_the_log_of_the_odds():
  # Equal scores: log 2. A gap of log 3 wins 3 of 4 times, or 1 of 4. Far apart
  # the loss is the gap, where exp would overflow.
  gap = np.log(3.0)
  better, worse = np.float32([[5, gap, 0, 0, 1e4], [5, 0, gap, 1e4, 0]])
  found = jax.jit(objectives.bradley_terry_loss)(better, worse)
  close(found, [np.log(2), np.log(4 / 3), np.log(4), 1e4, 0])
  close(objectives.bradley_terry_loss(better + 4, worse + 4), found)


@pytest.mark.parametrize(
  'method, scales, total',
  [
    # Three rows count, with 4, 2 and 3 tokens; C is 5.
    ('grpo', [1 / 12, 1 / 6, 1 / 9], 1.0),
    ('dr_grpo', [1 / 15] * 3, 9 / 15),
    ('rloo', [1 / 3] * 3, 9 / 3),
    ('ppo', [1 / 9] * 3, 1.0),
    ('sft', [1 / 9] * 3, 1.0),
  ],
)
def test_token_weights_are_the_hand_worked_ones(method, scales, total):
  lengths, rows = np.array([[4, 2], [1, 3]]), np.array([[1, 1], [0, 1]], bool)
  found = token_weights(lengths, rows, 5, method)
  a, b, c = scales
  first = [[a, a, a, a, 0], [b, b, 0, 0, 0]]
  close(found, [first, [[0, 0, 0, 0, 0], [c, c, c, 0, 0]]])
  assert found.dtype == jnp.float32
  close(found.sum(), total)
  # A batch in which no row counts has no weight, and no 0 / 0.
  assert not np.any(token_weights(lengths, np.zeros_like(rows), 5, method))
