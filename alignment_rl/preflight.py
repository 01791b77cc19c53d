"""Compiles a run's real programs for a TPU slice, without the slice.

  python -m alignment_rl.preflight --config=configs/rl.py:smollm2 \
      --topology=v5e:2x2x1 --config.batch.micro_batches=1 [--json]

The sampler, the scores of the reference, the judge and the update are those
that `train` runs, compiled by the TPU's own compiler (extra [preflight]). Of
each it prints the memory of a chip, matrix products, bytes moved and sent, and
the least time and greatest MFU that follow from the chip's public figures.
Where something does not fit, it searches for a config that does.

Exit code: 0 if all of it fits, 1 if not, 2 for a mistake in the config.

A bound is no forecast: it takes products at their peak, every link in use, and
the three of them at once. The judge's shape is a guess (`JUDGED`), for texts
differ; loops that end early, such as the sampler's, are taken to their end.
"""

import dataclasses
import json
import math
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict, config_flags

from alignment_rl import (
  checkpoint,
  chips,
  costs,
  findings,
  hlo,
  learner,
  lora,
  programs,
  proposals,
  sharding,
  text,
  text_scorer,
)
from alignment_rl import config as config_lib
from alignment_rl.findings import Finding, Memory
from alignment_rl.types import Batch, Rollout

# Continuations of a reply that the judge reads, two statements for each of six
# criteria, and tokens of each.
JUDGED = (12, 48)


@dataclasses.dataclass(frozen=True)
class Task:
  """A program to compile.

  Attributes:
    traced: of `jax.jit(...).trace(shapes)`.
    trips: of its loop whose number of trips the data decide.
    calls: in one step.
    holds: what it is given of the arrays that a run holds all the time.
    work: matrix products of a call on all devices, in multiplications and
      additions, without those that the backward pass repeats block by block.
  """

  name: str
  traced: Any
  trips: float | None
  calls: int
  holds: tuple[str, ...]
  work: float


