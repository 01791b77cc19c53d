"""What train and evaluate left in a workdir."""

import dataclasses
import json
import pathlib

from alignment_rl.errors import UserError

# What a benchmark may count as. The first is the one that a verdict is about.
TABLES = ('alignment', 'judged', 'capability', 'responsiveness', 'diagnostic')
REFUSALS = ('none', 'partial', 'full')
KINDS = ('harmful', 'helpful')  # of conditions


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
  """A line of a scores file.

  Attributes:
    score: in [0, 1]; None = unscored.
    cluster: equal for items that share a source; None = shares none.
    refused: one of REFUSALS; None = not labelled.
  """

  score: float | None
  cluster: str | None
  refused: str | None


@dataclasses.dataclass(frozen=True)
class Scores:
  """What one evaluation of a model found.

  Attributes:
    results: benchmark -> its line of results.jsonl, with its table.
    items: benchmark -> item id -> item.
  """

  results: dict[str, dict]
  items: dict[str, dict[str, Item]]

  def __getitem__(self, field: str):
    """What every line says alike: step, checkpoint, condition, kind."""
    return next(iter(self.results.values())).get(field)


@dataclasses.dataclass(frozen=True)
class Run:
  """What a workdir holds.

  Attributes:
    name: of the folder.
    config: None for a model that was not trained here.
    metrics: the lines of metrics.jsonl.
    rollouts: of rollouts.jsonl.
    last: the last checkpoint under no condition.
    conditions: name -> the last checkpoint under that condition.
    steps: step -> that checkpoint under no condition, the last one as well.
  """

  name: str
  config: dict | None
  metrics: list[dict]
  rollouts: list[dict]
  last: Scores
  conditions: dict[str, Scores]
  steps: dict[int, Scores]


def read_run(folder: pathlib.Path) -> Run:
  """Reads a workdir.

  Raises:
    UserError: it does not exist, was not evaluated, or holds a broken file.
  """
  if not folder.is_dir():
    raise UserError(
      f'{folder} is no folder; give workdirs of `python -m alignment_rl.train`'
    )
  place = folder / 'evaluation'
  last = _scores(place)
  if last is None:
    raise UserError(
      f'{place / "results.jsonl"} is missing or empty; run `python -m '
      f'alignment_rl.evaluate --checkpoint={folder} --output={place}` first'
    )
  steps = {found['step']: found for found in _all(place / 'steps')}
  return Run(
    folder.resolve().name,
    _config(folder / 'config.json'),
    _lines(folder / 'metrics.jsonl', growing=True),
    _lines(folder / 'rollouts.jsonl', growing=True),
    last,
    {_condition(found, place): found for found in _all(place / 'conditions')},
    dict(sorted((steps | {last['step']: last}).items())),
  )


def _all(folder):
  """The evaluations in its subfolders; one under way is not there yet."""
  inner = sorted(p for p in folder.glob('*') if p.is_dir())
  return [found for found in map(_scores, inner) if found]


def _scores(folder):
  """An evaluation; None where there is no finished one."""
  path = folder / 'results.jsonl'
  results = {
    line['benchmark']: {'table': TABLES[0]} | line for line in _lines(path)
  }
  for name, line in results.items():
    if line['table'] not in TABLES:
      raise UserError(
        f'{path} has {name} in table {line["table"]!r}; expected one of '
        f'{TABLES}'
      )
  items = {name: _items(folder, name) for name in results}
  return Scores(results, items) if results else None


def _condition(found, place):
  name = found['condition']
  if not name or found['kind'] not in KINDS:
    raise UserError(
      f'{place / "conditions"} has results of condition {name!r}, kind '
      f'{found["kind"]!r}; expected a name and one of {KINDS}; evaluate again, '
      'which keeps the scores'
    )
  return name


def _config(path):
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except json.JSONDecodeError:
    raise UserError(f'{path} is no JSON; train again, or remove it') from None


def _items(folder, benchmark):
  path = folder / f'scores/{benchmark.replace("/", "__")}.jsonl'
  lines = _lines(path)
  if not all({'id', 'score'} <= line.keys() for line in lines):
    raise UserError(
      f'{path} has lines without id and score; evaluate {folder} again'
    )
  out = {
    x['id']: Item(x['score'], x.get('cluster'), x.get('refused')) for x in lines
  }
  if not lines or len(out) < len(lines):
    raise UserError(
      f'{path} has {len(lines)} lines and {len(out)} different ids, '
      f'expected a line for each item; evaluate {folder} again'
    )
  for name, item in out.items():
    if not isinstance(item.cluster, str | None):
      raise UserError(
        f'{path} has {name} in cluster {item.cluster!r}; expected text'
      )
    if item.refused not in (None, *REFUSALS):
      raise UserError(
        f'{path} has {name} refused = {item.refused!r}; expected one of '
        f'{REFUSALS}, or no label'
      )
  return out


def _lines(path, growing=False):
  """Records of a JSONL file, none if it is absent; NaN and infinity are None.

  A `growing` file may end in half a line, which a run is writing.
  """
  text = path.read_text(encoding='utf-8') if path.exists() else ''
  lines = text.split('\n')
  out = []
  for number, line in enumerate(lines, 1):
    try:
      if line.strip():
        out.append(json.loads(line, parse_constant=lambda name: None))
    except json.JSONDecodeError:
      if not growing or number < len(lines):
        raise UserError(
          f'line {number} of {path} is no JSON; write that file again'
        ) from None
  return out
