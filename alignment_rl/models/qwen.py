"""The Qwen family: Qwen2.5 adds biases to queries, keys and values, Qwen3 norms
queries and keys and gives heads a width of their own."""

import functools

from alignment_rl import huggingface
from alignment_rl.models.decoder import Decoder, DecoderConfig

_Qwen2 = functools.partial(
  DecoderConfig, rope_theta=1e6, norm_eps=1e-6, qkv_bias=True
)
_Qwen3 = functools.partial(
  DecoderConfig, vocab=151936, head_dim=128, rope_theta=1e6, norm_eps=1e-6,
  qk_norm=True,
)  # fmt: skip

VARIANTS = {
  'tiny': _Qwen3(
    vocab=264, embed=32, layers=2, heads=4, kv_heads=2, head_dim=16, mlp=64,
    tied=False,
  ),
  'tiny_qwen2': _Qwen2(
    vocab=264, embed=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=64
  ),
  'qwen2.5_0.5b': _Qwen2(
    vocab=151936, embed=896, layers=24, heads=14, kv_heads=2, head_dim=64,
    mlp=4864,
  ),
  'qwen2.5_1.5b': _Qwen2(
    vocab=151936, embed=1536, layers=28, heads=12, kv_heads=2, head_dim=128,
    mlp=8960,
  ),
  'qwen2.5_3b': _Qwen2(
    vocab=151936, embed=2048, layers=36, heads=16, kv_heads=2, head_dim=128,
    mlp=11008,
  ),
  'qwen2.5_7b': _Qwen2(
    vocab=152064, embed=3584, layers=28, heads=28, kv_heads=4, head_dim=128,
    mlp=18944, tied=False,
  ),
  'qwen2.5_14b': _Qwen2(
    vocab=152064, embed=5120, layers=48, heads=40, kv_heads=8, head_dim=128,
    mlp=13824, tied=False,
  ),
  'qwen2.5_32b': _Qwen2(
    vocab=152064, embed=5120, layers=64, heads=40, kv_heads=8, head_dim=128,
    mlp=27648, tied=False,
  ),
  'qwen2.5_72b': _Qwen2(
    vocab=152064, embed=8192, layers=80, heads=64, kv_heads=8, head_dim=128,
    mlp=29568, tied=False,
  ),
  'qwen3_0.6b': _Qwen3(embed=1024, layers=28, heads=16, kv_heads=8, mlp=3072),
  'qwen3_1.7b': _Qwen3(embed=2048, layers=28, heads=16, kv_heads=8, mlp=6144),
  'qwen3_4b': _Qwen3(embed=2560, layers=36, heads=32, kv_heads=8, mlp=9728),
  'qwen3_8b': _Qwen3(
    embed=4096, layers=36, heads=32, kv_heads=8, mlp=12288, tied=False
  ),
  'qwen3_14b': _Qwen3(
    embed=5120, layers=40, heads=40, kv_heads=8, mlp=17408, tied=False
  ),
  'qwen3_32b': _Qwen3(
    embed=5120, layers=64, heads=64, kv_heads=8, mlp=25600, tied=False
  ),
}  # fmt: skip

HF_MODEL_TYPES = ('qwen2', 'qwen3')

names = huggingface.names


def make(config: DecoderConfig) -> Decoder:
  """The policy (and reward model) of this family."""
  return Decoder(config)


def config_from_hf(hf: dict) -> DecoderConfig:
  """Reads the fields of a Hugging Face `config.json`."""
  sizes = huggingface.read_sizes(hf)
  huggingface.require(hf, hidden_act='silu', attention_bias=False)
  windows = ()
  if hf.get('use_sliding_window'):
    first = hf['max_window_layers']
    windows = tuple(
      hf['sliding_window'] if i >= first else 0 for i in range(sizes['layers'])
    )
  newer = hf['model_type'] == 'qwen3'
  return DecoderConfig(
    **sizes, windows=windows, qk_norm=newer, qkv_bias=not newer
  )


def config_to_hf(config: DecoderConfig) -> dict:
  """The fields of a Hugging Face `config.json` that a loader needs."""
  kind = 'qwen3' if config.qk_norm else 'qwen2'
  out = huggingface.write_sizes(config) | {
    'architectures': [f'{kind.capitalize()}ForCausalLM'],
    'model_type': kind,
    'hidden_act': 'silu',
    'use_sliding_window': bool(config.windows),
  }
  if config.windows:
    out['sliding_window'] = max(config.windows)
    out['max_window_layers'] = config.windows.count(0)
  return out
