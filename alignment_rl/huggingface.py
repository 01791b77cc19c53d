"""Hugging Face folders: their `config.json`, names and tensors, in and out.

A family says which name in the files each parameter has, and in which order of
axes; all else is here. Parameters are read when they are placed on a mesh, a
tensor at a time and of it only what this process's devices hold.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from alignment_rl.errors import UserError
from alignment_rl.models.decoder import DecoderConfig, RopeScaling

_SINGLE = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'
# Before the names of the text part, in models that read images too.
_TEXT_PART = re.compile(r'^(language_model\.model|model\.language_model)\.')

# Our parameter -> (name in the files, our axes, axes in the files). A matrix in
# the files is [out, in], each a run of our axes.
Names = dict[str, tuple[str, str, str]]


# ----------------------------------------------------------------- config.json


def read_sizes(hf: Mapping[str, Any], tied: bool = False) -> dict[str, Any]:
  """The fields of a DecoderConfig that all families call the same.

  Args:
    hf: content of a `config.json`.
    tied: whether the head is the embedding table where the file does not say.

  Raises:
    KeyError: a field is missing.
    UserError: RoPE is scaled in a way that the decoder has not.
  """
  heads = hf['num_attention_heads']
  theta, scaling = read_rope(hf)
  return {
    'vocab': hf['vocab_size'],
    'embed': hf['hidden_size'],
    'layers': hf['num_hidden_layers'],
    'heads': heads,
    'kv_heads': hf.get('num_key_value_heads') or heads,
    'head_dim': hf.get('head_dim') or hf['hidden_size'] // heads,
    'mlp': hf['intermediate_size'],
    'rope_theta': theta,
    'rope_scaling': scaling,
    'norm_eps': float(hf['rms_norm_eps']),
    'tied': bool(hf.get('tie_word_embeddings', tied)),
  }


def write_sizes(config: DecoderConfig) -> dict[str, Any]:
  """The inverse of `read_sizes`, with what else a loader needs."""
  scaling, fields = config.rope_scaling, None
  if scaling is not None and scaling.length:
    fields = {
      'rope_type': 'llama3',
      'factor': scaling.factor,
      'low_freq_factor': scaling.low,
      'high_freq_factor': scaling.high,
      'original_max_position_embeddings': scaling.length,
    }
  elif scaling is not None:
    fields = {'rope_type': 'linear', 'factor': scaling.factor}
  return {
    'vocab_size': config.vocab,
    'hidden_size': config.embed,
    'num_hidden_layers': config.layers,
    'num_attention_heads': config.heads,
    'num_key_value_heads': config.kv_heads,
    'head_dim': config.head_dim,
    'intermediate_size': config.mlp,
    'rope_theta': config.rope_theta,
    'rope_scaling': fields,
    'rms_norm_eps': config.norm_eps,
    'tie_word_embeddings': config.tied,
    'max_position_embeddings': 131072 if fields else 8192,
    'torch_dtype': 'float32',
  }


def read_rope(
  hf: Mapping[str, Any], kind: str = 'full_attention'
) -> tuple[float, RopeScaling | None]:
  """RoPE's base and scaling.

  Args:
    hf: content of a `config.json`.
    kind: of the layers, where they differ.

  Raises:
    KeyError: a field is missing.
    UserError: it is scaled in a way that the decoder has not.
  """
  # transformers 5 puts all of it there, by kind of layer if there are several.
  found = hf.get('rope_parameters') or {}
  found = found.get(kind, found) or {
    'rope_theta': hf['rope_theta'], **(hf.get('rope_scaling') or {}),
  }  # fmt: skip
  scaling, name = None, found.get('rope_type') or found.get('type', 'default')
  if name == 'linear':
    scaling = RopeScaling(float(found['factor']))
  elif name == 'llama3':
    scaling = RopeScaling(
      float(found['factor']),
      float(found['low_freq_factor']),
      float(found['high_freq_factor']),
      int(found['original_max_position_embeddings']),
    )
  elif name != 'default':
    raise UserError(
      f"config.json asks for RoPE of type {name!r}, expected 'default', "
      "'linear' or 'llama3'; the decoder has no other"
    )
  return float(found['rope_theta']), scaling


def require(hf: Mapping[str, Any], **expected) -> None:
  """Refuses a model whose `config.json` says otherwise.

  Raises:
    UserError: a field is there and differs.
  """
  for name, value in expected.items():
    found = hf.get(name)
    if found is not None and found != value:
      raise UserError(
        f'config.json has {name}={found!r}, expected {value!r}; the decoder '
        'has no other'
      )


def names(config: DecoderConfig) -> Names:
  """The names that most families share."""
  out = {
    'embed': ('model.embed_tokens.weight', 'VD', 'V,D'),
    'final_norm': ('model.norm.weight', 'D', 'D'),
  }
  if not config.tied:
    out['lm_head'] = ('lm_head.weight', 'DV', 'V,D')
  layer = {
    'attention_norm': ('input_layernorm.weight', 'D', 'D'),
    'q': ('self_attn.q_proj.weight', 'DQH', 'QH,D'),
    'k': ('self_attn.k_proj.weight', 'DKH', 'KH,D'),
    'v': ('self_attn.v_proj.weight', 'DKH', 'KH,D'),
    'o': ('self_attn.o_proj.weight', 'QHD', 'D,QH'),
    'mlp_norm': ('post_attention_layernorm.weight', 'D', 'D'),
    'gate': ('mlp.gate_proj.weight', 'DF', 'F,D'),
    'up': ('mlp.up_proj.weight', 'DF', 'F,D'),
    'down': ('mlp.down_proj.weight', 'FD', 'D,F'),
  }
  if config.qkv_bias:
    layer |= {
      'q_bias': ('self_attn.q_proj.bias', 'QH', 'QH'),
      'k_bias': ('self_attn.k_proj.bias', 'KH', 'KH'),
      'v_bias': ('self_attn.v_proj.bias', 'KH', 'KH'),
    }
  if config.qk_norm:
    layer |= {
      'q_norm': ('self_attn.q_norm.weight', 'H', 'H'),
      'k_norm': ('self_attn.k_norm.weight', 'H', 'H'),
    }
  return out | in_layers(layer)


def in_layers(names: Names) -> Names:
  """Names within a layer -> whole ones; '{}' stands for the layer's number."""
  return {
    f'layers/{ours}': (f'model.layers.{{}}.{theirs}', *axes)
    for ours, (theirs, *axes) in names.items()
  }


