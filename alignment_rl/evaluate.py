"""Checkpoints on benchmarks: results.jsonl and a record for every item.

  python -m alignment_rl.evaluate --checkpoint=DIR[,DIR...] --benchmarks=all \
      --limit=N --data_dir=FOLDER --conditions=none,system:flatterer
  python -m alignment_rl.evaluate --list

DIR is a workdir of `train`, or DIR@STEP one of its kept checkpoints, a Hugging
Face folder, a .gguf file or package:NAME. Items and samples are the same for
every checkpoint, so that arms are paired by item. Every record is kept as it
comes: a killed evaluation goes on where it was, and a greater limit adds to
those of a smaller one, so that some benchmarks may have more items. A
condition's results stand in conditions/<name>/, laid out as those of 'none';
those of DIR@STEP in DIR/evaluation/steps/STEP/.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Mapping

import jax
from absl import flags

from alignment_rl import (
  checkpoint,
  conditions,
  learner,
  metrics,
  replies,
  results,
  sharding,
  suite,
  text_scorer,
)
from alignment_rl import config as config_lib
from alignment_rl.errors import UserError
from alignment_rl.jobs import hear_replies, plan, read_choices
from alignment_rl.models.decoder import DTYPES

_FLAGS = flags.FLAGS

ROWS_ALONE = {'data': -1, 'fsdp': 1, 'tensor': 1}


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is measured; but for the limit, what makes two comparable by item.

  Attributes:
    limit: items a benchmark, at most; 0 = all.
    length: tokens of a reply, at most; 0 = what each benchmark says.
    temperature: of replies; 0 takes the likeliest token.
    seed: of replies.
    replies: to an item, where a benchmark asks for them; their mean counts.
    dtype: inputs of matrix products.
    judge: who scores the judged benchmarks.
  """

  limit: int = 0
  length: int = 0
  temperature: float = 1.0
  seed: int = 0
  replies: int = 1
  dtype: str = 'float32'
  judge: str = ''


def evaluate(
  source: str,
  benchmarks: list[suite.Benchmark],
  under: list[conditions.Condition],
  *,
  output: pathlib.Path,
  data: pathlib.Path | None,
  settings: Settings,
  judge=None,
  rows: int = 8,
  family: str = 'llama',
  sizes: Mapping[str, int] = ROWS_ALONE,
) -> list[dict]:
  """Runs a checkpoint, from where `output` ends; returns the lines written.

  Args:
    source: the checkpoint.
    under: conditions, each with every benchmark that has conversations.
    data: folder of the public sets.
    judge: (examples, replies) -> float [n], of the judged benchmarks.
    rows: prompts at a time.
    sizes: of the mesh.

  Raises:
    UserError: a public set is missing, or `output` holds an evaluation of
      another checkpoint or with other settings.
  """
  jobs = plan(benchmarks, under, data, settings.limit)
  identity = dataclasses.asdict(settings)
  del identity['limit']  # An item's record does not depend on it.
  store = results.Store(
    output, {'checkpoint': source, 'step': _step(source)} | identity
  )
  done = {job: set(store.records(*job.place)) for job in jobs}
  mesh = sharding.make_mesh(sizes)
  model, params = learner.load(
    source, mesh, family=family, dtype=settings.dtype
  )
  every = [set(job.items) for job in jobs]
  bar = metrics.progress(
    sum(map(len, every)),
    sum(len(done[j] & ids) for j, ids in zip(jobs, every, strict=True)),
    _name(source),
    sharding.is_main(),
  )

  def keep(job, records):
    new = [r for r in records if r['id'] not in done[job]]
    version = {'version': job.benchmark.version}
    store.add(*job.place[:2], [r | version for r in new])
    bar.set_postfix_str(job.benchmark.name)
    bar.update(len(new))

  wanted = lambda job, example: suite.item_of(example) not in done[job]
  of = lambda choice: [
    job for job in jobs if (job.benchmark.protocol == 'choice') == choice
  ]
  scorer = text_scorer.TextScorer(
    model.decoder, params, model.tokenizer, mesh, rows=rows, coarse=True
  )
  read_choices(of(True), scorer, model.tokenizer, wanted, keep)
  policy = replies.Policy(
    model, params, mesh, rows=rows, temperature=settings.temperature,
    seed=settings.seed,
  )  # fmt: skip
  hear_replies(
    of(False), policy, model.tokenizer, settings.length, judge, wanted, keep,
    settings.replies,
  )  # fmt: skip
  bar.close()
  lines = []
  for condition in under:
    mine = [job for job in jobs if job.condition == condition]
    found = [
      {'arm': _name(source), 'step': _step(source), 'checkpoint': source}
      | {'condition': condition.name, 'kind': condition.kind}
      | suite.summarise(
        job.benchmark, [store.records(*job.place)[i] for i in job.items]
      )
      for job in mine
    ]
    store.finish(condition.name, found)
    lines += found
  return lines


