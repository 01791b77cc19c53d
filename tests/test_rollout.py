"""Sampling is addressed and exact; scoring says what a direct forward says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from alignment_rl import forward, learner, rollout, sharding

B, G, P, C = 8, 3, 6, 5
KEY = jax.random.key(3)


@pytest.fixture(scope='module')
def prompts():
  """Random bytes [B, P] with noise beyond the lengths [B]."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 256, (B, P), dtype=np.int32)
  return tokens, np.array([6, 1, 4, 5, 2, 6, 3, 4], np.int32)


def make_sampler(model, mesh, **changes):
  settings = {'group': G, 'length': C, 'eos_ids': (258,)} | changes
  return rollout.Sampler(model.decoder, mesh, **settings)


def place(model, mesh):
  shardings = learner.param_shardings(model.decoder, mesh)
  return sharding.to_global(model.params, shardings)


def draw(sampler, params, prompts, rows=slice(None), key=KEY):
  """The rollout of some of the rows, each at its own address."""
  tokens, lengths = prompts
  slots = np.arange(B)[rows]
  return jax.device_get(
    sampler(params, tokens[rows], lengths[rows], slots, key)
  )


@pytest.fixture(scope='module')
def plain(tiny, prompts, one_device):
  return draw(make_sampler(tiny, one_device), tiny.params, prompts)


# --------------------------------------------------------------- the addresses


@pytest.mark.parametrize(
  'rows',
  [slice(None, None, -1), slice(0, 2), np.array([5, 1, 6, 2])],
  ids=['reversed', 'two', 'four'],
)
def test_sample_does_not_depend_on_the_other_rows(
  tiny, prompts, one_device, plain, rows
):
  found = draw(make_sampler(tiny, one_device), tiny.params, prompts, rows)
  np.testing.assert_array_equal(found.completions, plain.completions[rows])
  np.testing.assert_array_equal(found.lengths, plain.lengths[rows])
  np.testing.assert_allclose(found.logprobs, plain.logprobs[rows], atol=1e-5)


def test_sample_does_not_depend_on_the_group_size(
  tiny, prompts, one_device, plain
):
  sampler = make_sampler(tiny, one_device, group=2)
  found = draw(sampler, tiny.params, prompts)
  np.testing.assert_array_equal(found.completions, plain.completions[:, :2])


def test_sample_does_not_depend_on_the_mesh(tiny, prompts, plain, mesh):
  found = draw(make_sampler(tiny, mesh), place(tiny, mesh), prompts)
  np.testing.assert_array_equal(found.completions, plain.completions)
  np.testing.assert_array_equal(found.lengths, plain.lengths)
  np.testing.assert_allclose(found.logprobs, plain.logprobs, atol=1e-5)


@pytest.mark.parametrize('backwards', [False, True])
@pytest.mark.parametrize('shape', [(8, 1, 1), (4, 1, 2)])
def test_sample_does_not_depend_on_the_layout(
  tiny, prompts, plain, shape, backwards
):
  """Parameters lie over (1, 4, 2); another mesh may order the devices anew."""
  sizes = lambda shape: dict(zip(sharding.AXES, shape, strict=True))
  home = sharding.make_mesh(sizes((1, 4, 2)))
  devices = jax.devices()[::-1] if backwards else jax.devices()
  away = sharding.make_mesh(sizes(shape), devices=devices)
  layout = learner.param_shardings(tiny.decoder, away)
  sampler = make_sampler(tiny, home, layout=layout)
  tokens, lengths = prompts
  found = sampler(place(tiny, home), tokens, lengths, np.arange(B), KEY)
  for x in jax.tree.leaves(found):
    assert x.sharding.is_equivalent_to(sharding.rows(home), x.ndim)
  np.testing.assert_array_equal(found.completions, plain.completions)
  np.testing.assert_array_equal(found.lengths, plain.lengths)
  np.testing.assert_allclose(found.logprobs, plain.logprobs, atol=1e-5)