# --------------------------------------------------------------------- reading


@dataclasses.dataclass(frozen=True)
class Stored:
  """A parameter in files. `place` reads it in parts, `np.asarray` whole.

  Attributes:
    tensors: one of each layer, or one alone: what has a shape and can be cut.
    stacked: whether they are layers, our first axis.
    axes: our axes but for layers, such as 'DQH'.
    runs: the axes of a tensor, each a run of ours, such as ('QH', 'D').
    sizes: of each axis.
  """

  tensors: Sequence[Any]
  stacked: bool
  axes: str
  runs: tuple[str, ...]
  sizes: Mapping[str, int]

  def __array__(self, dtype=None, copy=None):
    read = lambda tensor: np.asarray(tensor[:]).astype(np.float32, copy=False)
    layers = [_turn(read(t), *self._layout()) for t in self.tensors]
    whole = np.stack(layers) if self.stacked else layers[0]
    return whole.astype(dtype or np.float32, copy=False)

  def place(self, sharding: NamedSharding) -> jax.Array:
    """The global float32 array.

    Of one tensor at a time, the host reads what its devices hold, as it is
    stored; they convert and turn it.

    Raises:
      ValueError: `sharding` splits what a file has no axis for.
    """
    every = ('L' if self.stacked else '') + self.axes
    split = dict.fromkeys(every) | dict(zip(every, sharding.spec, strict=False))
    cut = PartitionSpec(*(split.pop(run[0]) for run in self.runs))
    if any(split.values()):
      raise ValueError(f'{every} cannot be split as {sharding.spec}')
    as_stored = NamedSharding(sharding.mesh, cut)
    layout = self._layout()
    if not self.stacked:
      return _whole(_load(self.tensors[0], as_stored), layout, sharding)
    shape = tuple(self.sizes[axis] for axis in self.axes)
    out = _zeros((len(self.tensors), *shape), sharding)
    for i, tensor in enumerate(self.tensors):
      out = _put(out, _load(tensor, as_stored), i, layout, sharding)
      out.block_until_ready()  # Else tensors would queue up on the host.
    return out

  def _layout(self):
    """Shape and order that turn a tensor into our axes."""
    stored = ''.join(self.runs)
    shape = tuple(self.sizes[axis] for axis in stored)
    return shape, tuple(stored.index(axis) for axis in self.axes)


def _turn(x, shape, order):
  return x.reshape(shape).transpose(order)


