"""The configurable decoder that every family is a setting of.

Pure functions of explicit parameters and an explicit cache. Three ways to call
the trunk, one set of weights:

  prefill   tokens [B, 1, P]                   -> hidden, prompt cache
  score     tokens [B, G, C], prompt cache     -> hidden
  decode    tokens [B, G, 1], prompt cache, completion cache, slot
                                               -> hidden, completion cache

The prompt cache has no G axis: the completions of a group attend to one copy of
it, in sampling, in scoring and in the differentiated update, where the gradient
flows back through it. Softmax, norms and heads are float32; matrix products
take `dtype` inputs and add up in float32.

Layers differ in their weights and in how far back they see. Both are scanned
along, so a model of many layers compiles as one, windows or not.
"""

import dataclasses
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from alignment_rl import attention
from alignment_rl.types import KVCache

DTYPES = ('float32', 'bfloat16')  # of the inputs of matrix products

# What the backward pass keeps of a block, the rest being computed again.
REMATS = {
  'none': None,  # all of it
  'block': jax.checkpoint_policies.nothing_saveable,
  # Of products with a weight; attention's have batch axes.
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

# The matrices of a layer: what LoRA can stand beside.
PROJECTIONS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """RoPE of a model that was first trained on shorter texts.

  A pair of features that turns less than `low` times in `length` tokens turns
  `factor` times slower, one that turns over `high` times as before, and between
  them by a share of both (Llama 3.1). With `length` 0 all of them turn slower.
  """

  factor: float
  low: float = 1.0
  high: float = 2.0
  length: int = 0


@dataclasses.dataclass(frozen=True)
class Lora:
  """Trained low-rank terms beside frozen matrices: see `alignment_rl/lora.py`.

  Attributes:
    rank: N.
    alpha: the term is multiplied by alpha / rank.
    targets: which of PROJECTIONS have one.
  """

  rank: int
  alpha: float
  targets: tuple[str, ...] = PROJECTIONS


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes and switches; the letters are those of `types.py`."""

  vocab: int  # V
  embed: int  # D
  layers: int  # L
  heads: int  # Q
  kv_heads: int  # K
  head_dim: int  # H
  mlp: int  # F
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  norm_eps: float = 1e-5
  norm_offset: float = 0.0  # norms multiply by this + their weight
  tied: bool = True  # the language-model head is the embedding table
  embed_scale: float = 1.0  # multiplies the embeddings, not the head
  qkv_bias: bool = False
  qk_norm: bool = False  # queries and keys are normed, over H
  post_norms: bool = False  # what a block adds is normed too
  activation: str = 'silu'  # of the gate: 'silu' | 'gelu_tanh'
  query_scalar: int = 0  # queries are divided by its root; 0 = H
  attention_cap: float = 0.0  # scores become cap tanh(score / cap); 0 = no cap
  logit_cap: float = 0.0  # and so do logits
  # Of each layer, how many tokens one sees, itself included; 0 = all before it.
  windows: tuple[int, ...] = ()  # () = no layer has one
  window_theta: float = 0.0  # RoPE of layers with a window; 0 = as the others
  dtype: str = 'float32'  # inputs of matrix products
  lora: Lora | None = None  # None leaves such terms out, if there are any
  remat: str = 'none'  # what is computed again going backward: see REMATS
  attention: str = 'auto'  # 'auto' | 'einsum' | 'splash', see attention.py

  def __post_init__(self):
    if self.windows and len(self.windows) != self.layers:
      raise ValueError(f'{len(self.windows)} windows, {self.layers} layers')

  def part(self, layers: slice) -> 'DecoderConfig':
    """The sizes of a model of these layers alone."""
    return dataclasses.replace(
      self,
      layers=len(range(*layers.indices(self.layers))),
      windows=self.windows[layers],
    )


class Decoder(nn.Module):
  """Trunk and two heads. `apply({'params': p}, ...)`, heads by `method=`."""

  config: DecoderConfig
  mesh: jax.sharding.Mesh | None = None  # that rows lie on; None = one device

  def setup(self):
    c = self.config
    self.embed = self.param(
      'embed', _init(0.02, ('vocab', 'embed')), (c.vocab, c.embed)
    )
    block = _Block
    if c.remat != 'none':
      block = nn.remat(_Block, prevent_cse=False, policy=REMATS[c.remat])
    self.layers = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(0, nn.broadcast),
      length=c.layers,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(c, self.mesh)
    self.final_norm = self.param('final_norm', _scale(c, 'embed'), (c.embed,))
    if not c.tied:
      self.lm_head = self.param(
        'lm_head', _init(0.02, ('embed', 'vocab')), (c.embed, c.vocab)
      )
    # Starts at zero: the first value is 0.
    self.value_head = self.param('value_head', _zeros(('embed',)), (c.embed,))

  def __call__(
    self, tokens: jax.Array, positions: jax.Array, **context
  ) -> tuple[jax.Array, KVCache]:
    """`states`, but after the final norm."""
    x, cache = self.states(tokens, positions, **context)
    return _norm(x, self.final_norm, self.config), cache

  def states(
    self,
    tokens: jax.Array,
    positions: jax.Array,
    *,
    prefix: KVCache | None = None,
    prefix_lengths: jax.Array | None = None,
    cache: KVCache | None = None,
    slot: jax.Array | int = 0,
  ) -> tuple[jax.Array, KVCache]:
    """Runs the layers.

    Args:
      tokens: int32 [B, G, T]; or float32 [B, G, T, D], the states that lower
        layers, cut off (`forward.cut`), made of them.
      positions: int32 [B, G, T], for RoPE and windows. After a prefix, a row's
        tokens have those that follow its prompt.
      prefix: prompt segment [L, B, P, K, H] that every token attends to; slot p
        is position p.
      prefix_lengths: int32 [B]; prompt slots at or beyond it are not seen.
      cache: completion segment [L, B, G, S, K, H] to extend at `slot`; None
        attends causally within `tokens` alone.
      slot: int32 [], where in S the first of `tokens` goes.

    Returns:
      States before the final norm, float32 [B, G, T, D]; and the extended
      `cache`, or without one the keys and values of `tokens` as a segment
      [L, B, G, T, K, H] (not computed under jit if the caller drops it).
    """
    c = self.config
    chex.assert_rank([tokens, positions], [{3, 4}, 3])
    chex.assert_equal_shape_prefix([tokens, positions], 3)
    if (prefix is None) != (prefix_lengths is None):
      raise ValueError('prefix and prefix_lengths go together')
    T = positions.shape[-1]
    S = T if cache is None else cache.k.shape[3]
    start = 0 if cache is None else slot
    context = {
      'rope': _rope(positions, c.rope_theta, c.rope_scaling, c),
      # How far back the slots of the own segment are, [T, S].
      'own_distance': start + jnp.arange(T)[:, None] - jnp.arange(S),
      'slot': slot,
    }
    if c.window_theta:
      context['window_rope'] = _rope(positions, c.window_theta, None, c)
    if prefix is not None:
      P = prefix.k.shape[2]
      context['prefix_lengths'] = prefix_lengths
      context['prefix_distance'] = positions[..., None] - jnp.arange(P)
    if tokens.ndim == 4:
      x = tokens.astype(jnp.float32)
    else:
      x = self.embed[tokens].astype(jnp.float32) * c.embed_scale
    # The completion cache is carried, not scanned: each layer writes its one
    # slot in place, where scanning would copy the whole cache at every token.
    carry = (x, cache)
    windows = (
      jnp.array([w or attention.ALL for w in c.windows]) if c.windows else None
    )
    each = (jnp.arange(c.layers), windows, prefix)
    (x, cache), own = self.layers(carry, each, context)
    return x, own if cache is None else cache

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Language-model head: float32 [..., D] -> float32 [..., V]."""
    c = self.config
    if c.tied:
      logits = _dot('...D,VD->...V', hidden, self.embed, c)
    else:
      logits = _dot('...D,DV->...V', hidden, self.lm_head, c)
    return attention.soft_cap(logits, c.logit_cap)

  def value(self, hidden: jax.Array) -> jax.Array:
    """Value head: float32 [..., D] -> float32 [...]."""
    return hidden @ self.value_head

  def init_everything(self, tokens: jax.Array) -> jax.Array:
    """Touches trunk and heads, so that `init` makes every parameter."""
    hidden, _ = self(tokens, jnp.zeros_like(tokens))
    return self.logits(hidden).sum() + self.value(hidden)


class _Block(nn.Module):
  """One layer: attention and gated MLP, each behind a norm and a residual."""

  config: DecoderConfig
  mesh: jax.sharding.Mesh | None

  @nn.compact
  def __call__(self, carry, each, context):
    c = self.config
    axes = {
      'D': ('embed', c.embed), 'Q': ('heads', c.heads), 'F': ('mlp', c.mlp),
      'K': ('kv_heads', c.kv_heads), 'H': ('head_dim', c.head_dim),
    }  # fmt: skip
    x, cache = carry
    layer, window, prefix = each

    def norm(name, x, axis='embed'):
      return _norm(x, self.param(name, _scale(c, axis), x.shape[-1:]), c)

    def project(name, letters, x):
      _, w_letters, _ = re.split(',|->', letters)
      logical, sizes = zip(*(axes[i] for i in w_letters), strict=True)
      w = self.param(name, _init(0.02, logical), sizes)
      out = _dot(letters, x, w, c)
      if c.lora and name in c.lora.targets:
        out += _Lora(c, name=f'{name}_lora')(letters, x, axes)
      if c.qkv_bias and name in ('q', 'k', 'v'):
        out += self.param(f'{name}_bias', _zeros(logical[1:]), sizes[1:])
      return out

    y = norm('attention_norm', x)
    q = project('q', 'BGTD,DQH->BGTQH', y)
    k = project('k', 'BGTD,DKH->BGTKH', y)
    v = project('v', 'BGTD,DKH->BGTKH', y)
    if c.qk_norm:
      q = norm('q_norm', q, 'head_dim')
      k = norm('k_norm', k, 'head_dim')
    rope = context['rope']
    if c.window_theta:
      rope = jax.tree.map(
        lambda near, far: jnp.where(window < attention.ALL, near, far),
        context['window_rope'],
        rope,
      )
    q, k = _rotate(q, rope), _rotate(k, rope)
    own = KVCache(k, v) if cache is None else None
    if cache is not None:
      at = (layer, 0, 0, context['slot'], 0, 0)
      cache = jax.tree.map(
        lambda old, new: jax.lax.dynamic_update_slice(
          old, new[None].astype(old.dtype), at
        ),
        cache,
        KVCache(k, v),
      )
      k, v = cache.k[layer], cache.v[layer]
    y = attention.attend(q, k, v, prefix, window, context, c, self.mesh)
    y = project('o', 'BGTQH,QHD->BGTD', y)
    x = x + (norm('attention_post_norm', y) if c.post_norms else y)

    y = norm('mlp_norm', x)
    gate = project('gate', 'BGTD,DF->BGTF', y)
    up = project('up', 'BGTD,DF->BGTF', y)
    y = project('down', 'BGTF,FD->BGTD', _ACTIVATIONS[c.activation](gate) * up)
    x = x + (norm('mlp_post_norm', y) if c.post_norms else y)
    return (x, cache), own


class _Lora(nn.Module):
  """What LoRA adds to a projection: (alpha / rank) (x A) B, 0 at the start.

  On the activations, so that no gradient of the size of the frozen matrix is
  ever made.
  """

  config: DecoderConfig

  @nn.compact
  def __call__(self, letters, x, axes):
    c, N = self.config, self.config.lora.rank
    wide, w, out = re.split(',|->', letters)
    inner = ''.join(i for i in w if i not in out)
    outer = ''.join(i for i in w if i in out)
    low = wide.replace(inner, 'N')
    of = lambda letters: zip(*(axes[i] for i in letters), strict=True)
    (a_axes, a_sizes), (b_axes, b_sizes) = of(inner), of(outer)
    # An entry of x A is as large as one of x, whatever the sizes.
    start = _init(np.prod(a_sizes) ** -0.5, (*a_axes, 'rank'))
    a = self.param('a', start, (*a_sizes, N))
    b = self.param('b', _zeros(('rank', *b_axes)), (N, *b_sizes))
    x = _dot(f'{wide},{inner}N->{low}', x, a, c)
    x = _dot(f'{low},N{outer}->{out}', x, b, c)
    return x * (c.lora.alpha / N)


_ACTIVATIONS = {'silu': nn.silu, 'gelu_tanh': nn.gelu}


def _dot(letters, x, w, config):
  dtype = jnp.dtype(config.dtype)
  return jnp.einsum(
    letters,
    x.astype(dtype),
    w.astype(dtype),
    preferred_element_type=jnp.float32,
  )


def _norm(x, scale, config):
  mean = (x * x).mean(-1, keepdims=True)
  scale = scale + config.norm_offset
  return x * jax.lax.rsqrt(mean + config.norm_eps) * scale


def _rope(positions, theta, scaling, config):
  """cos and sin, float32 [B, G, T, 1, H/2], in the rotate-halves convention."""
  H = config.head_dim
  rate = theta ** (-jnp.arange(0, H, 2) / H)
  if scaling is not None:
    turns = scaling.length * rate / (2 * np.pi)
    kept = (turns - scaling.low) / (scaling.high - scaling.low)
    kept = jnp.clip(kept, 0.0, 1.0)
    rate = kept * rate + (1 - kept) * rate / scaling.factor
  angle = (positions[..., None] * rate)[..., None, :]
  return jnp.cos(angle), jnp.sin(angle)


def _rotate(x, rope):
  cos, sin = rope
  a, b = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _init(std, axes):
  return nn.with_logical_partitioning(nn.initializers.normal(std), axes)


def _scale(config, axis):
  """A norm's weight, which starts by multiplying by 1."""
  start = nn.initializers.constant(1 - config.norm_offset)
  return nn.with_logical_partitioning(start, (axis,))


def _zeros(axes):
  return nn.with_logical_partitioning(nn.initializers.zeros, axes)