def test_steps_slots_and_members_of_a_group_have_their_own_noise(
  tiny, prompts, one_device, plain
):
  sampler = make_sampler(tiny, one_device)
  step = draw(sampler, tiny.params, prompts, key=jax.random.fold_in(KEY, 1))
  assert (step.completions != plain.completions).any(-1).all()
  tokens, lengths = prompts
  same = np.zeros(B, int)  # One prompt at every slot.
  found = sampler(tiny.params, tokens[same], lengths[same], np.arange(B), KEY)
  every = np.asarray(found.completions).reshape(B * G, C)
  assert len(np.unique(every, axis=0)) == B * G


# ---------------------------------------------------------------- the numbers


@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_sampled_logprobs_equal_teacher_force(
  tiny, prompts, one_device, temperature
):
  sampler = make_sampler(tiny, one_device, temperature=temperature)
  found = draw(sampler, tiny.params, prompts)
  forced, _, _ = jax.jit(
    functools.partial(forward.teacher_force, tiny.decoder)
  )(tiny.params, *prompts, found.completions, temperature)
  real = np.arange(C) < found.lengths[..., None]
  np.testing.assert_allclose(
    np.where(real, found.logprobs, 0), np.where(real, forced, 0), atol=1e-4
  )


def test_every_eos_ends_its_row_and_is_counted(tiny, prompts, one_device):
  # A fifth of the vocabulary ends a row, so that rows end at every length.
  ends = tuple(range(3, 264, 5))
  sampler = make_sampler(tiny, one_device, eos_ids=ends, group=16)
  found = draw(sampler, tiny.params, prompts)
  t = np.arange(C)
  used = set()
  for tokens, length, logprobs in zip(
    found.completions.reshape(-1, C),
    found.lengths.ravel(),
    found.logprobs.reshape(-1, C),
    strict=True,
  ):
    ended = np.isin(tokens[:length], ends)
    assert not ended[:-1].any()
    assert ended[-1] or length == C
    used |= set(tokens[:length][ended])
    assert (logprobs[t < length] < 0).all()
    assert (tokens[t >= length] == 0).all()
    assert (logprobs[t >= length] == 0).all()
  assert set(found.lengths.ravel()) == set(range(1, C + 1))
  assert len(used) > 10


def test_all_rows_ended_stops_the_loop_with_the_same_result(
  tiny, prompts, one_device
):
  # Whatever comes first ends the row: one token each, and padding after it.
  found = draw(
    make_sampler(tiny, one_device, eos_ids=range(264)), tiny.params, prompts
  )
  assert (found.lengths == 1).all()
  first = make_sampler(tiny, one_device, length=1)
  np.testing.assert_array_equal(
    found.completions[..., :1], draw(first, tiny.params, prompts).completions
  )


def test_temperature_zero_is_the_argmax_chain(tiny, prompts, one_device):
  sampler = make_sampler(tiny, one_device, temperature=0.0)
  found = draw(sampler, tiny.params, prompts)

  @jax.jit
  def logits(params, prompts, lengths, completions):
    hidden = forward.hidden_before(
      tiny.decoder, params, prompts, lengths, completions
    )
    return tiny.decoder.apply({'params': params}, hidden, method='logits')

  expected = np.asarray(logits(tiny.params, *prompts, found.completions))
  real = np.arange(C) < found.lengths[..., None]
  np.testing.assert_array_equal(
    np.where(real, found.completions, -1),
    np.where(real, expected.argmax(-1), -1),
  )
  # Logged at temperature 1, the temperature of the model itself.
  np.testing.assert_allclose(
    np.where(real, found.logprobs, 0),
    np.where(real, jax.nn.log_softmax(expected).max(-1), 0),
    atol=1e-4,
  )


