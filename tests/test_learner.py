"""One update: the same on any split of the batch, with the right gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment_rl import forward, learner, objectives, optimizers, sharding
from alignment_rl.errors import UserError
from alignment_rl.types import Batch, Rollout

B, G, P, C = 16, 2, 6, 5
# Stream 2 of four is in no row.
STREAMS = np.array([0, 1, 0, 3, 1, 1, 0, 0, 3, 0, 1, 0, 0, 3, 0, 0], np.int32)
N_STREAMS = 4
LOSS = learner.LossSettings(temperature=0.8, kl=0.1, value=0.5)

ADAMW = {
  'name': 'adamw', 'learning_rate': 1e-2, 'warmup': 0, 'steps': 10,
  'schedule': 'constant', 'clip_norm': 0.0, 'weight_decay': 0.0,
  'b1': 0.9, 'b2': 0.99,
}  # fmt: skip
# Parameters before minus after are the gradient itself.
GRADIENT = ADAMW | {'name': 'sgd', 'learning_rate': 1.0}


@pytest.fixture(scope='module')
def batch(tiny, one_device):
  """Sampled, demonstrated, unscored and empty rows of three streams."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.integers(0, 256, shape, dtype=np.int32)
  normal = lambda scale: rng.normal(0, scale, (B, G, C)).astype(np.float32)
  rolled = Rollout(
    draw(B, P),
    rng.integers(1, P + 1, B).astype(np.int32),
    draw(B, G, C),
    rng.integers(1, C + 1, (B, G)).astype(np.int32),
    np.zeros((B, G, C), np.float32),
  )
  scores = learner.make_scores(tiny.decoder, one_device, LOSS.temperature)
  logprobs, values = map(np.asarray, scores(tiny.params, rolled))
  # Off policy enough for the clip to bind on some tokens, not on most.
  rolled = rolled.replace(logprobs=logprobs + normal(0.15))
  demonstration = np.zeros((B, G), bool)
  demonstration[4] = demonstration[9, 0] = True
  counted = np.ones((B, G), bool)
  counted[2] = counted[7, 1] = False
  return Batch(
    rollout=rolled,
    reference_logprobs=logprobs + normal(0.3),
    advantages=np.where(demonstration[..., None], 1, normal(1.0)),
    returns=values + normal(0.5),
    values=values + normal(0.2),
    weights=np.asarray(
      objectives.token_weights(rolled.lengths, counted, C, 'dr_grpo')
    ),
    demonstration=demonstration,
    stream=STREAMS,
  )


@functools.cache
def compiled(decoder, mesh, optimizer, loss, micro_batches, trainable):
  """The optimizer, shardings and update of one setting, for all tests of it."""
  tx = optimizers.make_optimizer(**dict(optimizer))
  _, shardings = learner.state_shardings(decoder, tx, mesh, trainable)
  update = learner.make_update(
    decoder, tx, loss, shardings, mesh, micro_batches=micro_batches,
    n_streams=N_STREAMS, trainable=trainable,
  )  # fmt: skip
  return tx, shardings, update


def apply(
  model, mesh, batch, *, optimizer=GRADIENT, loss=LOSS, micro_batches=1,
  per_stream=False, trainable='.*', updates=1,
):  # fmt: skip
  """Parameters and measurements after `updates` on one batch, on the host."""
  tx, shardings, update = compiled(
    model.decoder, mesh, tuple(optimizer.items()), loss, micro_batches,
    trainable,
  )  # fmt: skip
  params = sharding.to_global(model.params, shardings.params)
  state = learner.fresh_state(params, tx, shardings, trainable)
  passes = learner.make_passes(
    batch.stream, batch.weights.any((1, 2)), micro_batches, N_STREAMS,
    per_stream,
  )  # fmt: skip
  placed = sharding.to_global(batch, sharding.rows(mesh))
  for _ in range(updates):
    state, measured = update(state, {}, placed, *passes)
  return jax.device_get((state.params, measured))


def gradient(model, mesh, batch, **changes):
  params, _ = apply(model, mesh, batch, **changes)
  return jax.tree.map(np.subtract, model.params, params)


