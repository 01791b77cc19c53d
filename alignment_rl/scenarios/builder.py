"""The scenarios as a TFDS data set: array_record files, no TensorFlow.

  tfds.data_source('trait_scenarios', split='train', data_dir=prepare())

Prepared once per content: the folder's name is a hash of the JSONL files, so an
edited scenario can never be read from a stale copy.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from alignment_rl import config
from alignment_rl.scenarios import schema

tfds.disable_progress_bar()

_TEXT = ('id', 'trait', 'domain', 'pressure', 'voice', 'mirror')


class TraitScenarios(tfds.core.GeneratorBasedBuilder):
  """Authored scenarios with rubrics and contrasting replies."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'Ten for each trait and domain, and unseen traits.'}

  def __init__(self, *, paths: Sequence[pathlib.Path], **kwargs):
    self._rows = schema.read(paths)
    super().__init__(file_format='array_record', **kwargs)

  def _info(self):
    text, number = tfds.features.Text(), tfds.features.Scalar(np.float32)
    return self.dataset_info_from_configs(
      description=(
        'Situations that press an assistant to give up one of seven traits, '
        'with a rubric and three replies each.'
      ),
      license='CC-BY-4.0',
      features=tfds.features.FeaturesDict(
        {name: text for name in _TEXT}
        | {
          'agrees': tfds.features.Scalar(np.bool_),
          # JSON, '' for what people wrote.
          schema.PROVENANCE: text,
          'turns': tfds.features.Sequence({'role': text, 'content': text}),
          'rubric': tfds.features.Sequence(
            {'criterion': text, 'points': number, 'met': text, 'failed': text}
          ),
          'replies': {name: text for name in schema.REPLIES},
        }
      ),
    )

  def _split_generators(self, dl_manager):
    # TFDS refuses a split without rows; what a model wrote is all for training.
    splits = sorted({row['split'] for row in self._rows})
    return {split: self._generate_examples(split) for split in splits}

  def _generate_examples(self, split):
    for row in self._rows:
      if row['split'] == split:
        kept = {k: v for k, v in row.items() if k != 'split'}
        origin = row.get(schema.PROVENANCE)
        kept[schema.PROVENANCE] = '' if origin is None else json.dumps(origin)
        yield row['id'], kept


def prepare(
  paths: Sequence[pathlib.Path] | None = None,
  cache: str | os.PathLike | None = None,
) -> pathlib.Path:
  """Builds the data set if this content was not built before.

  Args:
    paths: JSONL files; None = those that ship.
    cache: folder; None = $ALIGNMENT_RL_CACHE, or ~/.cache/alignment_rl.

  Returns:
    The TFDS `data_dir`.

  Raises:
    UserError: a line is not a valid scenario.
  """
  paths = schema.files() if paths is None else list(paths)
  digest = hashlib.sha256()
  for path in [*paths, pathlib.Path(__file__)]:
    digest.update(path.read_bytes())
  root = pathlib.Path(cache or config.cache_dir())
  folder = root / f'scenarios-{digest.hexdigest()[:16]}'
  if folder.exists():
    return folder
  root.mkdir(parents=True, exist_ok=True)
  # Built aside and renamed, so that a kill or a second process does no harm.
  partial = tempfile.mkdtemp(dir=root, prefix='partial-')
  try:
    with contextlib.redirect_stdout(sys.stderr):  # TFDS talks.
      TraitScenarios(paths=paths, data_dir=partial).download_and_prepare()
    os.rename(partial, folder)
  except OSError:
    if not folder.exists():
      raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return folder


def rows(data_dir: str | os.PathLike, split: str) -> list[dict[str, Any]]:
  """The scenarios of a prepared split, as `schema.read` gives them.

  A split that no scenario is in holds none.
  """
  builder = tfds.builder_from_directory(
    next(pathlib.Path(data_dir).glob('trait_scenarios/*'))
  )
  if split not in builder.info.splits:
    return []
  out = []
  for record in builder.as_data_source(split=split):
    row = {name: record[name].decode() for name in _TEXT} | {'split': split}
    row['agrees'] = bool(record['agrees'])
    if origin := record[schema.PROVENANCE].decode():
      row[schema.PROVENANCE] = json.loads(origin)
    for name in ('turns', 'rubric'):
      row[name] = _rows_of(record[name])
    row['replies'] = {k: v.decode() for k, v in record['replies'].items()}
    out.append(row)
  # TFDS shuffles by a hash of the key; ids give an order that stays.
  return sorted(out, key=lambda row: row['id'])


def _rows_of(columns):
  plain = lambda v: v.decode() if isinstance(v, bytes) else float(v)
  return [
    dict(zip(columns, map(plain, values), strict=True))
    for values in zip(*columns.values(), strict=True)
  ]
