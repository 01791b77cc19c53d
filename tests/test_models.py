"""What every model family promises, whatever its sizes and names."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment_rl import (
  checkpoint,
  config,
  forward,
  huggingface,
  sharding,
)
from alignment_rl.models.decoder import DecoderConfig, RopeScaling
from alignment_rl.types import KVCache

# (family, variant) of every small one.
SMALL = [
  (family, name)
  for family in config.plugins('models')
  for name in config.load('models', family).VARIANTS
  if name.startswith('tiny')
]
# One of each family, where more would take long to compile.
FEW = pytest.mark.parametrize(
  'small', [s for s in SMALL if s[1] == 'tiny'], indirect=True, ids='-'.join
)
B, G, P, C = 2, 3, 7, 5
PROMPT_LENGTHS = np.array([7, 4], np.int32)


@pytest.fixture(scope='module', params=SMALL, ids='-'.join)
def small(request):
  """A family and the sizes of a small variant."""
  family, name = request.param
  return family, config.load('models', family).VARIANTS[name]


@pytest.fixture(scope='module')
def tiny(small, make_tiny):
  family, sizes = small
  return make_tiny(family, **vars(sizes))


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
  last, prefix = forward.prefill(model.decoder, params, prompts, prompt_lengths)
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
  return jax.jit(functools.partial(forward.teacher_force, model.decoder))


@pytest.mark.parametrize('t', [0, 4, 8])
def test_decoder_is_causal(tiny, t):
  rng = np.random.default_rng(2)
  tokens = rng.integers(0, 256, (2, 9), dtype=np.int32)
  other = tokens.copy()
  other[:, t] = (other[:, t] + 100) % 256
  run = on(tiny, whole)
  one, two = run(tiny.params, tokens), run(tiny.params, other)
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
  run = scored(tiny)
  plain = run(tiny.params, prompts, PROMPT_LENGTHS, completions)
  padded = run(
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
  run = scored(tiny)
  plain = run(tiny.params, prompts, PROMPT_LENGTHS, completions)
  padded = run(tiny.params, wide, PROMPT_LENGTHS, completions)
  for a, b in zip(plain, padded, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_decode_and_score_equal_the_whole_forward(tiny, rows):
  prompts, completions = rows
  params = tiny.params
  stepped = on(tiny, decode)(params, prompts, PROMPT_LENGTHS, completions)
  forced = jax.jit(functools.partial(forward.hidden_before, tiny.decoder))(
    params, prompts, PROMPT_LENGTHS, completions
  )
  head = jax.jit(
    lambda p, h: tiny.decoder.apply({'params': p}, h, method='logits')
  )
  # Each row alone, as one sequence without padding in its middle.
  sequences = np.zeros((B * G, P + C), np.int32)
  for i, (b, g) in enumerate(np.ndindex(B, G)):
    real = prompts[b, : PROMPT_LENGTHS[b]]
    sequences[i, : len(real) + C] = np.concatenate([real, completions[b, g]])
  logits, hidden = on(tiny, whole)(params, sequences)
  for i, (b, g) in enumerate(np.ndindex(B, G)):
    before = slice(PROMPT_LENGTHS[b] - 1, PROMPT_LENGTHS[b] - 1 + C)
    for found in (stepped, forced):
      np.testing.assert_allclose(found[b, g], hidden[i, before], atol=1e-4)
      np.testing.assert_allclose(
        head(params, found)[b, g], logits[i, before], atol=1e-4
      )


@FEW
def test_group_sharing_a_prompt_equals_repeated_rows(tiny, rows):
  prompts, completions = rows

  def loss(params, prompts, lengths, completions):
    out = forward.teacher_force(
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


def test_every_parameter_has_logical_axes_with_a_rule(tiny):
  tokens = jax.ShapeDtypeStruct((1, 1, 2), jnp.int32)
  init = functools.partial(tiny.decoder.init, method='init_everything')
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


def test_hf_names_round_trip_is_the_identity(tiny):
  module, sizes = config.load('models', tiny.family), tiny.config
  names = module.names(sizes)
  tensors = dict(huggingface.tensors(tiny.params, names, sizes))
  back = huggingface.params(tensors, names, sizes)
  # The format has no place for this one.
  expected = tiny.params | {'value_head': np.zeros(sizes.embed, np.float32)}
  jax.tree.map(np.testing.assert_array_equal, back, expected)
  fields = module.config_to_hf(sizes)
  assert module.config_from_hf(fields) == sizes


def test_params_names_the_tensor_of_another_shape(tiny):
  names = config.load('models', tiny.family).names(tiny.config)
  tensors = dict(huggingface.tensors(tiny.params, names, tiny.config))
  wider = dataclasses.replace(tiny.config, mlp=2 * tiny.config.mlp)
  with pytest.raises(ValueError, match=r'has shape \[.*expected \['):
    huggingface.params(tensors, names, wider)


def test_saved_hf_folder_has_the_same_logits_and_tokenizer(tiny, tmp_path):
  checkpoint.save_hf(tmp_path, tiny, tiny.params)
  found = checkpoint.load_model(
    str(tmp_path), family=tiny.family, dtype='float32'
  )
  assert found.config == tiny.config
  assert vars(found.tokenizer) == vars(tiny.tokenizer)
  assert found.tokenizer.eos_ids == tiny.tokenizer.eos_ids
  tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
  expected, _ = on(tiny, whole)(tiny.params, tokens)
  logits, _ = on(found, whole)(found.params, tokens)
  np.testing.assert_array_equal(logits, expected)


def test_init_makes_the_first_value_zero(small, one_device):
  family, sizes = small
  decoder = config.load('models', family).make(sizes)
  tokens = jnp.arange(6).reshape(1, 1, 6)
  init = functools.partial(decoder.init, method='init_everything')
  params = nn.meta.unbox(jax.jit(init)(jax.random.key(0), tokens))
  hidden, _ = jax.jit(decoder.apply)(params, tokens, tokens)
  assert np.abs(hidden).max() > 0
  np.testing.assert_array_equal(
    decoder.apply(params, hidden, method='value'), 0.0
  )


# ---------------------------------------------------- what families differ in


@pytest.fixture
def base():
  return DecoderConfig(
    vocab=264, embed=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=64
  )


@pytest.mark.parametrize('windows', [(3, 3), (2, 4), (4, 0)])
def test_windows_bound_what_a_token_feels(make_tiny, rows, windows):
  model = make_tiny(windows=windows)
  prompts, completions = rows
  other = prompts.copy()
  other[:, 0] = (other[:, 0] + 100) % 256
  # A layer hands on what lies at most window - 1 tokens back.
  far = sum(w - 1 for w in windows) if all(windows) else P + C
  tokens = np.concatenate([prompts, completions[:, 0]], -1)
  changed = np.concatenate([other, completions[:, 0]], -1)
  run = on(model, whole)
  moved = np.abs(
    run(model.params, tokens)[1] - run(model.params, changed)[1]
  ).max(-1)
  assert (moved[:, : far + 1] > 1e-3).all() and not moved[:, far + 1 :].any()
  # The same through the prompt's cache and the completion's.
  lengths = np.full(B, P)
  for run in (on(model, decode), jax.jit(
    functools.partial(forward.hidden_before, model.decoder)
  )):  # fmt: skip
    moved = np.abs(
      run(model.params, prompts, lengths, completions)
      - run(model.params, other, lengths, completions)
    ).max(-1)
    seen = P - 1 + np.arange(C) <= far
    np.testing.assert_array_equal(moved > 0, np.broadcast_to(seen, (B, G, C)))


def test_a_window_as_long_as_the_text_changes_nothing(make_tiny, rows):
  prompts, completions = rows
  plain, wide = make_tiny(), make_tiny(windows=(P + C, 0))
  expected = scored(plain)(plain.params, prompts, PROMPT_LENGTHS, completions)
  found = scored(wide)(plain.params, prompts, PROMPT_LENGTHS, completions)
  for a, b in zip(expected, found, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_parts_of_a_model_are_run_one_after_the_other(make_tiny):
  model = make_tiny(windows=(3, 0), window_theta=100.0, rope_theta=1e5)
  tokens = np.arange(10, dtype=np.int32).reshape(1, 1, 10)
  states, seen = tokens, []
  for decoder, params in forward.cut(model.decoder, model.params, 1):
    seen.append(decoder.config.windows)
    states, _ = decoder.apply(
      {'params': params}, states, tokens, method='states'
    )
  assert seen == [(3,), (0,)]
  expected, _ = model.decoder.apply(
    {'params': model.params}, tokens, tokens, method='states'
  )
  np.testing.assert_allclose(states, expected, atol=1e-5)


def test_windows_are_given_for_every_layer(base):
  with pytest.raises(ValueError, match='1 windows, 2 layers'):
    dataclasses.replace(base, windows=(4,))


def rope_angles(make_tiny, **changes):
  """Angle of position 1 of each pair of features, by a model's own cache."""
  # One layer, whose keys are a constant vector before RoPE.
  model = make_tiny(layers=1, qkv_bias=True, **changes)
  params = jax.tree.map(np.zeros_like, model.params)
  params['layers']['k_bias'] = np.ones_like(params['layers']['k_bias'])
  tokens = np.array([[[0, 1]]])
  _, cache = model.decoder.apply({'params': params}, tokens, tokens)
  a, b = np.split(np.asarray(cache.k)[0, 0, 0, 1, 0], 2)
  # (1, 1) turned by an angle.
  return np.arctan2(b, a) - np.pi / 4


