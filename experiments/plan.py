"""What an experiment would run, checked before the first process starts.

An experiment is a file of this folder: its docstring begins with its question,
`CONTROL` names the arm that all others are compared with, `trials(seeds)` are
its trainings and `EVALUATION` says on what they are evaluated.
"""

import ast
import dataclasses
import fnmatch
import functools
import importlib
import importlib.util
import json
import pathlib
import pkgutil
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

import experiments
from alignment_rl import checkpoint, conditions, train
from alignment_rl import config as config_lib
from alignment_rl.config import Evaluation, Trial
from alignment_rl.errors import UserError

PROGRAMS = ('launch', 'local', 'plan', 'pod')


@dataclasses.dataclass(frozen=True)
class Task:
  """A trial with all that its training is told.

  Attributes:
    variant: of its config file.
    folder: its workdir.
    settings: dotted field -> value, all that is set on top of the config file.
    config: what they make of it.
  """

  trial: Trial
  variant: str
  folder: pathlib.Path
  settings: Mapping[str, Any]
  config: ConfigDict

  @property
  def name(self) -> str:
    return self.trial.name


def names() -> list[str]:
  """The experiments, by file name."""
  found = [m.name for m in pkgutil.iter_modules(experiments.__path__)]
  return sorted(set(found) - set(PROGRAMS))


def load(name: str) -> ModuleType:
  """Imports `experiments/<name>.py`.

  Raises:
    UserError: there is no such experiment.
  """
  if name not in names():
    raise UserError(
      f'unknown experiment {name!r}; have {names()}; add experiments/{name}.py '
      'to define it'
    )
  return importlib.import_module(f'experiments.{name}')


def arm(trial_name: str) -> str:
  """'trait' of 'trait_0'."""
  return trial_name.rpartition('_')[0]


def order(trials: Sequence[Trial]) -> list[Trial]:
  """Each trial after the one that it starts from, else as they come.

  Raises:
    UserError: two have one name, or some start from each other.
  """
  listed = [t.name for t in trials]
  twice = sorted({n for n in listed if listed.count(n) > 1})
  if twice:
    raise UserError(f'several trials are called {twice}; expected one of each')
  out, left = [], list(trials)
  while left:
    waiting = {t.name for t in left}
    ready = [t for t in left if t.start not in waiting]
    if not ready:
      raise UserError(
        f'trials {sorted(waiting)} start from each other; give one of them '
        'another start'
      )
    out += ready
    left = [t for t in left if t not in ready]
  return out


def select(trials: Sequence[Trial], patterns: Sequence[str]) -> list[Trial]:
  """The trials whose name matches one of `patterns`, as 'trait_*'; none = all.

  Raises:
    UserError: a pattern matches no trial.
  """
  listed = [t.name for t in trials]
  found = set()
  for pattern in patterns or ['*']:
    matches = fnmatch.filter(listed, pattern)
    if not matches:
      raise UserError(f'--trials={pattern} is none of {listed}')
    found.update(matches)
  return [t for t in trials if t.name in found]


def parse_settings(text: str) -> dict[str, str]:
  """`steps=40,streams.traits.kwargs.domains=('law',)` by field, as text.

  Raises:
    UserError: a part is not FIELD=VALUE.
  """
  # A comma parts two settings only where another FIELD= follows.
  parts = re.split(r',(?=[\w.]+=)', text) if text else []
  for part in parts:
    if not re.match(r'[\w.]+=', part):
      raise UserError(f'--set={part} is not FIELD=VALUE, such as steps=40')
  return dict(part.split('=', 1) for part in parts)


def make_tasks(
  trials: Sequence[Trial], *, variant: str, settings: str, workdir: pathlib.Path
) -> list[Task]:
  """The trials with their configs.

  Args:
    settings: FIELD=VALUE,... for every trial, before its own overrides.

  Raises:
    UserError: a config has no such variant or field, or a value another type.
  """
  texts = parse_settings(settings)
  base = {t.config: read_config(t.config, variant) for t in trials}
  for field in texts:
    have = [file for file in base if _found(base[file], field) is not None]
    if len(have) < len(base):
      raise UserError(
        f'--set={field}: {sorted(set(base) - set(have))} have no such field, '
        f'and {sorted(have)} have; choose --trials of one config, or set a '
        'field that all have'
      )
  tasks = []
  for t in trials:
    config = read_config(t.config, variant)
    given = {k: _typed(config, k, text) for k, text in texts.items()}
    if t.start:
      if 'model.weights' in t.overrides:
        raise UserError(
          f'trial {t.name} starts from {t.start} and sets model.weights; '
          'expected one of the two'
        )
      given['model.weights'] = str(workdir / t.start)
    for field, value in t.overrides.items():
      # What lies inside a section that is replaced is not set first: the
      # command line refuses that.
      inside = lambda k, field=field: f'{k}.'.startswith(f'{field}.')
      given = {k: v for k, v in given.items() if not inside(k)}
      given[field] = value
    try:
      config_lib.override(config, given)
    except UserError as e:
      raise UserError(f'trial {t.name}: {e}') from e
    tasks.append(Task(t, variant, workdir / t.name, given, config))
  return tasks


