"""The mesh, what lies where on it, and rows in and out of it.

`axes.py` has the table. Host arrays are the same on every process
(the mixture and the rewards are pure functions that each process evaluates);
`to_global` gives every device its part, `to_host` brings all rows back to all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignment_rl.axes import AXES, ROWS, RULES
from alignment_rl.errors import UserError
from alignment_rl.models.decoder import DecoderConfig


def make_mesh(
  sizes: Mapping[str, int],
  *,
  slices: int = -1,
  devices: Sequence[jax.Device] | None = None,
  where: str = 'mesh',
) -> Mesh:
  """A mesh over all devices; one size may be -1, to fill.

  Neighbours along an axis are neighbours in the network, where the devices tell
  (`jax.experimental.mesh_utils`). Between slices it is slow: they part the data
  axis and no other, so that parameters are gathered and heads are summed within
  a slice.

  Args:
    sizes: of each axis, by its name.
    slices: equal parts of the data axis, each on a slice of its own, or on
      processes of its own where devices tell no slice; -1 = as the devices say,
      those that tell none being one slice.
    devices: those attached, if None.
    where: what messages call the sizes.

  Raises:
    UserError: the sizes do not use the devices exactly, or do not fit slices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = {axis: int(sizes[axis]) for axis in AXES}
  known = int(np.prod([n for n in sizes.values() if n != -1]))
  free = [axis for axis, n in sizes.items() if n == -1]
  if len(free) == 1 and known > 0 and len(devices) % known == 0:
    sizes[free[0]] = len(devices) // known
  shape = tuple(sizes.values())
  if min(shape) < 1 or int(np.prod(shape)) != len(devices):
    raise UserError(
      f'{where} {sizes} does not fit: {len(devices)} device(s) are attached; '
      'give sizes whose product is that, or set one axis to -1 to fill'
    )
  told = len({_slice(d) for d in devices})
  by_process = told == 1 and slices > 1
  parts = len({d.process_index for d in devices}) if by_process else told
  if slices not in (-1, parts):
    raise UserError(
      f'config.mesh.slices={slices}, but the {len(devices)} device(s) are of '
      f'{told} slice(s) and {len({d.process_index for d in devices})} '
      'process(es); give the number of slices, -1 to ask the devices, or the '
      'number of processes where devices tell no slice'
    )
  data, *inner = shape
  if data % parts:
    raise UserError(
      f'{where} {sizes} has data={data}, which {parts} slices do not divide; '
      f'give a multiple of {parts}: no other axis may cross slices'
    )
  # On some slices an axis is only to be had over two sides of the network.
  how = {'allow_split_physical_axes': True}
  if parts == 1:
    placed = mesh_utils.create_device_mesh(shape, devices, **how)
  else:
    placed = mesh_utils.create_hybrid_device_mesh(
      (data // parts, *inner), (parts, 1, 1), devices,
      process_is_granule=by_process, **how,
    )  # fmt: skip
  # Auto axes: linen's metadata and explicit axes do not agree.
  return Mesh(placed, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


def make_meshes(
  config: Mapping[str, Any], devices: Sequence[jax.Device] | None = None
) -> tuple[Mesh, Mesh]:
  """The mesh of updates and that of sampling, over the same devices.

  Args:
    config: `config.mesh`; where all of its `rollout` is 0, both are one.

  Raises:
    UserError: see `make_mesh`.
  """
  mesh = make_mesh(
    config, slices=config['slices'], devices=devices, where='config.mesh'
  )
  if not any(config['rollout'].values()):
    return mesh, mesh
  return mesh, make_mesh(
    config['rollout'], slices=config['slices'], devices=devices,
    where='config.mesh.rollout',
  )  # fmt: skip


def _slice(device):
  return getattr(device, 'slice_index', 0)


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


def abstract(tree: Any, shardings: Any) -> Any:
  """Shapes of arrays, with their shardings; of anything that has a shape."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    shardings,
  )


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
