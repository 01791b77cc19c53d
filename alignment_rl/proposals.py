"""Which config fits a slice: one change after another, the mildest first.

A run's numbers do not change with the mesh, with what the backward pass repeats
or with micro-batches; they do with the prompts of a step and with lengths, so
those come last.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alignment_rl import chips, programs
from alignment_rl import config as config_lib
from alignment_rl.findings import Finding

# A search compiles a program or more each time.
TRIES = 12
# Lengths below which a proposal is of no use.
_SHORTEST = 64


@dataclasses.dataclass(frozen=True)
class Proposal:
  """Overrides of a config with which everything was compiled and fits.

  Attributes:
    overrides: dotted field -> value.
    findings: of all programs under them.
  """

  overrides: dict[str, Any]
  findings: list[Finding]


def search(
  config: ConfigDict,
  findings: list[Finding],
  compile_: Callable[..., list[Finding]],
  chip: chips.Chip,
  devices: int,
) -> Proposal | None:
  """A config that fits, or None if none is found.

  Args:
    findings: of `config`.
    compile_: (config, names of programs) -> their findings.
    devices: of the slice.
  """
  config = config.copy_and_resolve_references()
  overrides = {}
  for _ in range(TRIES):
    failing = [f for f in findings if not f.fits]
    if not failing:
      # Those that did fit were compiled before the last changes.
      findings = compile_(config, None)
      if all(f.fits for f in findings):
        return Proposal(overrides, findings)
      continue
    change = next(changes(config, failing, chip, devices), None)
    if change is None:
      return None
    config_lib.override(config, change)
    overrides |= change
    shown = ' '.join(f'--config.{k}={v}' for k, v in change.items())
    print(f'trying {shown}', file=sys.stderr)
    names = [f.name for f in failing]
    again = {f.name: f for f in compile_(config, names)}
    findings = [again.get(f.name, f) for f in findings]
  return None


def changes(
  config: ConfigDict, failing: list[Finding], chip: chips.Chip, devices: int
) -> Iterator[dict[str, Any]]:
  """Changes that may help the programs that do not fit, the mildest first."""
  sizes = programs.load_model(config).config
  names = {f.name for f in failing}
  b, mesh = config.batch, config.mesh
  shape = [mesh.data, mesh.fsdp, mesh.tensor]
  known = -int(np.prod(shape)) if -1 in shape else 0
  data, fsdp, tensor = (devices // known if n == -1 else n for n in shape)
  rows, shards = b.prompts // b.micro_batches, data * fsdp
  if data > 1 and sizes.embed % shards == 0:
    yield {'mesh.data': 1, 'mesh.fsdp': shards}
  if 'update' in names:
    if config.model.remat == 'none':
      yield {'model.remat': 'block'}
    if rows > shards:
      (update,) = (f for f in failing if f.name == 'update')
      yield {'batch.micro_batches': _parts(update, b, shards, chip)}
  if names & {'update', 'scores'} and fsdp % 2 == 0:
    if all(n % (2 * tensor) == 0 for n in (sizes.kv_heads, sizes.mlp)):
      change = {'mesh.fsdp': fsdp // 2, 'mesh.tensor': tensor * 2}
      if 'update' in names:
        change['batch.micro_batches'] = b.micro_batches * 2
      if data != mesh.data:
        change['mesh.data'] = data
      yield change
  if 'judge' in names and config.judge.rows > shards:
    yield {'judge.rows': max(config.judge.rows // 2, shards)}
  if names & {'sampler', 'scores'} and b.prompts // 2 % shards == 0:
    parts = min(b.micro_batches, b.prompts // 2 // shards)
    yield {'batch.prompts': b.prompts // 2, 'batch.micro_batches': parts}
  for field in ('batch.completion_length', 'batch.prompt_length'):
    length = b[field.removeprefix('batch.')] // 2
    if length >= _SHORTEST:
      yield {field: length}


def _parts(update, b, shards, chip):
  """As many micro-batches as the temporaries seem to need, at least twice."""
  memory = update.memory
  free = chip.usable - (memory.total - memory.temporaries)
  needed = memory.temporaries / free if free > 0 else np.inf
  most = b.prompts // shards
  parts = [
    n
    for n in range(b.micro_batches + 1, most + 1)
    if b.prompts % n == 0 and b.prompts // n % shards == 0
  ]
  enough = [n for n in parts if n >= needed * b.micro_batches]
  return (enough or parts[-1:])[0]