def read_config(file: str, variant: str) -> ConfigDict:
  """The locked config of FILE:VARIANT, as train reads it.

  Raises:
    UserError: there is no such file or variant.
  """
  path = pathlib.Path(file)
  if not path.is_file():
    raise UserError(f'no config at {file!r}; run in the folder of configs/')
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant).lock()


def _found(config, field):
  """A field's value, None if it is not there: no field of ours is None."""
  try:
    return functools.reduce(lambda c, part: c[part], field.split('.'), config)
  except (KeyError, TypeError):
    return None


def _typed(config, field, text):
  if isinstance(_found(config, field), str):
    return text
  try:
    return ast.literal_eval({'true': 'True', 'false': 'False'}.get(text, text))
  except (SyntaxError, ValueError) as e:
    raise UserError(
      f'--set={field}={text} cannot be read; expected a value such as '
      f'{_found(config, field)!r}'
    ) from e


def train_arguments(task: Task) -> list[str]:
  """Of `python`, to train it."""
  fields = {k: _found(task.config, k) for k in task.settings}
  return [
    '-m',
    'alignment_rl.train',
    f'--config={task.trial.config}:{task.variant}',
    f'--workdir={task.folder}',
    *(f'--config.{k}={_as_text(v)}' for k, v in fields.items()),
  ]


def _as_text(value):
  if isinstance(value, ConfigDict):
    value = value.to_dict()
  return value if isinstance(value, str) else repr(value)


def is_finished(task: Task) -> bool:
  """Its last step is on disk."""
  return checkpoint.kept_steps(task.folder)[-1:] == [task.config.steps]


def check_workdirs(tasks: Sequence[Task]) -> None:
  """Whether every run can begin, go on or be taken as it is.

  Raises:
    UserError: a workdir holds another run, or a start is neither there nor
      among `tasks`.
  """
  for task in tasks:
    start = task.trial.start
    if start and start not in {t.name for t in tasks}:
      _check_start(task, task.folder.with_name(start))
    train.check_same(task.folder, task.config)
    last = max(checkpoint.kept_steps(task.folder), default=0)
    if last > task.config.steps:
      raise UserError(
        f'{task.folder} is at step {last}, beyond steps={task.config.steps}; '
        'give another --workdir, or delete it'
      )


def _check_start(task, folder):
  config = folder / 'config.json'
  steps = json.loads(config.read_text())['steps'] if config.exists() else None
  if checkpoint.kept_steps(folder)[-1:] != [steps]:
    raise UserError(
      f'trial {task.name} starts from {folder.name}, which is neither to be '
      f'trained now nor finished in {folder.parent}; add it to --trials, or '
      'launch the experiment that has it'
    )


def checkpoints(task: Task, evaluation: Evaluation) -> list[str]:
  """What to evaluate of a finished trial, as `evaluate --checkpoint` has it."""
  *earlier, _ = checkpoint.kept_steps(task.folder)
  if not evaluation.every_checkpoint:
    earlier = []
  return [*(f'{task.folder}@{step}' for step in earlier), str(task.folder)]


def cost(tasks: Sequence[Task], evaluation: Evaluation) -> dict[str, int]:
  """What the tasks take: trainings, steps, tokens and evaluations.

  Returns:
    `tokens` are those sampled in training, at most: a reply may end early.
    `evaluations` are of one checkpoint under one condition each.
  """
  configs = [t.config for t in tasks]
  kept = len(tasks)
  if evaluation.every_checkpoint:
    kept = sum(
      min(-(-c.steps // c.checkpoint.every), c.checkpoint.keep) for c in configs
    )
  under = sum(
    len(conditions.shipped()) + 1 if name == 'all' else 1
    for name in evaluation.conditions
  )
  return {
    'trainings': len(tasks),
    'steps': sum(c.steps for c in configs),
    'tokens': sum(map(_tokens, configs)),
    'evaluations': kept * under,
  }


def _tokens(c):
  if c.algorithm.name == 'sft':
    return 0
  return c.steps * c.batch.prompts * c.batch.group * c.batch.completion_length
