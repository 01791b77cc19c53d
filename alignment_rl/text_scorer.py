"""Texts to log-likelihoods: the judge that rewards and benchmarks read with."""

import copy
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from alignment_rl import sharding, text
from alignment_rl.forward import mean_hidden, teacher_force
from alignment_rl.models.decoder import Decoder
from alignment_rl.types import Tokenizer


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
