"""Attention over a shared prompt and a row's own segment, as one softmax.

Two programs of the same numbers. `_einsum` runs anywhere and holds all scores,
float32 [B, G, Q, T, P + S]. `_splash` is JAX's flash attention for TPUs, which
holds one block of them: a group is read as one sequence of G T queries over
P + G T keys, so that the prompt's keys are there once, and blocks between two
members of a group are skipped, not masked. A decoded token has few scores and
is always read by the first.

`jax.nn.dot_product_attention` fits neither segment: two of its results can be
joined by their log-sums alone, through which it sends no gradient; it takes no
mask by length of one segment and place in the other, and no soft cap.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as masks,
)
from jax.sharding import PartitionSpec

from alignment_rl.axes import ROWS, RULES

NAMES = ('auto', 'einsum', 'splash')

# A window of a layer that has none.
ALL = np.iinfo(np.int32).max

# Sides of the kernel's blocks of scores, the largest that fits first.
_BLOCKS = (512, 256, 128)
# Fewer tokens fill less than half of the smallest block.
_SHORTEST = _BLOCKS[-1] // 2


def attend(q, k, v, prefix, window, context, config, mesh):
  """What each query reads.

  Args:
    q: [B, G, T, Q, H], after RoPE.
    k: [B, G, S, K, H], as `v`.
    prefix: KVCache of [B, P, K, H], or None.
    window: int32 [], one of `config.windows` or `ALL`; None where no layer has
      one.
    context: of `Decoder.states`: what is seen from where.
    config: the `DecoderConfig`.
    mesh: where the rows lie; None = on one device.

  Returns:
    [B, G, T, Q, H], float32 or of `config.dtype`.
  """
  q = q * (config.query_scalar or config.head_dim) ** -0.5
  dtype = jnp.dtype(config.dtype)
  q, k, v, prefix = jax.tree.map(lambda x: x.astype(dtype), (q, k, v, prefix))
  alone = 1 < q.shape[2] == k.shape[2]  # No cache: S are these tokens.
  if not (alone and _takes_kernel(config.attention, q.shape[2], mesh)):
    return _einsum(q, k, v, prefix, window, context, config.attention_cap)
  platform = _platform(mesh)
  read = lambda *args: _splash(*args, config, interpret=platform != 'tpu')
  if mesh is not None:
    # The kernel is opaque to the partitioner: rows and heads are split by hand.
    heads, kv_heads = (dict(RULES)[name] for name in ('heads', 'kv_heads'))
    of_q = PartitionSpec(*ROWS, None, None, heads)
    of_k = PartitionSpec(*ROWS, None, None, kv_heads)
    of_prefix = PartitionSpec(*ROWS, None, kv_heads)
    read = jax.shard_map(
      read,
      mesh=mesh,
      in_specs=(of_q, of_k, of_k, of_prefix, ROWS, PartitionSpec()),
      out_specs=of_q,
      check_vma=False,  # The kernel does not say over which axes it varies.
    )
  return read(q, k, v, prefix, context.get('prefix_lengths'), window)


def soft_cap(x, cap):
  """x up to `cap` in size, gently; 0 = as it is."""
  return cap * jnp.tanh(x / cap) if cap else x


def _platform(mesh):
  return mesh.devices.flat[0].platform if mesh else jax.default_backend()


def _takes_kernel(name, T, mesh):
  """Elsewhere than on TPUs the kernel is interpreted: asked for, to be checked.

  Without a mesh nobody knows how many devices the rows are on.
  """
  if name == 'auto':
    return mesh is not None and _platform(mesh) == 'tpu' and T >= _SHORTEST
  return name == 'splash'


def _einsum(q, k, v, prefix, window, context, cap):
  """See `attend`. Float32 scores and sums, products of the inputs' dtype."""
  B, G, T, Q, H = q.shape
  K = k.shape[-2]
  q = q.reshape(B, G, T, K, Q // K, H)
  dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

  def visible(scores, seen, distance):
    """Scores [B, G, K, R, T, any], -inf where not seen or beyond the window."""
    if window is not None:
      seen = seen & (distance < window)
    return jnp.where(seen, soft_cap(scores, cap), -jnp.inf)

  scores = dot('BGTKRH,BGSKH->BGKRTS', q, k)
  distance = context['own_distance']
  scores = visible(scores, distance >= 0, distance)
  if prefix is not None:
    shared = dot('BGTKRH,BPKH->BGKRTP', q, prefix.k)
    P = prefix.k.shape[1]
    real = jnp.arange(P) < context['prefix_lengths'][:, None]  # [B, P]
    real = real[:, None, None, None, None, :]
    distance = context['prefix_distance'][:, :, None, None]
    shared = visible(shared, real, distance)
    scores = jnp.concatenate([shared, scores], axis=-1)
  # Every token sees at least itself, so no row of the softmax is empty.
  probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  if prefix is None:
    out = dot('BGKRTS,BGSKH->BGTKRH', probs, v)
  else:
    out = dot('BGKRTP,BPKH->BGTKRH', probs[..., :P], prefix.v)
    out += dot('BGKRTS,BGSKH->BGTKRH', probs[..., P:], v)
  return out.reshape(B, G, T, Q, H)


def _splash(q, k, v, prefix, prefix_lengths, window, config, interpret):
  """See `attend`. The output has the dtype of the inputs."""
  B, G, T, Q, H = q.shape
  q, k, v = (_padded(x, 2) for x in (q, k, v))
  padded = q.shape[2]
  # [B, heads, G T, H]. Padding comes last, so no real token sees it.
  q, k, v = (
    x.transpose(0, 3, 1, 2, 4).reshape(B, x.shape[3], -1, H) for x in (q, k, v)
  )
  P, segments = 0, None
  if prefix is not None:
    prefix = jax.tree.map(lambda x: _padded(x, 1), prefix)
    P = prefix.k.shape[1]
    real = jnp.arange(P) < prefix_lengths[:, None]  # [B, P]
    if config.windows:
      # With every prompt's end at P, distances are the same in all rows.
      roll = jax.vmap(lambda x, n: jnp.roll(x, P - n, axis=0))
      prefix, real = jax.tree.map(
        lambda x: roll(x, prefix_lengths), (prefix, real)
      )
    k, v = (
      jnp.concatenate([of.swapaxes(1, 2), x], axis=2)
      for of, x in ((prefix.k, k), (prefix.v, v))
    )
    one = jnp.ones((B, G * padded), jnp.int32)
    segments = splash.SegmentIds(one, jnp.concatenate([real, one], axis=1))
  block = next(b for b in _BLOCKS if padded % b == P % b == 0)
  sides = ('block_q', 'block_kv')
  sizes = splash.BlockSizes(
    **{f'{side}{of}': block for side in sides for of in ('', '_dkv', '_dq')}
  )

  def read(window, q, k, v, segments):
    mask = _Seen(P, G, padded, window)
    kernel = splash.make_splash_mha(
      masks.MultiHeadMask([mask] * q.shape[1]), block_sizes=sizes,
      head_shards=1, q_seq_shards=1, interpret=interpret,
      attn_logits_soft_cap=config.attention_cap or None,
    )  # fmt: skip
    return jax.vmap(kernel)(q, k, v, segments)

  # A mask is made when the program is, so each window has a program.
  every = sorted({w or ALL for w in config.windows}) or [ALL]
  reads = [functools.partial(read, w) for w in every]
  if len(reads) == 1:
    out = reads[0](q, k, v, segments)
  else:
    which = jnp.searchsorted(jnp.array(every), window)
    out = jax.lax.switch(which, reads, q, k, v, segments)
  return out.reshape(B, Q, G, padded, H)[:, :, :, :T].transpose(0, 2, 3, 1, 4)


def _padded(x, axis):
  """`x` with zeros up to whole blocks along `axis`."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % _BLOCKS[-1])
  return jnp.pad(x, widths)


@dataclasses.dataclass(frozen=True)
class _Seen(masks.Mask):
  """bool [G T, P + G T]: which keys a query sees, prompts ending at `P`.

  The kernel asks for it a block at a time and keeps one copy of equal blocks.
  """

  P: int
  G: int
  T: int
  window: int

  @property
  def shape(self):
    return self.G * self.T, self.P + self.G * self.T

  def __getitem__(self, block):
    queries, keys = (np.arange(side.start, side.stop) for side in block)
    member, t = np.divmod(queries[:, None], self.T)
    # Of the prompt, -1 and where it is before the own segment: -P to -1.
    own = keys >= self.P
    other, place = np.divmod(keys - self.P, self.T)
    if own.all() and not np.intersect1d(member, other).size:
      return np.zeros((len(queries), len(keys)), bool)  # Most of a large group.
    distance = t - np.where(own, place, keys - self.P)
    seen = ~own | (member == other)
    return seen & (0 <= distance) & (distance < self.window)
