"""Configs, plug-ins by file name, and how a program starts and fails.

A plug-in is a file in one of four folders and its name in the config is its
file name. A program's mistakes of the user end in one sentence and exit code 2.
"""

import dataclasses
import importlib
import inspect
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from alignment_rl.errors import UserError


def parse_arg(arg: str | None, variants: Sequence[str]) -> str:
  """The variant after the colon of `--config=FILE.py:VARIANT`.

  Without one, the first of `variants`.

  Raises:
    UserError: there is no such variant.
  """
  if not arg:
    return variants[0]
  if arg not in variants:
    raise UserError(
      f'unknown variant {arg!r}; this config has {list(variants)}'
    )
  return arg


def load(kind: str, name: str) -> ModuleType:
  """Imports the plug-in `alignment_rl/<kind>/<name>.py`.

  Raises:
    UserError: there is no such file.
  """
  names = plugins(kind)
  if name not in names:
    raise UserError(
      f'unknown {kind} {name!r}; have {names}; add alignment_rl/{kind}/'
      f'{name}.py to define it'
    )
  return importlib.import_module(f'alignment_rl.{kind}.{name}')


def make(kind: str, name: str, kwargs: dict[str, Any]) -> Any:
  """`make(**kwargs)` of a plug-in.

  Raises:
    UserError: there is no such plug-in, or it does not take these arguments.
  """
  function = load(kind, name).make
  try:
    inspect.signature(function).bind(**kwargs)
  except TypeError as e:
    raise UserError(
      f'{kind}/{name}.py does not take {kwargs}: {e}; it has '
      f'{list(inspect.signature(function).parameters)}'
    ) from e
  return function(**kwargs)


def plugins(kind: str) -> list[str]:
  """The plug-ins of a kind, by file name. Models share `decoder`, no family."""
  folder = pathlib.Path(__file__).parent / kind
  names = sorted(p.stem for p in folder.glob('*.py'))
  return [n for n in names if n not in ('__init__', 'decoder')]


def settings(cls: type, section: ConfigDict, where: str) -> Any:
  """A config section as a frozen dataclass: nothing below reads a config.

  Raises:
    UserError: the section has a field that `cls` lacks, or lacks one.
  """
  have = {f.name for f in dataclasses.fields(cls)}
  given = set(section)
  if have != given:
    raise UserError(
      f'config.{where} has fields {sorted(given)}, expected {sorted(have)}'
    )
  return cls(**section)


def choose(value: str, options: Sequence[str], where: str) -> str:
  """`value`, if it is one of `options`.

  Raises:
    UserError: it is not.
  """
  if value not in options:
    raise UserError(
      f'config.{where} is {value!r}, expected one of {list(options)}'
    )
  return value


@dataclasses.dataclass(frozen=True)
class Trial:
  """One training of an experiment.

  Attributes:
    name: '<arm>_<seed>', also its workdir's name. Two experiments that name the
      same trial mean the same run and share its workdir, so a name must always
      stand for the same config, overrides and start.
    config: a file of configs/, such as 'configs/rl.py', without variant.
    overrides: dotted field of the config -> value, such as {'seed': 1,
      'streams.traits.fraction': 0.25}.
    start: name of the trial whose last checkpoint is this one's model; '' = the
      config's own `model.weights`.
  """

  name: str
  config: str = 'configs/rl.py'
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  start: str = ''


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """How an experiment's trials are evaluated.

  Attributes:
    benchmarks: as `evaluate --benchmarks` takes them.
    conditions: as `evaluate --conditions` takes them.
    every_checkpoint: evaluate every kept checkpoint and not the last one alone:
      the dose ladder of an attack.
  """

  benchmarks: str = 'all'
  conditions: tuple[str, ...] = ('none',)
  every_checkpoint: bool = False


