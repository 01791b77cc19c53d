"""Compiled programs as text (HLO): what runs, how often, and what it costs.

The text is what XLA prints after all of its passes, partitioning among them, so
shapes, products and collectives are those of one device.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

# The memory in which arguments, results and temporaries lie; others are caches
# of the cores.
_MAIN = '0'
_BITS = re.compile(r'(\d+)')
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?')
_SPACE = re.compile(r'S\((\d+)\)')
_NAME = re.compile(r'%([\w.\-]+)')
_HEADER = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
_LINE = re.compile(r'\s+(ROOT )?%?([\w.\-]+) = (.*)$')


@dataclasses.dataclass(frozen=True)
class Array:
  """One array: element type, sizes, and whether it lies in main memory."""

  dtype: str
  shape: tuple[int, ...]
  main: bool = True

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def bytes(self) -> float:
    return self.size * _bits(self.dtype) / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of a computation.

  Attributes:
    arrays: its results.
    operands: names of what it reads.
    rest: its attributes, as printed.
  """

  name: str
  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  rest: str

  def attribute(self, name: str) -> str:
    """Such as 'condition' of a loop; '' if it has none."""
    found = re.search(rf'\b{name}=%?([^\s,]+)', self.rest)
    return found[1] if found else ''

  def numbers(self, name: str) -> tuple[int, ...]:
    """Such as 'lhs_contracting_dims={1,2}'."""
    found = re.search(rf'\b{name}={{([\d,]*)}}', self.rest)
    return tuple(map(int, found[1].split(','))) if found and found[1] else ()


@dataclasses.dataclass(frozen=True)
class Computation:
  name: str
  lines: dict[str, Instruction]  # in order; the root is `root`
  root: str

  def operands(self, line: Instruction) -> list[Instruction]:
    return [self.lines[name] for name in line.operands if name in self.lines]

  def users(self, name: str) -> list[Instruction]:
    return self._users.get(name, [])

  @functools.cached_property
  def _users(self):
    found = {}
    for line in self.lines.values():
      for name in dict.fromkeys(line.operands):
        found.setdefault(name, []).append(line)
    return found

  @functools.cached_property
  def parameters(self) -> list[Instruction]:
    """In the order of the call's operands."""
    found = [x for x in self.lines.values() if x.opcode == 'parameter']
    return sorted(found, key=lambda x: int(x.rest))


@dataclasses.dataclass(frozen=True)
class Module:
  computations: dict[str, Computation]
  entry: str

  def executed(
    self, trips: float | None = None
  ) -> Iterator[tuple[Computation, Instruction, float, bool]]:
    """Every instruction that runs, how often, and whether inside a fusion.

    Both branches of a conditional count as run.

    Args:
      trips: of loops whose number of trips the data decide.

    Raises:
      ValueError: there is such a loop and `trips` is None.
    """
    yield from self._walk(self.entry, 1.0, trips, False)

  def _walk(self, name, times, trips, fused):
    computation = self.computations[name]
    for line in computation.lines.values():
      yield computation, line, times, fused
      if line.opcode == 'while':
        n = times * self.trip_count(line, trips)
        yield from self._walk(line.attribute('body'), n, trips, fused)
      elif line.opcode == 'conditional':
        for branch in _branches(line):
          yield from self._walk(branch, times, trips, fused)
      elif line.opcode in ('fusion', 'call', 'async-start'):
        called = line.attribute('calls') or line.attribute('to_apply')
        inside = fused or line.opcode == 'fusion'
        yield from self._walk(called, times, trips, inside)

  def trip_count(self, loop: Instruction, trips: float | None) -> float:
    """How often a loop's body runs; `trips` if the data decide it."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
      return int(known[1])
    condition = self.computations[loop.attribute('condition')]
    # A counted loop goes from 0 in equal steps while less than a constant.
    root = condition.lines[condition.root]
    if root.opcode == 'compare' and root.attribute('direction') == 'LT':
      counter, bound = condition.operands(root)
      if bound.opcode == 'constant' and counter.attribute('index'):
        step = self._step(loop, int(counter.attribute('index')))
        if step:
          return math.ceil(int(bound.rest) / step)
    if trips is None:
      raise ValueError(f'how often {loop.name} runs is not known')
    return trips

  def _step(self, loop, index):
    """What a loop's body adds to the counter at `index`; 0 = not found."""
    body = self.computations[loop.attribute('body')]
    values = body.operands(body.lines[body.root])
    line = values[index] if index < len(values) else body.lines[body.root]
    while line.opcode in ('copy', 'copy-done', 'copy-start', 'bitcast'):
      line = body.operands(line)[0]
    if line.opcode == 'fusion':
      inside = self.computations[line.attribute('calls')]
      return _added(inside, inside.lines[inside.root])
    return _added(body, line)