def test_sampled_pairs_of_tokens_follow_the_softmax(make_tiny, one_device):
  V, slots, group = 8, 128, 64
  model = make_tiny(vocab=V)
  sampler = make_sampler(model, one_device, group=group, length=2, eos_ids=(V,))
  prompt = np.tile(np.array([3, 1, 6], np.int32), (slots, 1))
  lengths = np.full(slots, 3)
  found = sampler(model.params, prompt, lengths, np.arange(slots), KEY)
  first, second = np.asarray(found.completions).reshape(-1, 2).T
  counts = np.zeros((V, V))
  np.add.at(counts, (first, second), 1)
  # Every pair of tokens, and its probability by teacher forcing: p(a) p(b | a).
  pairs = np.stack(np.meshgrid(np.arange(V), np.arange(V), indexing='ij'), -1)
  logprobs, _, _ = jax.jit(
    functools.partial(forward.teacher_force, model.decoder)
  )(model.params, prompt[:1], lengths[:1], pairs.reshape(1, V * V, 2))
  expected = np.exp(np.asarray(logprobs, np.float64).sum(-1)).reshape(V, V)
  assert expected.sum() == pytest.approx(1, abs=1e-5)
  expected *= counts.sum() / expected.sum()
  # Rare pairs together, as chi-square wants five or more in a cell.
  rare = expected < 5
  pool = lambda x: np.append(x[~rare], x[rare].sum())
  assert scipy.stats.chisquare(pool(counts), pool(expected)).pvalue > 1e-3


# ------------------------------------------------------- log-probabilities


@pytest.mark.parametrize('shape', [(3, 4, 100), (512,), (5,)])
def test_token_logprobs_and_entropy_equal_the_direct_softmax(tiny, shape):
  rng = np.random.default_rng(4)
  D, V = tiny.config.embed, tiny.config.vocab
  hidden = rng.normal(size=(*shape, D)).astype(np.float32)
  tokens = rng.integers(0, V, shape)
  mix = rng.normal(size=shape).astype(np.float32)

  def chunked(params, hidden):
    logprobs, entropy = forward.token_logprobs(
      tiny.decoder, params, hidden, tokens, 0.7
    )
    return (logprobs * mix).sum(), (logprobs, entropy)

  def direct(params, hidden):
    logprobs = jax.nn.log_softmax(hidden @ params['embed'].T / 0.7)
    entropy = -(jnp.exp(logprobs) * logprobs).sum(-1)
    chosen = jnp.take_along_axis(logprobs, tokens[..., None], -1)[..., 0]
    return (chosen * mix).sum(), (chosen, entropy)

  found, expected = (
    jax.jit(jax.grad(f, argnums=(0, 1), has_aux=True))(tiny.params, hidden)
    for f in (chunked, direct)
  )
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_mean_hidden_sees_nothing_beyond_the_lengths(tiny, prompts):
  rng = np.random.default_rng(6)
  tokens, prompt_lengths = prompts
  replies = rng.integers(0, 256, (B, G, C), dtype=np.int32)
  lengths = rng.integers(1, C + 1, (B, G))
  score = jax.jit(functools.partial(forward.mean_hidden, tiny.decoder))
  noise = lambda x: rng.integers(0, 256, x.shape, dtype=np.int32)
  one = score(tiny.params, tokens, prompt_lengths, replies, lengths)
  two = score(
    tiny.params,
    np.where(np.arange(P) < prompt_lengths[:, None], tokens, noise(tokens)),
    prompt_lengths,
    np.where(np.arange(C) < lengths[..., None], replies, noise(replies)),
    lengths,
  )
  np.testing.assert_array_equal(one, two)
  shorter = score(tiny.params, tokens, prompt_lengths, replies, lengths * 0 + 1)
  assert ((one == shorter).all(-1) == (lengths == 1)).all()


def test_decoding_narrows_matrices_and_nothing_else(make_tiny):
  tiny = make_tiny('qwen', tied=False, qkv_bias=True)
  narrow = rollout.cast_matrices(tiny.params, jnp.bfloat16)
  wide = {
    path[-1].key
    for path, w in jax.tree.leaves_with_path(narrow)
    if w.dtype == jnp.float32
  }
  assert wide == {
    'attention_norm', 'mlp_norm', 'final_norm', 'value_head', 'q_norm',
    'k_norm', 'q_bias', 'k_bias', 'v_bias',
  }  # fmt: skip
