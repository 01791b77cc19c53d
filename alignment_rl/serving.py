"""Many requests, one device: completions and log-probabilities, batched.

One thread owns the device. Rows that are being written sit in pools, by how
much they hold: 256 tokens, 512, and so on up to the context. Each round scores
one batch of waiting prompts, fills free rows with waiting requests, and adds a
few tokens to every row of each pool. So rows come and go while others go on.

A row's text does not depend on its company. Its noise is addressed by (seed,
choice, token), its prompt is read alone, and it meets the same programs in the
same shapes whoever else is there: a pool always has all of its rows, and a row
moves to a larger pool by its own length.
"""

import collections
import dataclasses
import functools
import logging
import threading
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from alignment_rl import pool, rollout, sharding, text
from alignment_rl.models.decoder import Decoder
from alignment_rl.streaming import TextStream
from alignment_rl.types import KVCache, Tokenizer

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Ask:
  """One completion that somebody wants.

  Attributes:
    tokens: the prompt, one token or more.
    max_tokens: 1 or more.
    temperature: 0 takes the likeliest token.
    top_p: sample among the fewest likeliest tokens that have this probability
      together, after the temperature (Holtzman et al. 2020, arXiv:1904.09751).
    seed: with `choice`, the address of the noise; from 0 to 2**64 - 1.
    stop: the text ends before any of these, none of them empty.
    top: likeliest tokens to tell with each token, `pool.TOP` at most.
  """

  tokens: tuple[int, ...]
  max_tokens: int
  temperature: float = 1.0
  top_p: float = 1.0
  seed: int = 0
  choice: int = 0
  stop: tuple[str, ...] = ()
  top: int = 0


@dataclasses.dataclass(frozen=True)
class Token:
  """A token and what the model said of it, at temperature 1 and top_p 1.

  Attributes:
    logprob: nats; None for the first token of a prompt.
    top: (token, log-probability) of the likeliest tokens, likeliest first.
    start: characters of text before it.
  """

  id: int
  logprob: float | None
  top: tuple[tuple[int, float], ...]
  start: int


@dataclasses.dataclass(frozen=True)
class Piece:
  """More of a completion.

  Attributes:
    tokens: those that begin in this text; EOS, without text, too.
    count: tokens sampled so far, EOS and the tokens of a stop string included.
    finish: 'stop' or 'length' in the last piece, None before it.
  """

  text: str
  tokens: tuple[Token, ...]
  count: int
  finish: str | None


@dataclasses.dataclass(frozen=True)
class Scored:
  """A prompt as the model reads it, and what one greedy token adds to it."""

  text: str
  tokens: tuple[Token, ...]
  next: Piece


@dataclasses.dataclass(frozen=True)
class Failure:
  """The server's own mistake, in place of anything more."""

  message: str


class Full(Exception):
  """More waits already than the queue holds."""


class _Row:
  """A completion under way, in the worker's hands."""

  def __init__(self, ask, heard, decode):
    self.ask, self.heard, self.gone = ask, heard, False
    self.length, self.count = len(ask.tokens), 0
    self._stream, self._tokens = TextStream(decode, ask.stop), []

  def hear(self, tokens, logprobs, top, eos_ids) -> bool:
    """Passes on what was sampled for it; whether that was the last."""
    stream, finish = self._stream, None
    self.length += len(tokens)
    for said in zip(tokens, logprobs, top, strict=True):
      self.count += 1
      self._tokens.append(Token(*said, start=len(stream)))
      if said[0] in eos_ids:
        finish = 'stop'
      else:
        stream.push(said[0])
        if stream.stopped:
          finish = 'stop'
        elif self.count == self.ask.max_tokens:
          finish = 'length'
      if finish:
        break
    new = stream.take(finish is not None)
    rest = finish and not stream.stopped
    ready = [t for t in self._tokens if rest or t.start < stream.sent]
    del self._tokens[: len(ready)]
    self.heard(Piece(new, tuple(ready), self.count, finish))
    return finish is not None


