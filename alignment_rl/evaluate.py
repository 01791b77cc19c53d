"""A checkpoint on benchmarks: results.jsonl and a score for every item.

  python -m alignment_rl.evaluate --checkpoint=DIR --benchmarks=all --limit=N \
      --output=DIR
  python -m alignment_rl.evaluate --list

DIR is a workdir of `train`, a Hugging Face folder, a .gguf file or
package:NAME. Items and samples are the same for every checkpoint, so that arms
are paired by item. Own replies are scored by the frozen model named by --judge,
never by the policy itself.
"""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
from absl import flags

from alignment_rl import (
  checkpoint,
  learner,
  metrics,
  rollout,
  sharding,
  suite,
  text,
)
from alignment_rl import config as config_lib
from alignment_rl.errors import UserError
from alignment_rl.types import Purpose

_FLAGS = flags.FLAGS


def evaluate(
  source: str,
  benchmarks: list[suite.Benchmark],
  *,
  output: pathlib.Path,
  judge_source: str,
  limit: int,
  completion_length: int,
  batch: int,
  temperature: float,
  family: str,
  dtype: str,
  seed: int,
) -> list[dict]:
  """Runs the benchmarks, writes `output` whole, returns the lines written."""
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
  model, params = load(source, family, dtype, mesh)
  tokenizer = model.tokenizer
  scorer = rollout.TextScorer(
    model.decoder, params, tokenizer, mesh, rows=batch, step=32
  )
  items = {b.name: list(b.load())[: limit or None] for b in benchmarks}
  judge = None
  if any(b.protocol == 'generate' and b.area == 'traits' for b in benchmarks):
    judge_model, judge_params = load(judge_source, family, dtype, mesh)
    judge = rollout.TextScorer(
      judge_model.decoder, judge_params, judge_model.tokenizer, mesh
    )
  sampler = rollout.Sampler(
    model.decoder, mesh, group=1, length=completion_length,
    eos_ids=tokenizer.eos_ids, temperature=temperature,
  )  # fmt: skip
  total = sum(map(len, items.values()))
  bar = metrics.progress(total, 0, 'evaluate', jax.process_index() == 0)
  arm = pathlib.Path(source).name
  step = _step(source)
  results, records = [], {}
  for benchmark in benchmarks:
    examples = items[benchmark.name]
    bar.set_postfix_str(benchmark.name)
    if benchmark.protocol == 'choice':
      found = suite.choose(
        benchmark,
        examples,
        scorer,
        lambda e: tokenizer.render(e.messages),
        lambda t: len(tokenizer.encode(t)),
        bar.update,
      )
    else:
      completions = _complete(
        sampler, params, examples, tokenizer, batch, seed, bar.update
      )
      found = suite.generate(benchmark, examples, completions, judge)
    records[benchmark.name] = found
    summary = suite.summarise(benchmark, found)
    results.append({'arm': arm, 'step': step, 'checkpoint': source} | summary)
  bar.close()
  if jax.process_index() == 0:
    _write(output, results, records)
  return results


def load(source, family, dtype, mesh):
  """A model and its parameters on the mesh; random ones from seed 0."""
  model = checkpoint.load_model(source, family=family, dtype=dtype)
  sharding.check_fit(mesh, model.config, {})
  shardings = learner.param_shardings(model.decoder, mesh)
  return model, learner.place_params(
    model.decoder, model.params, shardings, jax.random.key(0)
  )


def _step(source):
  is_workdir = (pathlib.Path(source) / 'checkpoints').is_dir()
  return checkpoint.workdir_step(source) if is_workdir else 0


def _complete(sampler, params, examples, tokenizer, batch, seed, progress):
  """One reply an item, in batches of like length; noise is the item's own."""
  prompts = [tokenizer.encode(tokenizer.render(e.messages)) for e in examples]
  order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
  key = jax.random.fold_in(jax.random.key(seed), Purpose.EVALUATE)
  out = [''] * len(prompts)
  for start in range(0, len(order), batch):
    part = order[start : start + batch]
    full = [part[j % len(part)] for j in range(batch)]
    P = text.bucket(max(len(prompts[i]) for i in part), 64)
    tokens, lengths = text.pad([prompts[i] for i in full], P, tokenizer.pad_id)
    rolled = sharding.to_host(
      sampler(params, tokens, lengths, np.array(full), key)
    )
    for row, i in enumerate(part):
      n = rolled.lengths[row, 0]
      out[i] = tokenizer.decode(rolled.completions[row, 0, :n])
    progress(len(part))
  return out


