"""The mesh, ONE table from logical to mesh axes, and rows in and out of it.

Models name logical axes on every parameter; this table says where they go, so a
new sharding is a change of the table and of nothing else. Rows of a batch are
split over 'data' and 'fsdp' together. Host arrays are the same on every process
(the mixture and the rewards are pure functions that each process evaluates);
`to_global` gives every device its part, `to_host` brings all rows back to all.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignment_rl.errors import UserError
from alignment_rl.models.decoder import DecoderConfig

AXES = ('data', 'fsdp', 'tensor')

RULES = (
  ('vocab', 'tensor'),
  ('embed', 'fsdp'),
  ('heads', 'tensor'),
  ('kv_heads', 'tensor'),
  ('head_dim', None),
  ('mlp', 'tensor'),
  ('layers', None),
)

ROWS = PartitionSpec(('data', 'fsdp'))


def make_mesh(
  sizes: dict[str, int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """A mesh over all devices; one size may be -1, to fill.

  Args:
    devices: None = those attached.

  Raises:
    UserError: the sizes do not use the devices exactly.
  """
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  sizes = {axis: int(sizes[axis]) for axis in AXES}
  known = int(np.prod([n for n in sizes.values() if n != -1]))
  free = [axis for axis, n in sizes.items() if n == -1]
  if len(free) == 1 and known > 0 and count % known == 0:
    sizes[free[0]] = count // known
  if min(sizes.values()) < 1 or int(np.prod(list(sizes.values()))) != count:
    raise UserError(
      f'mesh {sizes} does not fit: {count} device(s) are attached; give '
      'sizes whose product is that, or set one axis to -1 to fill'
    )
  # Auto axes: linen's metadata and explicit axes do not agree.
  return jax.make_mesh(
    tuple(sizes.values()), AXES, devices=devices,
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )  # fmt: skip


def check_fit(mesh: Mesh, config: DecoderConfig, rows: dict[str, int]) -> None:
  """Says which size a mesh axis does not divide, before any array exists.

  Args:
    rows: what is split over data x fsdp, by a name for the message.

  Raises:
    UserError: some size is not a multiple of its mesh axis.
  """
  sizes = {
    'vocab': config.vocab, 'embed': config.embed, 'heads': config.heads,
    'kv_heads': config.kv_heads, 'mlp': config.mlp,
  }  # fmt: skip
  for logical, axis in RULES:
    if axis and logical in sizes and sizes[logical] % mesh.shape[axis]:
      raise UserError(
        f'{logical}={sizes[logical]} is not a multiple of mesh axis '
        f'{axis}={mesh.shape[axis]}; choose a divisor of {sizes[logical]}'
      )
  split = row_shards(mesh)
  for name, n in rows.items():
    if n % split:
      raise UserError(
        f'{name}={n} is not a multiple of data x fsdp = {split}; raise it to '
        f'{-(-n // split) * split} or use a smaller mesh'
      )


def row_shards(mesh: Mesh) -> int:
  """Into how many parts the rows of a batch are split."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
  """Shardings of a tree of abstract arrays boxed with logical axis names.

  An optimizer's statistics keep the names of their parameter: Adafactor's row
  and column means, of a lower rank, are replicated.
  """
  specs = nn.get_partition_spec(boxed)
  shardings = nn.logical_to_mesh_sharding(specs, mesh, RULES)

  def place(x, sharding):
    whole = x.ndim == len(sharding.spec) and x.size > 1
    return sharding if whole else replicated(mesh)

  return jax.tree.map(place, nn.meta.unbox(boxed), shardings)


def rows(mesh: Mesh) -> NamedSharding:
  """First axis over the rows of the mesh."""
  return NamedSharding(mesh, ROWS)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def to_global(tree: Any, shardings: Any) -> Any:
  """Host arrays, equal on every process -> global arrays."""

  def place(x, sharding):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  if isinstance(shardings, NamedSharding):
    return jax.tree.map(lambda x: place(x, shardings), tree)
  return jax.tree.map(place, tree, shardings)


def to_host(tree: Any) -> Any:
  """Global arrays -> numpy, all rows on every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def is_main() -> bool:
  """Whether this is the process that writes files and asks endpoints."""
  return jax.process_index() == 0


def from_main(array: np.ndarray) -> np.ndarray:
  """The main process's array, in every process. All of them must call."""
  if jax.process_count() == 1:
    return array
  return np.asarray(multihost_utils.broadcast_one_to_all(array))


def start_distributed(spec: str) -> None:
  """Joins the processes of a pod: same program, same arguments, on each.

  Args:
    spec: '' for one process, 'auto' where the platform knows (TPU pods, Slurm),
      or 'HOST:PORT,PROCESSES,INDEX'.

  Raises:
    UserError: `spec` is none of these.
  """
  if not spec:
    return
  if spec == 'auto':
    jax.distributed.initialize()
    return
  parts = spec.split(',')
  if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit()):
    raise UserError(
      f"--distributed is {spec!r}, expected 'auto' or HOST:PORT,PROCESSES,INDEX"
    )
  # The CPU's own client is for one process; gloo makes it a pod in miniature.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(parts[0], int(parts[1]), int(parts[2]))
