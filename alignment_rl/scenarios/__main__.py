"""The data set's own tool.

  python -m alignment_rl.scenarios validate [FILE ...]
  python -m alignment_rl.scenarios stats [FILE ...] [--weights=SOURCE]
  python -m alignment_rl.scenarios near_duplicates --against=DIR [FILE ...]
  python -m alignment_rl.scenarios build [FILE ...] [--output=DIR]
  python -m alignment_rl.scenarios generate --output=FILE --count=N \
      (--url=URL --model=NAME | --weights=SOURCE)

No FILE means the scenarios that ship. Exit status: 0 fine, 1 the check fails, 2
it cannot be made: a wrong argument, or (but for validate) a broken scenario.
"""

import argparse
import pathlib
import sys

import jax
import numpy as np

from alignment_rl import (
  endpoint,
  forward,
  learner,
  metrics,
  rollout,
  sharding,
  text,
  text_scorer,
)
from alignment_rl.errors import UserError
from alignment_rl.scenarios import (
  builder,
  duplicates,
  figures,
  generate,
  schema,
)
from alignment_rl.types import Message, Purpose

# Layers of SmolLM2's 30 whose states tell most of a reply's style (README).
PROBED = 2 / 3


def validate(arguments) -> int:
  """Every fault, by file, line and field; 1 if there is one."""
  rows, faults = schema.check(_files(arguments))
  for fault in faults:
    print(fault)
  print(f'{len(rows)} scenarios, {len(faults)} faults')
  return int(bool(faults))


def stats(arguments) -> int:
  """Make-up and shortcuts beside their bounds; 1 if a bound is missed."""
  rows = schema.read(_files(arguments))
  found = figures.make_up(rows)
  _print(found)
  features = {}
  if arguments.weights:
    features = {'frozen features of the reply': _frozen(arguments.weights)}
  found += (shortcuts := figures.shortcuts(rows, features))
  _print(shortcuts)
  for other, words in figures.telling(rows).items():
    listed = ', '.join(f'{w} {mine}:{theirs}' for w, mine, theirs in words)
    print(f'most telling words, beneficial:{other}, mirrors apart: {listed}')
  if not arguments.weights:
    print('frozen features were not probed; give --weights')
  missed = [figure.name for figure in found if figure.ok is False]
  print(f'{len(missed)} bounds missed')
  return int(bool(missed))


def _print(found):
  for figure in found:
    mark = {None: '', True: 'ok', False: 'MISSED'}[figure.ok]
    value = f'{figure.value:.3f}'.rstrip('0').rstrip('.')
    print(f'{figure.name:44s} {value:>8s}  {figure.bound:8s} {mark}')


def near_duplicates(arguments) -> int:
  """The contamination gate: 1 on a hit, within the set or outside it."""
  rows = schema.read(_files(arguments))
  benchmarks = duplicates.Benchmarks(arguments.against)
  hits = duplicates.within(rows) + duplicates.against(rows, benchmarks)
  for mine, other, similarity in hits:
    print(f'{mine} ~ {other}: {similarity:.2f}')
  print(
    f'{len(rows)} scenarios against {len(benchmarks.places)} texts and '
    f'sentences: {len(hits)} pairs above a similarity of {duplicates.LIMIT} or '
    f'a quoted share of {duplicates.QUOTED}'
  )
  for ending, number in sorted(benchmarks.unread.items()):
    print(f'not read: {number} files that end in {ending!r}')
  return int(bool(hits))


def build(arguments) -> int:
  """Makes the TFDS data set and prints its folder."""
  print(builder.prepare(_files(arguments), arguments.output))
  return 0


def grow(arguments) -> int:
  """Generates; 1 if the attempts ran out first."""
  if bool(arguments.url) == bool(arguments.weights):
    raise UserError('give --url and --model of an endpoint, or --weights')
  if arguments.url:
    ask = endpoint.Endpoint(
      url=arguments.url, model=arguments.model, max_tokens=2048, timeout=300,
      temperature=arguments.temperature,
    )  # fmt: skip
    name, author = f'{ask.url} {ask.model}', _endpoint_author(ask)
  else:
    name, author = arguments.weights, _policy_author(arguments)
  name += f' at temperature {arguments.temperature:g}'
  bar = metrics.progress(arguments.count, 0, 'generate', True)

  def progress(accepted, made):
    bar.n = accepted
    bar.set_postfix_str(f'{made} attempts')
    bar.refresh()

  found = generate.generate(
    author, name, arguments.output, count=arguments.count,
    attempts=arguments.attempts or 4 * arguments.count, seed=arguments.seed,
    traits=arguments.traits, domains=arguments.domains,
    benchmarks=arguments.against and duplicates.Benchmarks(arguments.against),
    progress=progress,
  )  # fmt: skip
  bar.close()
  for reason, number in sorted(found.items(), key=lambda x: -x[1]):
    print(f'{reason}: {number}')
  return int(found.get('accepted', 0) < arguments.count)


