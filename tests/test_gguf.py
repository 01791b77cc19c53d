"""GGUF files as llama.cpp writes them, whole and not."""

import dataclasses
import functools

import gguf
import jax
import numpy as np
import pytest
import tokenizers

from alignment_rl import checkpoint, huggingface, text
from alignment_rl.errors import UserError
from alignment_rl.models import llama
from alignment_rl.types import Message

SPECIALS = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
MERGES = [('t', 'h'), ('th', 'e'), ('Ġ', 'the'), ('i', 'n'), ('in', 'g')]


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
  if 'chat_template' not in leave_out:
    writer.add_chat_template(text.CHATML)

  tensors = dict(huggingface.tensors(model.params, llama.names(c), c))
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
  ids = first.tokenizer.encode(words, controls=True)
  # The merges were used: ' the' and 'ing' are one token each.
  assert {261, 263} <= set(ids) and ids[0] == 1
  assert again.tokenizer.encode(words, controls=True) == ids
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


def test_gguf_of_a_base_model_names_the_field_it_lacks(tiny, tmp_path):
  write_gguf(tmp_path / 'tiny.gguf', tiny, leave_out=['chat_template'])
  with pytest.raises(UserError, match=r'chat_template.*Hugging Face folder'):
    load(f'{tmp_path}/tiny.gguf')
