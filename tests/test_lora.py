"""LoRA: the same model at the start, its own gradients, one base for a run."""

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys

import jax
import jax.extend
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util

from alignment_rl import (
  checkpoint,
  experience,
  export,
  forward,
  kept,
  learner,
  lora,
  optimizers,
  reward_train,
  rollout,
  sharding,
  train,
)
from alignment_rl.errors import UserError
from alignment_rl.models.decoder import PROJECTIONS, Lora
from alignment_rl.types import Batch, Example, Message, Rollout
from configs import reward_model, rl, sft

LORA = Lora(rank=3, alpha=6.0)
B, G, P, C = 8, 2, 7, 5
LENGTHS = np.array([7, 3, 5, 1, 7, 2, 4, 6], np.int32)


def draw(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, shape, dtype=np.int32)


PROMPTS, COMPLETIONS = draw(B, P), draw(B, G, C, seed=1)


@pytest.fixture(scope='module', params=['llama', 'gemma'])
def family(request, make_tiny):
  return make_tiny(request.param, lora=LORA)


@pytest.fixture(scope='module')
def tuned(make_tiny):
  """The tiny model with adapters, all of which say something."""
  return make_tiny(lora=LORA)


def base_of(model):
  """The same weights read without adapters."""
  return dataclasses.replace(model.without_lora(), stored=model.stored)


def logprobs(model, params, prompts=PROMPTS, completions=COMPLETIONS):
  run = jax.jit(functools.partial(forward.teacher_force, model.decoder))
  return np.asarray(run(params, prompts, LENGTHS, completions)[0])


