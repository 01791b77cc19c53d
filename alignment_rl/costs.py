"""What a program costs: matrix products, bytes moved, bytes between devices.

Products are counted twice: in the program as it was written (`matrix_flops`, of
all devices together) and in what one device does after compilation (`read`).
They differ where devices do the same work, or where a kernel hides it.
"""

import collections
import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np
from jax.extend import core

from alignment_rl import hlo


@dataclasses.dataclass(frozen=True)
class Costs:
  """Of one device and one call.

  Attributes:
    flops: multiplications and additions of matrix products.
    bytes_moved: read from and written to main memory. An estimate: arrays that
      stay in a cache between two instructions are not told apart on every
      platform.
    collectives: bytes that the device sends, by (kind, mesh axes), where axes
      are joined by '+'. A ring is assumed: of n devices, each sends its part to
      n - 1 (all-gather, reduce-scatter), twice over (all-reduce).
  """

  flops: float
  bytes_moved: float
  collectives: dict[tuple[str, str], float]

  @property
  def bytes_sent(self) -> float:
    return sum(self.collectives.values())


def matrix_flops(jaxpr: Any, trips: float | None = None) -> float:
  """Multiplications and additions of the matrix products of a traced program.

  Of a conditional the longest branch counts; a kernel's body counts once for
  each point of its grid.

  Args:
    jaxpr: such as `jax.jit(f).trace(x).jaxpr`.
    trips: of loops whose number of trips the data decide.

  Raises:
    ValueError: there is such a loop and `trips` is None.
  """
  total = 0.0
  for eqn in _open(jaxpr).eqns:
    name, p = eqn.primitive.name, eqn.params
    inside = lambda x: matrix_flops(x, trips)
    if name == 'dot_general':
      (contracted, _), _ = p['dimension_numbers']
      shape = eqn.invars[0].aval.shape
      inner = math.prod(shape[i] for i in contracted)
      total += 2.0 * math.prod(eqn.outvars[0].aval.shape) * inner
    elif name == 'scan':
      total += p['length'] * inside(p['jaxpr'])
    elif name == 'while':
      body = inside(p['body_jaxpr'])
      if body and trips is None:
        raise ValueError('how often a loop with matrix products runs is open')
      total += body * (trips or 0.0)
    elif name == 'cond':
      total += max(map(inside, p['branches']))
    else:
      times = 1
      if name == 'pallas_call':
        times = math.prod(p['grid_mapping'].grid)
      elif name == 'shard_map':
        # Its body is of one device.
        sizes = dict(p['mesh'].shape)
        times = math.prod(sizes[a] for a in p.get('manual_axes', sizes))
      total += times * sum(map(inside, _jaxprs(p)))
  return total


def _open(jaxpr):
  return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _jaxprs(params):
  return [
    x for x in params.values() if isinstance(x, core.ClosedJaxpr | core.Jaxpr)
  ]


def read(
  text: str, mesh: jax.sharding.Mesh, trips: float | None = None
) -> Costs:
  """The costs of a compiled program.

  Args:
    text: HLO after all passes, such as `compiled.as_text()`.
    mesh: that it was compiled for; its order is that of the program's devices.
    trips: of loops whose number of trips the data decide.

  Raises:
    ValueError: there is such a loop and `trips` is None.
  """
  module = hlo.parse(text)
  flops = moved = 0.0
  sent = collections.Counter()
  for computation, line, times, fused in module.executed(trips):
    flops += times * hlo.product_flops(computation, line)
    if not fused:
      moved += times * hlo.bytes_moved(module, computation, line)
    kind = line.opcode.removesuffix('-start')
    if computation.name.startswith('all-reduce-scatter'):
      # A TPU's reduce-scatter: a sum and a slice of it, in one.
      kind = kind.replace('all-reduce', 'reduce-scatter')
    if kind in _SHARES:
      groups = device_groups(line.rest, mesh.size)
      n = groups.shape[1]
      payload = sum(
        x.bytes for o in computation.operands(line) for x in o.arrays
      )
      sent[kind, _axes(groups, mesh)] += times * payload * _SHARES[kind](n)
  sent = {k: v for k, v in sorted(sent.items()) if v}
  return Costs(flops, moved, sent)


# Of its operand, what a device sends in a group of n.
_SHARES = {
  'all-gather': lambda n: n - 1,
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'reduce-scatter': lambda n: (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'ragged-all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda n: 1.0,
}


def device_groups(text: str, devices: int) -> np.ndarray:
  """The groups of a collective, int [groups, n]; a permutation's are pairs.

  Args:
    text: the instruction's attributes, which name them in one of four ways.
    devices: of the program.

  Raises:
    ValueError: they are named in another way.
  """
  pairs = re.search(r'source_target_pairs={(.*?)}}', text)
  if pairs:
    return np.array(re.findall(r'\d+', pairs[1]), int).reshape(-1, 2)
  listed = re.search(r'replica_groups={({.*?})}', text)
  if listed:
    rows = re.findall(r'{([\d,]+)}', listed[1])
    return np.array([list(map(int, r.split(','))) for r in rows])
  if 'replica_groups={}' in text:
    return np.arange(devices)[None]
  turned = re.search(rf'replica_groups=(\[[\d,]+\])<={_TURNED}', text)
  if turned:
    return _turned(devices, *turned.groups()[1:]).reshape(_ints(turned[1]))
  # A mesh of the compiler's own, and the axes, or parts of them, of a group.
  own = re.search(
    rf'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_TURNED}\))? '
    r'{([^}]*)}',
    text,
  )
  if own:
    sizes, order, axes, within = own.groups()
    sizes = {k: int(n) for k, n in (x.split('=') for x in sizes.split(','))}
    order = _turned(devices, order, axes) if order else np.arange(devices)
    shape, inner = [], []
    parts = {
      name: (int(before or 1), int(n or sizes[name]))
      for name, before, n in re.findall(r"('\w+')(?::\((\d+)\)(\d+))?", within)
    }
    for name, size in sizes.items():
      before, n = parts.get(name, (1, 1))
      inner += [len(shape) + 1] if name in parts else []
      shape += [before, n, size // before // n]
    outer = [i for i in range(len(shape)) if i not in inner]
    found = order.reshape(shape).transpose(outer + inner)
    return found.reshape(-1, math.prod(shape[i] for i in inner))
  raise ValueError(f'cannot read the devices of a collective: {text[:200]}')


# All devices in order as an array of some shape, its axes then turned.
_TURNED = r'(\[[\d,]+\])(?:T\(([\d,]+)\))?'


def _turned(devices, shape, axes):
  found = np.arange(devices).reshape(_ints(shape))
  return found.transpose(_ints(axes) if axes else None)


def _ints(text):
  return [int(n) for n in re.findall(r'\d+', text)]


def _axes(groups, mesh):
  """The mesh axes along which the devices of a group differ."""
  places = np.stack(np.unravel_index(groups, mesh.devices.shape))
  differ = (places != places[..., :1]).any((1, 2))
  names = [a for a, d in zip(mesh.axis_names, differ, strict=True) if d]
  return '+'.join(names)
