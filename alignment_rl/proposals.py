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

from alignment_rl import chips, programs, sharding
from alignment_rl import config as config_lib
from alignment_rl.findings import Finding
from alignment_rl.models.decoder import DecoderConfig

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
  sizes = programs.load_model(config).config
  overrides = {}
  for _ in range(TRIES):
    failing = [f for f in findings if not f.fits]
    if not failing:
      # Those that did fit were compiled before the last changes.
      findings = compile_(config, None)
      if all(f.fits for f in findings):
        return Proposal(overrides, findings)
      continue
    change = next(changes(config, sizes, failing, chip, devices), None)
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
  config: ConfigDict,
  sizes: DecoderConfig,
  failing: list[Finding],
  chip: chips.Chip,
  devices: int,
) -> Iterator[dict[str, Any]]:
  """Changes that may help the programs that do not fit, the mildest first."""
  names = {f.name for f in failing}
  b = config.batch
  data, fsdp, tensor = mesh_sizes(config, devices)
  shards = data * fsdp
  if data > 1 and sizes.embed % shards == 0:
    yield {'mesh.data': 1, 'mesh.fsdp': shards}
  if all(f.memory.arguments + f.memory.resident > chip.usable for f in failing):
    return  # The parameters and their optimizer alone take too much.
  if 'update' in names and config.model.remat != 'block':
    yield {'model.remat': 'block'}
  for f in failing:
    if f.name in ('update', 'scores'):
      for parts in _micro_batches(f, b, shards, chip):
        yield {'batch.micro_batches': parts}
  if 'update' in names:
    # Two chips share a row, and so its heads and its part of the MLP.
    wider = (sizes.kv_heads, sizes.heads, sizes.mlp, sizes.vocab)
    if fsdp % 2 == 0 and all(n % (2 * tensor) == 0 for n in wider):
      yield {
        'mesh.data': data,
        'mesh.fsdp': fsdp // 2,
        'mesh.tensor': tensor * 2,
        'batch.micro_batches': b.micro_batches * 2,
      }
  if 'judge' in names and config.judge.rows > shards:
    yield {'judge.rows': max(config.judge.rows // 2, shards)}
  if 'sampler' in names and b.prompts // 2 % shards == 0:
    parts = min(b.micro_batches, b.prompts // 2 // shards)
    yield {'batch.prompts': b.prompts // 2, 'batch.micro_batches': parts}
  for field in ('completion_length', 'prompt_length'):
    if b[field] // 2 >= _SHORTEST:
      yield {f'batch.{field}': b[field] // 2}


def mesh_sizes(config: ConfigDict, devices: int) -> tuple[int, ...]:
  """Devices along data, fsdp and tensor, with -1 filled."""
  shape = [config.mesh[axis] for axis in sharding.AXES]
  known = abs(int(np.prod(shape)))
  return tuple(devices // known if n == -1 else n for n in shape)


def _micro_batches(finding, b, shards, chip):
  """Numbers of micro-batches, from what the temporaries seem to need."""
  memory = finding.memory
  free = chip.usable - (memory.total - memory.temporaries)
  needed = memory.temporaries / free if free > 0 else np.inf
  more = [
    n
    for n in range(b.micro_batches + 1, b.prompts // shards + 1)
    if b.prompts % n == 0 and b.prompts // n % shards == 0
  ]
  return [n for n in more if n >= needed * b.micro_batches] or more[-1:]
