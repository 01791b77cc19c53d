"""A policy's own replies to benchmark items, in one turn or several.

What it reads next is asked for after each reply, so that one loop serves a
single answer and an episode in a simulated world. The noise of a reply belongs
to its item and turn: it is the same for every checkpoint, limit and batch.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from alignment_rl import checkpoint, rollout, sharding, text
from alignment_rl.types import Purpose


@dataclasses.dataclass(frozen=True)
class Request:
  """One item to reply to.

  Attributes:
    id: of the item, and which reply to it; the address of its noise.
    context: (replies so far) -> the tokens to reply to, or None at the end.
  """

  id: str
  context: Callable[[tuple[str, ...]], list[int] | None]


@dataclasses.dataclass(frozen=True)
class Replies:
  """What was said to a request: `said` in turn; `cut` at the length limit."""

  said: tuple[str, ...] = ()
  cut: bool = False


class Policy:
  """Replies with a checkpoint, in few shapes."""

  def __init__(
    self,
    model: checkpoint.Model,
    params,
    mesh: jax.sharding.Mesh,
    *,
    rows: int,
    temperature: float,
    seed: int,
  ):
    """`rows` are replied to at a time; `temperature` 0 is greedy."""
    self._shards = sharding.row_shards(mesh)
    self._rows = -(-rows // self._shards) * self._shards
    self._model, self._params = model, params
    self._key = jax.random.fold_in(jax.random.key(seed), Purpose.EVALUATE)
    self._sampler = functools.cache(
      lambda length: rollout.Sampler(
        model.decoder,
        mesh,
        group=1,
        length=length,
        eos_ids=model.tokenizer.eos_ids,
        temperature=temperature,
      )  # fmt: skip
    )

  def run(
    self,
    requests: Sequence[Request],
    length: int,
    wanted: Callable[[int], bool] = lambda i: True,
  ) -> Iterator[list[tuple[int, Replies]]]:
    """Batch by batch, the index of each request and its replies.

    Args:
      length: tokens of a reply, at most.
      wanted: a batch of which nothing is wanted is not run. The batches do not
        depend on it, so a restart says what an undisturbed run would have said.
    """
    first = [r.context(()) for r in requests]
    size = list(map(len, first))
    order = sorted(range(len(requests)), key=lambda i: (size[i], i))
    while order:
      # The longest first: it says how many fit.
      n = self._most(text.coarse(size[order[-1]], 64))
      order, batch = order[:-n], order[-n:]
      if any(map(wanted, batch)):
        yield self._batch(requests, {i: first[i] for i in batch}, length)

  def _batch(self, requests, open_, length):
    found = {i: Replies() for i in open_}
    turn = 0
    while open_:
      ids = [requests[i].id for i in open_]
      spoken = self._speak(ids, list(open_.values()), length, turn)
      for i, (said, cut) in zip(open_, spoken, strict=True):
        found[i] = Replies((*found[i].said, said), found[i].cut or cut)
      turn += 1
      open_ = {i: requests[i].context(one.said) for i, one in found.items()}
      open_ = {i: tokens for i, tokens in open_.items() if tokens is not None}
    return list(found.items())

  def _most(self, P):
    return text.rows_within(self._rows, P, self._shards)

  def _speak(self, ids, prompts, length, turn) -> list[tuple[str, bool]]:
    tokenizer = self._model.tokenizer
    P = text.coarse(max(map(len, prompts)), 64)
    # An episode may have grown past the length its batch was made for.
    most = max(text.bucket(len(prompts), self._shards), self._most(P))
    rows = text.padded_rows(len(prompts), most, self._shards)
    full = [j % len(prompts) for j in range(rows)]
    tokens, lengths = text.pad([prompts[j] for j in full], P, tokenizer.pad_id)
    slots = [zlib.crc32(ids[j].encode()) & 0x7FFFFFFF for j in full]
    rolled = sharding.to_host(
      self._sampler(length)(
        self._params,
        tokens,
        lengths,
        np.array(slots),
        jax.random.fold_in(self._key, turn),
      )  # fmt: skip
    )
    out = []
    for row in range(len(prompts)):
      n = rolled.lengths[row, 0]
      said = rolled.completions[row, 0, :n]
      cut = n == length and said[-1] not in tokenizer.eos_ids
      out.append((tokenizer.decode(said), bool(cut)))
    return out