class _Prompt:
  """A prompt that waits to be scored."""

  def __init__(self, tokens, heard, top):
    self.tokens, self.heard, self.top, self.gone = tokens, heard, top, False


class Engine:
  """Completes and scores prompts for any number of threads.

  Whoever asks gives `heard`, one for each prompt. It is called in the engine's
  own thread, must be quick and must not raise. It gets Pieces, or one Scored;
  or a Failure, and nothing after it.

  A pool is made when it is first needed, and kept. All of them hold about twice
  the context for each row of the batch.

  Attributes:
    context: tokens of a prompt with its completion, at most.
    queue: prompts that may wait, at most.
    programs: (name, shape) of all that was compiled.
  """

  def __init__(
    self,
    model: Decoder,
    params,
    tokenizer: Tokenizer,
    mesh: jax.sharding.Mesh,
    *,
    batch: int = 8,
    context: int = 2048,
    queue: int = 256,
    steps: int = 4,
  ):
    """`batch` rows are written at a time, `steps` tokens of each in a round."""
    self._config, self._tokenizer = model.config, tokenizer
    self.context, self.queue, self._steps = context, queue, steps
    self._shards = sharding.row_shards(mesh)
    self._batch = text.bucket(batch, self._shards)
    self._most = text.bucket(context + steps, 64)
    rows, one = sharding.rows(mesh), sharding.replicated(mesh)
    cache = NamedSharding(mesh, PartitionSpec(None, *sharding.ROWS))
    self._split = pool.Pool(KVCache(cache, cache), rows)
    part = functools.partial
    self._params = jax.jit(
      part(rollout.cast_matrices, dtype=self._config.dtype),
      out_shardings=jax.tree.map(lambda x: x.sharding, params),
    )(params)
    self._score = jax.jit(
      part(pool.score, model.clone(mesh=mesh)),
      in_shardings=(None, rows),
      out_shardings=one,
    )
    self._read = jax.jit(part(pool.read, model), out_shardings=one)
    self._place = jax.jit(
      pool.place, donate_argnums=0, out_shardings=self._split
    )
    self._extend = jax.jit(
      part(pool.extend, model, steps, tuple(tokenizer.eos_ids)),
      donate_argnums=1,
      in_shardings=(None, self._split, rows),
      out_shardings=(self._split, one),
    )
    self.programs: list[tuple] = []
    # Of each size, what the device keeps and whose rows they are.
    self._pools: dict[int, pool.Pool] = {}
    self._rows: dict[int, list[_Row | None]] = {}
    self._last = (), None
    self._asks, self._prompts = collections.deque(), collections.deque()
    self._changed, self._closed = threading.Condition(), False
    self._thread = threading.Thread(target=self._work, daemon=True)
    self._thread.start()

  def complete(self, asks: Sequence[Ask], heards: Sequence[Callable]) -> list:
    """Takes all of them, or none; returns what `cancel` wants.

    Raises:
      Full: there is no room for them in the queue.
    """
    decode = self._tokenizer.decode
    rows = [_Row(a, h, decode) for a, h in zip(asks, heards, strict=True)]
    return self._enter(self._asks, rows)

  def score(
    self,
    prompts: Sequence[Sequence[int]],
    heards: Sequence[Callable],
    top: int = 0,
  ) -> list:
    """As `complete`, of prompts whose own tokens are to be read."""
    rows = [_Prompt(p, h, top) for p, h in zip(prompts, heards, strict=True)]
    return self._enter(self._prompts, rows)

  def cancel(self, entries: Sequence) -> None:
    """Nobody listens any more: their rows are free at the next round."""
    with self._changed:
      for entry in entries:
        entry.gone = True
      for queue in (self._asks, self._prompts):
        kept = [entry for entry in queue if not entry.gone]
        queue.clear()
        queue.extend(kept)

  def close(self) -> None:
    """Ends after the round under way; what is left gets a Failure."""
    with self._changed:
      self._closed = True
      self._changed.notify()
    self._thread.join()

  def _enter(self, queue, entries):
    with self._changed:
      waiting = len(self._asks) + len(self._prompts)
      if self._closed or waiting + len(entries) > self.queue:
        raise Full
      queue.extend(entries)
      self._changed.notify()
    return entries

  def _work(self):
    busy = lambda: self._asks or self._prompts or self._active()
    while True:
      with self._changed:
        self._changed.wait_for(lambda: self._closed or busy())
        if self._closed:
          break
      self._score_some()
      self._admit()
      for size in sorted(self._rows):
        self._advance(size)
    left = [*self._asks, *self._prompts, *self._active()]
    self._fail(left, 'the server is shutting down')

  def _active(self):
    return [row for rows in self._rows.values() for row in rows if row]

  def _score_some(self):
    """Scores the prompt that has waited longest, and others of its shape."""
    with self._changed:
      if not self._prompts:
        return
      size = self._bucket(self._prompts[0])
      most = text.rows_within(self._batch, size, self._shards)
      batch = [p for p in self._prompts if self._bucket(p) == size][:most]
      for prompt in batch:
        self._prompts.remove(prompt)
    try:
      # A power of two rows: few programs, and less than half of each in vain.
      n = text.bucket(1 << (len(batch) - 1).bit_length(), self._shards)
      n = min(n, most)
      rows = [batch[i % len(batch)].tokens for i in range(n)]
      tokens, _ = text.pad(rows, size, 0)
      said = self._run('score', (n, size), self._score, self._params, tokens)
      logprobs, likeliest = jax.device_get(said)
    except Exception:
      return self._broken('scoring', batch)
    for i, prompt in enumerate(batch):
      try:
        self._tell(prompt, logprobs[i], [x[i] for x in likeliest])
      except Exception:
        self._broken('reading scores', [prompt])

  def _tell(self, prompt, logprobs, likeliest):
    """Entry t of what was found is about the token after token t."""
    n = len(prompt.tokens)
    known = [None, *_floats(logprobs[: n - 1])]
    top = [(), *_pairs(likeliest, n, max(prompt.top, 1))]
    stream, tokens = TextStream(self._tokenizer.decode), []
    for t, token in enumerate(prompt.tokens):
      tokens.append(
        Token(token, known[t], top[t][: prompt.top], start=len(stream))
      )
      stream.push(token)
    said, likeliest = stream.text, top[n]
    (token, logprob), start = likeliest[0], len(said)
    ended = token in self._tokenizer.eos_ids
    if not ended:
      stream.push(token)
    following = Piece(
      stream.text[start:],
      (Token(token, logprob, likeliest[: prompt.top], start),),
      1,
      'stop' if ended else 'length',
    )
    prompt.heard(Scored(said, tuple(tokens), following))

  def _admit(self):
    """Reads waiting prompts while rows are free."""
    while len(self._active()) < self._batch:
      with self._changed:
        if not self._asks:
          return
        row = self._asks.popleft()
      try:
        self._put(row, self._prompt_of(row.ask), 0)
      except Exception:
        self._broken('reading a prompt', [row])

  def _prompt_of(self, ask) -> pool.Pool:
    """Reads a prompt; one that is asked for again at once is read once."""
    if self._last[0] != ask.tokens:
      size = self._bucket(ask)
      tokens, lengths = text.pad([ask.tokens], size, 0)
      args = (self._params, tokens, lengths)
      self._last = ask.tokens, self._run('read', size, self._read, *args)
    return self._last[1]

  def _put(self, row, source: pool.Pool, index: int):
    """Gives a row its place in a pool that has room for its next tokens."""
    need = row.length + self._steps
    size = text.bucket(need, max(256, 1 << (need - 1).bit_length()))
    size = min(size, self._most)
    if size not in self._pools:
      self._pools[size] = self._empty(size)
      self._rows[size] = [None] * self._batch
    at = self._rows[size].index(None)
    shape = (source.cache.k.shape[1:3], size)
    self._pools[size] = self._run(
      'place', shape, self._place, self._pools[size], source, index, at
    )
    self._rows[size][at] = row

  def _empty(self, size):
    c, B = self._config, self._batch
    shape = (c.layers, B, size, c.kv_heads, c.head_dim)
    zeros = lambda: jnp.zeros(shape, c.dtype, device=self._split.cache.k)
    hidden = jnp.zeros((B, c.embed), device=self._split.hidden)
    return pool.Pool(KVCache(zeros(), zeros()), hidden)

  def _advance(self, size):
    """Adds tokens to the rows of a pool; those that outgrow it move."""
    rows = [row if row and not row.gone else None for row in self._rows[size]]
    self._rows[size] = rows
    if not any(rows):
      return
    try:
      self._pools[size], sampled = self._run(
        'extend', size, self._extend, self._params, self._pools[size],
        _gather(rows),
      )  # fmt: skip
      sampled = jax.device_get(sampled)
    except Exception:
      # The pool was handed over to the program, and is lost with it.
      del self._pools[size], self._rows[size]
      return self._broken('sampling', [row for row in rows if row])
    for i, row in enumerate(rows):
      if row is None:
        continue
      rows[i], n = None, sampled.lengths[i]
      try:
        finished = row.hear(
          sampled.tokens[i, :n].tolist(), _floats(sampled.logprobs[i, :n]),
          _pairs([x[i] for x in sampled.top], n, row.ask.top),
          self._tokenizer.eos_ids,
        )  # fmt: skip
        if not finished and row.length + self._steps > size:
          self._put(row, self._pools[size], i)
        elif not finished:
          rows[i] = row
      except Exception:
        self._broken('passing on tokens', [row])

  def _bucket(self, entry):
    return min(text.coarse(len(entry.tokens), 32), self._most)

  def _run(self, name, shape, function, *args):
    if (name, shape) not in self.programs:
      self.programs.append((name, shape))
      _log.info('compiling %s %s, program %d', name, shape, len(self.programs))
    return function(*args)

  def _broken(self, what, entries):
    _log.exception('failed at %s', what)
    self._fail(entries, f'the server failed at {what}; its log says why')

  def _fail(self, entries, message):
    for entry in entries:
      if not entry.gone:
        entry.gone = True
        entry.heard(Failure(message))


def _gather(rows) -> pool.Rows:
  """What the device must know of each row; free ones are like the empty ask."""
  asks = [row.ask if row else Ask((), 0) for row in rows]
  column = lambda dtype, values: np.array(list(values), dtype)
  return pool.Rows(
    lengths=column(np.int32, (row.length if row else 0 for row in rows)),
    counts=column(np.int32, (row.count if row else 0 for row in rows)),
    seeds=column(np.uint32, (divmod(a.seed, 1 << 32) for a in asks)),
    choices=column(np.int32, (a.choice for a in asks)),
    temperatures=column(np.float32, (a.temperature for a in asks)),
    top_ps=column(np.float32, (a.top_p for a in asks)),
    free=column(bool, (row is None for row in rows)),
  )


def _floats(logprobs):
  if not np.isfinite(logprobs).all():
    raise FloatingPointError(
      'log-probabilities are not finite: the checkpoint has diverged'
    )
  return logprobs.tolist()


def _pairs(top, n, k):
  """Of each of n tokens the k likeliest, tuples of (token, nats)."""
  ids, logprobs = (x[:n, :k].tolist() for x in top)
  return [
    tuple(zip(*both, strict=True)) for both in zip(ids, logprobs, strict=True)
  ]
