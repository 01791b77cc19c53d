"""What every model family promises, whatever its sizes and names."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment_rl import checkpoint, config, rollout, sharding
from alignment_rl.types import KVCache

FAMILIES = config.plugins('models')
B, G, P, C = 2, 3, 7, 5
PROMPT_LENGTHS = np.array([7, 4], np.int32)


@pytest.fixture(scope='module', params=FAMILIES)
def family(request):
  return request.param


@pytest.fixture(scope='module')
def tiny(family, make_tiny):
  return make_tiny(family)


@pytest.fixture(scope='module', params=[True, False], ids=['tied', 'untied'])
def either(request, family, make_tiny):
  """The tiny variant with and without a head of its own."""
  return make_tiny(family, tied=request.param)


@pytest.fixture
def rows():
  """Prompts [B, P] and completions [B, G, C] of random bytes."""
  rng = np.random.default_rng(1)
  draw = lambda *shape: rng.integers(0, 256, shape, dtype=np.int32)
  return draw(B, P), draw(B, G, C)


def whole(model, params, tokens):
  """Logits and hidden states of sequences [N, T], with no cache at all."""
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
  hidden, _ = model.decoder.apply(
    {'params': params}, tokens[:, None], positions[:, None]
  )
  logits = model.decoder.apply({'params': params}, hidden, method='logits')
  return logits[:, 0], hidden[:, 0]


def decode(model, params, prompts, prompt_lengths, completions):
  """Hidden states [B, G, C, D] before each token, one token at a time."""
  c = model.config
  B, G, C = completions.shape
  last, prefix = rollout.prefill(model.decoder, params, prompts, prompt_lengths)
  zeros = jnp.zeros((c.layers, B, G, C, c.kv_heads, c.head_dim))

  def step(carry, t):
    cache, hidden = carry
    token = jax.lax.dynamic_slice_in_dim(completions, t, 1, axis=2)
    positions = jnp.broadcast_to((prompt_lengths + t)[:, None, None], (B, G, 1))
    following, cache = model.decoder.apply(
      {'params': params}, token, positions, prefix=prefix,
      prefix_lengths=prompt_lengths, cache=cache, slot=t,
    )  # fmt: skip
    return (cache, following[:, :, 0]), hidden

  first = jnp.broadcast_to(last[:, None], (B, G, last.shape[-1]))
  start = (KVCache(zeros, zeros), first)
  _, hidden = jax.lax.scan(step, start, jnp.arange(C))
  return jnp.moveaxis(hidden, 0, 2)


def on(model, function):
  return jax.jit(functools.partial(function, model))


def scored(model):
  """teacher_force of a model, jitted: logprobs, entropy, values."""
  return jax.jit(functools.partial(rollout.teacher_force, model.decoder))


@pytest.mark.parametrize('t', [0, 4, 8])
def test_decoder_is_causal(tiny, t):
  rng = np.random.default_rng(2)
  tokens = rng.integers(0, 256, (2, 9), dtype=np.int32)
  other = tokens.copy()
  other[:, t] = (other[:, t] + 100) % 256
  forward = on(tiny, whole)
  one, two = forward(tiny.params, tokens), forward(tiny.params, other)
  for a, b in zip(one, two, strict=True):
    np.testing.assert_array_equal(a[:, :t], b[:, :t])
    # And every later output sees the change.
    assert (np.abs(a - b)[:, t:].max(-1) > 1e-3).all()


def test_decoder_sees_nothing_beyond_the_lengths(tiny, rows):
  prompts, completions = rows
  lengths = np.array([[5, 3, 1], [2, 4, 5]])
  rng = np.random.default_rng(3)
  noise = lambda x: rng.integers(0, 256, x.shape, dtype=np.int32)
  beyond_prompt = np.arange(P) >= PROMPT_LENGTHS[:, None]
  real = np.arange(C) < lengths[..., None]
  forward = scored(tiny)
  plain = forward(tiny.params, prompts, PROMPT_LENGTHS, completions)
  padded = forward(
    tiny.params,
    np.where(beyond_prompt, noise(prompts), prompts),
    PROMPT_LENGTHS,
    np.where(real, completions, noise(completions)),
  )
  for a, b in zip(plain, padded, strict=True):
    np.testing.assert_array_equal(np.where(real, a, 0), np.where(real, b, 0))


def test_decoder_does_not_feel_the_padded_width(tiny, rows):
  prompts, completions = rows
  wide = np.pad(prompts, ((0, 0), (0, 9)), constant_values=77)
  forward = scored(tiny)
  plain = forward(tiny.params, prompts, PROMPT_LENGTHS, completions)
  padded = forward(tiny.params, wide, PROMPT_LENGTHS, completions)
  for a, b in zip(plain, padded, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_decode_and_score_equal_the_whole_forward(either, rows):
  prompts, completions = rows
  params = either.params
  stepped = on(either, decode)(params, prompts, PROMPT_LENGTHS, completions)
  forced = jax.jit(functools.partial(rollout.hidden_before, either.decoder))(
    params, prompts, PROMPT_LENGTHS, completions
  )
  head = jax.jit(
    lambda p, h: either.decoder.apply({'params': p}, h, method='logits')
  )
  # Each row alone, as one sequence without padding in its middle.
  sequences = np.zeros((B * G, P + C), np.int32)
  for i, (b, g) in enumerate(np.ndindex(B, G)):
    real = prompts[b, : PROMPT_LENGTHS[b]]
    sequences[i, : len(real) + C] = np.concatenate([real, completions[b, g]])
  logits, hidden = on(either, whole)(params, sequences)
  for i, (b, g) in enumerate(np.ndindex(B, G)):
    before = slice(PROMPT_LENGTHS[b] - 1, PROMPT_LENGTHS[b] - 1 + C)
    for found in (stepped, forced):
      np.testing.assert_allclose(found[b, g], hidden[i, before], atol=1e-4)
      np.testing.assert_allclose(
        head(params, found)[b, g], logits[i, before], atol=1e-4
      )


def test_group_sharing_a_prompt_equals_repeated_rows(tiny, rows):
  prompts, completions = rows

  def loss(params, prompts, lengths, completions):
    out = rollout.teacher_force(
      tiny.decoder, params, prompts, lengths, completions
    )
    return out[0].sum() + out[2].sum(), out

  gradient = jax.jit(jax.grad(loss, has_aux=True))
  shared, out = gradient(tiny.params, prompts, PROMPT_LENGTHS, completions)
  repeated, each = gradient(
    tiny.params,
    np.repeat(prompts, G, 0),
    np.repeat(PROMPT_LENGTHS, G),
    completions.reshape(B * G, 1, C),
  )
  for a, b in zip(out, each, strict=True):
    np.testing.assert_allclose(a, b.reshape(B, G, C), atol=1e-4)
  for a, b in zip(*map(jax.tree.leaves, (shared, repeated)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_every_parameter_has_logical_axes_with_a_rule(either):
  tokens = jax.ShapeDtypeStruct((1, 1, 2), jnp.int32)
  init = functools.partial(either.decoder.init, method='init_everything')
  boxed = jax.eval_shape(init, jax.random.key(0), tokens)['params']
  is_box = lambda x: isinstance(x, nn.meta.AxisMetadata)
  leaves = jax.tree.leaves_with_path(boxed, is_leaf=is_box)
  assert leaves
  rules = dict(sharding.RULES)
  for path, leaf in leaves:
    where = jax.tree_util.keystr(path)
    assert is_box(leaf), f'{where} has no logical axes'
    assert len(leaf.names) == leaf.value.ndim, where
    assert set(leaf.names) <= set(rules), f'{where}: {leaf.names}'
    on_mesh = [rules[name] for name in leaf.names if rules[name]]
    assert len(set(on_mesh)) == len(on_mesh), f'{where} uses an axis twice'


def test_hf_names_round_trip_is_the_identity(either):
  module = config.load('models', either.family)
  tensors = module.to_hf(either.params, either.config)
  back = module.from_hf(tensors, either.config)
  # The format has no place for this one.
  zero = np.zeros(either.config.embed, np.float32)
  expected = either.params | {'value_head': zero}
  jax.tree.map(np.testing.assert_array_equal, back, expected)
  fields = module.config_to_hf(either.config)
  assert module.config_from_hf(fields) == either.config


def test_from_hf_names_the_tensor_of_another_shape(tiny):
  module = config.load('models', tiny.family)
  tensors = module.to_hf(tiny.params, tiny.config)
  wider = dataclasses.replace(tiny.config, mlp=2 * tiny.config.mlp)
  with pytest.raises(ValueError, match=r'has shape \[.*expected \['):
    module.from_hf(tensors, wider)


def test_saved_hf_folder_has_the_same_logits_and_tokenizer(either, tmp_path):
  checkpoint.save_hf(tmp_path, either, either.params)
  found = checkpoint.load_model(
    str(tmp_path), family=either.family, dtype='float32'
  )
  assert found.config == either.config
  assert vars(found.tokenizer) == vars(either.tokenizer)
  assert found.tokenizer.eos_ids == either.tokenizer.eos_ids
  tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
  expected, _ = on(either, whole)(either.params, tokens)
  logits, _ = on(found, whole)(found.params, tokens)
  np.testing.assert_array_equal(logits, expected)


def test_remat_does_not_change_the_gradient(tiny, rows):
  prompts, completions = rows
  again = tiny.with_dtype('float32', remat=True)
  assert again.config.remat and not tiny.config.remat

  def gradient(model):
    def loss(params):
      logprobs, _, values = rollout.teacher_force(
        model.decoder, params, prompts, PROMPT_LENGTHS, completions
      )
      return logprobs.sum() + values.sum()

    return jax.jit(jax.grad(loss))(tiny.params)

  for a, b in zip(
    *map(jax.tree.leaves, (gradient(tiny), gradient(again))), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_init_makes_the_first_value_zero(family, one_device):
  module = config.load('models', family)
  decoder = module.make(module.VARIANTS['tiny'])
  tokens = jnp.arange(6).reshape(1, 1, 6)
  init = functools.partial(decoder.init, method='init_everything')
  params = nn.meta.unbox(jax.jit(init)(jax.random.key(0), tokens))
  hidden, _ = jax.jit(decoder.apply)(params, tokens, tokens)
  assert np.abs(hidden).max() > 0
  np.testing.assert_array_equal(
    decoder.apply(params, hidden, method='value'), 0.0
  )
