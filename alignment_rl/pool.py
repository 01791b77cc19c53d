"""Rows of unequal length on one device, a few tokens at a time.

A pool is B rows with room for S tokens each. `read` runs a prompt, `place`
copies a row from one pool to another, `extend` adds tokens to all rows that are
not free, each from its own length, temperature and address of noise. `score`
reads prompts for their own log-probabilities. Pure functions, to be jitted.
"""

import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from alignment_rl import forward, rollout
from alignment_rl.models.decoder import Decoder
from alignment_rl.types import KVCache, Purpose

TOP = 20  # Likeliest tokens that are told with every token.


@flax.struct.dataclass
class Pool:
  """What the device keeps of its rows."""

  cache: KVCache  # [L, B, S, K, H], of the model's dtype
  hidden: jax.Array  # float32 [B, D], the states from which next tokens come


@flax.struct.dataclass
class Rows:
  """What the host says of them before each step.

  The noise of a row's token t depends on (seed, choice, t) alone.
  """

  lengths: jax.Array | np.ndarray  # int32 [B], tokens in the cache
  counts: jax.Array | np.ndarray  # int32 [B], tokens sampled before
  seeds: jax.Array | np.ndarray  # uint32 [B, 2], high word and low word
  choices: jax.Array | np.ndarray  # int32 [B]
  temperatures: jax.Array | np.ndarray  # float32 [B], 0 = the likeliest token
  top_ps: jax.Array | np.ndarray  # float32 [B], see `nucleus`
  free: jax.Array | np.ndarray  # bool [B]


@flax.struct.dataclass
class Sampled:
  """New tokens, with what the model says of them before temperature."""

  tokens: jax.Array | np.ndarray  # int32 [B, C]
  lengths: jax.Array | np.ndarray  # int32 [B], EOS included
  logprobs: jax.Array | np.ndarray  # float32 [B, C], nats
  top: tuple  # likeliest first: int32 and float32 [B, C, TOP]


def read(model: Decoder, params, tokens, lengths) -> Pool:
  """Runs prompts: a pool that holds them, of their own padded length.

  Args:
    tokens: int32 [B, P], padded on the right.
    lengths: int32 [B].
  """
  hidden, segment = forward.prefill(model, params, tokens, lengths)
  dtype = model.config.dtype
  return Pool(jax.tree.map(lambda x: x.astype(dtype), segment), hidden)


def place(pool: Pool, source: Pool, index, at) -> Pool:
  """Row `index` of a pool at row `at` of another, of as much room or more."""

  def copy(axis, old, new):
    new = jax.lax.dynamic_slice_in_dim(new, index, 1, axis)
    start = [0] * new.ndim
    start[axis] = at
    return jax.lax.dynamic_update_slice(old, new, start)

  copy_row = functools.partial(copy, 1)
  return Pool(
    jax.tree.map(copy_row, pool.cache, source.cache),
    copy(0, pool.hidden, source.hidden),
  )


def extend(
  model: Decoder,
  steps: int,
  eos_ids: Sequence[int],
  params,
  pool: Pool,
  rows: Rows,
) -> tuple[Pool, Sampled]:
  """Adds `steps` tokens, or those up to EOS, to each row that is not free.

  There must be room for them: every length is at most S - `steps`.
  """
  fold = jax.random.fold_in

  def address(seed, choice):
    key = jax.random.wrap_key_data(seed, impl='threefry2x32')
    return fold(fold(key, Purpose.CHAT), choice)

  keys = jax.vmap(address)(rows.seeds, rows.choices)

  def choose(t, logits):
    logits = logits[:, 0]
    logprobs = jax.nn.log_softmax(logits)
    token = _draw(logits, keys, rows.counts + t, rows.temperatures, rows.top_ps)
    kept = (_chosen(logprobs, token), _likeliest(logprobs))
    return jax.tree.map(lambda x: x[:, None], (token, kept))

  hidden, own, tokens, kept, lengths = rollout.decode(
    model, params, pool.hidden[:, None], pool.cache, rows.lengths, steps,
    eos_ids, choose, rows.free[:, None],
  )  # fmt: skip
  write = jax.vmap(
    lambda old, new, at: jax.lax.dynamic_update_slice(old, new, (0, at, 0, 0)),
    in_axes=(1, 1, 0),
    out_axes=1,
  )
  cache = jax.tree.map(
    lambda old, new: write(old, new[:, :, 0], rows.lengths), pool.cache, own
  )
  sampled = jax.tree.map(lambda x: x[:, 0], Sampled(tokens, lengths, *kept))
  return Pool(cache, hidden[:, 0]), sampled


def score(model: Decoder, params, tokens):
  """What is said of the token that follows, after each token.

  Args:
    tokens: int32 [B, P].

  Returns:
    The log-probability of token t + 1 at t, float32 [B, P], of the last one
    meaningless; and the likeliest, int32 and float32 [B, P, TOP].
  """

  def found(logits, tokens):
    logprobs = jax.nn.log_softmax(logits)
    return _chosen(logprobs, tokens), _likeliest(logprobs)

  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  hidden, _ = model.apply(
    {'params': params}, tokens[:, None], positions[:, None]
  )
  following = jnp.roll(tokens, -1, axis=1)
  return forward.over_logits(model, params, hidden[:, 0], following, found)


def nucleus(logits, top_ps):
  """The fewest likeliest tokens that have `top_p` together; others to -inf.

  Holtzman et al. 2020, arXiv:1904.09751. Tokens as likely as the last of them
  stay too. At 1 nothing changes.

  Args:
    logits: float32 [B, V].
    top_ps: float32 [B], over 0, at most 1.
  """
  falling = -jnp.sort(-logits)
  probs = jax.nn.softmax(falling)
  before = jnp.cumsum(probs, -1) - probs
  least = jnp.where(before < top_ps[:, None], falling, jnp.inf).min(-1)
  # Rounding would take the tail of a row that wants everything.
  stay = (top_ps == 1)[:, None] | (logits >= least[:, None])
  return jnp.where(stay, logits, -jnp.inf)


def _draw(logits, keys, counts, temperatures, top_ps):
  """One token a row by the Gumbel-max trick: int32 [B] of float32 [B, V]."""
  greedy = temperatures == 0
  # The largest is 0, so that no temperature, however low, makes it infinite.
  warm = logits - logits.max(-1, keepdims=True)
  warm /= jnp.where(greedy, 1.0, temperatures)[:, None]
  # A sort takes as long as the model: only where it is asked for.
  warm = jax.lax.cond(
    (top_ps < 1).any(), nucleus, lambda logits, _: logits, warm, top_ps
  )
  noise = jax.vmap(
    lambda key, n: jax.random.gumbel(jax.random.fold_in(key, n), warm.shape[1:])
  )(keys, counts)
  return jnp.where(greedy[:, None], logits, warm + noise).argmax(-1)


def _chosen(logprobs, tokens):
  return jnp.take_along_axis(logprobs, tokens[:, None], -1)[:, 0]


def _likeliest(logprobs):
  values, ids = jax.lax.top_k(logprobs, min(TOP, logprobs.shape[-1]))
  return ids, values