def plan(
  config: ConfigDict, meshes: tuple[jax.sharding.Mesh, jax.sharding.Mesh]
) -> tuple[list[Task], dict[str, float]]:
  """The programs of a step, traced, and bytes of a chip that the run holds.

  Raises:
    UserError: see `programs.make`.
  """
  b, mesh = config.batch, meshes[0]
  model, streams = programs.load_model(config), len(config.streams)
  run = programs.make(config, model, meshes, streams)
  state = sharding.abstract(run.abstract, run.shardings)
  start = learner.abstract_params(model.decoder, mesh)
  base, reference = lora.split(start)[0], lora.without(start)
  held = {
    'params': _chip_bytes(state.params),
    'optimizer': _chip_bytes(state.opt_state),
    'reference': _chip_bytes(reference),
  }
  for name, gold in config.gold.items() if config.log.gold_every else ():
    if gold.weights:
      held[f'gold.{name}'] = _chip_bytes(
        _reader(config, gold.weights, model, mesh)[1]
      )
  # Adapters stand beside the reference itself.
  policy = ('params', 'reference') if base else ('params',)
  of = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
  B, G, P, C = b.prompts, b.group, b.prompt_length, b.completion_length
  one, scalars = of(jnp.int32, B), of(jnp.float32, B, G, C)
  rolled = Rollout(
    of(jnp.int32, B, P), one, of(jnp.int32, B, G, C), of(jnp.int32, B, G),
    scalars,
  )  # fmt: skip
  batch = Batch(
    rolled, scalars, scalars, scalars, scalars, scalars, of(bool, B, G), one
  )
  passes = of(jnp.int32, b.micro_batches * streams, 2)
  updating = (state, base, batch, passes, of(jnp.int32, streams + 1))
  tasks = []

  def add(name, program, given, trips, calls, holds, plain=None):
    traced = program.trace(*given)
    work = costs.matrix_flops((plain or traced).jaxpr, trips)
    tasks.append(Task(name, traced, trips, calls, holds, work))

  if run.algorithm.name != 'sft':
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = lora.join(base, state.params)
    moved = run.sampler.moved(params)
    given = (moved, rolled.prompts, one, one, key)
    holds = policy if moved is params else ()
    add('sampler', run.sampler.program, given, C, 1, holds)
    scorer, given, name = _judge(config, model, mesh, held)
    rows = given[1].shape[0]
    drawn = B * run.sampler.group
    add('judge', scorer.program, given, None, -(-drawn // rows), (name,))
  if run.algorithm.reads_reference:
    calls = 2 if run.algorithm.name == 'ppo' else 1
    given = (reference, rolled)
    add('scores', run.scores, given, None, calls, ('reference',))
  # Every micro-batch is read once, in the pass of whichever stream.
  trips = b.micro_batches / streams
  plain = programs.make(
    config, model.with_dtype(config.model.dtype), meshes, streams
  ).update.trace(*updating)
  holds = (*policy, 'optimizer')
  epochs = run.algorithm.epochs
  add('update', run.update, updating, trips, epochs, holds, plain)
  return tasks, held


def _judge(config, model, mesh, held):
  """The judge's program, the shapes it is given, and whose weights it has."""
  weights, b = config.judge.weights, config.batch
  reader, params = _reader(config, weights, model, mesh)
  scorer = text_scorer.TextScorer(
    reader.decoder, None, reader.tokenizer, mesh, rows=config.judge.rows
  )
  name = 'judge' if weights else 'reference'
  held[name] = _chip_bytes(params)
  shards = sharding.row_shards(mesh)
  n = -(-config.judge.rows // shards) * shards
  G, C = JUDGED
  of = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
  P = text.bucket(b.prompt_length + b.completion_length, 16)
  return scorer, (params, of(n, P), of(n), of(n, G, C), of(n, G)), name


def _reader(config, weights, model, mesh):
  """A frozen model that reads for a reward, and its parameters in shapes."""
  if weights:
    reader = checkpoint.load_model(
      weights, family=config.model.module, dtype=config.judge.dtype
    )
  else:
    reader = model.without_lora().with_dtype(config.judge.dtype)
  return reader, learner.abstract_params(reader.decoder, mesh)


def _chip_bytes(tree):
  size = lambda x: math.prod(x.sharding.shard_shape(x.shape))
  return float(sum(size(x) * x.dtype.itemsize for x in jax.tree.leaves(tree)))


def examine(
  task: Task, mesh: jax.sharding.Mesh, chip: chips.Chip, held: dict[str, float]
) -> Finding:
  """Compiles a program and reads what the compiler says of it.

  It must not come from a compilation cache, which keeps no report.

  Args:
    held: bytes of a chip that the run holds, by name.
  """
  begin = time.perf_counter()
  with tempfile.TemporaryDirectory() as folder:
    # The files are there too when the compiler finds that it does not fit.
    options = {'xla_dump_to': folder}
    try:
      stats = task.traced.lower().compile(options).memory_analysis()
    except jax.errors.JaxRuntimeError as e:
      if 'RESOURCE_EXHAUSTED' not in str(e):
        raise
      stats = None
    (path,) = pathlib.Path(folder).glob('*after_optimizations.txt')
    compiled = path.read_text()
    (path,) = pathlib.Path(folder).glob('*memory-usage-report.txt')
    report = path.read_text()
  print(
    f'{task.name}: compiled in {time.perf_counter() - begin:.0f} s',
    file=sys.stderr,
  )
  total, largest = read_usage(report, compiled)
  resident = sum(held.values()) - sum(held[name] for name in task.holds)
  if stats is None:
    given, made, aliased = hlo.interface_bytes(compiled)
    code = 0.0
  else:
    given = float(stats.argument_size_in_bytes)
    made = float(stats.output_size_in_bytes)
    aliased = float(stats.alias_size_in_bytes)
    code = float(stats.generated_code_size_in_bytes)
  rest = max(total - given - made + aliased, 0.0)
  memory = Memory(given, made, aliased, rest, code, resident)
  found = costs.read(compiled, mesh, task.trips)
  # A kernel hides its products from the one count, and work that is done twice
  # does not show in the other.
  traced = costs.matrix_flops(task.traced.jaxpr, task.trips) / mesh.size
  flops = max(found.flops, traced)
  seconds = {
    'products': flops / chip.flops,
    'memory': found.bytes_moved / chip.bandwidth,
    'interconnect': found.bytes_sent / chip.interconnect,
  }
  least = max(seconds.values())
  return Finding(
    task.name, task.calls, stats is not None,
    stats is not None and memory.total <= chip.usable, memory, found, flops,
    seconds, task.work / mesh.size / (least * chip.flops), largest,
  )  # fmt: skip


_UNITS = {'B': 1, 'KiB': 2**10, 'MiB': 2**20, 'GiB': 2**30, 'TiB': 2**40}


def read_usage(
  report: str, compiled: str, most: int = 3
) -> tuple[float, list[tuple[float, str]]]:
  """The bytes that a program takes in main memory, and its largest arrays.

  Args:
    report: the compiler's memory usage report.
    compiled: the program as text, which says where an array comes from.
    most: arrays to name.
  """
  main = next(
    part for part in report.split('Memory Space:') if '(color=0)' in part
  )
  total = float(re.search(r'Total bytes: (\d+)', main)[1])
  rows = re.findall(r'; +([\d.]+)([KMGT]?i?B); +\d+; +\d+; (.*)', main)
  # A place is used by several arrays, one after another.
  sized = [
    (float(n) * _UNITS[unit], max(hlo.arrays(names), key=lambda x: x.bytes))
    for n, unit, names in rows
    if hlo.arrays(names)
  ]
  sized.sort(key=lambda row: -row[0])
  return total, [(n, _whence(shape, compiled)) for n, shape in sized[:most]]


def _whence(array, compiled):
  """A shape and the operation that makes such an array."""
  shape = f'{array.dtype}[{",".join(map(str, array.shape))}]'
  found = re.search(rf' = {re.escape(shape)}.*?op_name="(.*?[^\\])"', compiled)
  if not found:
    return shape
  # Loops and wrappers say little.
  dull = ('while', 'body', 'closed_call', 'checkpoint')
  parts = found[1].replace('\\', '').split('/')
  return f'{shape} of {"/".join(p for p in parts if p not in dull)}'


def check(
  config: ConfigDict,
  chip: chips.Chip,
  devices: Iterable[jax.Device],
  only: Iterable[str] | None = None,
) -> list[Finding]:
  """Compiles the programs of a config, or those named in `only`.

  Raises:
    UserError: see `programs.make`.
  """
  meshes = sharding.make_meshes(config.mesh, devices)
  tasks, held = plan(config, meshes)
  return [
    examine(task, meshes[task.name == 'sampler'], chip, held)
    for task in tasks
    if only is None or task.name in only
  ]


def preflight(config: ConfigDict, topology: str, as_json: bool) -> bool:
  """Prints what is found, and whether all of it fits.

  Raises:
    UserError: there is no such slice, or a field of the config is wrong.
  """
  chip, devices = chips.slice_devices(topology)
  found = check(config, chip, devices)
  fits = all(f.fits for f in found)
  proposal = None
  if not fits:
    try_out = lambda config, only=None: check(config, chip, devices, only)
    proposal = proposals.search(config, found, try_out, chip, len(devices))
  if as_json:
    record = {
      'topology': topology,
      'chip': dataclasses.asdict(chip),
      'fits': fits,
      'programs': list(map(findings.as_record, found)),
      'step': {
        'seconds': findings.step_seconds(found),
        'mfu': findings.step_mfu(found),
      },
      'proposal': proposal
      and {
        'overrides': proposal.overrides,
        'programs': list(map(findings.as_record, proposal.findings)),
      },
    }
    print(json.dumps(record, indent=2))
    return fits
  print(f'{config.model.weights} on {len(devices)} x {chip.name} ({topology})')
  print(findings.as_text(chip, found))
  if proposal:
    print('\nThis fits, compiled too:')
    print('  ' + ' '.join(_flags(proposal.overrides)))
    print(findings.as_text(chip, proposal.findings))
  elif not fits:
    print(
      '\nNo config was found that fits: take a larger slice. Parameters, '
      f'optimizer and reference take {held_bytes(found) / 1e9:.1f} GB a chip.'
    )
  return fits


def held_bytes(found: list[Finding]) -> float:
  """Bytes of a chip that the run holds whatever it computes."""
  (update,) = (f for f in found if f.name == 'update')
  return update.memory.arguments + update.memory.resident


def _flags(overrides):
  return [f'--config.{name}={value}' for name, value in overrides.items()]


def main() -> None:
  given = flags.FLAGS
  # A program read back from a cache says nothing of its compilation.
  jax.config.update('jax_enable_compilation_cache', False)
  if not preflight(given.config, given.topology, given.json):
    sys.exit(1)


if __name__ == '__main__':
  config_flags.DEFINE_config_file('config', None, 'FILE.py[:VARIANT]')
  flags.DEFINE_string('topology', None, 'CHIP:SHAPE, such as v5p:2x4x4')
  flags.DEFINE_bool('json', False, 'print one JSON object')
  config_lib.run(main, required=('config', 'topology'))
