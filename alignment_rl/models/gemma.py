"""The Gemma family, text: Gemma 2 caps scores and logits, Gemma 3 norms queries
and keys, and turns them slower where a layer sees all.

Norms multiply by 1 + their weight and stand on both sides of a block; most
layers see a window of the last tokens alone.
"""

import functools

from alignment_rl import huggingface
from alignment_rl.errors import UserError
from alignment_rl.models.decoder import Decoder, DecoderConfig, RopeScaling


def _pattern(layers, window, period):
  """Every `period`-th layer sees all before it."""
  return tuple(0 if (i + 1) % period == 0 else window for i in range(layers))


def _gemma(*, embed, layers, window, period, **sizes):
  return DecoderConfig(
    embed=embed, layers=layers, windows=_pattern(layers, window, period),
    norm_eps=1e-6, norm_offset=1.0, embed_scale=embed**0.5, post_norms=True,
    activation='gelu_tanh', **sizes,
  )  # fmt: skip


_Gemma2 = functools.partial(
  _gemma, window=4096, period=2, attention_cap=50.0, logit_cap=30.0
)
_Gemma3 = functools.partial(
  _gemma, period=6, qk_norm=True, rope_theta=1e6, window_theta=1e4
)
_LONG = RopeScaling(8.0)

VARIANTS = {
  'tiny': _Gemma3(
    vocab=264, embed=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=64,
    query_scalar=16, window=4, period=2, rope_scaling=_LONG,
  ),
  'tiny_gemma2': _Gemma2(
    vocab=264, embed=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=64,
    query_scalar=16, window=4,
  ),
  'gemma2_2b': _Gemma2(
    vocab=256000, embed=2304, layers=26, heads=8, kv_heads=4, head_dim=256,
    mlp=9216, query_scalar=256,
  ),
  'gemma2_9b': _Gemma2(
    vocab=256000, embed=3584, layers=42, heads=16, kv_heads=8, head_dim=256,
    mlp=14336, query_scalar=256,
  ),
  'gemma2_27b': _Gemma2(
    vocab=256000, embed=4608, layers=46, heads=32, kv_heads=16, head_dim=128,
    mlp=36864, query_scalar=144,
  ),
  'gemma3_270m': _Gemma3(
    vocab=262144, embed=640, layers=18, heads=4, kv_heads=1, head_dim=256,
    mlp=2048, query_scalar=256, window=512,
  ),
  'gemma3_1b': _Gemma3(
    vocab=262144, embed=1152, layers=26, heads=4, kv_heads=1, head_dim=256,
    mlp=6912, query_scalar=256, window=512,
  ),
  'gemma3_4b': _Gemma3(
    vocab=262208, embed=2560, layers=34, heads=8, kv_heads=4, head_dim=256,
    mlp=10240, query_scalar=256, window=1024, rope_scaling=_LONG,
  ),
  'gemma3_12b': _Gemma3(
    vocab=262208, embed=3840, layers=48, heads=16, kv_heads=8, head_dim=256,
    mlp=15360, query_scalar=256, window=1024, rope_scaling=_LONG,
  ),
  'gemma3_27b': _Gemma3(
    vocab=262208, embed=5376, layers=62, heads=32, kv_heads=16, head_dim=128,
    mlp=21504, query_scalar=168, window=1024, rope_scaling=_LONG,
  ),
}  # fmt: skip

# The released 4B, 12B and 27B are 'gemma3', which reads images too: of them the
# text part is read.
HF_MODEL_TYPES = ('gemma2', 'gemma3_text', 'gemma3')

# What their files leave out of text_config.
_LEFT_OUT = {
  'model_type': 'gemma3_text', 'vocab_size': 262208, 'num_attention_heads': 8,
  'num_key_value_heads': 4, 'head_dim': 256, 'rms_norm_eps': 1e-6,
  'rope_theta': 1e6, 'rope_local_base_freq': 1e4, 'query_pre_attn_scalar': 256,
}  # fmt: skip

_CAPS = {
  'attention_cap': 'attn_logit_softcapping',
  'logit_cap': 'final_logit_softcapping',
}


def make(config: DecoderConfig) -> Decoder:
  """The policy (and reward model) of this family."""
  return Decoder(config)


def config_from_hf(hf: dict) -> DecoderConfig:
  """Reads the fields of a Hugging Face `config.json`."""
  if hf['model_type'] == 'gemma3':
    hf = _LEFT_OUT | hf['text_config']
  sizes = huggingface.read_sizes(hf, tied=True)
  huggingface.require(
    hf, hidden_activation='gelu_pytorch_tanh', attention_bias=False,
    use_bidirectional_attention=False,
  )  # fmt: skip
  newer = hf['model_type'] == 'gemma3_text'
  period = hf.get('sliding_window_pattern') or (6 if newer else 2)
  windows = _pattern(sizes['layers'], hf['sliding_window'], period)
  if 'layer_types' in hf:
    near = [kind == 'sliding_attention' for kind in hf['layer_types']]
    windows = tuple(hf['sliding_window'] if n else 0 for n in near)
  window_theta, scaled = 0.0, None
  if newer and 'rope_parameters' in hf:
    window_theta, scaled = huggingface.read_rope(hf, 'sliding_attention')
  elif newer:
    window_theta = float(hf['rope_local_base_freq'])
  if scaled is not None:
    raise UserError(
      f'config.json scales RoPE of layers with a window ({scaled}), expected '
      'that of others alone; the decoder has no other'
    )
  return DecoderConfig(
    **sizes,
    **{ours: hf.get(theirs) or 0.0 for ours, theirs in _CAPS.items()},
    norm_offset=1.0,
    embed_scale=hf['hidden_size'] ** 0.5,
    qk_norm=newer,
    post_norms=True,
    activation='gelu_tanh',
    query_scalar=int(hf['query_pre_attn_scalar']),
    windows=windows,
    window_theta=window_theta,
  )


def config_to_hf(config: DecoderConfig) -> dict:
  """The fields of a Hugging Face `config.json` that a loader needs."""
  kind = 'gemma3_text' if config.qk_norm else 'gemma2'
  out = huggingface.write_sizes(config) | {
    'architectures': [
      'Gemma3ForCausalLM' if config.qk_norm else 'Gemma2ForCausalLM'
    ],
    'model_type': kind,
    'hidden_activation': 'gelu_pytorch_tanh',
    'query_pre_attn_scalar': config.query_scalar,
    'sliding_window': max(config.windows),
    'layer_types': [
      'sliding_attention' if window else 'full_attention'
      for window in config.windows
    ],
  }
  out |= {
    theirs: getattr(config, ours) or None for ours, theirs in _CAPS.items()
  }
  if config.qk_norm:
    out['rope_local_base_freq'] = config.window_theta
  return out


def names(config: DecoderConfig) -> huggingface.Names:
  """The norms after a block have names that others give to those before it."""
  return huggingface.names(config) | huggingface.in_layers(
    {
      'attention_post_norm': ('post_attention_layernorm.weight', 'D', 'D'),
      'mlp_norm': ('pre_feedforward_layernorm.weight', 'D', 'D'),
      'mlp_post_norm': ('post_feedforward_layernorm.weight', 'D', 'D'),
    }
  )
