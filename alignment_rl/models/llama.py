"""The Llama family, SmolLM2 among it: sizes, and names in published files.

Hugging Face stores matrices as [out, in] and RoPE in the rotate-halves order,
which is ours; GGUF names differ and its q and k rows are interleaved.
"""

import numpy as np

from alignment_rl import huggingface
from alignment_rl.models.decoder import Decoder, DecoderConfig, RopeScaling


def _scaled(factor):
  return RopeScaling(factor, low=1.0, high=4.0, length=8192)


VARIANTS = {
  # std 0.02 embeddings with tied logits; a byte vocabulary plus five specials.
  'tiny': DecoderConfig(
    vocab=264, embed=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=64
  ),
  'tiny_scaled': DecoderConfig(
    vocab=264, embed=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=64,
    tied=False, rope_scaling=RopeScaling(8.0, low=1.0, high=4.0, length=16),
  ),
  'smollm2_135m': DecoderConfig(
    vocab=49152, embed=576, layers=30, heads=9, kv_heads=3, head_dim=64,
    mlp=1536, rope_theta=100_000.0,
  ),
  'smollm2_360m': DecoderConfig(
    vocab=49152, embed=960, layers=32, heads=15, kv_heads=5, head_dim=64,
    mlp=2560, rope_theta=100_000.0,
  ),
  'smollm2_1.7b': DecoderConfig(
    vocab=49152, embed=2048, layers=24, heads=32, kv_heads=32, head_dim=64,
    mlp=8192, rope_theta=130_000.0,
  ),
  'llama3.1_8b': DecoderConfig(
    vocab=128256, embed=4096, layers=32, heads=32, kv_heads=8, head_dim=128,
    mlp=14336, rope_theta=500_000.0, rope_scaling=_scaled(8.0), tied=False,
  ),
  # Llama 3.3 too.
  'llama3.1_70b': DecoderConfig(
    vocab=128256, embed=8192, layers=80, heads=64, kv_heads=8, head_dim=128,
    mlp=28672, rope_theta=500_000.0, rope_scaling=_scaled(8.0), tied=False,
  ),
  'llama3.2_1b': DecoderConfig(
    vocab=128256, embed=2048, layers=16, heads=32, kv_heads=8, head_dim=64,
    mlp=8192, rope_theta=500_000.0, rope_scaling=_scaled(32.0),
  ),
  'llama3.2_3b': DecoderConfig(
    vocab=128256, embed=3072, layers=28, heads=24, kv_heads=8, head_dim=128,
    mlp=8192, rope_theta=500_000.0, rope_scaling=_scaled(32.0),
  ),
}  # fmt: skip

HF_MODEL_TYPES = ('llama',)
GGUF_ARCHITECTURE = 'llama'

names = huggingface.names


def make(config: DecoderConfig) -> Decoder:
  """The policy (and reward model) of this family."""
  return Decoder(config)


def config_from_hf(hf: dict) -> DecoderConfig:
  """Reads the fields of a Hugging Face `config.json`."""
  sizes = huggingface.read_sizes(hf)
  huggingface.require(
    hf, hidden_act='silu', attention_bias=False, mlp_bias=False
  )
  return DecoderConfig(**sizes)


def config_to_hf(config: DecoderConfig) -> dict:
  """The fields of a Hugging Face `config.json` that a loader needs."""
  return huggingface.write_sizes(config) | {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'hidden_act': 'silu',
  }


def config_from_gguf(fields: dict) -> DecoderConfig:
  """Reads GGUF metadata, by its dotted names."""
  get = lambda name: fields[f'{GGUF_ARCHITECTURE}.{name}']
  heads = get('attention.head_count')
  return DecoderConfig(
    vocab=get('vocab_size'),
    embed=get('embedding_length'),
    layers=get('block_count'),
    heads=heads,
    kv_heads=get('attention.head_count_kv'),
    head_dim=get('embedding_length') // heads,
    mlp=get('feed_forward_length'),
    rope_theta=float(get('rope.freq_base')),
    norm_eps=float(np.float32(get('attention.layer_norm_rms_epsilon'))),
    tied='output.weight' not in fields['tensor_names'],
  )


def gguf_to_hf(
  tensors: dict[str, np.ndarray], config: DecoderConfig
) -> dict[str, np.ndarray]:
  """Renames GGUF tensors and puts q and k rows into rotate-halves order."""
  names = {
    'token_embd.weight': 'model.embed_tokens.weight',
    'output_norm.weight': 'model.norm.weight',
    'output.weight': 'lm_head.weight',
  }
  layer_names = {
    'attn_norm': 'input_layernorm',
    'attn_q': 'self_attn.q_proj',
    'attn_k': 'self_attn.k_proj',
    'attn_v': 'self_attn.v_proj',
    'attn_output': 'self_attn.o_proj',
    'ffn_norm': 'post_attention_layernorm',
    'ffn_gate': 'mlp.gate_proj',
    'ffn_up': 'mlp.up_proj',
    'ffn_down': 'mlp.down_proj',
  }
  out = {}
  for name, array in tensors.items():
    if name.startswith('blk.'):
      _, layer, part, _ = name.split('.')
      if part in ('attn_q', 'attn_k'):
        rows, columns = array.shape
        halves = array.reshape(-1, config.head_dim // 2, 2, columns)
        array = halves.swapaxes(1, 2).reshape(rows, columns)
      out[f'model.layers.{layer}.{layer_names[part]}.weight'] = array
    else:
      out[names[name]] = array
  return out
