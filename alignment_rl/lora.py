"""LoRA: what is trained is a low-rank term beside each frozen matrix.

A projection x W of a layer becomes x W + (alpha / rank) (x A) B (Hu et al.,
arXiv:2106.09685). A is random and B zero at the start, so the policy begins as
its base, exactly. The base never changes and is the reference policy: a run
holds it once, beside the adapters and their optimizer state.

`models/decoder.py` applies the terms where its config has a `Lora`, and leaves
them out where it has none. Here is what is done with the trees: adapters are
the leaves 'layers/<projection>_lora/{a,b}', A [L, ..., N] and B [L, N, ...]. A
library that finds a model's products by intercepting them (qwix) would need the
same trees taken apart; the term itself is a few lines where all projections are
written in one place, and there it has named axes as every other parameter.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from alignment_rl.errors import UserError
from alignment_rl.models.decoder import PROJECTIONS, Lora

_ADAPTER = re.compile(r'layers/\w+_lora/[ab]').fullmatch


def settings(rank: int, alpha: float, targets: Sequence[str]) -> Lora | None:
  """LoRA of a run's config; None at rank 0.

  Raises:
    UserError: a negative rank, an alpha that is not positive, or a target that
      is no projection, or none.
  """
  if rank == 0:
    return None
  if rank < 0:
    raise UserError(
      f'config.model.lora_rank={rank}, expected 0 (no LoRA) or a positive rank'
    )
  if not alpha > 0:
    raise UserError(
      f'config.model.lora_alpha={alpha}, expected a positive number, such as '
      'twice the rank'
    )
  if not targets or not set(targets) <= set(PROJECTIONS):
    raise UserError(
      f'config.model.lora_targets={tuple(targets)}, expected some of '
      f'{PROJECTIONS}'
    )
  return Lora(rank, alpha, tuple(targets))


def adapters(params: Any) -> dict:
  """The tree of the adapters alone; {} if there are none."""
  flat = traverse_util.flatten_dict(params, sep='/')
  return _tree({k: v for k, v in flat.items() if _ADAPTER(k)})


def without(params: Any) -> dict:
  """The tree without its adapters: the base."""
  flat = traverse_util.flatten_dict(params, sep='/')
  return _tree({k: v for k, v in flat.items() if not _ADAPTER(k)})


def split(params: Any) -> tuple[dict, dict]:
  """What a run keeps as it is, and what it holds in its state.

  With adapters these are the base, and the adapters with the value head, which
  is no part of any base; without, nothing and everything.
  """
  held = adapters(params)
  if not held:
    return {}, params
  return without(params), held | {'value_head': params['value_head']}


def join(base: dict, held: dict) -> dict:
  """The inverse of `split`; of a leaf that both have, that of `held`."""
  flat = traverse_util.flatten_dict(base, sep='/')
  return _tree(flat | traverse_util.flatten_dict(held, sep='/'))


def merge(params: Any, lora: Lora | None, put_together=None) -> dict:
  """The model without adapters that says the same.

  Args:
    lora: None has nothing to merge.
    put_together: (W, A, B, lora) -> what takes the place of W; None = `merged`.
  """
  if lora is None:
    return params
  put_together = put_together or merged
  flat = traverse_util.flatten_dict(without(params), sep='/')
  for name, one in adapters(params)['layers'].items():
    path = f'layers/{name.removesuffix("_lora")}'
    flat[path] = put_together(flat[path], one['a'], one['b'], lora)
  return _tree(flat)


def merged(w: jax.Array, a: jax.Array, b: jax.Array, lora: Lora) -> jax.Array:
  """One matrix of every layer with its term: W + (alpha / rank) A B.

  Args:
    w: float32 [L, in..., out...].
    a: float32 [L, in..., N].
    b: float32 [L, N, out...].
  """
  term = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1))(a, b)
  return w + lora.alpha / lora.rank * term


def _tree(flat):
  return traverse_util.unflatten_dict(flat, sep='/')