def _added(computation, line):
  constants = [
    int(x.rest)
    for x in computation.operands(line)
    if line.opcode == 'add' and x.opcode == 'constant'
  ]
  return sum(constants)


def _branches(line):
  found = re.search(r'branch_computations={([^}]*)}', line.rest)
  if found:
    return _NAME.findall(found[1])
  return [line.attribute(f'{x}_computation') for x in ('true', 'false')]


def parse(text: str) -> Module:
  """Reads a module as `compiled.as_text()` prints it."""
  computations, entry, name = {}, '', ''
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header:
      name, lines, root = header[2], {}, ''
      entry = name if header[1] else entry
    elif line == '}' and name:
      computations[name] = Computation(name, lines, root)
      name = ''
    elif name:
      found = _LINE.match(line)
      if found:
        lines[found[2]] = _instruction(found[2], found[3])
        root = found[2] if found[1] else root
  return Module(computations, entry)


def _instruction(name, text):
  text = re.sub(r'/\*.*?\*/', '', text)
  kind = _until_closed(text) if text[0] == '(' else text.index(' ')
  opcode, _, rest = text[kind:].strip().partition('(')
  end = _until_closed('(' + rest) - 1
  inside, rest = rest[: end - 1], rest[end:]
  operands = tuple(_NAME.findall(inside))
  if opcode in ('parameter', 'constant'):
    operands, rest = (), inside
  return Instruction(name, opcode, arrays(text[:kind]), operands, rest)


def _until_closed(text):
  """Where the bracket that `text` begins with has been closed."""
  depth = 0
  for i, character in enumerate(text):
    depth += (character == '(') - (character == ')')
    if depth == 0:
      return i + 1
  raise ValueError(f'a bracket is not closed: {text[:80]}')


def arrays(text: str) -> tuple[Array, ...]:
  """Those that a type names, such as '(f32[8,4]{1,0}, s32[])'."""
  found = []
  for dtype, shape, layout in _ARRAY.findall(text):
    if dtype in ('token', 'opaque'):
      continue
    space = _SPACE.search(layout)
    sizes = tuple(map(int, shape.split(','))) if shape else ()
    found.append(Array(dtype, sizes, not space or space[1] == _MAIN))
  return tuple(found)


def _bits(dtype):
  if dtype == 'pred':
    return 8
  found = _BITS.search(dtype)
  return int(found[1])


def interface_bytes(text: str) -> tuple[float, float, float]:
  """Bytes of a module's arguments, of its results, and of those that alias.

  Less what a device adds to fill its tiles.
  """
  module = parse(text)
  entry = module.computations[module.entry]
  given = [sum(x.bytes for x in p.arrays) for p in entry.parameters]
  made = [x.bytes for x in entry.lines[entry.root].arrays]
  header = text.partition('\n')[0]
  aliased = re.findall(r'{(\d*)}: \(\d+, {}, (?:may|must)-alias\)', header)
  return sum(given), sum(made), sum(made[int(i or 0)] for i in aliased)


def product_flops(computation: Computation, line: Instruction) -> float:
  """Multiplications and additions of a matrix product, or 0 of what is none."""
  if line.opcode == 'dot':
    left = computation.operands(line)[0].arrays[0]
    inner = math.prod(
      left.shape[i] for i in line.numbers('lhs_contracting_dims')
    )
    return 2.0 * line.arrays[0].size * inner
  if line.opcode == 'convolution':
    return _convolution_flops(computation, line)
  if line.opcode == 'custom-call':
    # A kernel's own estimate, where it gives one.
    found = re.search(r'"cost_estimate":\{"flops":"?(\d+)', line.rest)
    return float(found[1]) if found else 0.0
  return 0.0