def flat(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def with_b(params, change):
  """Parameters with `change` applied to every B."""
  return traverse_util.unflatten_dict(
    {k: change(v) if k.endswith('/b') else v for k, v in flat(params).items()},
    sep='/',
  )


# ------------------------------------------------------------------- equations


def test_with_b_at_zero_it_is_the_base_bit_for_bit(family):
  params = with_b(family.params, np.zeros_like)
  expected = logprobs(base_of(family), params)
  np.testing.assert_array_equal(logprobs(family, params), expected)
  # And it is not where B says something.
  assert np.abs(logprobs(family, family.params) - expected).max() > 0.1


def test_merged_is_unmerged(family):
  merged = lora.merge(family.params, LORA)
  assert flat(merged).keys() == flat(lora.without(family.params)).keys()
  np.testing.assert_allclose(
    logprobs(base_of(family), merged),
    logprobs(family, family.params),
    rtol=1e-4, atol=1e-4,
  )  # fmt: skip


def test_one_merged_matrix_by_hand():
  """Rank 1, alpha 2: [10, 20] + 2 x 3 x [1, 4]."""
  w = np.array([[[10.0, 20.0]]])  # [L, D, F], one of each but F
  a, b = np.array([[[3.0]]]), np.array([[[1.0, 4.0]]])
  found = lora.merged(w, a, b, Lora(rank=1, alpha=2.0))
  np.testing.assert_allclose(found, [[[16.0, 44.0]]])


def test_the_gradient_is_that_of_the_merged_weights_projected(family):
  """dA = s G B^T and dB = s A^T G, with G the gradient of the merged W."""
  weight = np.random.default_rng(2).normal(size=(B, G, C)).astype(np.float32)

  def loss(decoder, params):
    found, *_ = forward.teacher_force(
      decoder, params, PROMPTS, LENGTHS, COMPLETIONS
    )
    return (found * weight).sum()

  of = lambda model: jax.jit(jax.grad(functools.partial(loss, model.decoder)))
  found = of(family)(family.params)['layers']
  merged = of(base_of(family))(lora.merge(family.params, LORA))['layers']
  layers, scale = family.params['layers'], LORA.alpha / LORA.rank
  for name in PROJECTIONS:
    one, mine = layers[f'{name}_lora'], found[f'{name}_lora']
    layer = zip(one['a'], one['b'], merged[name], strict=True)
    for i, (a, b, g) in enumerate(layer):
      inner, outer = a.ndim - 1, b.ndim - 1
      da = scale * np.tensordot(g, b, [range(-outer, 0), range(1, outer + 1)])
      db = scale * np.tensordot(a, g, [range(inner), range(inner)])
      for got, expected in ((mine['a'][i], da), (mine['b'][i], db)):
        size = np.abs(expected).max()
        assert size > 1e-3, name
        np.testing.assert_allclose(got, expected, atol=2e-4 * size)


def products(jaxpr):
  """The shapes of all matrix products in it, inner programs included."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      yield eqn.outvars[0].aval.shape
    for inner in jax.extend.core.jaxprs_in_params(eqn.params):
      yield from products(inner)


def test_no_gradient_as_large_as_a_frozen_matrix_is_made(tuned):
  def shapes(trainable):
    chosen, rest = optimizers.split(tuned.params, trainable)

    def loss(chosen):
      params = optimizers.join(chosen, rest)
      found, *_ = forward.teacher_force(
        tuned.decoder, params, PROMPTS, LENGTHS, COMPLETIONS
      )
      return found.sum()

    found = set(products(jax.make_jaxpr(jax.grad(loss))(chosen).jaxpr))
    return {tuple(sorted(shape)) for shape in found}

  matrices = {
    tuple(sorted(tuned.params['layers'][name].shape[1:]))
    for name in PROJECTIONS
  }
  assert not matrices & shapes('layers/.*_lora/.*')
  assert matrices <= shapes('layers/.*')


def test_products_of_the_terms_are_in_the_models_dtype(tuned):
  """Rounding to bfloat16 shows, as in all others, and not as more than that."""
  half = dataclasses.replace(tuned.with_dtype('bfloat16'), stored=tuned.stored)
  exact, rounded = (
    logprobs(m, tuned.params) - logprobs(base_of(m), tuned.params)
    for m in (tuned, half)
  )
  assert 1e-4 < np.abs(exact - rounded).mean() < 0.1 * np.abs(exact).mean()


# ----------------------------------------------------------------------- start


def test_the_base_of_a_random_start_is_the_start_without_lora(one_device):
  def make(adapters, seed):
    model = checkpoint.load_model(
      'random:tiny', dtype='float32', adapters=adapters
    )
    shardings = learner.param_shardings(model.decoder, one_device)
    key = jax.random.key(seed)
    return learner.place_params(model.decoder, None, shardings, key)

  plain, with_lora, other = make(None, 0), make(LORA, 0), make(LORA, 1)
  jax.tree.map(np.testing.assert_array_equal, lora.without(with_lora), plain)
  for path, leaf in flat(lora.adapters(with_lora)).items():
    if path.endswith('/b'):
      assert not np.asarray(leaf).any(), path
      continue
    # Entries of x A are as large as those of x.
    size = np.sqrt(np.prod(leaf.shape[1:-1]))
    assert 0.7 < np.std(leaf) * size < 1.3, path
    assert (leaf != flat(other)[path]).any(), path


def test_only_targets_have_adapters(make_tiny):
  model = make_tiny(lora=dataclasses.replace(LORA, targets=('q', 'down')))
  names = lora.adapters(model.params)['layers']
  assert names.keys() == {'q_lora', 'down_lora'}
  assert names['q_lora']['a'].shape == (2, model.config.embed, 3)
  assert names['down_lora']['a'].shape == (2, model.config.mlp, 3)


def test_split_and_join(tuned, tiny):
  base, held = lora.split(tuned.params)
  assert set(flat(held)) == set(flat(lora.adapters(held))) | {'value_head'}
  assert not lora.adapters(base)
  held = held | {'value_head': held['value_head'] + 1}
  joined = lora.join(base, held)
  np.testing.assert_array_equal(joined['value_head'], held['value_head'])
  assert flat(joined).keys() == flat(tuned.params).keys()
  assert lora.split(tiny.params) == ({}, tiny.params)


# ---------------------------------------------------------------------- update


def batch_of(model):
  rng = np.random.default_rng(3)
  normal = lambda scale: rng.normal(0, scale, (B, G, C)).astype(np.float32)
  said = logprobs(model, model.params)
  lengths = rng.integers(1, C + 1, (B, G)).astype(np.int32)
  real = np.arange(C) < lengths[..., None]
  return Batch(
    rollout=Rollout(
      PROMPTS, LENGTHS, COMPLETIONS, lengths, said + normal(0.1)
    ),
    reference_logprobs=said + normal(0.3),
    advantages=normal(1.0), returns=normal(1.0), values=normal(0.2),
    weights=(real / real.sum()).astype(np.float32),
    demonstration=np.zeros((B, G), bool), stream=np.zeros(B, np.int32),
  )  # fmt: skip


def after_updates(
  model, mesh, *, updates=1, micro_batches=1, trainable='.*', name='sgd'
):
  """Base and state after updates on one batch, as a run holds them."""
  tx = optax.adam(1e-2) if name == 'adam' else optax.sgd(1.0)
  every = learner.param_shardings(model.decoder, mesh)
  _, shardings = learner.state_shardings(model.decoder, tx, mesh, trainable)
  base, held = lora.split(sharding.to_global(model.params, every))
  state = learner.fresh_state(held, tx, shardings, trainable)
  batch = batch_of(model)
  update = learner.make_update(
    model.decoder, tx, learner.LossSettings(kl=0.1, value=0.5), shardings,
    mesh, micro_batches=micro_batches, n_streams=1, trainable=trainable,
  )  # fmt: skip
  passes = learner.make_passes(
    batch.stream, batch.weights.any((1, 2)), micro_batches, 1, False
  )
  batch = sharding.to_global(batch, sharding.rows(mesh))
  for _ in range(updates):
    state, _ = update(state, base, batch, *passes)
  return base, state


@pytest.mark.parametrize('mesh', [(2, 2, 2)], indirect=True)
def test_updates_are_the_same_on_eight_devices(tuned, mesh, one_device):
  _, expected = after_updates(tuned, one_device)
  _, found = after_updates(tuned, mesh)
  before = lora.split(tuned.params)[1]
  jax.tree.map(
    lambda a, b, start: np.testing.assert_allclose(
      start - a, start - b, rtol=1e-3, atol=2e-5
    ),
    *map(jax.device_get, (found.params, expected.params, before)),
  )
  # A and B lie as the axes of their matrix do.
  q = found.params['layers']['q_lora']
  for leaf, axes in ((q['a'], ('fsdp', None)), (q['b'], (None, 'tensor'))):
    spec = (*leaf.sharding.spec, None, None, None)[1:3]
    for axis, name in zip(spec, axes, strict=True):
      assert axis == name


def test_updates_are_the_same_in_micro_batches(tuned, one_device):
  _, one = after_updates(tuned, one_device)
  _, four = after_updates(tuned, one_device, micro_batches=4)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-5),
    jax.device_get(one.params),
    jax.device_get(four.params),
  )


def test_only_adapters_move_and_the_base_stays_the_reference(tuned, one_device):
  base, state = after_updates(
    tuned, one_device, updates=3, trainable='layers/.*', name='adam'
  )
  start = lora.split(tuned.params)[1]
  for path, leaf in flat(state.params).items():
    moved = (np.asarray(leaf) != flat(start)[path]).any()
    assert moved == (path != 'value_head'), path
  # Two moments of each adapter, and counts.
  moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
  adapters = sum(x.size for x in jax.tree.leaves(lora.adapters(start)))
  assert moments == 2 * adapters
  # The arrays of the base are those of the start, and say what it said.
  jax.tree.map(np.testing.assert_array_equal, base, lora.without(tuned.params))
  plain = base_of(tuned)
  reference = logprobs(plain, base)
  np.testing.assert_array_equal(reference, logprobs(plain, tuned.params))
  policy = logprobs(tuned, lora.join(base, state.params))
  assert np.abs(policy - logprobs(tuned, tuned.params)).max() > 0.01


@pytest.mark.parametrize('trainable', ['value_head', 'layers/q', 'embed'])
def test_a_run_in_which_no_adapter_learns_is_refused(
  tuned, one_device, trainable
):
  with pytest.raises(UserError, match=f'trainable={trainable!r} matches'):
    learner.state_shardings(
      tuned.decoder, optax.sgd(1.0), one_device, trainable
    )


# --------------------------------------------------------------------- sampler


def test_the_sampler_draws_from_the_merged_policy(tuned, one_device):
  def sample(model, params):
    sampler = rollout.Sampler(
      model.decoder, one_device, group=G, length=C, eos_ids=(256,)
    )
    key = jax.random.key(0)
    return jax.device_get(sampler(params, PROMPTS, LENGTHS, np.arange(B), key))

  found = sample(tuned, tuned.params)
  expected = sample(base_of(tuned), lora.merge(tuned.params, LORA))
  np.testing.assert_array_equal(found.completions, expected.completions)
  np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)
  # What it says of them is what the unmerged policy says.
  said = logprobs(tuned, tuned.params, completions=found.completions)
  real = np.arange(C) < found.lengths[..., None]
  np.testing.assert_allclose(
    np.where(real, found.logprobs, 0), np.where(real, said, 0), atol=1e-3
  )


def test_the_sampler_may_lie_otherwise_than_the_adapters(tuned, one_device):
  sizes = lambda *shape: dict(zip(sharding.AXES, shape, strict=True))
  home, away = (
    sharding.make_mesh(sizes(*shape)) for shape in ((1, 4, 2), (4, 1, 2))
  )

  def sample(mesh, **layout):
    sampler = rollout.Sampler(
      tuned.decoder, mesh, group=G, length=C, eos_ids=(256,), **layout
    )
    params = sharding.to_global(
      tuned.params, learner.param_shardings(tuned.decoder, mesh)
    )
    key = jax.random.key(0)
    return jax.device_get(sampler(params, PROMPTS, LENGTHS, np.arange(B), key))

  # Adapters are merged before the parameters are moved.
  layout = learner.param_shardings(tuned.without_lora().decoder, away)
  found, expected = sample(home, layout=layout), sample(one_device)
  np.testing.assert_array_equal(found.completions, expected.completions)
  np.testing.assert_array_equal(found.lengths, expected.lengths)
  np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)


@pytest.mark.parametrize(
  'dtype, expected', [('', 'bfloat16'), ('float32', 'float32')]
)
def test_tokens_are_added_in_the_dtype_of_the_sampler(
  tiny, one_device, monkeypatch, dtype, expected
):
  seen = {}

  def watch(name):
    real = getattr(rollout, name)

    def run(model, params, *args):
      seen[name] = (model.config.dtype, params['layers']['q'].dtype.name)
      return real(model, params, *args)

    monkeypatch.setattr(rollout, name, run)

  watch('prefill'), watch('decode')
  sampler = rollout.Sampler(
    tiny.with_dtype('bfloat16').decoder, one_device, group=G, length=C,
    eos_ids=(256,), dtype=dtype,
  )  # fmt: skip
  found = sampler(
    tiny.params, PROMPTS, LENGTHS, np.arange(B), jax.random.key(0)
  )
  assert np.isfinite(found.logprobs).all()
  assert seen == {'prefill': ('bfloat16',) * 2, 'decode': (expected,) * 2}


# --------------------------------------------------------------------- workdir


class Length:
  """A reward that any replies tell apart."""

  def __call__(self, examples, completions, *, judge):
    return np.array([len(c) / 8 for c in completions], np.float32)


def toy_streams(config):
  prompts = [
    Example(f'toy/{i}', (Message('user', 'ab' * (i % 4)),)) for i in range(16)
  ]
  return [experience.Stream('toy', prompts, Length())]


def run(path, steps, **model):
  """PPO into `path`, so that the value head is trained beside the adapters."""
  c = rl.get_config('tiny')
  with c.unlocked():
    c.streams = {'toy': c.streams.traits}
  c.streams.toy.update(weight=1.0, fraction=0.0)
  c.steps, c.checkpoint.every = steps, 1
  c.batch.update(prompts=8, group=2, prompt_length=64, micro_batches=1)
  c.algorithm.name = 'ppo'
  c.model.update(lora_rank=3, lora_alpha=6.0, lora_targets=('q', 'o', 'down'))
  c.model.update(model)
  c.optimizer.update(learning_rate=1e-2, trainable='layers/.*|final_norm')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, 'make_streams', toy_streams)
    train.train(c, path)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """Two steps of a LoRA run, the second one after a restart."""
  path = tmp_path_factory.mktemp('lora') / 'run'
  run(path, 1)
  run(path, 2)
  return path


def state_at(path, step):
  """All that is on disk of a step's state."""
  with ocp.PyTreeCheckpointer() as reader:
    found = reader.restore(path / 'checkpoints' / str(step) / 'state')
  return jax.device_get(found)


def metrics_of(path):
  clock = lambda key: key.startswith(('secs', 'tokens_per', 'compilations'))
  return [
    {k: v for k, v in json.loads(line).items() if not clock(k)}
    for line in open(path / 'metrics.jsonl')
  ]


def test_a_restart_changes_nothing(workdir, tmp_path):
  run(tmp_path / 'run', 2)
  assert metrics_of(workdir) == metrics_of(tmp_path / 'run')
  jax.tree.map(
    np.testing.assert_array_equal,
    state_at(workdir, 2),
    state_at(tmp_path / 'run', 2),
  )


def test_a_step_keeps_adapters_and_the_base_is_kept_once(workdir):
  names = {f'{n}_lora' for n in ('q', 'o', 'down')}
  for step in (1, 2):
    params = state_at(workdir, step)['params']
    assert params.keys() == {'layers', 'value_head'}
    assert params['layers'].keys() == names
    assert params['value_head'].any(), 'ppo trains it'
  base = kept.read_base(workdir)
  assert not lora.adapters(base) and 'embed' in base
  first = metrics_of(workdir)[0]
  # At step 0 the policy is the reference, then no more.
  kl = lambda line: max(v for k, v in line.items() if k.startswith('kl/'))
  assert kl(first) < 1e-9 < kl(metrics_of(workdir)[1])


@pytest.mark.parametrize('step', [1, 2])
def test_a_workdir_is_read_and_exported_merged(workdir, tmp_path, step):
  adapters = lora.settings(3, 6.0, ('q', 'o', 'down'))
  policy = checkpoint.load_model(
    'random:tiny', dtype='float32', adapters=adapters
  )
  params = lora.join(
    jax.tree.map(np.asarray, kept.read_base(workdir)),
    state_at(workdir, step)['params'],
  )
  expected = logprobs(policy, params)
  found = checkpoint.load_model(f'{workdir}@{step}', dtype='float32')
  assert found.config.lora is None
  assert not lora.adapters(found.params)
  np.testing.assert_array_equal(
    found.params['value_head'], params['value_head']
  )
  export.export(f'{workdir}@{step}', 'llama', tmp_path / 'out', 10**9)
  exported = checkpoint.load_model(str(tmp_path / 'out'), dtype='float32')
  for model in (found, exported):
    said = logprobs(model, model.params)
    np.testing.assert_allclose(said, expected, atol=1e-5)


def test_a_workdir_is_placed_merged_on_every_mesh(workdir, mesh):
  model, placed = learner.load(str(workdir), mesh, dtype='float32')
  whole = checkpoint.load_model(str(workdir), dtype='float32').params
  shardings = flat(learner.param_shardings(model.decoder, mesh))
  assert flat(placed).keys() == shardings.keys()
  for path, x in flat(placed).items():
    assert x.sharding.is_equivalent_to(shardings[path], x.ndim), path
    np.testing.assert_allclose(x, flat(whole)[path], atol=1e-6)


def test_saved_unmerged_it_is_merged(tuned, tmp_path):
  checkpoint.save_hf(tmp_path, tuned, tuned.params)
  found = checkpoint.load_model(str(tmp_path), dtype='float32')
  np.testing.assert_allclose(
    logprobs(found, found.params), logprobs(tuned, tuned.params), atol=1e-3
  )


def test_a_second_run_starts_from_the_merged_policy(workdir, one_device):
  stored = checkpoint.load_model(str(workdir), dtype='float32', adapters=LORA)
  start = learner.place_params(
    stored.decoder, stored.stored,
    learner.param_shardings(stored.decoder, one_device), jax.random.key(7),
  )  # fmt: skip
  plain = checkpoint.load_model(str(workdir), dtype='float32')
  np.testing.assert_array_equal(
    logprobs(stored, start), logprobs(plain, plain.params)
  )


def test_another_rank_does_not_go_on(workdir):
  with pytest.raises(UserError, match=r"differs in \['model'\]"):
    run(workdir, 3, lora_rank=4)


def contrasting(config):
  """Scenarios of a few words for the reward model."""
  rubric = (
    {'criterion': 'a', 'points': 1, 'met': 'Up.', 'failed': 'Down.'},
    {'criterion': 'b', 'points': 1, 'met': 'It ran.', 'failed': 'It did not.'},
  )
  replies = {'beneficial': 'up', 'violating': 'down', 'refusal': 'hm'}
  metadata = {'rubric': rubric, 'mirror': '', 'replies': replies}
  question = (Message('user', 'Which way?'),)
  return [Example(f'x{i}', question, metadata=metadata) for i in range(8)]


def test_the_reward_model_learns_adapters_of_its_upper_layers(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(reward_train, 'make_examples', contrasting)

  def run(name, steps):
    c = reward_model.get_config('tiny')
    c.steps, c.checkpoint.every, c.reward_model.helpfulness = steps, 1, 0.0
    c.model.update(lora_rank=2, lora_targets=('v', 'gate'))
    reward_train.reward_train(c, tmp_path / name)
    return state_at(tmp_path / name, steps)

  run('cut', 1)
  resumed, straight = run('cut', 2), run('straight', 2)
  jax.tree.map(np.testing.assert_array_equal, resumed, straight)
  for one in resumed['params']['layers'].values():
    assert not one['b'][0].any() and one['b'][1].any()
  # What judge.weights reads: a model, of which the upper layer has moved.
  found = checkpoint.load_model(str(tmp_path / 'cut'), dtype='float32').params
  start = jax.tree.map(np.asarray, kept.read_base(tmp_path / 'cut'))
  for name in PROJECTIONS:
    moved = (found['layers'][name] != start['layers'][name]).reshape(2, -1)
    expected = [False, name in ('v', 'gate')]
    assert moved.any(1).tolist() == expected, name


# ---------------------------------------------------------------- command line


def test_the_command_line_takes_targets_and_names_a_wrong_one(tmp_path):
  done = subprocess.run(
    [
      sys.executable, '-m', 'alignment_rl.train',
      '--config=configs/sft.py:tiny', f'--workdir={tmp_path}/run',
      '--config.model.lora_rank=2',
      "--config.model.lora_targets=('q', 'head')",
    ],
    cwd=pathlib.Path(__file__).parents[1], capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 2
  assert done.stderr.startswith(
    "error: config.model.lora_targets=('q', 'head')"
  )
  assert not (tmp_path / 'run').exists()


WRONG = {
  'rank': ({'lora_rank': -1}, 'lora_rank=-1'),
  'alpha': ({'lora_rank': 2, 'lora_alpha': 0.0}, 'lora_alpha=0.0'),
  'target': ({'lora_rank': 2, 'lora_targets': ('w',)}, "('w',)"),
  'no target': ({'lora_rank': 2, 'lora_targets': ()}, 'lora_targets=()'),
  'dtype': ({'sample_dtype': 'int8'}, 'model.sample_dtype'),
  'products': ({'dtype': 'half'}, "dtype is 'half'"),
}


@pytest.mark.parametrize('name', WRONG)
def test_a_mistake_is_named_before_anything_is_made(name, tmp_path):
  changes, expected = WRONG[name]
  c = sft.get_config('tiny')
  c.model.update(changes)
  with pytest.raises(UserError) as e:
    train.train(c, tmp_path / 'run')
  assert expected in str(e.value) and '\n' not in str(e.value)
  assert not (tmp_path / 'run').exists()
