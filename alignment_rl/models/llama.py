"""The Llama family, SmolLM2 among it: sizes, and names in published files.

Hugging Face stores matrices as [out, in] and RoPE in the rotate-halves order,
which is ours; GGUF names differ and its q and k rows are interleaved.
"""

import numpy as np

from alignment_rl.models.decoder import Decoder, DecoderConfig

VARIANTS = {
  # std 0.02 embeddings with tied logits; a byte vocabulary plus five specials.
  'tiny': DecoderConfig(
    vocab=264, embed=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=64
  ),
  'smollm2_135m': DecoderConfig(
    vocab=49152, embed=576, layers=30, heads=9, kv_heads=3, head_dim=64,
    mlp=1536, rope_theta=100_000.0,
  ),
}  # fmt: skip

HF_MODEL_TYPE = 'llama'
GGUF_ARCHITECTURE = 'llama'


def make(config: DecoderConfig) -> Decoder:
  """The policy (and reward model) of this family."""
  return Decoder(config)


def config_from_hf(hf: dict) -> DecoderConfig:
  """Reads the fields of a Hugging Face `config.json`."""
  heads = hf['num_attention_heads']
  return DecoderConfig(
    vocab=hf['vocab_size'],
    embed=hf['hidden_size'],
    layers=hf['num_hidden_layers'],
    heads=heads,
    kv_heads=hf.get('num_key_value_heads', heads),
    head_dim=hf.get('head_dim') or hf['hidden_size'] // heads,
    mlp=hf['intermediate_size'],
    rope_theta=float(_rope_theta(hf)),
    norm_eps=float(hf['rms_norm_eps']),
    tied=bool(hf.get('tie_word_embeddings', False)),
  )


def config_to_hf(config: DecoderConfig) -> dict:
  """The fields of a Hugging Face `config.json` that a loader needs."""
  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': HF_MODEL_TYPE,
    'vocab_size': config.vocab,
    'hidden_size': config.embed,
    'num_hidden_layers': config.layers,
    'num_attention_heads': config.heads,
    'num_key_value_heads': config.kv_heads,
    'head_dim': config.head_dim,
    'intermediate_size': config.mlp,
    'rope_theta': config.rope_theta,
    'rms_norm_eps': config.norm_eps,
    'tie_word_embeddings': config.tied,
    'hidden_act': 'silu',
    'max_position_embeddings': 8192,
    'torch_dtype': 'float32',
  }


def from_hf(tensors: dict[str, np.ndarray], config: DecoderConfig) -> dict:
  """Hugging Face tensors by name -> our parameters, float32.

  Heads that the file lacks (value, reward) start at zero.

  Raises:
    KeyError: a tensor is missing.
    ValueError: a tensor has another shape than `config` says.
  """
  D = config.embed

  def take(name, shape):
    array = np.asarray(tensors[name], np.float32)
    stored = (shape[0], int(np.prod(shape[1:]))) if len(shape) > 1 else shape
    if array.shape != tuple(stored[::-1]):
      raise ValueError(
        f'{name} has shape {list(array.shape)}, expected {list(stored[::-1])}'
      )
    return array.T.reshape(shape)

  def stack(suffix, shape, *, out_first=False):
    rows = []
    for layer in range(config.layers):
      name = f'model.layers.{layer}.{suffix}.weight'
      if out_first:  # [D, Q H] in the file is [Q H, D] here.
        rows.append(take(name, (int(np.prod(shape[:-1])), D)).reshape(shape))
      else:
        rows.append(take(name, shape))
    return np.stack(rows)

  params = {
    'embed': take('model.embed_tokens.weight', (D, config.vocab)).T.copy(),
    'layers': {
      ours: stack(theirs, shape, out_first=ours == 'o')
      for ours, (theirs, shape) in _layer_names(config).items()
    },
    'final_norm': take('model.norm.weight', (D,)),
    'value_head': np.zeros(D, np.float32),
  }
  if not config.tied:
    params['lm_head'] = take('lm_head.weight', (D, config.vocab))
  return params


def to_hf(params: dict, config: DecoderConfig) -> dict[str, np.ndarray]:
  """Our parameters -> Hugging Face tensors by name. Value and reward stay."""
  D = config.embed
  tensors = {
    'model.embed_tokens.weight': np.asarray(params['embed']),
    'model.norm.weight': np.asarray(params['final_norm']),
  }
  for ours, (theirs, shape) in _layer_names(config).items():
    for layer, array in enumerate(np.asarray(params['layers'][ours])):
      if len(shape) > 1:
        array = array.reshape((-1, D) if ours == 'o' else (shape[0], -1)).T
      tensors[f'model.layers.{layer}.{theirs}.weight'] = array
  if not config.tied:
    tensors['lm_head.weight'] = np.asarray(params['lm_head']).T
  return {name: np.ascontiguousarray(a) for name, a in tensors.items()}


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


def _layer_names(config):
  """Our name -> (Hugging Face name within the layer, our shape)."""
  D, Q, K = config.embed, config.heads, config.kv_heads
  H, F = config.head_dim, config.mlp
  return {
    'attention_norm': ('input_layernorm', (D,)),
    'q': ('self_attn.q_proj', (D, Q, H)),
    'k': ('self_attn.k_proj', (D, K, H)),
    'v': ('self_attn.v_proj', (D, K, H)),
    'o': ('self_attn.o_proj', (Q, H, D)),
    'mlp_norm': ('post_attention_layernorm', (D,)),
    'gate': ('mlp.gate_proj', (D, F)),
    'up': ('mlp.up_proj', (D, F)),
    'down': ('mlp.down_proj', (F, D)),
  }


def _rope_theta(hf):
  # transformers 5 moved it under rope_parameters.
  return hf.get('rope_theta') or hf['rope_parameters']['rope_theta']