def assert_close(found, expected, **tolerance):
  """Of two trees; NaN equals NaN."""
  tolerance = {'rtol': 1e-4, 'atol': 1e-5} | tolerance
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, **tolerance), found, expected
  )


@pytest.fixture(scope='module')
def plain(tiny, one_device, batch):
  return apply(tiny, one_device, batch)


ASKED_APART = 'gradient', 'cosine'


def without_gradients(measured):
  """All but what is said of a stream's gradient, which is asked for apart."""
  streams = measured['by_stream']
  kept = {k: v for k, v in streams.items() if k not in ASKED_APART}
  return measured | {'by_stream': kept}


# ------------------------------------------------------ splits of one batch


@pytest.mark.parametrize('micro_batches', [2, 4])
def test_micro_batches_equal_the_batch(
  tiny, one_device, batch, plain, micro_batches
):
  found = apply(tiny, one_device, batch, micro_batches=micro_batches)
  assert_close(found, plain)


@pytest.mark.parametrize(
  'mesh, micro_batches',
  [((8, 1, 1), 1), ((2, 4, 1), 1), ((2, 2, 2), 1), ((2, 2, 2), 2)],
  indirect=['mesh'],
)
def test_eight_devices_equal_one(tiny, mesh, batch, plain, micro_batches):
  found = apply(tiny, mesh, batch, micro_batches=micro_batches)
  assert_close(found, plain)


@pytest.mark.parametrize('micro_batches', [1, 4])
def test_passes_by_stream_equal_one_pass(
  tiny, one_device, batch, plain, micro_batches
):
  params, measured = apply(
    tiny, one_device, batch, micro_batches=micro_batches, per_stream=True
  )
  assert_close(params, plain[0])
  assert_close(without_gradients(measured), without_gradients(plain[1]))
  for name in ASKED_APART:
    assert np.isnan(plain[1]['by_stream'][name]).all()
  norms, cosines = (measured['by_stream'][name] for name in ASKED_APART)
  norm_of = lambda rows: apply(
    tiny, one_device,
    batch.replace(weights=batch.weights * rows[:, None, None]),
  )[1]['gradient_norm']  # fmt: skip
  for stream in range(N_STREAMS):
    alone = norm_of(batch.stream == stream)
    assert norms[stream] == pytest.approx(alone, rel=1e-4)
    if stream in (1, 3):
      # |a + b|^2 = |a|^2 + |b|^2 + 2 |a| |b| cos, where b are those before.
      before, both = (
        norm_of(batch.stream < stream), norm_of(batch.stream <= stream)
      )  # fmt: skip
      cosine = (both**2 - alone**2 - before**2) / (2 * alone * before)
      assert cosines[stream] == pytest.approx(cosine, abs=1e-4)
  assert norms[2] == 0 and (norms[[0, 1, 3]] > 1e-3).all()
  # Nothing is before the first, and stream 2 has nothing.
  assert (
    np.isnan(cosines[[0, 2]]).all() and (np.abs(cosines[[1, 3]]) > 1e-3).all()
  )


def test_cosine_of_two_gradients():
  # Over both leaves (3, 4, 0) and (0, -2, 24): -8 over 5 and the root of 580.
  a = {'x': jnp.array([[3.0, 4.0]]), 'y': jnp.array(0.0)}
  b = {'x': jnp.array([[0.0, -2.0]]), 'y': jnp.array(24.0)}
  assert learner.cosine(a, b) == pytest.approx(-8 / (5 * 580**0.5), rel=1e-6)
  assert learner.cosine(a, a) == pytest.approx(1, rel=1e-6)
  assert np.isnan(learner.cosine(a, jax.tree.map(jnp.zeros_like, a)))


