"""How the reward model learns: criterion contrasts, Bradley-Terry on pairs.

The score of a reply under a criterion is its contrast,
  log p(met | context) - log p(failed | context), nats,
which the untrained model already tells replies apart by (rewards/criterion.py),
so training starts from there and not from an empty head. For two replies and
one criterion the loss is -log sigmoid(difference / scale). Which of the two is
the better one depends on the criterion alone: under the exchanged statements of
a mirror twin it is the other one, so no style of reply can win.

Layers below the trained ones never change: their states of every token are made
once (`lower_states`) and the update starts from them.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignment_rl import forward, lora, optimizers, rubrics, sharding, text
from alignment_rl.errors import UserError
from alignment_rl.models.decoder import Decoder
from alignment_rl.rewards import criterion
from alignment_rl.types import Example, TrainState

# Replies of an item by place. What a scenario calls them, and an everyday
# request, which has two.
REPLIES = ('beneficial', 'violating', 'refusal')
CHAT_REPLIES = ('helpful', 'unhelpful')
PAIRS = ((0, 1), (0, 2), (1, 2))  # (better, worse) by place


@dataclasses.dataclass(frozen=True)
class Item:
  """Replies to one prompt, and the statements they are read under.

  Attributes:
    contexts: tokens of each reply in its frame, 3 of them.
    statements: tokens of met, failed, met, failed, ...: 2 x criteria.
    weights: float32 [pairs, criteria]; their absolute values sum to 1, and a
      negative one says that the worse reply is the one that meets it.
  """

  id: str
  contexts: tuple[tuple[int, ...], ...]
  statements: tuple[tuple[int, ...], ...]
  weights: np.ndarray


def make_item(example: Example, rubric: str, tokenizer, limit: int) -> Item:
  """The pairs of an example under its own rubric or the helpfulness rubric.

  Under its own, the beneficial reply beats the violating one on every criterion
  and the refusal on those of positive points. Helpfulness prefers either of
  them to the refusal and has no opinion between them; of an everyday request it
  prefers the helpful reply.

  Raises:
    UserError: the example has no contrasting replies, or over `limit` tokens.
  """
  replies = example.metadata.get('replies', {})
  names = CHAT_REPLIES if set(replies) == set(CHAT_REPLIES) else REPLIES
  if set(names) != set(replies):
    raise UserError(
      f'{example.id} has replies {sorted(replies)}, expected {list(REPLIES)} '
      f'or {list(CHAT_REPLIES)}; use the streams traits and chat'
    )
  criteria = rubrics.reader(rubric)(example)
  points = np.array([c['points'] for c in criteria], np.float32)
  positive = np.maximum(points, 0)
  if names == CHAT_REPLIES:
    weights = np.stack([positive, 0 * positive, 0 * positive])
  elif rubric == 'scenario':
    weights = np.stack([points, positive, 0 * positive])
  else:
    weights = np.stack([0 * positive, positive, positive])
  encode = lambda s: tuple(tokenizer.encode(s))
  contexts = [encode(criterion.frame(example, replies[n])) for n in names]
  contexts += contexts[:1] * (len(REPLIES) - len(names))  # of no weight
  statements = tuple(
    encode(' ' + c[side]) for c in criteria for side in ('met', 'failed')
  )
  n = max(map(len, contexts)) + max(map(len, statements))
  if n > limit:
    raise UserError(
      f'{example.id} takes {n} tokens with reply and statement, over '
      f'config.reward_model.length={limit}; raise it'
    )
  return Item(
    f'{example.id}/{rubric}', tuple(contexts), statements,
    weights / np.abs(weights).sum(),
  )  # fmt: skip


def pad(items: Sequence[Item], pad_id: int) -> dict[str, np.ndarray]:
  """Items as arrays; an item is 3 rows. Few shapes, so few compilations.

  Returns:
    prompts int32 [B, P], prompt_lengths [B], completions [B, G, C], lengths
    [B, G], weights float32 [B / 3, pairs, G / 2].
  """
  P = text.bucket(max(len(c) for i in items for c in i.contexts), 64)
  C = text.bucket(max(len(s) for i in items for s in i.statements), 16)
  K = text.bucket(max(i.weights.shape[1] for i in items), 2)
  weights = np.zeros((len(items), len(PAIRS), K), np.float32)
  rows = []
  for item, mine in zip(items, weights, strict=True):
    mine[:, : item.weights.shape[1]] = item.weights
    empty = [()] * (2 * K - len(item.statements))
    rows += [*item.statements, *empty] * len(REPLIES)
  prompts, prompt_lengths = text.pad(
    [c for i in items for c in i.contexts], P, pad_id
  )
  completions, lengths = text.pad(rows, C, pad_id)
  B = len(items) * len(REPLIES)
  return {
    'prompts': prompts,
    'prompt_lengths': prompt_lengths,
    'completions': completions.reshape(B, 2 * K, C),
    'lengths': lengths.reshape(B, 2 * K),
    'weights': weights,
  }


def contrasts(model: Decoder, params: Any, batch: dict) -> jax.Array:
  """Each reply under each criterion, nats: float32 [B, G / 2].

  `batch` is that of `pad`; with 'prompt_states' and 'completion_states' (see
  `lower_states`), `model` is the upper part of the trunk.
  """
  tokens = batch['completions']
  if 'prompt_states' in batch:
    hidden = forward.hidden_before(
      model, params, batch['prompt_states'], batch['prompt_lengths'],
      batch['completion_states'],
    )  # fmt: skip
  else:
    hidden = forward.hidden_before(
      model, params, batch['prompts'], batch['prompt_lengths'], tokens
    )
  logprobs, _ = forward.token_logprobs(model, params, hidden, tokens)
  real = jnp.arange(tokens.shape[-1]) < batch['lengths'][..., None]
  total = jnp.where(real, logprobs, 0.0).sum(-1)
  return total[:, 0::2] - total[:, 1::2]


def loss(found: jax.Array, weights: jax.Array, scale: float):
  """Bradley-Terry over the weighted pairs.

  Args:
    found: contrasts, float32 [B, criteria], three rows an item.
    weights: float32 [B / 3, pairs, criteria].
    scale: nats that make odds of e.

  Returns:
    The mean over items of -log sigmoid, and the weighted share of pairs that
    are in order.
  """
  found = found.reshape(-1, len(REPLIES), found.shape[-1])
  better, worse = (jnp.array(side) for side in zip(*PAIRS, strict=True))
  margin = (found[:, better] - found[:, worse]) * jnp.sign(weights)
  weights = jnp.abs(weights)
  terms = jax.nn.softplus(-margin / scale)
  each = lambda x: (weights * x).sum((1, 2)).mean()
  return each(terms), each(margin > 0)


def lower_states(model: Decoder, params: Any, batch: dict) -> dict:
  """States of every token after the layers of `model`, a lower part.

  Returns:
    prompt_states float32 [B, P, D] and completion_states [B, G, C, D].
  """
  lengths = batch['prompt_lengths']
  B, G, C = batch['completions'].shape
  run = lambda *args, **kwargs: model.apply(
    {'params': params}, *args, **kwargs, method='states'
  )
  P = batch['prompts'].shape[1]
  prompts, prefix = run(
    batch['prompts'][:, None], jnp.broadcast_to(jnp.arange(P), (B, 1, P))
  )
  positions = lengths[:, None, None] + jnp.arange(C)
  completions, _ = run(
    batch['completions'], jnp.broadcast_to(positions, (B, G, C)),
    prefix=jax.tree.map(lambda x: x[:, :, 0], prefix), prefix_lengths=lengths,
  )  # fmt: skip
  return {'prompt_states': prompts[:, 0], 'completion_states': completions}


class Shelf:
  """States of the frozen layers, made once an item and kept on the host."""

  def __init__(self, model: Decoder, params: Any, mesh, pad_id: int):
    """`model` and `params` are the lower part of `forward.cut`."""
    self._params, self._pad_id, self._kept = params, pad_id, {}
    self._rows = sharding.rows(mesh)
    self._items = max(1, sharding.row_shards(mesh))
    self._run = jax.jit(
      functools.partial(lower_states, model.clone(mesh=mesh)),
      in_shardings=(None, self._rows),
      out_shardings=self._rows,
    )

  def batch(self, items: Sequence[Item]) -> dict[str, np.ndarray]:
    """`pad`, with the states of the items' tokens beside them."""
    for item in items:
      if item.id not in self._kept:
        self._kept[item.id] = self._make(item)
    out = pad(items, self._pad_id)
    D = self._kept[items[0].id][0].shape[-1]
    prompts = np.zeros((*out['prompts'].shape, D), np.float32)
    completions = np.zeros((*out['completions'].shape, D), np.float32)
    for i, item in enumerate(items):
      rows = slice(len(REPLIES) * i, len(REPLIES) * (i + 1))
      mine, theirs = self._kept[item.id]
      prompts[rows, : mine.shape[1]] = mine
      completions[rows, : theirs.shape[1], : theirs.shape[2]] = theirs
    return out | {'prompt_states': prompts, 'completion_states': completions}

  def _make(self, item):
    # A mesh of many devices wants as many rows; the copies are dropped.
    batch = pad([item] * self._items, self._pad_id)
    found = sharding.to_host(
      self._run(self._params, sharding.to_global(batch, self._rows))
    )
    P, C = (
      max(map(len, x)) for x in (item.contexts, item.statements)
    )  # fmt: skip
    n = len(REPLIES)
    return (
      found['prompt_states'][:n, :P],
      found['completion_states'][:n, : len(item.statements), :C],
    )


