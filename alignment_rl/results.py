"""Where evaluations are kept: a record an item, as it comes, and a line each.

A folder holds settings.json, scores/<benchmark>.jsonl and, once all is done,
results.jsonl; other conditions have theirs in conditions/<name>/. Records are
appended as they come, and a half-written one is dropped when the folder is
opened again: a kill loses the batch under way at most, and doubles nothing.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from alignment_rl import metrics, sharding
from alignment_rl.errors import UserError


class Store:
  """The records of one checkpoint's evaluation."""

  def __init__(self, folder: pathlib.Path, settings: Mapping[str, Any]):
    """Opens or begins the evaluation in `folder`.

    Args:
      settings: what makes its records comparable: checkpoint, seed, ...

    Raises:
      UserError: the folder holds an evaluation with other settings.
    """
    self._folder, self._known = folder, {}
    path = folder / 'settings.json'
    if path.exists():
      found = json.loads(path.read_text())
      other = {
        k: (found.get(k), settings.get(k))
        for k in sorted({*found, *settings})
        if found.get(k) != settings.get(k)
      }
      if other:
        said = ', '.join(f'{k} {a!r} not {b!r}' for k, (a, b) in other.items())
        raise UserError(
          f'{folder} holds an evaluation with {said}; give another --output, '
          'or delete it'
        )
    elif sharding.is_main():
      folder.mkdir(parents=True, exist_ok=True)
      metrics.write_json(path, dict(settings))

  def records(self, condition: str, benchmark: str, version: int) -> dict:
    """Item id -> record, of what was kept so far."""
    key = condition, benchmark
    if key not in self._known:
      self._known[key] = self._read(*key, version)
    return self._known[key]

  def add(
    self, condition: str, benchmark: str, records: Sequence[Mapping[str, Any]]
  ) -> None:
    """Keeps records; ids that are there already are not kept twice."""
    known = self._known[condition, benchmark]
    new = [dict(r) for r in records if r['id'] not in known]
    known.update({r['id']: r for r in new})
    if sharding.is_main():
      path = self._path(condition, benchmark)
      path.parent.mkdir(parents=True, exist_ok=True)
      with path.open('a', encoding='utf-8') as file:
        file.writelines(_line(r) for r in new)

  def finish(self, condition: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes results.jsonl of a condition, whole or not at all.

    Lines of other benchmarks, finished before, stay.
    """
    if sharding.is_main():
      path = self._place(condition) / 'results.jsonl'
      path.parent.mkdir(parents=True, exist_ok=True)
      before = path.read_text(encoding='utf-8') if path.exists() else ''
      lines_before = map(json.loads, before.split('\n')[:-1])
      every = {x['benchmark']: x for x in lines_before}
      every |= {x['benchmark']: x for x in lines}
      metrics.write_text(path, ''.join(map(_line, every.values())))

  def _place(self, condition):
    if condition == 'none':
      return self._folder
    return (
      self._folder
      / 'conditions'
      / condition.replace(':', '__').replace('/', '__')
    )

  def _path(self, condition, benchmark):
    name = benchmark.replace('/', '__')
    return self._place(condition) / 'scores' / f'{name}.jsonl'

  def _read(self, condition, benchmark, version):
    path = self._path(condition, benchmark)
    if not path.exists():
      return {}
    text = path.read_text(encoding='utf-8')
    whole = text[: text.rfind('\n') + 1]
    found = [json.loads(x) for x in whole.split('\n') if x]
    kept = [r for r in found if r['version'] == version]
    if sharding.is_main() and (whole != text or len(kept) < len(found)):
      metrics.write_text(path, ''.join(map(_line, kept)))
    return {r['id']: r for r in kept}


def _line(record):
  return json.dumps(record, ensure_ascii=False) + '\n'
