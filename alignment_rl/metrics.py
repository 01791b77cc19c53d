"""Numbers over time: JSON lines, TensorBoard, the terminal's progress bar."""

import collections
import json
import math
import os
import pathlib
from collections.abc import Mapping

import jax
import tensorboardX
import tqdm

from alignment_rl.errors import UserError


class Writer:
  """Appends a run's metrics; only process 0 has one that writes.

  Resuming at `step` first drops lines of later steps, which the lost part of
  the run wrote, so that the file reads as if there had been no interruption.
  """

  def __init__(self, workdir: str | os.PathLike, *, step: int, active: bool):
    self._active = active
    if not active:
      return
    self._folder = pathlib.Path(workdir)
    for name in ('metrics.jsonl', 'rollouts.jsonl'):
      _keep_until(self._folder / name, step)
    self._board = tensorboardX.SummaryWriter(
      str(self._folder / 'tensorboard'), purge_step=step
    )

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """One line of metrics.jsonl; NaN is written as null."""
    if not self._active:
      return
    clean = {k: _finite_or_none(v) for k, v in values.items()}
    self._append('metrics.jsonl', {'step': step} | clean)
    for name, value in clean.items():
      if value is not None:
        self._board.add_scalar(name, value, step)

  def rollouts(self, step: int, groups: list[dict]) -> None:
    """Lines of rollouts.jsonl, one a group."""
    if self._active:
      for group in groups:
        self._append('rollouts.jsonl', {'step': step} | group)

  def close(self) -> None:
    if self._active:
      self._board.close()

  def _append(self, name, record):
    with open(self._folder / name, 'a', encoding='utf-8') as f:
      f.write(json.dumps(record, ensure_ascii=False) + '\n')


class Compilations:
  """Counts the programs that are compiled, or read from the cache on disk.

  Attributes:
    programs: how often each was, by the name that jax has for it.
  """

  def __init__(self):
    self.programs = collections.Counter()
    jax.monitoring.register_event_duration_secs_listener(self._hear)

  @property
  def total(self) -> int:
    return sum(self.programs.values())

  def close(self) -> None:
    jax.monitoring.unregister_event_duration_listener(self._hear)

  def _hear(self, event, seconds, **about):
    if event == '/jax/core/compile/backend_compile_duration':
      self.programs[about['fun_name']] += 1


def progress(total: int, start: int, label: str, active: bool) -> tqdm.tqdm:
  """A bar with steps, time left and whatever postfix is set."""
  return tqdm.tqdm(
    total=total, initial=start, desc=label, disable=not active,
    dynamic_ncols=True, mininterval=0.5, smoothing=0.1,
  )  # fmt: skip


def check_finite(step: int, values: Mapping[str, float]) -> None:
  """Stops a run whose loss or gradient is no number.

  Raises:
    UserError: naming the step and the metric.
  """
  for name in ('loss', 'gradient_norm'):
    if name in values and not math.isfinite(values[name]):
      raise UserError(
        f'{name} is {values[name]} at step {step}; lower '
        'config.optimizer.learning_rate or look at the rewards of that step'
      )


def write_json(path: str | os.PathLike, value) -> None:
  """`write_text` of a value."""
  write_text(path, json.dumps(value, indent=2, ensure_ascii=False))


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a whole file or none."""
  partial = pathlib.Path(f'{path}.partial')
  partial.write_text(text, encoding='utf-8')
  os.replace(partial, path)


def _finite_or_none(value):
  value = float(value)
  return value if math.isfinite(value) else None


def _keep_until(path, step):
  if not path.exists():
    return
  # Not splitlines: what a policy says may hold other separators of lines. A
  # kill can leave half a line at the end, which belongs to a lost step.
  lines = path.read_text(encoding='utf-8').split('\n')[:-1]
  kept = [line for line in lines if json.loads(line)['step'] < step]
  write_text(path, ''.join(f'{line}\n' for line in kept))