def test_rope_scaling_slows_the_slow_pairs(make_tiny):
  # Base 16 and H = 8: a pair turns 1, 1/2, 1/4, 1/8 radians a token.
  rates = np.array([1, 1 / 2, 1 / 4, 1 / 8])
  plain = rope_angles(make_tiny, rope_theta=16.0)
  np.testing.assert_allclose(plain, rates, atol=1e-6)
  linear = rope_angles(
    make_tiny, rope_theta=16.0, rope_scaling=RopeScaling(4.0)
  )
  np.testing.assert_allclose(linear, rates / 4, atol=1e-6)
  # In 8 pi tokens they turn 4, 2, 1, 1/2 times: between 1 and 4 the shares of
  # the old rate are 1, 1/3, 0, and below 1 none.
  found = rope_angles(
    make_tiny,
    rope_theta=16.0,
    rope_scaling=RopeScaling(4.0, low=1.0, high=4.0, length=8 * np.pi),
  )
  shares = np.array([1, 1 / 3, 0, 0])
  expected = rates * (shares + (1 - shares) / 4)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_rope_of_layers_with_a_window_has_its_own_base(make_tiny):
  near = {'window_theta': 1e4, 'rope_scaling': RopeScaling(8.0)}
  found = rope_angles(make_tiny, rope_theta=16.0, windows=(4,), **near)
  expected = rope_angles(make_tiny, rope_theta=1e4)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  far = rope_angles(make_tiny, rope_theta=16.0, windows=(0,), **near)
  np.testing.assert_allclose(far, [1 / 8, 1 / 16, 1 / 32, 1 / 64], atol=1e-6)


