"""Prompts to completions: `Sampler` draws rollouts, `decode` adds their tokens.

Aligned as `forward.py` reads: entry t describes completion token t given all
before it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment_rl import lora, sharding
from alignment_rl.forward import prefill
from alignment_rl.models.decoder import Decoder
from alignment_rl.types import KVCache, Rollout


class Sampler:
  """Draws G completions a prompt from the full vocabulary.

  Randomness is addressed: token t of completion g in slot r of a step depends
  on (seed, purpose, step, r, g, t) alone, so a row's sample does not change
  with batch layout, mesh or the other rows.
  """

  def __init__(
    self,
    model: Decoder,
    mesh: jax.sharding.Mesh,
    *,
    group: int,
    length: int,
    eos_ids: Sequence[int],
    temperature: float = 1.0,
    dtype: str = '',
    layout: Any = None,
  ):
    """Compiles at the first call.

    Args:
      mesh: where parameters come from and rollouts go to.
      length: C, tokens.
      temperature: 0 takes the likeliest token.
      dtype: inputs of the matrix products that add tokens; prompts are read in
        the model's, '' does both in it.
      layout: shardings of the parameters, adapters merged, while it samples, on
        another mesh of the same devices: at each call they are moved there, and
        the rollout is moved back. None = as they come.
    """
    c = model.config
    dtype = dtype or c.dtype
    self.group, self.length = group, length
    self.rows = sharding.rows(mesh)
    self._layout = layout
    if layout is not None:
      mesh = jax.tree.leaves(layout)[0].mesh

      def to_move(params):
        params = lora.merge(params, c.lora)
        # Half of what would be moved and held, where the dtype is half as wide.
        return cast_matrices(params, dtype) if dtype == c.dtype else params

      self._to_move = jax.jit(to_move)
      model = model.clone(config=dataclasses.replace(c, lora=None))
    model = model.clone(mesh=mesh)
    rows, one = sharding.rows(mesh), sharding.replicated(mesh)
    self._own_rows = rows
    self.program = jax.jit(
      functools.partial(
        _sample,
        model,
        group,
        length,
        tuple(eos_ids),
        temperature,
        dtype,
      ),  # fmt: skip
      in_shardings=(None, rows, rows, rows, one),
      out_shardings=rows,
    )

  def __call__(
    self,
    params,
    prompts: np.ndarray,
    prompt_lengths: np.ndarray,
    slots: np.ndarray,
    key: jax.Array,
  ) -> Rollout:
    """Samples one batch.

    Args:
      prompts: int32 [B, P] on the host.
      prompt_lengths: int32 [B].
      slots: int32 [B], the address of each row's randomness.
      key: of (seed, purpose, step).

    Returns:
      Global arrays, rows over the mesh that the parameters came from.
    """
    if self._layout is not None:
      params = jax.device_put(self._to_move(params), self._layout)
    place = lambda x: sharding.to_global(
      np.asarray(x, np.int32), self._own_rows
    )
    rolled = self.program(
      params, place(prompts), place(prompt_lengths), place(slots), key
    )
    return jax.device_put(rolled, self.rows)

  def moved(self, params):
    """Shapes of the parameters that `program` is given, from those of a run."""
    if self._layout is None:
      return params
    return sharding.abstract(
      jax.eval_shape(self._to_move, params), self._layout
    )


def _sample(
  model, G, C, eos_ids, temperature, dtype,
  params, prompts, prompt_lengths, slots, key,
):  # fmt: skip
  # With LoRA, merged once: two more products at every token would cost more.
  params = lora.merge(params, model.config.lora)
  sizes = dataclasses.replace(model.config, lora=None)
  reader = model.clone(config=sizes)
  writer = model.clone(config=dataclasses.replace(sizes, dtype=dtype))
  B = prompts.shape[0]
  last, prefix = prefill(
    reader, cast_matrices(params, sizes.dtype), prompts, prompt_lengths
  )
  params = cast_matrices(params, dtype)
  prefix = jax.tree.map(lambda x: x.astype(dtype), prefix)
  fold = jax.random.fold_in
  keys = jax.vmap(
    lambda r: jax.vmap(lambda g: fold(fold(key, r), g))(jnp.arange(G))
  )(slots)

  def choose(t, logits):
    if temperature == 0:
      logprobs = jax.nn.log_softmax(logits)
      token = logits.argmax(-1)
    else:
      logprobs = jax.nn.log_softmax(logits / temperature)
      draw = lambda key, lp: lp + jax.random.gumbel(fold(key, t), lp.shape)
      token = jax.vmap(jax.vmap(draw))(keys, logprobs).argmax(-1)
    return token, jnp.take_along_axis(logprobs, token[..., None], -1)[..., 0]

  *_, tokens, logprobs, lengths = decode(
    writer, params, jnp.broadcast_to(last[:, None], (B, G, last.shape[-1])),
    prefix, prompt_lengths, C, eos_ids, choose, jnp.zeros((B, G), bool),
  )  # fmt: skip
  return Rollout(prompts, prompt_lengths, tokens, lengths, logprobs)


def decode(
  model: Decoder,
  params,
  hidden: jax.Array,
  prefix: KVCache,
  prefix_lengths: jax.Array,
  length: int,
  eos_ids: Sequence[int],
  choose: Callable,
  done: jax.Array,
):
  """Adds tokens one by one, until there are `length` or every row has ended.

  Args:
    hidden: float32 [B, G, D], the states from which the first tokens come.
    prefix: what was read before, KVCache [L, B, P, K, H] of the model's dtype.
    prefix_lengths: int32 [B].
    length: C.
    choose: (t, logits float32 [B, G, V]) -> tokens [B, G] and whatever else is
      to be kept of them, a tree of arrays [B, G, ...].
    done: bool [B, G], rows that get no token.

  Returns:
    The states after the last tokens, float32 [B, G, D] (of a row that has
    ended, of any content); their segment, KVCache [L, B, G, C, K, H]; tokens,
    int32 [B, G, C]; what was kept, [B, G, C, ...]; and lengths, int32 [B, G],
    EOS included. Tokens and what was kept are 0 beyond the lengths.
  """
  c = model.config
  B, G = done.shape
  shape = (c.layers, B, G, length, c.kv_heads, c.head_dim)
  cache = KVCache(jnp.zeros(shape, c.dtype), jnp.zeros(shape, c.dtype))
  ends = jnp.array(eos_ids)

  def pick(t, hidden):
    logits = model.apply({'params': params}, hidden, method='logits')
    token, kept = choose(t, logits)
    return token.astype(jnp.int32), kept

  def keep(t, done, kept, new):
    done = done.reshape(B, G, *[1] * (new.ndim - 2))
    return kept.at[:, :, t].set(jnp.where(done, 0, new))

  def body(carry):
    t, hidden, cache, tokens, kept, lengths, done = carry
    token, new = pick(t, hidden)
    put = functools.partial(keep, t, done)
    tokens, kept = put(tokens, token), jax.tree.map(put, kept, new)
    lengths = lengths + ~done
    done = done | jnp.isin(token, ends)
    positions = jnp.broadcast_to(
      (prefix_lengths + t)[:, None, None], (*token.shape, 1)
    )
    hidden, cache = model.apply(
      {'params': params},
      token[..., None],
      positions,
      prefix=prefix,
      prefix_lengths=prefix_lengths,
      cache=cache,
      slot=t,
    )
    return t + 1, hidden[:, :, 0], cache, tokens, kept, lengths, done

  empty = lambda x: jnp.zeros((B, G, length, *x.shape[2:]), x.dtype)
  tokens, kept = jax.tree.map(empty, jax.eval_shape(pick, 0, hidden))
  carry = (0, hidden, cache, tokens, kept, jnp.zeros((B, G), jnp.int32), done)
  carry = jax.lax.while_loop(
    lambda carry: (carry[0] < length) & ~carry[-1].all(), body, carry
  )
  return carry[1:-1]


def cast_matrices(params, dtype):
  """The parameters for decoding: matrices in `dtype`, all else in float32.

  Once, before a loop: inside it every token would convert every weight.
  """
  # Stacked over layers, a bias has an axis more too.
  matrix = lambda path, w: w.ndim > 2 and not path[-1].key.endswith('_bias')
  return jax.tree.map_with_path(
    lambda path, w: w.astype(dtype) if matrix(path, w) else w, params
  ) | {
    name: params[name].astype(dtype)
    for name in ('embed', 'lm_head')
    if name in params
  }
