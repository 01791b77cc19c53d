"""Public figures of Cloud TPU chips, and slices of them that are not there.

Peaks, memory and its bandwidth are those of the pages 'TPU v4', 'TPU v5e', 'TPU
v5p' and 'TPU v6e' of https://docs.cloud.google.com/tpu/docs/ (v4, v5e, v5p,
v6e), read in 2026. The interconnect is given there for both directions at once
(v5e 400, v5p 1200, v6e 800 GB/s a chip); half of it goes one way. The page of
v4 does not say: https://jax-ml.github.io/scaling-book/tpus has 45 GB/s a link
one way, and a chip has six. Memory is counted there in powers of two.
"""

import dataclasses
import os

import jax
from jax.experimental import topologies

from alignment_rl import config as config_lib
from alignment_rl.errors import UserError

GB, GIB = 10**9, 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a chip can do.

  Attributes:
    name: as in '--topology=NAME:2x2x1'.
    flops: bfloat16 multiplications and additions a second.
    memory: bytes of HBM.
    usable: bytes of it that a program may take, by what libtpu 0.0.42 says of
      one that takes more.
    bandwidth: bytes a second between HBM and the cores.
    interconnect: bytes a second that a chip sends over all of its links.
    options: of `topologies.get_topology_desc`.
  """

  name: str
  flops: float
  memory: float
  usable: float
  bandwidth: float
  interconnect: float
  options: tuple[tuple[str, str], ...] = ()


CHIPS = {
  chip.name: chip
  for chip in (
    # Two cores that programs see as one.
    Chip(
      'v4', 275e12, 32 * GIB, 30.75 * GIB, 1200 * GB, 270 * GB,
      (('chip_config_name', 'megacore'),),
    ),
    Chip('v5e', 197e12, 16 * GIB, 15.75 * GIB, 819 * GB, 200 * GB),
    Chip('v5p', 459e12, 95 * GIB, 95 * GIB, 2765 * GB, 600 * GB),
    Chip('v6e', 918e12, 32 * GIB, 31.25 * GIB, 1600 * GB, 400 * GB),
  )
}  # fmt: skip


def slice_devices(topology: str) -> tuple[Chip, list[jax.Device]]:
  """The chip of a slice and its devices, to compile for and not to run on.

  Args:
    topology: such as 'v5p:2x4x4'.

  Raises:
    UserError: there is no such chip or slice, or libtpu is not installed.
  """
  name, _, shape = topology.partition(':')
  if name not in CHIPS or not shape:
    raise UserError(
      f'--topology is {topology!r}, expected CHIP:SHAPE such as v5p:2x4x4, '
      f'with a chip of {list(CHIPS)}'
    )
  config_lib.need('libtpu', 'preflight')
  # Else libtpu asks a server of Google Cloud which machine this is. It is none;
  # the slice is `topology` whatever these say.
  os.environ['TPU_SKIP_MDS_QUERY'] = '1'
  # Nothing is run, so other processes may compile too.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', 'true')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v4-8')
  chip = CHIPS[name]
  try:
    found = topologies.get_topology_desc(
      platform='tpu', topology_name=topology, **dict(chip.options)
    )
  except (jax.errors.JaxRuntimeError, ValueError) as e:
    raise UserError(
      f'libtpu knows no slice {topology!r}: {str(e).splitlines()[0]}'
    ) from e
  return chip, found.devices