def _convolution_flops(computation, line):
  """A TPU multiplies matrices by convolutions, batch axes being spatial ones.

  Of those only the products count that do not fall on padding or on the holes
  of a dilation.
  """
  left, right = (x.arrays[0].shape for x in computation.operands(line))
  out = line.arrays[0].shape
  a, b, c = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', line.rest).groups()
  total = 2.0 * out[c.index('b')] * out[c.index('f')] * right[b.index('i')]
  window = re.search(r'window={([^}]*)}', line.rest)
  fields = dict(f.split('=') for f in window[1].split()) if window else {}
  get = lambda name, i, other: (
    fields[name].split('x')[i] if name in fields else other
  )
  for i in range(len(a) - 2):
    low = int(get('pad', i, '0_0').split('_')[0])
    total *= _meetings(
      out[c.index(str(i))], right[b.index(str(i))], left[a.index(str(i))],
      int(get('stride', i, 1)), low, int(get('lhs_dilate', i, 1)),
      int(get('rhs_dilate', i, 1)),
    )  # fmt: skip
  groups = line.attribute('batch_group_count')
  return total / int(groups or 1)


def _meetings(out, kernel, size, stride, low, spread, kernel_spread):
  """Pairs of an output and a kernel place that meet an input."""
  place = np.arange(out)[:, None] * stride - low
  place = place + np.arange(kernel) * kernel_spread
  real = (place >= 0) & (place % spread == 0) & (place // spread < size)
  return int(real.sum())


# These move nothing, or their parts do.
_STILL = {
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while',
  'call', 'conditional', 'after-all', 'partition-id', 'replica-id',
  'async-start', 'async-update', 'async-done', 'copy-done', 'all-gather-done',
  'all-reduce-done', 'collective-permute-done', 'send-done', 'recv-done',
  'opt-barrier',
}  # fmt: skip
_SLICES = ('dynamic-slice', 'slice', 'gather')


def bytes_moved(
  module: Module, computation: Computation, line: Instruction
) -> float:
  """Bytes that an instruction reads from and writes to main memory.

  Of an array of which a part is read or replaced, only the part counts.
  """
  if line.opcode in _STILL:
    return 0.0
  operands = computation.operands(line)
  if line.opcode == 'fusion':
    inside = module.computations[line.attribute('calls')]
    read = sum(
      _read(module, inside, parameter)
      for parameter, operand in zip(inside.parameters, operands, strict=True)
      if operand.arrays and operand.arrays[0].main
    )
    if not any(x.main for x in line.arrays):
      return read
    return read + _written(module, inside, inside.lines[inside.root])
  if line.opcode in _SLICES:
    return 2 * _main_bytes(line)
  if line.opcode in ('dynamic-update-slice', 'scatter'):
    return 2 * _main_bytes(operands[1 if line.opcode[0] == 'd' else -1])
  if line.opcode == 'copy-start':
    # It gives its source again, and a flag.
    written = line.arrays[0]
    return _main_bytes(operands[0]) + written.bytes * written.main
  return _main_bytes(line) + sum(map(_main_bytes, operands))


def _main_bytes(line):
  return sum(x.bytes for x in line.arrays if x.main)


def _read(module, computation, value):
  """How much of a value inside a fusion is read."""
  total = 0.0
  for user in computation.users(value.name):
    first = user.operands[0] == value.name
    if user.opcode in _SLICES and first:
      total += sum(x.bytes for x in user.arrays)
    elif user.opcode in ('dynamic-update-slice', 'scatter') and first:
      continue  # What is replaced is not read.
    elif user.opcode == 'bitcast':
      total += _read(module, computation, user)
    elif user.opcode == 'fusion':
      inside = module.computations[user.attribute('calls')]
      total += sum(
        _read(module, inside, parameter)
        for parameter, name in zip(
          inside.parameters, user.operands, strict=True
        )
        if name == value.name
      )
    else:
      return sum(x.bytes for x in value.arrays)
  return min(total, sum(x.bytes for x in value.arrays))


def _written(module, computation, root):
  """How much of a fusion's result is new."""
  operands = computation.operands(root)
  if root.opcode == 'tuple':
    return sum(_written(module, computation, x) for x in operands)
  if root.opcode == 'bitcast':
    return _written(module, computation, operands[0])
  if root.opcode == 'dynamic-update-slice':
    return sum(x.bytes for x in operands[1].arrays)
  if root.opcode == 'fusion':
    inside = module.computations[root.attribute('calls')]
    return _written(module, inside, inside.lines[inside.root])
  return sum(x.bytes for x in root.arrays)
