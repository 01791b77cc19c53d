"""Prompts to completions, and completions to log-probabilities.

One alignment for both: entry t describes completion token t given all before
it, and a group shares one copy of its prompt's keys and values. `Sampler` draws
rollouts; `teacher_force` scores given completions and is what the update
differentiates; `TextScorer` is the judge that rewards and benchmarks read with.
"""

import copy
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from alignment_rl import lora, sharding, text
from alignment_rl.models.decoder import Decoder
from alignment_rl.types import KVCache, Rollout, Tokenizer

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


class TextScorer:
  """Reads text with a frozen model, in few shapes: the `Judge` of rewards.

  Contexts are text, or tokens such as those of a chat. Rows are sorted by
  shape, cut into batches of `rows`, and padded to multiples of `step` tokens.
  """

  def __init__(
    self,
    model: Decoder,
    params,
    tokenizer: Tokenizer,
    mesh: jax.sharding.Mesh,
    *,
    rows: int = 8,
    step: int = 16,
    coarse: bool = False,
  ):
    """`coarse` takes few sizes instead: texts of very different lengths."""
    self.params, self.tokenizer = params, tokenizer
    model = model.clone(mesh=mesh)
    self._step, self._coarse = step, coarse
    shards = sharding.row_shards(mesh)
    self._batch, self._shards = -(-rows // shards) * shards, shards
    self._rows = split = sharding.rows(mesh)

    def logprobs(params, prompts, prompt_lengths, completions, lengths):
      values, _, _ = teacher_force(
        model, params, prompts, prompt_lengths, completions
      )
      real = jnp.arange(completions.shape[-1]) < lengths[..., None]
      return jnp.where(real, values, 0.0).sum(-1)

    compiled = functools.partial(
      jax.jit, in_shardings=(None, *[split] * 4), out_shardings=split
    )
    self.program = compiled(logprobs)
    self._features = compiled(functools.partial(mean_hidden, model))
    self._config = model.config

  def with_params(self, params) -> 'TextScorer':
    """The same compiled programs over other parameters of the same shapes."""
    other = copy.copy(self)
    other.params = params
    return other

  def logprobs(self, contexts, continuations, progress=lambda done: None):
    """See `Judge.logprobs`. `progress` hears how many contexts were done."""
    return self._read(self.program, contexts, continuations, progress)

  def features(self, contexts, continuations, progress=lambda done: None):
    """The mean state of each continuation's tokens: float32 [n, D] each."""
    return self._read(self._features, contexts, continuations, progress)

  @functools.cache  # noqa: B019  A scorer lives as long as its program.
  def fingerprint(self) -> str:
    """See `Judge.fingerprint`; of sums over every parameter, and the sizes."""
    sums = jax.jit(
      lambda tree: jax.tree.map(lambda x: (x.sum(), (x * x).sum()), tree)
    )(self.params)
    text = repr((self._config, jax.tree.map(float, sharding.to_host(sums))))
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def stream(
    self,
    contexts: Sequence[str | Sequence[int]],
    continuations: Sequence[Sequence[str]],
    wanted: Callable[[int], bool] = lambda i: True,
  ) -> Iterator[list[tuple[int, np.ndarray]]]:
    """`logprobs` batch by batch: (index, float32 [n]) of each context in it.

    The batches do not depend on `wanted`; one of which nothing is wanted is not
    read. So what is read after a restart is what would have been read before.
    """
    return self._stream(self.program, contexts, continuations, wanted)

  def _read(self, function, contexts, continuations, progress):
    out = [np.zeros(0, np.float32)] * len(contexts)
    every = lambda i: True
    for batch in self._stream(function, contexts, continuations, every):
      for i, row in batch:
        out[i] = row
      progress(len(batch))
    return out

  def _stream(self, function, contexts, continuations, wanted):
    encode = self.tokenizer.encode
    tokens = (encode(c) if isinstance(c, str) else list(c) for c in contexts)
    prompts = [t or [self.tokenizer.start_id] for t in tokens]
    endings = [[encode(c) for c in group] for group in continuations]
    shapes = list(map(self._shape, prompts, endings))
    for batch in self._batches(shapes):
      if not any(map(wanted, batch)):
        continue
      G, C, _ = shapes[batch[0]]
      P = max(shapes[i][2] for i in batch)
      n = self._most(P)
      if self._coarse:
        n = text.padded_rows(len(batch), n, self._shards)
      full = [batch[j % len(batch)] for j in range(n)]
      tokens, lengths = text.pad([prompts[i] for i in full], P, 0)
      # Places beyond a context's own continuations repeat its last one.
      group = lambda of, G=G: [of[min(g, len(of) - 1)] for g in range(G)]
      replies, reply_lengths = text.pad(
        [row for i in full for row in group(endings[i])], C, 0
      )
      args = (tokens, lengths, replies.reshape(-1, G, C))
      args += (reply_lengths.reshape(-1, G),)
      found = function(self.params, *sharding.to_global(args, self._rows))
      yield [
        (i, np.asarray(row[: len(endings[i])], np.float32))
        for i, row in zip(batch, sharding.to_host(found), strict=False)
      ]

  def _shape(self, prompt, endings):
    """(G, C, P) after padding."""
    longest = max(map(len, endings))
    if self._coarse:
      return (
        text.coarse(len(endings), 2),
        text.coarse(longest, 16) if longest > 4 else 4,
        text.coarse(len(prompt), 64),
      )
    bucket = lambda n: text.bucket(n, self._step)
    return len(endings), bucket(longest), bucket(len(prompt))

  def _most(self, P):
    """Rows of a batch. Attention holds P x P scores a row, so long prompts go
    in smaller batches."""
    if not self._coarse:
      return self._batch
    return text.rows_within(self._batch, P, self._shards)

  def _batches(self, shapes):
    """Runs of one (G, C), in the order of the shapes, cut at the batch size."""
    batch = []
    for i in sorted(range(len(shapes)), key=shapes.__getitem__):
      if batch and (
        len(batch) >= self._most(shapes[i][2])
        or shapes[i][:2] != shapes[batch[0]][:2]
      ):
        yield batch
        batch = []
      batch.append(i)
    if batch:
      yield batch