def _files(arguments):
  for path in arguments.files:
    if not path.is_file():
      raise UserError(f'{path} does not exist; give scenario files (.jsonl)')
  return arguments.files or schema.files()


def _load(source):
  """A model on the mesh of all devices: (model, params, mesh)."""
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
  return *learner.load(source, mesh), mesh


def _frozen(source):
  """Mean states of a reply's tokens, two thirds up a frozen trunk."""
  model, params, mesh = _load(source)
  layers = round(model.config.layers * PROBED)
  (decoder, part), _ = forward.cut(model.decoder, params, layers)
  scorer = text_scorer.TextScorer(decoder, part, model.tokenizer, mesh)
  known = {}

  def features(better, worse):
    new = sorted({*better, *worse} - known.keys())
    bar = metrics.progress(len(new), 0, 'features', True)
    found = scorer.features(['\n'] * len(new), [[r] for r in new], bar.update)
    bar.close()
    known.update({r: f[0] for r, f in zip(new, found, strict=True)})
    return tuple(np.stack([known[r] for r in x]) for x in (better, worse))

  return features


def _endpoint_author(ask):
  def author(prompts, heard):
    ask.ask(
      [[{'role': 'user', 'content': p}] for p in prompts],
      lambda index, answer: answer,
      lambda index, answer: heard(index, answer.raw, answer.error),
    )

  return author


def _policy_author(arguments):
  model, params, mesh = _load(arguments.weights)
  rows = sharding.row_shards(mesh)
  sampler = rollout.Sampler(
    model.decoder, mesh, group=1, length=arguments.completion_length,
    eos_ids=model.tokenizer.eos_ids, temperature=arguments.temperature,
  )  # fmt: skip
  key = jax.random.key(arguments.seed)
  key = jax.random.fold_in(key, Purpose.GENERATE)

  def author(prompts, heard):
    encoded = [
      model.tokenizer.encode_chat([Message('user', p)]) for p in prompts
    ]
    for start in range(0, len(prompts), rows):
      part = encoded[start : start + rows]
      full = [part[i % len(part)] for i in range(rows)]
      width = text.bucket(max(map(len, full)), 256)
      tokens, lengths = text.pad(full, width, model.tokenizer.pad_id)
      # The prompt addresses its own randomness, wherever it is in a batch.
      slots = [_address(p) for p in (prompts[start : start + rows])]
      slots = np.array([slots[i % len(part)] for i in range(rows)])
      rolled = sharding.to_host(sampler(params, tokens, lengths, slots, key))
      for i in range(len(part)):
        n = rolled.lengths[i, 0]
        reply = model.tokenizer.decode(rolled.completions[i, 0, :n])
        heard(start + i, reply, '')

  return author


def _address(prompt: str) -> int:
  """A number of 31 bits that is the same in every process."""
  return int(generate.digest(prompt)[:8], 16) >> 1


def parser() -> argparse.ArgumentParser:
  first, *_ = __doc__.splitlines()
  top = argparse.ArgumentParser('alignment_rl.scenarios', description=first)
  commands = top.add_subparsers(dest='command', required=True)

  def command(name, run, files=True):
    made = commands.add_parser(name, description=run.__doc__)
    made.set_defaults(run=run)
    if files:
      made.add_argument('files', nargs='*', type=pathlib.Path)
    return made

  command('validate', validate)
  made = command('stats', stats)
  made.add_argument('--weights', help='a model whose features are probed')
  made = command('near_duplicates', near_duplicates)
  made.add_argument('--against', type=pathlib.Path, required=True)
  made = command('build', build)
  made.add_argument('--output', type=pathlib.Path, help='default: the cache')
  made = command('generate', grow, files=False)
  add = made.add_argument
  names = lambda value: tuple(value.split(','))
  add('--output', type=pathlib.Path, required=True)
  add('--count', type=_natural, required=True, help='scenarios in the output')
  add('--attempts', type=_natural, default=0, help='at most; default 4 x count')
  add('--url', default='', help='of an OpenAI-compatible endpoint')
  add('--model', default='', help='its name there')
  add('--weights', default='', help='of a model in process')
  add('--temperature', type=float, default=1.0)
  add('--completion_length', type=int, default=1024, help='tokens, in process')
  add('--traits', type=names, default=schema.TRAITS)
  add('--domains', type=names, default=schema.DOMAINS)
  add('--against', type=pathlib.Path, help='folder with benchmark files')
  add('--seed', type=_natural, default=0)
  return top


def _natural(value: str) -> int:
  if not value.isdecimal():
    raise argparse.ArgumentTypeError(f'{value!r} is no whole number from 0 on')
  return int(value)


def main(arguments=None) -> int:
  """Runs a command and returns the exit status."""
  arguments = parser().parse_args(arguments)
  try:
    return arguments.run(arguments)
  except UserError as e:
    print(f'error: {e}', file=sys.stderr)
    return 2


if __name__ == '__main__':
  sys.exit(main())
