"""What preflight finds of a program, and how it is printed."""

import dataclasses

from alignment_rl import chips, costs


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one chip while a program runs."""

  arguments: float
  outputs: float
  aliased: float  # outputs that take the place of arguments
  temporaries: float
  code: float
  resident: float  # what the run holds beside this program's arguments

  @property
  def total(self) -> float:
    own = self.arguments + self.outputs - self.aliased
    return own + self.temporaries + self.code + self.resident


@dataclasses.dataclass(frozen=True)
class Finding:
  """What is known of a program once it is compiled.

  Attributes:
    calls: in one step.
    compiled: the compiler itself found room for it.
    fits: so does the run beside it.
    costs: of one call, on one chip.
    flops: matrix products of a call on one chip, repeated ones included.
    seconds: the least time of a call, by what takes it.
    mfu: the greatest share of the chip's peak that goes into products which the
      backward pass does not repeat block by block.
    largest: the largest arrays, bytes and description.
  """

  name: str
  calls: int
  compiled: bool
  fits: bool
  memory: Memory
  costs: costs.Costs
  flops: float
  seconds: dict[str, float]
  mfu: float
  largest: list[tuple[float, str]]

  @property
  def bound(self) -> str:
    """What takes the most time."""
    return max(self.seconds, key=self.seconds.get)

  @property
  def least(self) -> float:
    """Seconds that a call takes at least."""
    return self.seconds[self.bound]


def step_seconds(findings: list[Finding]) -> float:
  """The least time of a step: its programs run one after another."""
  return sum(f.calls * f.least for f in findings)


def step_mfu(findings: list[Finding]) -> float:
  """The greatest MFU of a whole step."""
  useful = sum(f.calls * f.least * f.mfu for f in findings)
  return useful / step_seconds(findings)


def as_text(chip: chips.Chip, findings: list[Finding]) -> str:
  """A table with a column for each program, and its largest arrays."""
  kinds = sorted({k for f in findings for k in f.costs.collectives})
  gb = lambda n: f'{n / 1e9:.2f}'
  memory = lambda name: [gb(getattr(f.memory, name)) for f in findings]
  seconds = lambda name: [_number(f.seconds[name]) for f in findings]
  rows = [
    ('', [f.name for f in findings]),
    ('memory of a chip, GB', []),
    *[
      (f'  {name}', memory(name))
      for name in (
        'arguments', 'outputs', 'aliased', 'temporaries', 'code', 'resident',
        'total',
      )
    ],
    (f'  of {gb(chip.usable)}', ['fits' if f.fits else 'NO' for f in findings]),
    ('of a call, a chip', []),
    ('  matrix TFLOP', [_number(f.flops / 1e12) for f in findings]),
    ('  moved, GB', [_number(f.costs.bytes_moved / 1e9) for f in findings]),
    *[
      (
        f'  {kind} over {axes}, GB',
        [
          _number(f.costs.collectives.get((kind, axes), 0.0) / 1e9)
          for f in findings
        ],
      )
      for kind, axes in kinds
    ],
    ('least seconds of a call', []),
    *[
      (f'  {name}', seconds(name))
      for name in ('products', 'memory', 'interconnect')
    ],
    ('calls in a step', [str(f.calls) for f in findings]),
    ('MFU at most', [f'{f.mfu:.1%}' for f in findings]),
  ]  # fmt: skip
  wide = max(len(label) for label, _ in rows) + 2
  lines = [
    (label.ljust(wide) + ''.join(c.rjust(12) for c in cells)).rstrip()
    for label, cells in rows
  ]
  lines += ['', 'largest arrays of a chip, GB']
  lines += [
    f'  {f.name.ljust(8)} {gb(n)} {what}'
    for f in findings
    for n, what in f.largest
  ]
  lines += [
    f'{f.name} does not fit: the largest array is {f.largest[0][1]}'
    for f in findings
    if not f.fits
  ]
  lines += [
    '',
    f'a step takes at least {_number(step_seconds(findings))} s; its MFU is at '
    f'most {step_mfu(findings):.1%}',
  ]
  return '\n'.join(lines)


def _number(x):
  return f'{x:.3g}' if x < 1000 else f'{x:.0f}'


def as_record(finding: Finding) -> dict:
  """For JSON: bytes, multiplications and additions, seconds."""
  record = dataclasses.asdict(finding)
  record['memory']['total'] = finding.memory.total
  record['costs']['collectives'] = [
    {'kind': kind, 'axes': axes, 'bytes': n}
    for (kind, axes), n in finding.costs.collectives.items()
  ]
  record['largest'] = [
    {'bytes': n, 'array': what} for n, what in finding.largest
  ]
  return record | {'bound': finding.bound, 'least': finding.least}
