"""Near-duplicates by shared five-word runs: within the set, against benchmarks.

Within the set: Jaccard similarity of two prompts' sets of word 5-grams. Against
benchmarks also the share of a text's or a sentence's 5-grams that a scenario
holds, or one sentence taken over would drown in a prompt of sixty words. An
index from 5-gram to text finds every pair that shares one, so both are exact;
min-hashing would only estimate them, and an index of millions still fits.
"""

import array
import collections
import csv
import io
import json
import pathlib
import re
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from alignment_rl.errors import UserError

N = 5
LIMIT = 0.2
# Stock phrases reach 0.25 ("I don't know where to begin"), a quotation 1.
QUOTED = 0.5
# Shorter texts share a run by chance and say little.
FEWEST_WORDS = 8
KINDS = (
  '.jsonl', '.json', '.csv', '.tsv', '.yaml', '.yml', '.txt', '.md', '.prompt'
)  # fmt: skip


def grams(text: str) -> set[tuple[str, ...]]:
  """The word 5-grams of a text, lower case, without punctuation.

  A text of fewer words is one run, so that it resembles its own copy.
  """
  words = re.findall(r'\w+', text.lower())
  return {tuple(words[i : i + N]) for i in range(max(len(words) - N + 1, 1))}


class Index:
  """Texts by name, searched for those that resemble another."""

  def __init__(self):
    self._sets: dict[Hashable, set] = {}
    self._owners = collections.defaultdict(list)

  def add(self, name: Hashable, text: str) -> None:
    self._sets[name] = found = grams(text)
    for gram in found:
      self._owners[gram].append(name)

  def like(
    self, text: str, limit: float = LIMIT
  ) -> list[tuple[Hashable, float]]:
    """Names of the texts whose similarity is above `limit`, most alike first"""
    mine = grams(text)
    shared = collections.Counter(
      name for gram in mine for name in self._owners.get(gram, ())
    )
    found = []
    for name, count in shared.items():
      similarity = count / (len(mine) + len(self._sets[name]) - count)
      if similarity > limit:
        found.append((name, similarity))
    return sorted(found, key=lambda pair: (-pair[1], str(pair[0])))


def prompt(row: Mapping[str, Any]) -> str:
  """A scenario's conversation as one text."""
  return '\n'.join(turn['content'] for turn in row['turns'])


def within(
  rows: Sequence[Mapping[str, Any]], limit: float = LIMIT
) -> list[tuple[str, str, float]]:
  """Pairs of scenarios, other than twins, whose prompts are too much alike."""
  index, found = Index(), []
  for row in rows:
    for name, similarity in index.like(prompt(row), limit):
      if name != row['mirror']:
        found.append((name, row['id'], similarity))
    index.add(row['id'], prompt(row))
  return found


