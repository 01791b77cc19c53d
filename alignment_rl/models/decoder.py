"""The configurable pre-norm decoder that every family is a setting of.

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
"""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from alignment_rl.types import KVCache


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
  norm_eps: float = 1e-5
  tied: bool = True  # the language-model head is the embedding table
  dtype: str = 'float32'  # inputs of matrix products
  remat: bool = False  # recompute each block in the backward pass


class Decoder(nn.Module):
  """Trunk and two heads. `apply({'params': p}, ...)`, heads by `method=`."""

  config: DecoderConfig

  def setup(self):
    c = self.config
    self.embed = self.param(
      'embed', _init(0.02, ('vocab', 'embed')), (c.vocab, c.embed)
    )
    block = nn.remat(_Block, prevent_cse=False) if c.remat else _Block
    self.layers = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(0, 0, nn.broadcast),
      length=c.layers,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(c)
    self.final_norm = self.param('final_norm', _ones(('embed',)), (c.embed,))
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
    return _norm(x, self.final_norm, self.config.norm_eps), cache

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
        layers, cut off (`rollout.cut`), made of them.
      positions: int32 [B, G, T], for RoPE.
      prefix: prompt segment [L, B, P, K, H] that every token attends to.
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
      'rope': _rope(positions, c),
      'own_mask': jnp.arange(S) <= start + jnp.arange(T)[:, None],  # [T, S]
      'slot': slot,
    }
    if prefix is not None:
      P = prefix.k.shape[2]
      context['prefix_mask'] = jnp.arange(P) < prefix_lengths[:, None]  # [B, P]
    x = tokens if tokens.ndim == 4 else self.embed[tokens]
    x = x.astype(jnp.float32)
    # The completion cache is carried, not scanned: each layer writes its one
    # slot in place, where scanning would copy the whole cache at every token.
    carry = (x, cache)
    (x, cache), own = self.layers(carry, jnp.arange(c.layers), prefix, context)
    return x, own if cache is None else cache

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Language-model head: float32 [..., D] -> float32 [..., V]."""
    if self.config.tied:
      return _dot('...D,VD->...V', hidden, self.embed, self.config)
    return _dot('...D,DV->...V', hidden, self.lm_head, self.config)

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

  @nn.compact
  def __call__(self, carry, layer, prefix, context):
    c = self.config
    D, Q, K, H, F = c.embed, c.heads, c.kv_heads, c.head_dim, c.mlp
    x, cache = carry

    def weight(name, axes, shape):
      return self.param(name, _init(0.02, axes), shape)

    def norm(name, x):
      scale = self.param(name, _ones(('embed',)), (D,))
      return _norm(x, scale, c.norm_eps)

    y = norm('attention_norm', x)
    q = weight('q', ('embed', 'heads', 'head_dim'), (D, Q, H))
    k = weight('k', ('embed', 'kv_heads', 'head_dim'), (D, K, H))
    v = weight('v', ('embed', 'kv_heads', 'head_dim'), (D, K, H))
    o = weight('o', ('heads', 'head_dim', 'embed'), (Q, H, D))
    q = _rotate(_dot('BGTD,DQH->BGTQH', y, q, c), context['rope'])
    k = _rotate(_dot('BGTD,DKH->BGTKH', y, k, c), context['rope'])
    v = _dot('BGTD,DKH->BGTKH', y, v, c)
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
    y = _attend(q, k, v, prefix, context, c)
    x = x + _dot('BGTQH,QHD->BGTD', y, o, c)

    y = norm('mlp_norm', x)
    gate = _dot('BGTD,DF->BGTF', y, weight('gate', ('embed', 'mlp'), (D, F)), c)
    up = _dot('BGTD,DF->BGTF', y, weight('up', ('embed', 'mlp'), (D, F)), c)
    down = weight('down', ('mlp', 'embed'), (F, D))
    x = x + _dot('BGTF,FD->BGTD', nn.silu(gate) * up, down, c)
    return (x, cache), own


def _attend(q, k, v, prefix, context, config):
  """Attention over the shared prompt and the row's own segment, as one softmax.

  Args:
    q: [B, G, T, Q, H].
    k: [B, G, S, K, H], as `v`.
    prefix: KVCache of [B, P, K, H], or None.

  Returns:
    float32 [B, G, T, Q, H].
  """
  B, G, T, Q, H = q.shape
  K = k.shape[-2]
  q = (q * H**-0.5).reshape(B, G, T, K, Q // K, H)
  scores = _dot('BGTKRH,BGSKH->BGKRTS', q, k, config)
  scores = jnp.where(context['own_mask'], scores, -jnp.inf)
  if prefix is not None:
    shared = _dot('BGTKRH,BPKH->BGKRTP', q, prefix.k, config)
    mask = context['prefix_mask'][:, None, None, None, None, :]
    shared = jnp.where(mask, shared, -jnp.inf)
    scores = jnp.concatenate([shared, scores], axis=-1)
  # Every token sees at least itself, so no row of the softmax is empty.
  probs = jax.nn.softmax(scores, axis=-1)
  if prefix is None:
    out = _dot('BGKRTS,BGSKH->BGTKRH', probs, v, config)
  else:
    P = prefix.v.shape[1]
    out = _dot('BGKRTP,BPKH->BGTKRH', probs[..., :P], prefix.v, config)
    out += _dot('BGKRTS,BGSKH->BGTKRH', probs[..., P:], v, config)
  return out.reshape(B, G, T, Q, H)


def _dot(letters, x, w, config):
  dtype = jnp.dtype(config.dtype)
  return jnp.einsum(
    letters,
    x.astype(dtype),
    w.astype(dtype),
    preferred_element_type=jnp.float32,
  )


def _norm(x, scale, eps):
  return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + eps) * scale


def _rope(positions, config):
  """cos and sin, float32 [B, G, T, 1, H/2], in the rotate-halves convention."""
  H = config.head_dim
  rate = config.rope_theta ** (-jnp.arange(0, H, 2) / H)
  angle = (positions[..., None] * rate)[..., None, :]
  return jnp.cos(angle), jnp.sin(angle)


def _rotate(x, rope):
  cos, sin = rope
  a, b = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _init(std, axes):
  return nn.with_logical_partitioning(nn.initializers.normal(std), axes)


def _ones(axes):
  return nn.with_logical_partitioning(nn.initializers.ones, axes)


def _zeros(axes):
  return nn.with_logical_partitioning(nn.initializers.zeros, axes)