def _step(source):
  place = checkpoint.workdir_at(source)
  return place[1] if place else 0


def _name(source):
  place = checkpoint.workdir_at(source)
  return (place[0] if place else pathlib.Path(source)).name


def make_judge(
  source: str,
  url: str,
  model: str,
  family: str,
  cache: str,
  sizes: Mapping[str, int] = ROWS_ALONE,
  dtype: str = 'float32',
):
  """Who scores the judged benchmarks: (examples, replies) -> float [n].

  Args:
    source: the model that reads each reply for its criteria, if there is no
      `url`; a frozen one, never the policy that replies.
    url: of an OpenAI-compatible endpoint, which is asked for verdicts.
    model: its name there.
    cache: folder of the endpoint's verdicts.
    sizes: of the mesh.
    dtype: inputs of its matrix products.
  """
  if url:
    reward = config_lib.make(
      'rewards', 'rubric',
      {'backend': 'endpoint', 'url': url, 'model': model, 'cache': cache},
    )  # fmt: skip
    return functools.partial(reward, judge=None)
  mesh = sharding.make_mesh(sizes)
  reader, params = learner.load(source, mesh, family=family, dtype=dtype)
  scorer = text_scorer.TextScorer(
    reader.decoder, params, reader.tokenizer, mesh
  )
  reward = config_lib.make('rewards', 'criterion', {'rubric': 'scenario'})
  return functools.partial(reward, judge=scorer)


def table(benchmarks: list[suite.Benchmark], data: pathlib.Path | None) -> str:
  """What `--list` prints; n is '-' where the public set is not in `data`."""
  head = 'benchmark', 'table', 'protocol', 'n', 'chance', 'licence', 'source'
  rows = [head]
  for b in benchmarks:
    n, chance = '-', '-'
    if not suite.missing([b], data):
      items = {}
      for e in b.items(data):
        items.setdefault(suite.item_of(e), e)
      n, chance = str(len(items)), _chance(b, items.values())
    rows.append((b.name, b.table, b.protocol, n, chance, b.licence, b.source))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  pad = lambda row: '  '.join(
    cell.ljust(width) for cell, width in zip(row, widths, strict=True)
  )
  return '\n'.join(pad(row).rstrip() for row in rows)


def _chance(benchmark, items):
  if benchmark.protocol != 'choice':
    return '-' if math.isnan(benchmark.chance) else f'{benchmark.chance:.2f}'
  if benchmark.reading != 'aligned':
    return '-'
  shares = [e.metadata.get('aligned', 1) / len(e.choices) for e in items]
  return f'{sum(shares) / len(shares):.2f}'


def main() -> None:
  data = pathlib.Path(_FLAGS.data_dir) if _FLAGS.data_dir else None
  if _FLAGS.list:
    print(table(list(suite.discover().values()), data))
    return
  benchmarks = suite.select(_FLAGS.benchmarks)
  sources = _FLAGS.checkpoint
  if not sources:
    raise UserError(
      '--checkpoint is missing; give a workdir, a model folder, a .gguf file '
      'or package:NAME, or use --list'
    )
  under = conditions.read(_FLAGS.conditions, data)
  sharding.start_distributed(_FLAGS.distributed)
  sizes = {'data': -1, 'fsdp': _FLAGS.fsdp, 'tensor': _FLAGS.tensor}
  outputs = [_output(source, len(sources) > 1) for source in sources]
  for source, output in zip(sources, outputs, strict=True):
    compiled = metrics.Compilations()
    temperature = _FLAGS.temperature
    if temperature is None:
      temperature = _trained_temperature(source)
    judge = None
    who = _FLAGS.judge_url or _FLAGS.judge or _default_judge(source)
    if any(b.judged for b in benchmarks):
      judge = make_judge(
        who, _FLAGS.judge_url, _FLAGS.judge_model, _FLAGS.family,
        str(output / 'verdicts'), sizes, _FLAGS.dtype,
      )  # fmt: skip
    found = evaluate(
      source, benchmarks, under, output=output, data=data, judge=judge,
      settings=Settings(
        limit=_FLAGS.limit, length=_FLAGS.completion_length,
        temperature=temperature, seed=_FLAGS.seed, replies=_FLAGS.replies,
        dtype=_FLAGS.dtype,
        judge=f'{who} {_FLAGS.judge_model}'.strip(),
      ),
      rows=_FLAGS.batch, family=_FLAGS.family, sizes=sizes,
    )  # fmt: skip
    for line in found if sharding.is_main() else ():
      score = 'unscored' if line['score'] is None else f'{line["score"]:.4f}'
      where = '' if line['condition'] == 'none' else f' {line["condition"]}'
      print(f'{line["benchmark"] + where:48s} n={line["n"]:<5d} {score}')
    if sharding.is_main():
      print(f'programs compiled: {compiled.total}')
      print(f'results: {output}', flush=True)
    compiled.close()
    # Each checkpoint has programs of its own: they would pile up in memory.
    jax.clear_caches()


