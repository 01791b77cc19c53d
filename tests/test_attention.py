"""The kernel for TPUs says what the einsum says, interpreted, and compiles."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment_rl import (
  attention,
  checkpoint,
  config,
  forward,
  learner,
  rollout,
)
from alignment_rl import sharding as sharding_lib
from alignment_rl.errors import UserError
from alignment_rl.types import KVCache

B, G, P, C = 4, 3, 7, 5
PROMPT_LENGTHS = np.array([7, 4, 1, 6], np.int32)


@pytest.fixture
def rows():
  rng = np.random.default_rng(1)
  draw = lambda *shape: rng.integers(0, 256, shape, dtype=np.int32)
  return draw(B, P), PROMPT_LENGTHS, draw(B, G, C)


def with_attention(model, name, mesh=None):
  sizes = dataclasses.replace(model.config, attention=name)
  return model.decoder.clone(config=sizes, mesh=mesh)


def logprobs_and_gradient(decoder, params, rows):
  def loss(params):
    logprobs, _, values = forward.teacher_force(decoder, params, *rows)
    return jnp.sin(logprobs).sum() + values.sum(), logprobs

  gradient, logprobs = jax.jit(jax.grad(loss, has_aux=True))(params)
  return logprobs, gradient


def assert_same(found, expected, tolerance):
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


# ------------------------------------------------------------------- the mask


@pytest.mark.parametrize('window', [attention.ALL, 1, 3])
@pytest.mark.parametrize('prompt', [0, 4])
def test_the_mask_is_each_block_of_what_a_query_sees(prompt, window):
  members, length = 3, 2
  n = members * length
  seen = np.zeros((n, prompt + n), bool)
  for g in range(members):
    for t in range(length):
      row = seen[g * length + t]
      for p in range(prompt):  # Its end is just before the own segment.
        row[p] = prompt - p + t < window
      for s in range(t + 1):
        row[prompt + g * length + s] = t - s < window
  mask = attention._Seen(prompt, members, length, window)
  assert mask.shape == seen.shape
  for q in range(0, n, 2):
    for k in range(0, prompt + n, 2):
      block = slice(q, q + 2), slice(k, k + 2)
      np.testing.assert_array_equal(mask[block], seen[block])


# ---------------------------------------------------- the kernel is the einsum


def test_logprobs_and_gradient_with_windows_in_some_layers(make_tiny, rows):
  model = make_tiny('gemma', windows=(4, 0), attention_cap=2.0)
  found, expected = (
    logprobs_and_gradient(with_attention(model, a), model.params, rows)
    for a in ('splash', 'einsum')
  )
  assert_same(found, expected, 1e-5)


@pytest.mark.parametrize(
  'window, dtype, tolerance', [(None, 'bfloat16', 0.02), (150, 'float32', 2e-6)]
)
def test_several_blocks_of_each_segment(window, dtype, tolerance):
  """Prompts of two blocks and own segments of three, neither of them full."""
  long, T, Q, K, H = 200, 300, 2, 1, 8
  lengths = np.array([200, 130], np.int32)
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(0, 1, shape).astype(np.float32)
  q, k, v = (draw(2, 2, T, n, H) for n in (Q, K, K))
  prefix = KVCache(draw(2, long, K, H), draw(2, long, K, H))
  weights = draw(2, 2, T, Q, H)
  positions = lengths[:, None, None] + np.arange(T)
  context = {
    'own_distance': np.arange(T)[:, None] - np.arange(T),
    'prefix_lengths': lengths,
    'prefix_distance': positions[..., None] - np.arange(long),
  }
  sizes = config.load('models', 'llama').VARIANTS['tiny']
  sizes = dataclasses.replace(
    sizes, heads=Q, kv_heads=K, head_dim=H, dtype=dtype, layers=1,
    windows=() if window is None else (window,),
  )  # fmt: skip

  def read(name):
    c = dataclasses.replace(sizes, attention=name)
    w = None if window is None else jnp.int32(window)

    def loss(q, k, v, prefix):
      out = attention.attend(q, k, v, prefix, w, context, c, None)
      return (weights * out).sum(), out

    return jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))(q, k, v, prefix)

  assert_same(read('splash'), read('einsum'), tolerance)


def test_rows_and_heads_split_over_eight_devices(make_tiny, rows):
  model = make_tiny()
  mesh = sharding_lib.make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
  decoder = with_attention(model, 'splash', mesh)
  params = sharding_lib.to_global(
    model.params, learner.param_shardings(decoder, mesh)
  )
  split = sharding_lib.to_global(rows, sharding_lib.rows(mesh))
  found = logprobs_and_gradient(decoder, params, split)
  expected = logprobs_and_gradient(
    with_attention(model, 'einsum'), model.params, rows
  )
  assert_same(found, expected, 1e-5)


# ---------------------------------------------------------- where it is taken


def kernels(function, *args):
  return str(jax.make_jaxpr(function)(*args)).count('pallas_call')


def test_the_kernel_is_taken_where_it_is_asked_for_and_never_to_decode(
  make_tiny, rows, one_device
):
  model = make_tiny()
  run = lambda name: functools.partial(
    forward.teacher_force, with_attention(model, name)
  )
  assert (
    kernels(run('splash'), model.params, *rows) == 2
  )  # prompts, completions
  for name in ('auto', 'einsum'):
    assert kernels(run(name), model.params, *rows) == 0
  sampler = rollout.Sampler(
    with_attention(model, 'splash'), one_device, group=G, length=C,
    eos_ids=(258,),
  )  # fmt: skip
  args = model.params, *rows[:2], jnp.arange(B), jax.random.key(0)
  assert kernels(sampler.program, *args) == 1  # the prompts


@pytest.mark.parametrize(
  'platform, tokens, taken',
  [
    ('tpu', 64, True),
    ('tpu', 63, False),
    ('gpu', 999, False),
    (None, 999, False),
  ],
)
def test_auto_takes_it_on_a_mesh_of_tpus_for_half_a_block_and_more(
  platform, tokens, taken
):
  devices = np.array([types.SimpleNamespace(platform=platform)])
  mesh = platform and types.SimpleNamespace(devices=devices)
  assert attention._takes_kernel('auto', tokens, mesh) == taken


def test_an_unknown_attention_is_refused():
  with pytest.raises(UserError, match=r"model.attention is 'flash'.*'splash'"):
    checkpoint.load_model('random:tiny', dtype='float32', attention='flash')


@pytest.mark.parametrize('family', ['llama', 'gemma'])
def test_the_update_compiles_for_a_slice_of_tpus(family, monkeypatch):
  """With a compiler and no chip: kernels within scans, switches and meshes."""
  pytest.importorskip('libtpu')
  from jax.experimental import topologies

  monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
  slice_ = topologies.get_topology_desc(
    platform='tpu', topology_name='v5e:2x4x1'
  )
  mesh = jax.sharding.Mesh(
    np.array(slice_.devices).reshape(2, 2, 2), sharding_lib.AXES
  )
  module = config.load('models', family)
  sizes = dataclasses.replace(module.VARIANTS['tiny'], dtype='bfloat16')
  decoder = module.make(sizes).clone(mesh=mesh)
  rows = sharding_lib.rows(mesh)
  shaped = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
  shapes, shardings = learner.state_shardings(decoder, optax.identity(), mesh)
  params = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes.params,
    shardings.params,
  )

  def loss(params, *rows):
    return forward.teacher_force(decoder, params, *rows)[0].sum()

  lowered = jax.jit(jax.grad(loss)).lower(
    params, shaped(8, 300), shaped(8), shaped(8, 2, 129)
  )
  assert 'tpu_custom_call' in lowered.as_text()
  assert lowered.compile().memory_analysis().temp_size_in_bytes > 0
