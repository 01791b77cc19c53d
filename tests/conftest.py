"""Eight CPU devices, one compilation cache a session, and tiny models."""

import dataclasses
import os

import jax
import numpy as np
import pytest

from alignment_rl import checkpoint, config, learner, sharding, text

# Tests compile many small programs and run each once or twice: without these
# two a gradient of the tiny model takes 8 times as long to compile.
FLAGS = os.environ.get('XLA_FLAGS', '')
os.environ['XLA_FLAGS'] = f'{FLAGS} --xla_cpu_use_fusion_emitters=false'
jax.config.update('jax_disable_most_optimizations', True)
jax.config.update('jax_num_cpu_devices', 8)


@pytest.fixture(scope='session', autouse=True)
def compilation_cache(tmp_path_factory):
  folder = tmp_path_factory.mktemp('compilation_cache')
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


@pytest.fixture(scope='session')
def one_device():
  """A mesh of the first device alone."""
  devices = np.array(jax.devices()[:1]).reshape(1, 1, 1)
  return jax.sharding.Mesh(devices, sharding.AXES)


@pytest.fixture(
  scope='session',
  params=[(8, 1, 1), (2, 4, 1), (2, 2, 2)],
  ids=['data8', 'data2_fsdp4', 'data2_fsdp2_tensor2'],
)
def mesh(request):
  """Each way of using all eight devices."""
  return sharding.make_mesh(
    dict(zip(sharding.AXES, request.param, strict=True))
  )


@pytest.fixture(scope='session')
def make_tiny(one_device):
  """Makes a family's tiny variant, with weights that tell tokens apart."""

  def make(family: str = 'llama', **changes) -> checkpoint.Model:
    module = config.load('models', family)
    sizes = dataclasses.replace(module.VARIANTS['tiny'], **changes)
    decoder = module.make(sizes)
    start = learner.place_params(
      decoder,
      None,
      learner.param_shardings(decoder, one_device),
      jax.random.key(0),
    )
    # At the published std of 0.02 every logit is near 0, and a head that starts
    # at zero hides what feeds it: a wrong program would pass.
    rng = np.random.default_rng(0)
    params = jax.tree.map(
      lambda p: np.asarray(p) + rng.normal(0, 0.3, p.shape).astype(np.float32),
      start,
    )
    return checkpoint.Model(family, decoder, text.ByteTokenizer(), params)

  return make


@pytest.fixture(scope='session')
def tiny(make_tiny):
  return make_tiny()