def _output(source, several):
  if _FLAGS.output:
    folder = config_lib.folder(_FLAGS.output, 'output')
    return folder / pathlib.Path(source).name if several else folder
  place = checkpoint.workdir_at(source)
  if not place:
    raise UserError(
      f'{source} is no workdir with checkpoints, in which results would be '
      'written; correct --checkpoint, or say --output=FOLDER'
    )
  folder, step = place
  if pathlib.Path(source) == folder:
    return folder / 'evaluation'
  return folder / 'evaluation' / 'steps' / str(step)


def _default_judge(source):
  """Where the first run began, so that every arm has the same judge.

  A run may have begun at the end of another, which is another for every arm.
  """
  config = _config(source)
  return _default_judge(config['model']['weights']) if config else source


def _trained_temperature(source):
  """The policy that a run trained is the one at its own temperature."""
  config = _config(source)
  return config['algorithm']['temperature'] if config else 1.0


def _config(source):
  """Of the run that `source` is the workdir of; None if it is none."""
  place = checkpoint.workdir_at(source)
  path = place and place[0] / 'config.json'
  return json.loads(path.read_text()) if path and path.exists() else None


if __name__ == '__main__':
  flags.DEFINE_list(
    'checkpoint', '', 'DIR or DIR@STEP of workdirs, folders, .gguf or package:'
  )
  flags.DEFINE_string(
    'benchmarks', 'all',
    "'all' (but judged ones), 'own' (that need no data), or names, areas and "
    'tables, by commas',
  )  # fmt: skip
  flags.DEFINE_list('conditions', 'none', "'none', 'all', or some by name")
  flags.DEFINE_string(
    'data_dir', os.environ.get('ALIGNMENT_RL_DATA', ''),
    'folder of the public sets; default $ALIGNMENT_RL_DATA',
  )  # fmt: skip
  flags.DEFINE_integer('limit', 0, 'items per benchmark; 0 = all')
  flags.DEFINE_string('output', None, 'folder; default CHECKPOINT/evaluation')
  flags.DEFINE_bool('list', False, 'list the benchmarks and stop')
  flags.DEFINE_string(
    'judge', '', "a model; default: where the checkpoint's run began"
  )
  flags.DEFINE_string('judge_url', '', 'or an OpenAI-compatible endpoint')
  flags.DEFINE_string('judge_model', '', 'name of the model there')
  flags.DEFINE_integer(
    'completion_length', 0, "tokens of a reply; 0 = each benchmark's own"
  )
  flags.DEFINE_integer('batch', 8, 'prompts at a time')
  flags.DEFINE_integer('fsdp', 1, 'devices that share the parameters')
  flags.DEFINE_integer('tensor', 1, 'devices that share every product')
  config_lib.define_distributed_flag()
  flags.DEFINE_float(
    'temperature', None,
    'of replies; 0 = greedy; default: what a run was trained at, else 1',
  )  # fmt: skip
  flags.DEFINE_string('family', 'llama', 'file of alignment_rl/models/')
  flags.DEFINE_enum('dtype', 'float32', DTYPES, 'inputs of matrix products')
  flags.DEFINE_integer('seed', 0, 'of generated replies')
  flags.DEFINE_integer('replies', 1, 'to an item; their mean counts', 1)
  config_lib.run(main)