def test_make_passes_reads_each_micro_batch_once_or_once_a_stream():
  # Micro-batch m of 2 holds rows m, m + 2, m + 4; row 5 does not count.
  streams = np.array([0, 2, 0, 0, 2, 1])
  counted = np.array([1, 1, 1, 1, 1, 0], bool)
  passes, parts = learner.make_passes(streams, counted, 2, 3, False)
  assert passes[: parts[-1]].tolist() == [[0, -1], [1, -1]]
  assert parts.tolist() == [0, 2, 2, 2]
  passes, parts = learner.make_passes(streams, counted, 2, 3, True)
  # Stream 0 is in both, 1 is in none that counts, 2 is in both.
  assert passes[: parts[-1]].tolist() == [[0, 0], [1, 0], [0, 2], [1, 2]]
  assert parts.tolist() == [0, 2, 2, 4]
  # Without rows 1, 3, 5 micro-batch 1 is not read.
  passes, parts = learner.make_passes(streams, streams * 0 == 1, 2, 3, False)
  assert parts.tolist() == [0, 0, 0, 0]
  counted[1::2] = False
  passes, parts = learner.make_passes(streams, counted, 2, 3, False)
  assert passes[: parts[-1]].tolist() == [[0, -1]]


def test_micro_batch_without_a_row_that_counts_is_not_missed(
  tiny, one_device, batch
):
  # With 4 micro-batches, rows 1, 5, 9, 13 are read together, or not at all.
  weights = batch.weights.copy()
  weights[1::4] = 0
  batch = batch.replace(weights=weights)
  assert_close(
    gradient(tiny, one_device, batch, micro_batches=4),
    gradient(tiny, one_device, batch),
  )


# -------------------------------------------------------- what the gradient is


def test_demonstrations_have_the_sft_gradient(tiny, one_device, batch):
  rows = np.zeros((B, G), bool)
  rows[:, 0] = True  # One demonstration a prompt; the rest of the group empty.
  r = batch.rollout
  lengths = np.where(rows, r.lengths, 0)
  weights = np.asarray(objectives.token_weights(lengths, rows, C, 'sft'))
  # What a sampler would have said of these rows must not matter.
  demonstrations = batch.replace(
    rollout=r.replace(lengths=lengths, logprobs=np.full((B, G, C), -7.0)),
    advantages=np.ones((B, G, C), np.float32),
    weights=weights,
    demonstration=rows,
  )
  found = gradient(
    tiny, one_device, demonstrations, loss=learner.LossSettings()
  )

  # By hand: each prompt and its completion as one sequence, and no cache.
  sequences = np.zeros((B, P + C), np.int32)
  predicted = np.zeros((B, P + C - 1), bool)
  for b, (start, n) in enumerate(
    zip(r.prompt_lengths, r.lengths[:, 0], strict=True)
  ):
    sequences[b, :start] = r.prompts[b, :start]
    sequences[b, start : start + n] = r.completions[b, 0, :n]
    predicted[b, start - 1 : start - 1 + n] = True

  def nll(params):
    positions = jnp.broadcast_to(jnp.arange(P + C), sequences.shape)
    hidden, _ = tiny.decoder.apply(
      {'params': params}, sequences[:, None], positions[:, None]
    )
    logprobs = jax.nn.log_softmax(hidden[:, 0, :-1] @ params['embed'].T)
    following = sequences[:, 1:, None]
    chosen = jnp.take_along_axis(logprobs, following, -1)[..., 0]
    return -jnp.where(predicted, chosen, 0).sum() / predicted.sum()

  expected = jax.jit(jax.grad(nll))(tiny.params)
  assert optax.tree.norm(expected) > 0.1
  assert_close(found, expected, atol=1e-6)


@pytest.mark.parametrize('on_eight', [False, True])
def test_scores_are_the_same_in_micro_batches(
  tiny, one_device, batch, on_eight
):
  mesh = one_device
  if on_eight:
    mesh = sharding.make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
  found, expected = (
    learner.make_scores(tiny.decoder, m, LOSS.temperature, n)(
      tiny.params, batch.rollout
    )
    for m, n in ((mesh, 4), (one_device, 1))
  )
  assert_close(found, expected, atol=1e-5)


def test_sampled_rows_have_the_policy_gradient(tiny, one_device, batch):
  # On policy the ratio is 1 and its gradient is that of the log-probability:
  # the gradient is that of -sum(weight * advantage * logprob).
  r = batch.rollout
  scores = learner.make_scores(tiny.decoder, one_device, LOSS.temperature)
  logprobs, _ = scores(tiny.params, r)
  on_policy = batch.replace(rollout=r.replace(logprobs=np.asarray(logprobs)))

  def surrogate(params):
    logprobs, _, _ = forward.teacher_force(
      tiny.decoder, params, r.prompts, r.prompt_lengths, r.completions,
      LOSS.temperature,
    )  # fmt: skip
    return -(batch.weights * batch.advantages * logprobs).sum()

  found = gradient(
    tiny, one_device, on_policy,
    loss=learner.LossSettings(temperature=LOSS.temperature),
  )  # fmt: skip
  assert_close(found, jax.jit(jax.grad(surrogate))(tiny.params), atol=1e-6)