def make_update(
  model: Decoder,
  tx: optax.GradientTransformation,
  shardings: TrainState,
  mesh: jax.sharding.Mesh,
  trainable: str,
  scale: float,
):
  """Compiles `update(state, base, batch) -> (state, measured)`.

  `state` is donated; `base` has the parameters that it does not hold.
  """
  model = model.clone(mesh=mesh)

  def loss_fn(chosen, rest, base, batch):
    params = lora.join(base, optimizers.join(chosen, rest))
    found = contrasts(model, params, batch)
    value, accuracy = loss(found, batch['weights'], scale)
    return value, {'loss': value, 'accuracy': accuracy}

  def update(state, base, batch):
    chosen, rest = optimizers.split(state.params, trainable)
    grads, measured = jax.grad(loss_fn, has_aux=True)(chosen, rest, base, batch)
    updates, opt_state = tx.update(grads, state.opt_state, chosen)
    params = optimizers.join(optax.apply_updates(chosen, updates), rest)
    measured['gradient_norm'] = optax.tree.norm(grads)
    return TrainState(state.step + 1, params, opt_state), measured

  rows, one = sharding.rows(mesh), sharding.replicated(mesh)
  return jax.jit(
    update,
    in_shardings=(shardings, None, rows),
    out_shardings=(shardings, one),
    donate_argnums=0,
  )
