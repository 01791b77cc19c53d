"""A model as a Hugging Face folder, for programs that others wrote.

  python -m alignment_rl.export --checkpoint=DIR --output=DIR

Reads what `checkpoint.load_model` reads, a workdir above all, and writes its
config, tokenizer, chat template and float32 safetensors; above --shard_size
several files and model.safetensors.index.json.
"""

import pathlib
import re

from absl import flags

from alignment_rl import checkpoint
from alignment_rl import config as config_lib
from alignment_rl.errors import UserError

_FLAGS = flags.FLAGS
_UNITS = {'': 1, 'KB': 10**3, 'MB': 10**6, 'GB': 10**9}


def export(source: str, family: str, output: str, shard_bytes: int) -> None:
  """Writes the model of `source` into the folder `output`, which is made.

  Args:
    source: workdir, DIR@STEP, Hugging Face folder, .gguf or package:NAME.
    family: file of `models/` to read and write it with.
    shard_bytes: size of a safetensors file, at most.

  Raises:
    UserError: `source` is no whole model, or `output` has something in it.
  """
  folder = pathlib.Path(output)
  if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
    raise UserError(
      f'{output!r} is there already and not an empty folder; give another '
      '--output'
    )
  model = checkpoint.load_model(source, family=family, dtype='float32')
  if model.stored is None:
    raise UserError(
      f'{source!r} has no weights yet; give a workdir with checkpoints, or a '
      'stored model'
    )
  checkpoint.save_hf(folder, model, model.stored, shard_bytes)


def read_bytes(size: str) -> int:
  """Bytes of a size such as '5GB', '200MB' or '1000000'.

  Raises:
    UserError: it is none.
  """
  found = re.fullmatch(r'(\d+)\s*([KMG]B)?', size.strip(), re.IGNORECASE)
  if not found or not int(found[1]):
    raise UserError(
      f'--shard_size is {size!r}, expected a number of bytes such as 5GB, '
      '200MB or 1000000'
    )
  return int(found[1]) * _UNITS[(found[2] or '').upper()]


def main() -> None:
  size = read_bytes(_FLAGS.shard_size)
  export(_FLAGS.checkpoint, _FLAGS.family, _FLAGS.output, size)
  print(f'wrote {_FLAGS.output}')


if __name__ == '__main__':
  flags.DEFINE_string('checkpoint', None, 'workdir, DIR@STEP or other model')
  flags.DEFINE_string('output', None, 'folder to write, new or empty')
  flags.DEFINE_string('shard_size', '5GB', 'bytes of a file, at most: KB|MB|GB')
  flags.DEFINE_string('family', 'llama', 'file of alignment_rl/models/')
  config_lib.run(main, required=('checkpoint', 'output'))