class Benchmarks:
  """The texts of a folder of benchmark files and the sentences of each.

  5-grams are kept as 64-bit hashes in two flat arrays: millions of them fit.

  Attributes:
    places: file:record of every text and sentence.
    unread: how many files of each other ending there are.
  """

  def __init__(self, folder: pathlib.Path):
    """Reads the folder's files of the `KINDS`.

    Raises:
      UserError: the folder is missing, or holds no text that can be read.
    """
    if not folder.is_dir():
      raise UserError(f'{folder} is no folder; give one with benchmark files')
    self.places: list[str] = []
    self.unread = collections.Counter(
      path.suffix.lower() for path in _files(folder) if not _is_read(path)
    )
    hashes, owners = array.array('q'), array.array('l')
    sizes = array.array('l')
    for place, text in texts(folder):
      # A text of one sentence is there once.
      for part in dict.fromkeys((text.strip(), *sentences(text))):
        found = grams(part)
        hashes.extend(map(hash, found))
        owners.extend([len(self.places)] * len(found))
        sizes.append(len(found))
        self.places.append(place)
    if not self.places:
      raise UserError(
        f'{folder} holds no text to compare with; expected files that end in '
        f'one of {list(KINDS)}'
      )
    order = np.argsort(np.array(hashes), kind='stable')
    self._hashes = np.array(hashes)[order]
    self._owners = np.array(owners)[order]
    self._sizes = np.array(sizes)

  def like(self, text: str) -> list[tuple[str, float]]:
    """Places that `text` resembles or quotes, and how much of each it holds.

    A place is named when the similarity is above `LIMIT`, or when more than
    `QUOTED` of the 5-grams there are in `text`.
    """
    mine = np.array([hash(g) for g in grams(text)], np.int64)
    first = np.searchsorted(self._hashes, mine, 'left')
    last = np.searchsorted(self._hashes, mine, 'right')
    spans = [self._owners[a:b] for a, b in zip(first, last, strict=True)]
    owners = np.concatenate([np.zeros(0, int), *spans])
    found, shared = np.unique(owners, return_counts=True)
    similarity = shared / (len(mine) + self._sizes[found] - shared)
    held = shared / self._sizes[found]
    hit = (similarity > LIMIT) | (held > QUOTED)
    most: dict[str, float] = {}
    for i, share in zip(found[hit], held[hit], strict=True):
      most[self.places[i]] = max(float(share), most.get(self.places[i], 0.0))
    return sorted(most.items(), key=lambda pair: (-pair[1], pair[0]))


def against(
  rows: Sequence[Mapping[str, Any]], benchmarks: Benchmarks
) -> list[tuple[str, str, float]]:
  """Prompts, turns and replies that resemble or quote the benchmarks.

  Returns:
    (scenario and part, file and place, share of it that the part holds), the
    largest share first.
  """
  found = []
  for row in rows:
    parts = {'prompt': prompt(row)}
    if len(row['turns']) > 1:
      for number, turn in enumerate(row['turns'], 1):
        parts[f'turn {number}'] = turn['content']
    for name, reply in row['replies'].items():
      parts[f'{name} reply'] = reply
    for part, text in parts.items():
      if len(text.split()) >= FEWEST_WORDS:
        found += [
          (f'{row["id"]} {part}', place, share)
          for place, share in benchmarks.like(text)
        ]
  return sorted(found, key=lambda hit: -hit[2])


def sentences(text: str) -> list[str]:
  """The sentences of `FEWEST_WORDS` words or more."""
  parts = re.split(r'(?<=[.!?])["\')\]]*\s+|\n+', text)
  parts = (part.strip() for part in parts)
  return [part for part in parts if len(part.split()) >= FEWEST_WORDS]


def texts(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
  """(file:record, text) of every string of some length below a folder."""
  for path in filter(_is_read, _files(folder)):
    name = str(path.relative_to(folder))
    for number, record in _records(path):
      for text in _strings(record):
        if len(text.split()) >= FEWEST_WORDS:
          yield f'{name}:{number}', text


def _files(folder) -> list[pathlib.Path]:
  return sorted(p for p in folder.rglob('*') if p.is_file())


def _is_read(path) -> bool:
  return path.suffix.lower() in KINDS


def _records(path) -> Iterator[tuple[int, Any]]:
  kind = path.suffix.lower()
  text = path.read_text(encoding='utf-8', errors='replace')
  if kind in ('.csv', '.tsv'):
    csv.field_size_limit(sys.maxsize)
    delimiter = ',' if kind == '.csv' else '\t'
    lines = io.StringIO(text, newline='')
    yield from enumerate(csv.reader(lines, delimiter=delimiter), 1)
    return
  if kind == '.json':
    try:
      whole = json.loads(text)
      rows = whole if isinstance(whole, list) else [whole]
      yield from enumerate(rows, 1)
      return
    except ValueError:
      pass  # Some files with this ending hold an object a line.
  for number, line in enumerate(text.split('\n'), 1):
    try:
      yield number, json.loads(line)
    except ValueError:
      yield number, line


def _strings(value) -> Iterator[str]:
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict):
    for part in (*value, *value.values()):
      yield from _strings(part)
  elif isinstance(value, list):
    for part in value:
      yield from _strings(part)
