"""Where a researcher's own rows come from: random access to records by name.

  tfds:NAME[/CONFIG]/SPLIT    a TFDS data set, in array_record files
  jsonl:PATH                  one JSON object a line; read by offset, not loaded
  arrayrecord:PATH            JSON objects in an array_record file
  hf:NAME/SPLIT[#CONFIG]      a Hugging Face data set or a folder of its files
                              (extra `hf`)

A row has the same values, wherever it is from: text, numbers, lists, objects.
`streams/records.py` makes examples of the rows.
"""

import array
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from alignment_rl import config
from alignment_rl.errors import UserError

Row = Mapping[str, Any]


def rows(source: str) -> Sequence[Row]:
  """Opens a source such as 'jsonl:prompts.jsonl'.

  Raises:
    UserError: unknown kind, nothing there, or a row that is no object.
  """
  kind, _, name = source.partition(':')
  kinds = {
    'tfds': _tfds, 'jsonl': _Lines, 'arrayrecord': _records, 'hf': _hf
  }  # fmt: skip
  if kind not in kinds or not name:
    raise UserError(
      f'source is {source!r}, expected KIND:NAME with KIND one of {list(kinds)}'
    )
  found = kinds[kind](name)
  if not len(found):
    raise UserError(f'source {source!r} holds no rows')
  return found


class _Lines(Sequence):
  """Lines of a JSONL file by offset."""

  def __init__(self, name: str):
    self._path = _file(name)
    places, position = array.array('q'), 0
    with self._path.open('rb') as file:
      for line in file:
        if line.strip():
          places.extend((position, len(line)))
        position += len(line)
    self._places = np.array(places).reshape(-1, 2)

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> Row:
    start, size = map(int, self._places[index])
    with self._path.open('rb') as file:
      file.seek(start)
      return _object(file.read(size), f'{self._path}, row {index}')


class _Mapped(Sequence):
  """A random-access source; `convert(record, index)` makes a row when read."""

  def __init__(self, source, convert):
    self._source, self._convert = source, convert

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Row:
    if not -len(self) <= index < len(self):
      raise IndexError(index)
    return self._convert(self._source[index % len(self)], index)


def _records(name: str) -> Sequence[Row]:
  from array_record.python import array_record_data_source

  path = str(_file(name))
  try:
    source = array_record_data_source.ArrayRecordDataSource([path])
  except Exception as e:  # Its C++ part tells kinds of failure by text alone.
    raise UserError(f'{path} is no array_record file ({_said(e)})') from e
  return _Mapped(
    source, lambda record, index: _object(record, f'{path}, row {index}')
  )


def _tfds(name: str) -> Sequence[Row]:
  import tensorflow_datasets as tfds

  dataset, split = _split(name, 'tfds:NAME/SPLIT')
  try:
    # Nothing is fetched: many of the catalogue's data sets need TensorFlow.
    source = tfds.data_source(dataset, split=split, download=False)
  except Exception as e:  # TFDS raises many kinds; each means 'not there'.
    raise UserError(
      f'TFDS has no {split!r} of {dataset!r} to read ({_said(e)}); prepare it '
      "with file_format='array_record' and set TFDS_DATA_DIR to its folder"
    ) from e
  features = source.dataset_info.features
  return _Mapped(source, lambda record, index: _plain(record, features))


def _hf(name: str) -> Sequence[Row]:
  datasets = config.need('datasets', 'hf')
  name, _, subset = name.partition('#')
  dataset, split = _split(name, 'hf:NAME/SPLIT')
  try:
    source = datasets.load_dataset(dataset, subset or None, split=split)
  except Exception as e:  # As above: files, network, hub and parser errors.
    raise UserError(
      f'datasets cannot load {split!r} of {dataset!r} ({_said(e)}); give '
      'hf:NAME/SPLIT of a data set on the hub or of a folder'
    ) from e
  return _Mapped(source, lambda record, index: record)


def _split(name: str, form: str) -> tuple[str, str]:
  dataset, slash, split = name.rpartition('/')
  if not (dataset and slash and split):
    raise UserError(f'source name is {name!r}, expected {form}')
  return dataset, split


def _file(name: str) -> pathlib.Path:
  path = pathlib.Path(name).expanduser()
  if not path.is_file():
    raise UserError(f'source file {path} does not exist')
  return path


def _object(line: bytes, where: str) -> Row:
  try:
    row = json.loads(line)
  except ValueError as e:
    raise UserError(f'{where}: not JSON ({e})') from e
  if not isinstance(row, dict):
    raise UserError(f'{where}: found {type(row).__name__}, expected an object')
  return row


def _plain(value: Any, feature: Any) -> Any:
  """A TFDS value as JSON would hold it; `feature` is its description."""
  inner = getattr(feature, 'feature', None)  # of a sequence's elements
  if isinstance(value, Mapping) and inner is not None:
    # A sequence of objects comes as an object of columns.
    rows = zip(*value.values(), strict=True)
    return [_plain(dict(zip(value, row, strict=True)), inner) for row in rows]
  if isinstance(value, Mapping):
    return {k: _plain(v, feature[k]) for k, v in value.items()}
  if isinstance(value, (list, np.ndarray)):
    return [_plain(v, inner) for v in value]
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:  # No text, such as a picture's file.
      return value
  return value.item() if isinstance(value, np.generic) else value


def _said(error: Exception) -> str:
  """An error on one line."""
  lines = str(error).strip().splitlines() or ['no message']
  return f'{type(error).__name__}: {lines[0]}'


def columns(rows: Sequence[Row], names: Sequence[str]) -> Iterator[tuple]:
  """The named fields of every row.

  Raises:
    UserError: a row lacks one of them.
  """
  for index in range(len(rows)):
    row = rows[index]
    missing = [name for name in names if name not in row]
    if missing:
      raise UserError(
        f'row {index} lacks {missing}; its fields are {sorted(row)}'
      )
    yield tuple(row[name] for name in names)
