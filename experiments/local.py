"""Trials as processes of this machine: locks, a live table, clean ends.

A trial's workdir is locked while it trains, by the launcher and by the process
itself: a second launch waits for it, and one whose launcher was killed is not
trained twice.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TextIO

from experiments import plan

POLL = 1.0  # seconds between looks at the processes
QUIET = 60.0  # seconds between lines of progress where there is no terminal
TAIL = 65536  # bytes of a log or metrics file that are looked at


@dataclasses.dataclass(frozen=True)
class Row:
  """A trial as the table shows it.

  Attributes:
    state: 'waiting', 'running', 'elsewhere' (in another launch), 'done' or
      'failed'.
    step: steps that are done.
    reward: mean over the streams of the latest step; None = none is scored.
    left: seconds that the remaining steps take; None = not known.
  """

  name: str
  state: str
  step: int
  steps: int
  reward: float | None = None
  left: float | None = None


def train(
  tasks: Sequence[plan.Task], jobs: int, show: Callable[[list[Row]], None]
) -> dict[str, str]:
  """Trains all that is not finished, `jobs` at a time, starts first.

  A trial that fails stops none but those that start from it.

  Returns:
    trial -> why it failed.
  """
  state = {t.name: 'waiting' for t in tasks}
  why, running = {}, {}
  try:
    while True:
      for task in tasks:
        process, held = running.get(task.name, (None, None))
        if process and process.poll() is not None:
          del running[task.name]
          held.close()
          code = process.returncode
          state[task.name] = 'failed' if code else 'done'
          if code:
            said = last_words(task.folder / 'log.txt')
            # Who is killed, as for want of memory, says nothing in the log.
            why[task.name] = f'killed by signal {-code}' if code < 0 else said
      for task in tasks:
        if state[task.name] not in ('waiting', 'elsewhere'):
          continue
        # A start that is not of these tasks is finished.
        before = state.get(task.trial.start, 'done')
        if before == 'failed':
          state[task.name] = 'failed'
          why[task.name] = f'it starts from {task.trial.start}, which failed'
        elif plan.is_finished(task):
          state[task.name] = 'done'
        elif before == 'done' and len(running) < jobs:
          held = lock(task.folder)
          if held:
            running[task.name] = _start(task, held), held
          state[task.name] = 'running' if held else 'elsewhere'
      show([_row(task, state[task.name]) for task in tasks])
      if not set(state.values()) & {'waiting', 'running', 'elsewhere'}:
        return why
      time.sleep(POLL)
  finally:
    stop([process for process, _ in running.values()])


def _start(task, held):
  with open(task.folder / 'log.txt', 'ab') as log:
    return subprocess.Popen(
      [sys.executable, *plan.train_arguments(task)],
      stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
      pass_fds=[held.fileno()],
    )  # fmt: skip


def lock(folder: pathlib.Path, wait: bool = False) -> IO | None:
  """The lock of a workdir, until it is closed; None if another has it.

  A process that inherits the file has the lock, too, until it ends.
  """
  folder.mkdir(parents=True, exist_ok=True)
  file = open(folder / 'lock', 'w')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  except BlockingIOError:
    file.close()
    return None
  return file


def run(command: Sequence[str], folders: Sequence[pathlib.Path]) -> int:
  """Runs a command on workdirs that nobody else may touch; its exit code."""
  with contextlib.ExitStack() as stack:
    held = []
    # In one order, so that two launches do not wait for each other.
    for folder in sorted(folders):
      file = lock(folder)
      if not file:
        print(f'{folder.name} is in use by another launch; waiting', flush=True)
        file = lock(folder, wait=True)
      held.append(stack.enter_context(file))
    process = subprocess.Popen(command, pass_fds=[f.fileno() for f in held])
    try:
      return process.wait()
    finally:
      stop([process])


def stop(processes: Sequence[subprocess.Popen]) -> None:
  """Ends processes, by force after ten seconds; a trial can go on later."""
  for process in processes:
    process.terminate()
  for process in processes:
    try:
      process.wait(timeout=10)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


@contextlib.contextmanager
def ends_by_signal() -> Iterator[None]:
  """Within it, SIGTERM ends the program as Ctrl-C does."""

  def interrupt(number, frame):
    raise KeyboardInterrupt

  before = signal.signal(signal.SIGTERM, interrupt)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def last_words(log: pathlib.Path) -> str:
  """The last error that a log tells, or else its last line."""
  lines = re.split(r'[\r\n]+', _tail(log).strip())
  errors = [line for line in lines if line.startswith('error: ')]
  return (errors or lines)[-1].strip()


def _tail(path):
  if not path.exists():
    return ''
  with open(path, 'rb') as file:
    file.seek(-min(TAIL, os.path.getsize(path)), os.SEEK_END)
    return file.read(TAIL).decode(errors='replace')


def _row(task, state):
  steps = task.config.steps
  step, reward, left = progress(task.folder / 'metrics.jsonl', steps)
  if state == 'done':
    step = steps
  return Row(
    task.name, state, step, steps, reward, left if state == 'running' else None
  )


def progress(
  metrics: pathlib.Path, steps: int
) -> tuple[int, float | None, float | None]:
  """(steps done, reward, seconds left), as in Row, of a run of `steps`."""
  # The last line may be half-written, the first one cut.
  lines = []
  for text in _tail(metrics).split('\n')[:-1][-5:]:
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      continue
  if not lines:
    return 0, None, None
  last = lines[-1]
  rewards = [v for k, v in last.items() if k.startswith('reward/')]
  rewards = [v for v in rewards if v is not None]
  step = last['step'] + 1
  pace = statistics.median(line['secs/step'] for line in lines)
  reward = statistics.fmean(rewards) if rewards else None
  return step, reward, (steps - step) * pace


def table(rows: Sequence[Row], height: int = 0) -> str:
  """The rows under a head, a line each.

  Args:
    height: lines at most, 0 = any number. Those that are done or waiting are
      then counted in a last line, and the first of the others are shown.
  """
  shown, rest = list(rows), ''
  if height and len(rows) + 1 > height:
    shown = [r for r in rows if r.state not in ('done', 'waiting')]
    shown = shown[: height - 2]
    counts = {s: sum(r.state == s for r in rows) for s in ('done', 'waiting')}
    rest = f'and {counts["done"]} done, {counts["waiting"]} waiting'
  cells = [('trial', 'state', 'step', 'reward', 'time left')]
  cells += [
    (r.name, r.state, f'{r.step}/{r.steps}', _number(r.reward), _time(r.left))
    for r in shown
  ]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    '  '.join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
    for row in cells
  ]
  return '\n'.join([*lines, rest] if rest else lines)


def _number(value):
  return '-' if value is None else f'{value:.3f}'


def _time(seconds):
  if seconds is None:
    return '-'
  if seconds < 90:
    return f'{seconds:.0f} s'
  return (
    f'{seconds / 60:.0f} min'
    if seconds < 5400 else f'{seconds / 3600:.1f} h'
  )  # fmt: skip


class Screen:
  """Shows rows as they change: a table on a terminal, else a line now and then.

  Without a terminal a line is written when a trial changes state, and one for
  all that run once a minute.
  """

  def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic):
    self._out, self._clock = out, clock
    self._height, self._states, self._last = 0, {}, clock()

  def show(self, rows: Sequence[Row]) -> None:
    if self._out.isatty():
      size = shutil.get_terminal_size()
      lines = table(rows, size.lines - 1).split('\n')
      up = f'\x1b[{self._height}A\x1b[J' if self._height else ''
      text = ''.join(f'{line[: size.columns - 1]}\n' for line in lines)
      self._height = len(lines)
      self._out.write(up + text)
    else:
      for r in rows:
        if self._states.get(r.name, 'waiting') != r.state:
          self._out.write(f'{r.name}: {r.state}, step {r.step}/{r.steps}\n')
      running = [
        f'{r.name} {r.step}/{r.steps}, reward {_number(r.reward)}, '
        f'{_time(r.left)} left'
        for r in rows
        if r.state == 'running'
      ]
      if running and self._clock() - self._last >= QUIET:
        self._last = self._clock()
        self._out.write(f'running: {"; ".join(running)}\n')
      self._states = {r.name: r.state for r in rows}
    self._out.flush()