def test_capped_logits_are_the_tanh_of_the_others(make_tiny):
  model = make_tiny()
  capped = make_tiny(logit_cap=3.0)
  tokens = np.arange(6, dtype=np.int32)[None]
  plain, _ = on(model, whole)(model.params, tokens)
  found, _ = on(capped, whole)(model.params, tokens)
  assert np.abs(plain).max() > 3
  np.testing.assert_allclose(found, 3 * np.tanh(plain / 3), atol=1e-5)


# Parameters that the makers tell, of the language model alone.
PUBLISHED = {
  'llama': {
    'smollm2_135m': 134_515_008,
    'smollm2_360m': 361_821_120,
    'smollm2_1.7b': 1_711_376_384,
    'llama3.1_8b': 8_030_261_248,
    'llama3.1_70b': 70_553_706_496,
    'llama3.2_1b': 1_235_814_400,
    'llama3.2_3b': 3_212_749_824,
  },
  'qwen': {
    'qwen2.5_0.5b': 494_032_768,
    'qwen2.5_1.5b': 1_543_714_304,
    'qwen2.5_3b': 3_085_938_688,
    'qwen2.5_7b': 7_615_616_512,
    'qwen2.5_14b': 14_770_033_664,
    'qwen2.5_32b': 32_763_876_352,
    'qwen2.5_72b': 72_706_203_648,
    'qwen3_0.6b': 596_049_920,
    'qwen3_4b': 4_022_468_096,
    'qwen3_8b': 8_190_735_360,
    'qwen3_14b': 14_768_307_200,
    'qwen3_32b': 32_762_123_264,
  },
  'gemma': {
    'gemma2_2b': 2_614_341_888,
    'gemma2_9b': 9_241_705_984,
    'gemma2_27b': 27_227_128_320,
    'gemma3_270m': 268_098_176,
    'gemma3_1b': 999_885_952,
  },
}


@pytest.mark.parametrize('family', PUBLISHED)
def test_released_sizes_have_the_published_number_of_parameters(family):
  variants = config.load('models', family).VARIANTS
  decoder = config.load('models', family).make
  found = {}
  for name in PUBLISHED[family]:
    init = functools.partial(
      decoder(variants[name]).init, method='init_everything'
    )
    params = jax.eval_shape(
      init, jax.random.key(0), jnp.zeros((1, 1, 2), jnp.int32)
    )['params']
    sizes = [x.size for x in jax.tree.leaves(nn.meta.unbox(params))]
    found[name] = sum(sizes) - variants[name].embed  # the value head is ours
  assert found == PUBLISHED[family]
