"""What a workdir keeps of a model, yet unread: of its steps and of its base.

A step of a LoRA run has the adapters alone. What they stand beside is kept
once, in `base/`, and a step is read as the model that both make, merged.
"""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from alignment_rl import lora
from alignment_rl.models.decoder import Lora


@dataclasses.dataclass(frozen=True)
class Kept:
  """A parameter of an orbax checkpoint, yet unread; as `huggingface.Stored`."""

  path: pathlib.Path
  names: tuple[str, ...]
  metadata: Any

  def __array__(self, dtype=None, copy=None):
    found = self._restore(ocp.RestoreArgs(restore_type=np.ndarray))
    return found.astype(dtype or found.dtype, copy=False)

  def place(self, sharding):
    return self._restore(ocp.ArrayRestoreArgs(sharding=sharding))

  def _restore(self, how):
    alone = lambda x: traverse_util.unflatten_dict({self.names: x})
    with ocp.PyTreeCheckpointer() as reader:
      found = reader.restore(
        self.path,
        args=ocp.args.PyTreeRestore(
          item=alone(self.metadata),
          restore_args=alone(how),
          partial_restore=True,
        ),
      )
    (leaf,) = jax.tree.leaves(found)
    return leaf


@dataclasses.dataclass(frozen=True)
class Merged:
  """A matrix of a workdir with its adapter, each yet unread; as Kept."""

  w: Kept
  a: Kept
  b: Kept
  lora: Lora

  def __array__(self, dtype=None, copy=None):
    found = lora.merged(*map(np.asarray, (self.w, self.a, self.b)), self.lora)
    return np.asarray(found, dtype)

  def place(self, sharding):
    # A has the first axes of W, and B the others.
    rank, inner = len(self.w.metadata.shape), len(self.a.metadata.shape) - 1
    spec = (*sharding.spec, *[None] * rank)[:rank]
    on = lambda *spec: NamedSharding(sharding.mesh, PartitionSpec(*spec))
    parts = (
      self.w.place(sharding),
      self.a.place(on(*spec[:inner], None)),
      self.b.place(on(spec[0], None, *spec[inner:])),
    )
    put_together = jax.jit(
      lora.merged, static_argnums=3, out_shardings=sharding, donate_argnums=0
    )
    return put_together(*parts, self.lora)


def save_base(
  workdir: str | os.PathLike, params: dict[str, Any], adapters: Lora
) -> None:
  """Writes what the adapters of a workdir stand beside, at its first start."""
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as saver:
    saver.save(
      _base(workdir),
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(params),
        lora=ocp.args.JsonSave(dataclasses.asdict(adapters)),
      ),
    )


def read_base(workdir: str | os.PathLike) -> dict[str, Any] | None:
  """What `save_base` wrote, yet unread; None in a workdir that has none."""
  if _base(workdir).is_dir():
    return _read_tree(_base(workdir) / 'params')
  return None


def read_step(workdir: str | os.PathLike, step: int) -> dict[str, Any]:
  """The parameters of a checkpoint: a tree of Kept and Merged."""
  path = pathlib.Path(workdir) / 'checkpoints' / str(step) / 'state'
  params, base = _read_tree(path.absolute(), 'params'), read_base(workdir)
  if base is None:
    return params
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
    only = ocp.args.Composite(lora=ocp.args.JsonRestore())
    found = reader.restore(_base(workdir), args=only)['lora']
  adapters = Lora(**found | {'targets': tuple(found['targets'])})
  return lora.merge(lora.join(base, params), adapters, Merged)


def _base(workdir):
  return (pathlib.Path(workdir) / 'base').absolute()


def _read_tree(path, *under):
  """The part `under` of an orbax checkpoint, a tree of Kept."""
  with ocp.PyTreeCheckpointer() as reader:
    found = reader.metadata(path).item_metadata.tree
  for name in under:
    found = found[name]
  kept = {
    names: Kept(path, (*under, *names), metadata)
    for names, metadata in traverse_util.flatten_dict(found).items()
  }
  return traverse_util.unflatten_dict(kept)