def _load(tensor, sharding):
  """A tensor as it is stored, on the devices."""

  @functools.cache  # What several devices hold is read once.
  def read(*bounds):
    return tensor[tuple(slice(*b) for b in bounds)]

  return jax.make_array_from_callback(
    tuple(tensor.shape),
    sharding,
    lambda index: read(*((s.start, s.stop) for s in index)),
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _zeros(shape, sharding):
  return jax.lax.with_sharding_constraint(jnp.zeros(shape), sharding)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _whole(x, layout, sharding):
  x = _turn(x.astype(jnp.float32), *layout)
  return jax.lax.with_sharding_constraint(x, sharding)


@functools.partial(jax.jit, static_argnums=(3, 4), donate_argnums=0)
def _put(whole, x, i, layout, sharding):
  x = _turn(x.astype(jnp.float32), *layout)
  whole = jax.lax.dynamic_update_index_in_dim(whole, x, i, 0)
  return jax.lax.with_sharding_constraint(whole, sharding)


def params(tensors: Mapping[str, Any], names: Names, config) -> dict[str, Any]:
  """Parameters that lie in `tensors`: a tree of Stored.

  The value head, of which the files know nothing, starts at zero.

  Args:
    tensors: by name in the files, what has a shape and can be sliced.
    config: DecoderConfig.

  Raises:
    KeyError: a tensor is missing.
    ValueError: a tensor has another shape than `config` says.
  """
  sizes, out = _sizes(config), {}
  for ours, (theirs, axes, stored) in names.items():
    stacked = '{}' in theirs
    parts = []
    for i in range(config.layers if stacked else 1):
      part = tensors[theirs.format(i)]
      found, expected = list(part.shape), _stored_shape(stored, sizes)
      if found != expected:
        raise ValueError(
          f'{theirs.format(i)} has shape {found}, expected {expected}'
        )
      parts.append(part)
    out[ours] = Stored(parts, stacked, axes, tuple(stored.split(',')), sizes)
  out['value_head'] = np.zeros(config.embed, np.float32)
  return traverse_util.unflatten_dict(out, sep='/')


def _sizes(config):
  return {
    'V': config.vocab, 'D': config.embed, 'F': config.mlp,
    'Q': config.heads, 'K': config.kv_heads, 'H': config.head_dim,
  }  # fmt: skip


def _stored_shape(stored, sizes):
  return [math.prod(sizes[axis] for axis in run) for run in stored.split(',')]


class _Tensor:
  """A tensor of a safetensors file, unread until it is sliced."""

  def __init__(self, file, name):
    self._slice = file.get_slice(name)
    self.shape = self._slice.get_shape()

  def __getitem__(self, index):
    return self._slice[index]


def open_tensors(folder: pathlib.Path) -> dict[str, Any]:
  """The tensors of a folder by name, from one file or several.

  Raises:
    UserError: a file is missing, damaged or cut off.
  """
  index = folder / _INDEX
  if index.exists():
    files = set(json.loads(index.read_text())['weight_map'].values())
  else:
    files = {_SINGLE}
  tensors = {}
  for name in sorted(files):
    if not (folder / name).exists():
      raise UserError(f'{folder} has no {name}; copy the whole model folder')
    try:
      file = safetensors.safe_open(folder / name, framework='np')
      tensors |= {
        _TEXT_PART.sub('model.', tensor): _Tensor(file, tensor)
        for tensor in file.keys()
      }
    except safetensors.SafetensorError as e:
      raise UserError(
        f'{folder / name} is damaged or cut off ({e}); copy the file again'
      ) from e
  return tensors


# --------------------------------------------------------------------- writing


def tensors(
  params: Any, names: Names, config: DecoderConfig
) -> Iterator[tuple[str, np.ndarray]]:
  """(name in the files, float32 array) of each tensor, in the order of `names`.

  The value head has no place in the format.
  """
  flat = traverse_util.flatten_dict(params, sep='/')
  sizes = _sizes(config)
  for ours, (theirs, axes, stored) in names.items():
    whole = np.asarray(flat[ours], np.float32)
    order = [axes.index(axis) for axis in stored.replace(',', '')]
    for i, part in enumerate(whole if '{}' in theirs else whole[None]):
      part = part.transpose(order).reshape(_stored_shape(stored, sizes))
      yield theirs.format(i), np.ascontiguousarray(part)


def write_tensors(
  folder: pathlib.Path,
  params: Any,
  names: Names,
  config: DecoderConfig,
  shard_bytes: int,
) -> None:
  """Writes `model.safetensors`, or several files and their index.

  The host holds one parameter and one file's tensors at a time.

  Args:
    shard_bytes: of a file at most, but for a tensor that is larger alone.
  """
  files = [{}]
  for name, size in _tensor_bytes(names, config):
    if files[-1] and sum(files[-1].values()) + size > shard_bytes:
      files.append({})
    files[-1][name] = size
  if len(files) == 1:
    titles = [_SINGLE]
  else:
    count = len(files)
    titles = [
      f'model-{i + 1:05}-of-{count:05}.safetensors' for i in range(count)
    ]
  each = tensors(params, names, config)
  for title, file in zip(titles, files, strict=True):
    partial = folder / f'{title}.partial'
    # 'pt' is what loaders of these folders ask for; arrays are arrays.
    safetensors.numpy.save_file(
      dict(next(each) for _ in file), partial, metadata={'format': 'pt'}
    )
    os.replace(partial, folder / title)
  if len(files) > 1:
    where = {
      name: title
      for title, file in zip(titles, files, strict=True)
      for name in file
    }
    total = sum(sum(file.values()) for file in files)
    index = {'metadata': {'total_size': total}, 'weight_map': where}
    (folder / _INDEX).write_text(json.dumps(index, indent=2))


def _tensor_bytes(names, config) -> Iterator[tuple[str, int]]:
  sizes = _sizes(config)
  for theirs, _, stored in names.values():
    size = 4 * math.prod(_stored_shape(stored, sizes))
    for i in range(config.layers if '{}' in theirs else 1):
      yield theirs.format(i), size