def test_unscored_rows_add_no_gradient(tiny, one_device, batch, plain):
  unscored = ~batch.weights.any(-1)
  assert unscored.sum() == 3
  noise = lambda x: np.where(unscored[..., None], 3.0, x).astype(np.float32)
  r = batch.rollout
  other = batch.replace(
    rollout=r.replace(
      completions=np.where(unscored[..., None], 65, r.completions),
      lengths=np.where(unscored, C, r.lengths),
      logprobs=noise(r.logprobs),
    ),
    advantages=noise(batch.advantages),
    returns=noise(batch.returns),
    reference_logprobs=noise(batch.reference_logprobs),
  )
  params, measured = apply(tiny, one_device, other)
  assert_close(params, plain[0], rtol=0, atol=1e-7)
  assert measured['loss'] == pytest.approx(plain[1]['loss'], rel=1e-6)
  # They are tokens of the batch all the same: the log counts them.
  tokens = measured['by_stream']['tokens'], plain[1]['by_stream']['tokens']
  added = (C - r.lengths[unscored]).sum()
  assert (tokens[0] - tokens[1]).sum() == added > 0


def test_padding_adds_no_gradient(tiny, one_device, batch, plain):
  r = batch.rollout
  beyond = np.arange(C) >= r.lengths[..., None]
  noise = lambda x: np.where(beyond, 3.0, x).astype(np.float32)
  other = batch.replace(
    rollout=r.replace(
      prompts=np.where(
        np.arange(P) < r.prompt_lengths[:, None], r.prompts, 256
      ),
      completions=np.where(beyond, 256, r.completions),
      logprobs=noise(r.logprobs),
    ),
    advantages=noise(batch.advantages),
    returns=noise(batch.returns),
    reference_logprobs=noise(batch.reference_logprobs),
  )
  assert_close(apply(tiny, one_device, other), plain, atol=1e-6)


def test_value_head_is_trained_by_the_value_loss_alone(
  tiny, one_device, batch, plain
):
  without = learner.LossSettings(temperature=0.8, kl=0.1)
  params, _ = apply(tiny, one_device, batch, loss=without)
  np.testing.assert_array_equal(params['value_head'], tiny.params['value_head'])
  assert (plain[0]['value_head'] != tiny.params['value_head']).any()


# ---------------------------------------------------------------- measurements


def test_measurements_equal_those_by_hand(tiny, one_device, batch, plain):
  r, measured = batch.rollout, plain[1]['by_stream']
  force = jax.jit(functools.partial(forward.teacher_force, tiny.decoder))
  logprobs, entropy, _ = map(
    np.asarray,
    force(
      tiny.params, r.prompts, r.prompt_lengths, r.completions, LOSS.temperature
    ),
  )
  sampled = np.where(batch.demonstration[..., None], logprobs, r.logprobs)
  # The clip binds where it makes the surrogate smaller.
  ratio, advantages = np.exp(logprobs - sampled), batch.advantages
  bound = np.where(advantages > 0, ratio > 1.2, ratio < 0.8)
  for stream in (0, 1, 3):
    mine = (batch.stream == stream)[:, None, None]
    real = mine & (np.arange(C) < r.lengths[..., None])
    away = np.abs(logprobs - sampled)[real]
    expected = {
      'tokens': real.sum(),
      'nll': -logprobs[real].mean(),
      'kl': 0.5 * ((logprobs - batch.reference_logprobs)[real] ** 2).mean(),
      'entropy': entropy[real].mean(),
      'clip_fraction': bound[real].mean(),
      'log_ratio_mean': away.mean(),
      'log_ratio_p95': np.percentile(away, 95),
      'log_ratio_max': away.max(),
      'log_ratio_outside': ((ratio < 0.9) | (ratio > 1.1))[real].mean(),
    }
    found = {k: v[stream] for k, v in measured.items() if k in expected}
    assert found == pytest.approx(expected, rel=1e-4)
    assert stream == 1 or expected['clip_fraction'] > 0
  absent = {k: v[2] for k, v in measured.items() if k != 'tokens'}
  assert np.isnan(list(absent.values())).all()
  assert measured['tokens'][2] == 0