def _write(output, results, records):
  """Into a folder beside, then renamed: an output is whole or not there."""
  partial = output.with_name(output.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  (partial / 'scores').mkdir(parents=True)
  lines = lambda rows: ''.join(
    json.dumps(row, ensure_ascii=False) + '\n' for row in rows
  )
  (partial / 'results.jsonl').write_text(lines(results))
  for name, rows in records.items():
    path = partial / 'scores' / f'{name.replace("/", "__")}.jsonl'
    path.write_text(lines(rows))
  shutil.rmtree(output, ignore_errors=True)
  os.rename(partial, output)


def table(benchmarks: list[suite.Benchmark]) -> str:
  """What `--list` prints."""
  rows = [('benchmark', 'area', 'protocol', 'n', 'chance', 'version', 'source')]
  for b in benchmarks:
    n, chance = str(len(b.load())), f'{b.chance:g}'
    rows.append(
      (b.name, b.area, b.protocol, n, chance, str(b.version), b.source)
    )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  pad = lambda row: '  '.join(
    cell.ljust(width) for cell, width in zip(row, widths, strict=True)
  )
  return '\n'.join(pad(row).rstrip() for row in rows)


def main() -> None:
  benchmarks = suite.select(_FLAGS.benchmarks)
  if _FLAGS.list:
    print(table(benchmarks))
    return
  if _FLAGS.checkpoint is None:
    raise UserError(
      '--checkpoint is missing; give a workdir, a model folder, a .gguf file '
      'or package:NAME, or use --list'
    )
  is_workdir = (pathlib.Path(_FLAGS.checkpoint) / 'checkpoints').is_dir()
  if not (_FLAGS.output or is_workdir):
    raise UserError('--output is missing; say where to write the results')
  output = pathlib.Path(
    _FLAGS.output or pathlib.Path(_FLAGS.checkpoint) / 'evaluation'
  )
  results = evaluate(
    _FLAGS.checkpoint,
    benchmarks,
    output=output,
    judge_source=_FLAGS.judge or _default_judge(_FLAGS.checkpoint),
    limit=_FLAGS.limit,
    completion_length=_FLAGS.completion_length,
    batch=_FLAGS.batch,
    temperature=_FLAGS.temperature,
    family=_FLAGS.family,
    dtype=_FLAGS.dtype,
    seed=_FLAGS.seed,
  )
  for line in results:
    score = 'unscored' if line['score'] is None else f'{line["score"]:.4f}'
    print(f'{line["benchmark"]:40s} n={line["n"]:<4d} {score}')
  print(f'results: {output}')


def _default_judge(source):
  """Where the run began, so that every arm has the same judge."""
  config = pathlib.Path(source) / 'config.json'
  if not config.exists():
    return source
  return json.loads(config.read_text())['model']['weights']


if __name__ == '__main__':
  flags.DEFINE_string('checkpoint', None, 'workdir, folder, .gguf or package:')
  flags.DEFINE_string(
    'benchmarks', 'all', "'all', or names and areas, by commas"
  )
  flags.DEFINE_integer('limit', 0, 'items per benchmark; 0 = all')
  flags.DEFINE_string('output', None, 'folder; default CHECKPOINT/evaluation')
  flags.DEFINE_bool('list', False, 'list the benchmarks and stop')
  flags.DEFINE_string(
    'judge', None, "default: where the checkpoint's run began"
  )
  flags.DEFINE_integer('completion_length', 64, 'tokens of a generated reply')
  flags.DEFINE_integer('batch', 16, 'items at a time')
  flags.DEFINE_float('temperature', 1.0, 'of generated replies; 0 = greedy')
  flags.DEFINE_string('family', 'llama', 'file of alignment_rl/models/')
  flags.DEFINE_string('dtype', 'auto', 'inputs of matrix products')
  flags.DEFINE_integer('seed', 0, 'of generated replies')
  config_lib.run(main)