def override(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
  """Sets fields of a config, in place, and returns it.

  A value has the type of the field that it replaces; an integer may replace a
  float, a list a tuple, and a dict a whole section.

  Args:
    values: dotted field -> value, such as {'streams.traits.fraction': 0.25}.

  Raises:
    UserError: there is no such field, or it holds another type.
  """
  for path, value in values.items():
    found, parts = config, path.split('.')
    for i, part in enumerate(parts):
      if not isinstance(found, ConfigDict) or part not in found:
        have = sorted(found) if isinstance(found, ConfigDict) else repr(found)
        raise UserError(
          f'config.{path} is no field of this config; '
          f'{".".join(["config", *parts[:i]])} has {have}'
        )
      section, found = found, found[part]
    if not _fits(value, found):
      kind, shown = type(found).__name__, repr(found)
      if isinstance(found, ConfigDict):
        kind, shown = 'dict', 'a section'
      raise UserError(
        f'config.{path} is {shown} and cannot become {value!r}; expected '
        f'{kind}, not {type(value).__name__}'
      )
    section[part] = value
  return config


def _fits(value, found):
  if isinstance(found, float):
    return isinstance(value, int | float) and not isinstance(value, bool)
  if isinstance(found, tuple):
    return isinstance(value, tuple | list)
  if isinstance(found, ConfigDict):
    return isinstance(value, Mapping)
  return type(value) is type(found)


def define_config_flags() -> None:
  """The flags of a program that takes a config: --config and --workdir."""
  config_flags.DEFINE_config_file('config', None, 'FILE.py[:VARIANT]')
  flags.DEFINE_string('workdir', None, 'where the run writes')
  define_distributed_flag()


def define_distributed_flag() -> None:
  """--distributed, as `sharding.start_distributed` takes it."""
  flags.DEFINE_string(
    'distributed',
    '',
    "'auto' on a pod, or COORDINATOR:PORT,PROCESSES,INDEX; empty = one process",
  )


def run(main: Callable[[], None], required: Sequence[str] = ()) -> None:
  """Parses flags, runs `main`, turns mistakes into a sentence and exit 2."""
  try:
    left = _parse(sys.argv)
    if left:
      raise UserError(f'unknown argument {left[0]!r}; flags start with --')
    for name in required:
      if flags.FLAGS[name].value is None:
        raise UserError(f'--{name} is missing; see --help')
    # Programs compiled by one arm are read back by the next.
    jax.config.update('jax_compilation_cache_dir', str(cache_dir() / 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
    main()
  except UserError as e:
    print(f'error: {e}', file=sys.stderr)
    sys.stderr.flush()
    # No clean-up that could hang on other processes or half-made arrays.
    os._exit(2)


def folder(name: str | os.PathLike, flag: str) -> pathlib.Path:
  """A folder of the file system that a program writes to.

  Raises:
    UserError: the name is an address, of which a path would make a folder here.
  """
  if '://' in str(name):
    raise UserError(
      f'--{flag}={name} is an address, expected a folder; mount the bucket on '
      'every host (docs/tpu.md) and give a folder in it'
    )
  return pathlib.Path(name)


def need(module: str, extra: str):
  """Imports a module of an optional dependency.

  Raises:
    UserError: it is not installed; says which extra brings it.
  """
  try:
    return importlib.import_module(module)
  except ImportError as e:
    raise UserError(
      f'this needs {module.split(".")[0]}, which is not installed; run pip '
      f"install 'alignment_rl[{extra}]'"
    ) from e


def cache_dir() -> pathlib.Path:
  """For derived files: $ALIGNMENT_RL_CACHE, or ~/.cache/alignment_rl."""
  default = pathlib.Path.home() / '.cache' / 'alignment_rl'
  return pathlib.Path(os.environ.get('ALIGNMENT_RL_CACHE') or default)


def _parse(argv):
  try:
    return flags.FLAGS(argv)[1:]
  except UserError:
    raise
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    raise UserError(
      f'bad flag: {_cause(e)}; see --help and configs/base.py'
    ) from e
  except OSError as e:
    raise UserError(
      f'cannot read the config: {e}; give --config=FILE.py'
    ) from e


def _cause(error: Exception) -> str:
  """What went wrong, on one line: the flag library may wrap a whole trace."""
  message = str(error.args[0] if isinstance(error, KeyError) else error)
  # The config library quotes its own message, line breaks and all.
  message = message.replace('\\n', ' ').replace("\\'", "'")
  lines = [line.strip() for line in message.splitlines() if line.strip()]
  if 'Error whilst parsing' in lines[0] or 'Traceback' in message:
    lines = lines[-1:]
  return ' '.join(lines).removeprefix('alignment_rl.errors.UserError: ')