# --------------------------------------------------------------- what moves


@pytest.mark.parametrize('trainable', ['layers/(q|k)', 'final_norm'])
def test_frozen_parameters_stay_to_the_bit(tiny, one_device, batch, trainable):
  optimizer = ADAMW | {'weight_decay': 0.1}
  params, measured = apply(
    tiny, one_device, batch, optimizer=optimizer, trainable=trainable
  )
  moves = {'layers/(q|k)': {'q', 'k'}, 'final_norm': {'final_norm'}}[trainable]
  for path, new in jax.tree.leaves_with_path(params):
    name = path[-1].key
    old = functools.reduce(lambda t, k: t[k.key], path, tiny.params)
    assert (new == old).all() == (name not in moves), name
  assert measured['update_norm'] > 0


def test_trainable_gradient_is_that_part_of_the_whole(tiny, one_device, batch):
  whole = gradient(tiny, one_device, batch)
  part = gradient(tiny, one_device, batch, trainable='layers/.*')
  assert_close(part['layers'], whole['layers'], atol=1e-6)


@pytest.mark.parametrize(
  'trainable, reason', [('layer', 'matches none of'), ('(', 'no regular')]
)
def test_trainable_that_matches_nothing_is_refused(tiny, trainable, reason):
  with pytest.raises(UserError, match=reason):
    optimizers.split(tiny.params, trainable)


def test_join_undoes_split(tiny):
  chosen, rest = optimizers.split(tiny.params, 'layers/.*|embed')
  assert 'layers/q' in chosen and 'final_norm' in rest
  joined = optimizers.join(chosen, rest)
  jax.tree.map(np.testing.assert_array_equal, joined, tiny.params)


@pytest.mark.parametrize('mesh', [(2, 2, 2)], indirect=True)
def test_update_donates_its_state_and_compiles_once(tiny, mesh, batch):
  tx = optimizers.make_optimizer(**ADAMW)
  abstract, shardings = learner.state_shardings(tiny.decoder, tx, mesh)
  start = sharding.to_global(tiny.params, shardings.params)
  first = state = learner.fresh_state(start, tx, shardings)
  update = learner.make_update(
    tiny.decoder, tx, LOSS, shardings, mesh, micro_batches=2,
    n_streams=N_STREAMS,
  )  # fmt: skip
  for per_stream in (True, False, True):
    passes = learner.make_passes(
      batch.stream, batch.weights.any((1, 2)), 2, N_STREAMS, per_stream
    )
    placed = sharding.to_global(batch, sharding.rows(mesh))
    state, _ = update(state, {}, placed, *passes)
    state = learner.advance(state, mesh)
  assert update._cache_size() == 1
  assert int(state.step) == 3
  assert all(x.is_deleted() for x in jax.tree.leaves(first.params))
  # The reference policy shares nothing with the state that was given away.
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(start), tiny.params
  )
  for leaf, shape, placing in zip(
    *map(jax.tree.leaves, (state, abstract, shardings)), strict=True
  ):
    assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
    assert leaf.sharding.is_equivalent_to(placing, leaf.ndim)


@pytest.mark.parametrize('mesh', [(2, 2, 2)], indirect=True)
@pytest.mark.parametrize('name', ['adamw', 'adafactor', 'lion', 'sgd'])
def test_every_optimizer_updates_a_sharded_model(tiny, mesh, batch, name):
  settings = ADAMW | {'name': name, 'weight_decay': 0.01}
  params, measured = apply(tiny, mesh, batch, optimizer=settings)
  assert measured['update_norm'] > 0
  for path, new in jax.tree.leaves_with_path(params):
    old = functools.reduce(lambda t, k: t[k.key], path, tiny.params)
    assert (new != old).any(), path
    assert np.isfinite(new).all()
