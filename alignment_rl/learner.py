"""The update: one jitted, donated, sharded function of (state, batch).

Parameters, optimizer state and losses are float32; matrix products take the
model's `dtype`. The gradient is a sum of passes, each over one micro-batch and
one stream, so that the norm of every stream's own gradient, and its cosine with
that of the streams before it, are known where they are asked for, at no cost
when micro-batches hold one stream each.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignment_rl import (
  checkpoint,
  forward,
  lora,
  objectives,
  optimizers,
  sharding,
)
from alignment_rl.errors import UserError
from alignment_rl.models.decoder import Decoder
from alignment_rl.types import TrainState

_SUMS = ('tokens', 'nll', 'kl', 'entropy', 'clip_fraction', 'log_ratio_outside')


@dataclasses.dataclass(frozen=True)
class LossSettings:
  """What the loss is made of.

  Attributes:
    temperature: of the sampled policy.
    clip_low, clip_high: the ratio is clipped to [1 - low, 1 + high].
    kl: coefficient of k2 to the reference in the loss, per nat.
    value: coefficient of the value loss; 0 leaves the value head untouched.
    value_clip: how far from its old value the value is trusted.
  """

  temperature: float = 1.0
  clip_low: float = 0.2
  clip_high: float = 0.2
  kl: float = 0.0
  value: float = 0.0
  value_clip: float = 0.2


def load(
  source: str,
  mesh: jax.sharding.Mesh,
  *,
  family: str = 'llama',
  dtype: str = 'float32',
  attention: str = 'auto',
  key: jax.Array | None = None,
) -> tuple[checkpoint.Model, Any]:
  """A model to read or talk with: itself, and its parameters on the mesh.

  Args:
    source, family, dtype, attention: see `checkpoint.load_model`.
    key: of random weights; None = of seed 0.

  Raises:
    UserError: nothing is there, it is not whole, or the mesh does not fit it.
  """
  model = checkpoint.load_model(
    source, family=family, dtype=dtype, attention=attention
  )
  sharding.check_fit(mesh, model.config, {})
  params = place_params(
    model.decoder, model.stored, param_shardings(model.decoder, mesh),
    jax.random.key(0) if key is None else key,
  )  # fmt: skip
  return model.without_params(), params


def state_shardings(
  model: Decoder,
  tx: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  trainable: str = '.*',
) -> tuple[Any, Any]:
  """Abstract state and its shardings, before any array exists.

  Returns:
    TrainState of ShapeDtypeStruct, TrainState of NamedSharding; their `params`
    are those that a state holds, see `lora.split`.

  Raises:
    UserError: `trainable` matches no parameter, or with LoRA no adapter.
  """

  def init():
    held = lora.split(_init(model, jax.random.key(0)))[1]
    chosen, rest = optimizers.split(held, trainable)
    if model.config.lora and not lora.adapters(optimizers.join(chosen, {})):
      raise UserError(
        f'config.optimizer.trainable={trainable!r} matches no adapter, so LoRA '
        f'would learn nothing; include some of {sorted(rest)}'
      )
    return TrainState(jnp.zeros((), jnp.int32), held, tx.init(chosen))

  boxed = jax.eval_shape(init)
  return nn.meta.unbox(boxed), sharding.param_shardings(boxed, mesh)


def param_shardings(model: Decoder, mesh: jax.sharding.Mesh) -> Any:
  """Shardings of all parameters: base, adapters and heads."""
  return jax.tree.map(lambda x: x.sharding, abstract_params(model, mesh))


def abstract_params(model: Decoder, mesh: jax.sharding.Mesh) -> Any:
  """Shapes of all parameters, with their shardings."""
  boxed = jax.eval_shape(lambda: _init(model, jax.random.key(0)))
  return sharding.abstract(
    nn.meta.unbox(boxed), sharding.param_shardings(boxed, mesh)
  )


def place_params(model: Decoder, params: Any, shardings: Any, key: jax.Array):
  """Global float32 parameters: those of a model, or None = random.

  Random ones, and adapters always, are made sharded, from `key`.
  """
  made = shardings if params is None else lora.adapters(shardings)

  def init(key):
    every = nn.meta.unbox(_init(model, key))
    return every if params is None else lora.adapters(every)

  fresh = jax.jit(init, out_shardings=made)(key)
  if params is None:
    return fresh
  return lora.join(checkpoint.place(params, lora.without(shardings)), fresh)


def _init(model, key):
  """All parameters, boxed with the names of their axes."""
  tokens = jnp.zeros((1, 1, 1), jnp.int32)
  return model.init(key, tokens, method='init_everything')['params']


def fresh_state(
  params: Any,
  tx: optax.GradientTransformation,
  shardings: TrainState,
  trainable: str = '.*',
) -> TrainState:
  """Step 0 with its own copy of `params`, which stay the reference.

  With LoRA they are what `lora.split` gives a state to hold.
  """
  start = lambda p: TrainState(
    jnp.int32(0), p, tx.init(optimizers.split(p, trainable)[0])
  )
  return jax.jit(start, out_shardings=shardings)(params)


def advance(state: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
  """The state of the next step."""
  step = np.int32(sharding.to_host(state.step) + 1)
  return state.replace(step=sharding.to_global(step, sharding.replicated(mesh)))


def make_passes(
  streams: np.ndarray,
  counted: np.ndarray,
  micro_batches: int,
  n_streams: int,
  per_stream: bool,
) -> tuple[np.ndarray, np.ndarray]:
  """The order in which an update reads its micro-batches.

  Row b lies in micro-batch b % micro_batches, so every device has rows of each.
  With `per_stream`, a micro-batch is read once for every stream it holds, and
  part i of the passes is stream i; else it is read once, all in part 0. A
  micro-batch in which no row counts is not read at all.

  Args:
    streams: int32 [B].
    counted: bool [B], rows with some weight in the loss.

  Returns:
    int32 [micro_batches * n_streams, 2] of (micro-batch, stream or -1 for all),
    and int32 [n_streams + 1], where each part begins and the last one ends.
  """
  passes, parts = [], [0]
  for stream in range(n_streams):
    for m in range(micro_batches):
      held = streams[m::micro_batches][counted[m::micro_batches]]
      if per_stream and stream in held:
        passes.append((m, stream))
      elif not per_stream and stream == 0 and held.size:
        passes.append((m, -1))
    parts.append(len(passes))
  out = np.full((micro_batches * n_streams, 2), -1, np.int32)
  out[: len(passes)] = np.array(passes, np.int32).reshape(-1, 2)
  return out, np.array(parts, np.int32)


def cosine(a: Any, b: Any) -> jax.Array:
  """Of two trees of one shape: float32 []; NaN if one of them is 0."""
  norms = optax.tree.norm(a) * optax.tree.norm(b)
  known = norms > 0
  return jnp.where(
    known, optax.tree.vdot(a, b) / jnp.where(known, norms, 1), jnp.nan
  )


def make_update(
  model: Decoder,
  tx: optax.GradientTransformation,
  settings: LossSettings,
  shardings: TrainState,
  mesh: jax.sharding.Mesh,
  *,
  micro_batches: int,
  n_streams: int,
  trainable: str = '.*',
):
  """Compiles `update(state, base, batch, passes, parts) -> (state, measured)`.

  `state` is donated. `base` has the parameters that it does not hold (without
  LoRA none, {}); they get no gradient.

  `measured` holds float32 scalars over the global batch and, under 'by_stream',
  float32 [n_streams]: token means (nats, or shares of tokens), the distribution
  of |log-ratio| between sampler and trainer, the norm of each stream's own
  gradient, and its cosine with the sum of those before it: of the last stream,
  with all others. These two are NaN where passes are not per stream. A stream
  without tokens in the batch has NaN means and cosine.
  """
  model = model.clone(mesh=mesh)

  def loss_fn(chosen, rest, base, batch):
    params = lora.join(base, optimizers.join(chosen, rest))
    r = batch.rollout
    logprobs, entropy, values = forward.teacher_force(
      model,
      params,
      r.prompts,
      r.prompt_lengths,
      r.completions,
      settings.temperature,
    )
    # A demonstration is a completion whose importance ratio is 1.
    sampled = jnp.where(
      batch.demonstration[..., None],
      jax.lax.stop_gradient(logprobs),
      r.logprobs,
    )
    policy, clipped = objectives.policy_loss(
      logprobs,
      sampled,
      batch.advantages,
      clip_low=settings.clip_low,
      clip_high=settings.clip_high,
    )
    kl = objectives.kl_k2(logprobs, batch.reference_logprobs)
    token = policy
    if settings.kl:  # else the reference may be unread, NaN
      token += settings.kl * kl
    if settings.value:
      token += settings.value * objectives.value_loss(
        values, batch.values, batch.returns, clip=settings.value_clip
      )
    w = batch.weights
    loss = jnp.where(w > 0, w * token, 0.0).sum()
    real = jnp.arange(r.completions.shape[-1]) < r.lengths[..., None]
    log_ratio = jnp.abs(logprobs - sampled)
    ratio = jnp.exp(jnp.clip(logprobs - sampled, -20.0, 20.0))
    of_stream = jax.nn.one_hot(batch.stream, n_streams)  # [B, streams]
    total = lambda x: jnp.where(real, x, 0.0).sum((1, 2)) @ of_stream
    sums = {
      'tokens': total(1.0),
      'nll': total(-logprobs),
      'kl': total(kl),
      'entropy': total(entropy),
      'clip_fraction': total(clipped),
      'log_ratio_outside': total((ratio < 0.9) | (ratio > 1.1)),
    }
    return loss, (loss, sums, jnp.where(real, log_ratio, -1.0))

  def update(state, base, batch, passes, parts):
    batch = jax.tree.map(lambda x: _cut(x, micro_batches), batch)
    chosen, rest = optimizers.split(state.params, trainable)
    zeros = lambda: jax.tree.map(jnp.zeros_like, chosen)

    def one_pass(i, carry):
      grads, loss, sums, ratios = carry
      m, stream = passes[i, 0], passes[i, 1]
      micro = jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, m, 1, keepdims=False), batch
      )
      mine = ((stream < 0) | (micro.stream == stream))[:, None]
      lengths = jnp.where(mine, micro.rollout.lengths, 0)
      micro = micro.replace(
        weights=jnp.where(mine[..., None], micro.weights, 0.0),
        rollout=micro.rollout.replace(lengths=lengths),
      )
      part, (part_loss, part_sums, ratio) = jax.grad(loss_fn, has_aux=True)(
        chosen, rest, base, micro
      )
      grads, loss, sums = jax.tree.map(
        jnp.add, (grads, loss, sums), (part, part_loss, part_sums)
      )
      old = jax.lax.dynamic_index_in_dim(ratios, m, 1, keepdims=False)
      ratios = jax.lax.dynamic_update_index_in_dim(
        ratios, jnp.maximum(old, ratio), m, 1
      )
      return grads, loss, sums, ratios

    def one_part(i, carry):
      total, norms, cosines, *measured = carry
      grads, *measured = jax.lax.fori_loop(
        parts[i], parts[i + 1], one_pass, (zeros(), *measured)
      )
      norms = norms.at[i].set(optax.tree.norm(grads))
      cosines = cosines.at[i].set(cosine(grads, total))
      total = jax.tree.map(jnp.add, total, grads)
      return total, norms, cosines, *measured

    grads, norms, cosines, loss, sums, ratios = jax.lax.fori_loop(
      0,
      n_streams,
      one_part,
      (
        zeros(),
        jnp.zeros(n_streams),
        jnp.zeros(n_streams),
        jnp.zeros(()),
        {name: jnp.zeros(n_streams) for name in _SUMS},
        jnp.full(batch.rollout.logprobs.shape, -1.0),
      ),
    )
    norms, cosines = (
      jnp.where(passes[0, 1] < 0, jnp.nan, x) for x in (norms, cosines)
    )
    norm = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, chosen)
    params = optimizers.join(optax.apply_updates(chosen, updates), rest)
    measured = {
      'loss': loss,
      'gradient_norm': norm,
      'update_norm': optax.tree.norm(updates),
    }
    by_stream = {k: v / sums['tokens'] for k, v in sums.items()}
    mine = jnp.arange(n_streams)[:, None, None] == batch.stream  # B is cut
    seen = jnp.where(mine[..., None, None] & (ratios >= 0), ratios, jnp.nan)
    by_stream |= {
      'tokens': sums['tokens'],
      'gradient': norms,
      'cosine': cosines,
      'log_ratio_mean': jnp.nanmean(seen, axis=(1, 2, 3, 4)),
      'log_ratio_p95': jnp.nanpercentile(seen, 95, axis=(1, 2, 3, 4)),
      'log_ratio_max': jnp.nanmax(seen, axis=(1, 2, 3, 4)),
    }
    measured['by_stream'] = by_stream
    return TrainState(state.step, params, opt_state), measured

  rows, one = sharding.rows(mesh), sharding.replicated(mesh)
  return jax.jit(
    update,
    in_shardings=(shardings, None, rows, one, one),
    out_shardings=(shardings, one),
    donate_argnums=0,
  )


def _cut(x, micro_batches):
  """[B, ...] as [B / n, n, ...]: row b lies in micro-batch b % n."""
  return x.reshape(-1, micro_batches, *x.shape[1:])


def make_scores(
  model: Decoder,
  mesh: jax.sharding.Mesh,
  temperature: float,
  micro_batches: int = 1,
):
  """Compiles `scores(params, rollout) -> (logprobs, values)`, [B, G, C] each.

  For the reference policy's log-probabilities (nats) and PPO's old values. Read
  in the micro-batches of the update, so that it holds no more than that does.
  """
  model = model.clone(mesh=mesh)

  def one(params, r):
    logprobs, _, values = forward.teacher_force(
      model, params, r.prompts, r.prompt_lengths, r.completions, temperature
    )
    return logprobs, values

  def scores(params, r):
    cut = lambda x: _cut(x, micro_batches).swapaxes(0, 1)
    whole = lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    found = jax.lax.map(lambda r: one(params, r), jax.tree.map(cut, r))
    return jax.tree.map(whole, found)

  rows = sharding.rows(mesh)
  return jax.jit(scores, in_shardings=(None, rows), out_shardings=rows)
