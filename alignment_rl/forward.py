"""Given tokens to states, and states to log-probabilities.

One alignment for all who read and draw: entry t describes completion token t
given all before it, and a group shares one copy of its prompt's keys and
values. `teacher_force` is what the update differentiates.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from alignment_rl import sharding
from alignment_rl.models.decoder import Decoder

# Tokens of a device whose logits exist at a time: 512 x 49152 float32 are 100
# MB.
_LOGITS_CHUNK = 512


def prefill(model: Decoder, params, prompts, prompt_lengths):
  """Runs the prompts once.

  Args:
    prompts: int32 [B, P], padded on the right; or float32 [B, P, D], their
      states after layers that were cut off.
    prompt_lengths: int32 [B].

  Returns:
    The hidden state of each prompt's last token, float32 [B, D], and the shared
    prompt segment, KVCache [L, B, P, K, H].
  """
  chex.assert_rank([prompts, prompt_lengths], [{2, 3}, 1])
  B, P = prompts.shape[:2]
  positions = jnp.broadcast_to(jnp.arange(P), (B, 1, P))
  hidden, segment = model.apply({'params': params}, prompts[:, None], positions)
  last = (prompt_lengths - 1)[:, None, None]
  return (
    jnp.take_along_axis(hidden[:, 0], last, axis=1)[:, 0],
    jax.tree.map(lambda x: x[:, :, 0], segment),
  )


def hidden_before(model: Decoder, params, prompts, prompt_lengths, completions):
  """The hidden state from which each completion token is predicted.

  Args:
    completions: int32 [B, G, C]; or float32 [B, G, C, D], as `prompts`.

  Returns:
    float32 [B, G, C, D].
  """
  chex.assert_rank(completions, {3, 4})
  B, G, C = completions.shape[:3]
  last, prefix = prefill(model, params, prompts, prompt_lengths)
  first = jnp.broadcast_to(last[:, None, None], (B, G, 1, last.shape[-1]))
  if C == 1:
    return first
  # The last token predicts nothing that is asked for: C - 1 tokens suffice.
  positions = prompt_lengths[:, None, None] + jnp.arange(C - 1)
  hidden, _ = model.apply(
    {'params': params},
    completions[:, :, :-1],
    jnp.broadcast_to(positions, (B, G, C - 1)),
    prefix=prefix,
    prefix_lengths=prompt_lengths,
  )
  return jnp.concatenate([first, hidden], axis=2)


def token_logprobs(model: Decoder, params, hidden, tokens, temperature=1.0):
  """Log-probability of each token and entropy of its distribution, in nats.

  The logits of a whole batch never exist (`over_logits`).

  Args:
    hidden: float32 [..., D], the state before each token.
    tokens: int32 [...].
    temperature: divides the logits.

  Returns:
    Two float32 [...].
  """

  def read(logits, tokens):
    logits = logits / temperature
    norm = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    mean = (jnp.exp(logits - norm[:, None]) * logits).sum(-1)
    return chosen - norm, jax.lax.stop_gradient(norm - mean)

  return over_logits(model, params, hidden, tokens, read)


def over_logits(model: Decoder, params, hidden, tokens, read: Callable):
  """`read` of each state's logits, a chunk of states at a time.

  The logits are made again in the backward pass.

  Args:
    hidden: float32 [..., D].
    tokens: int32 [...], one for each state, for `read` to use.
    read: (float32 [n, V], int32 [n]) -> a tree of arrays [n, ...].

  Returns:
    The tree, of arrays [..., ...].
  """
  D = hidden.shape[-1]
  # Beside the layers, which the head does not read.
  heads = {name: w for name, w in params.items() if name != 'layers'}

  def all_rows(heads, hidden, tokens):
    shape = tokens.shape  # Of one device's rows.
    n = int(np.prod(shape))
    chunk = min(_LOGITS_CHUNK, n)
    extra = -n % chunk
    hidden = jnp.pad(hidden.reshape(n, D), ((0, extra), (0, 0)))
    tokens = jnp.pad(tokens.reshape(n), (0, extra))

    @jax.checkpoint
    def one(hidden, tokens):
      logits = model.apply({'params': heads}, hidden, method='logits')
      return read(logits, tokens)

    if n == chunk:
      found = one(hidden, tokens)
    else:
      found = jax.lax.map(
        lambda xs: one(*xs),
        (hidden.reshape(-1, chunk, D), tokens.reshape(-1, chunk)),
      )
      found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
    return jax.tree.map(lambda x: x[:n].reshape(*shape, *x.shape[1:]), found)

  if model.mesh is not None and sharding.row_shards(model.mesh) > 1:
    # A chunk is of one device's rows; across devices it would have to be
    # gathered. The head comes whole to each, once, but split along 'tensor'.
    rows, one = sharding.ROWS, jax.sharding.PartitionSpec()
    all_rows = jax.shard_map(
      all_rows,
      mesh=model.mesh,
      in_specs=(one, rows, rows),
      out_specs=rows,
      axis_names=set(rows[0]),
      check_vma=False,
    )
  return all_rows(heads, hidden, tokens)


def teacher_force(
  model: Decoder,
  params,
  prompts: jax.Array,
  prompt_lengths: jax.Array,
  completions: jax.Array,
  temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What the policy says of given completions; differentiable in `params`.

  Args:
    prompts: int32 [B, P].
    prompt_lengths: int32 [B].
    completions: int32 [B, G, C].
    temperature: of the policy that is trained.

  Returns:
    Log-probabilities and entropies in nats, and values, float32 [B, G, C].
  """
  hidden = hidden_before(model, params, prompts, prompt_lengths, completions)
  logprobs, entropy = token_logprobs(
    model, params, hidden, completions, temperature
  )
  values = model.apply({'params': params}, hidden, method='value')
  return logprobs, entropy, values


def mean_hidden(
  model: Decoder, params, prompts, prompt_lengths, replies, lengths
):
  """The mean state of each reply's tokens, after the final norm.

  Args:
    prompts: int32 [B, P].
    prompt_lengths: int32 [B].
    replies: int32 [B, G, C].
    lengths: int32 [B, G].

  Returns:
    float32 [B, G, D].
  """
  chex.assert_rank([prompts, replies], [2, 3])
  _, prefix = prefill(model, params, prompts, prompt_lengths)
  positions = prompt_lengths[:, None, None] + jnp.arange(replies.shape[-1])
  hidden, _ = model.apply(
    {'params': params},
    replies,
    jnp.broadcast_to(positions, replies.shape),
    prefix=prefix,
    prefix_lengths=prompt_lengths,
  )
  real = jnp.arange(replies.shape[-1]) < lengths[..., None]
  total = jnp.where(real[..., None], hidden, 0.0).sum(2)
  return total / jnp.maximum(lengths, 1)[..., None]


def cut(model: Decoder, params, layers: int):
  """The trunk in two: its first `layers` layers, and the rest.

  Returns:
    (decoder, params) of either, both with embedding, norm and heads.
  """
  parts = []
  for part in (slice(0, layers), slice(layers, model.config.layers)):
    taken = jax.tree.map(lambda x, part=part: x[part], params['layers'])
    sizes = model.config.part(part)
    parts.append((model.clone(config=sizes), params | {'layers': taken}))
  return parts


def join(lower, upper):
  """The inverse of `cut`, of parameters; all but layers are the upper's."""
  layers = jax.tree.map(
    lambda a, b: jnp.concatenate([a, b]), lower['layers'], upper['layers']
  )
  return upper | {'layers': layers}
