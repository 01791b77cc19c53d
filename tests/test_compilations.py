"""Programs are compiled once a shape, and texts of all lengths make few shapes.

A program that is compiled anew at every step costs minutes on a pod, and its
copies fill the memory.
"""

import functools
import json

import four_programs
import jax
import numpy as np
import pytest

from alignment_rl import conditions, evaluate, metrics, text, train
from alignment_rl.suite import Benchmark, Demo
from alignment_rl.types import Example, Message


def test_compilations_are_counted_by_program_until_closed():
  @jax.jit
  def doubled(x):
    return 2 * x

  counted = metrics.Compilations()
  for n in (1, 2, 1, 3):
    doubled(np.zeros(n, np.float32))
  assert counted.programs['jit(doubled)'] == 3 == counted.total
  counted.close()
  doubled(np.zeros(4, np.float32))
  assert counted.total == 3


@pytest.mark.parametrize(
  'length, held', [(0, 4), (4, 4), (5, 8), (9, 10), (10, 10), (11, 10)]
)
def test_first_that_holds(length, held):
  assert text.first_that_holds(length, (4, 8, 10)) == held


# -------------------------------------------------------------------- training

STEPS = 6
LENGTHS = (56, 128)
# Every second step on average has one of the long ones.
EXAMPLES = [
  Example(
    f'toy/{i}', (Message('user', 'go' * (20 if i % 16 == 0 else i % 3 + 1)),),
    metadata={'rubric': four_programs.RUBRIC}, target='up',
  )
  for i in range(32)
]  # fmt: skip


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Trains on one device; returns metrics and samples."""
  with pytest.MonkeyPatch.context() as patched:
    four_programs.attach(patched, 1)
    patched.setattr(four_programs, 'EXAMPLES', EXAMPLES)
    patched.setattr(train, 'make_streams', four_programs.streams)

    @functools.cache
    def make(buckets):
      c = four_programs.configs(
        'random:tiny', (1, 1, 1), 1, (0, 0, 0), STEPS
      )['rl']  # fmt: skip
      c.batch.prompt_buckets = buckets
      c.batch.prompt_length = LENGTHS[-1]
      c.log.rollouts_every = 1
      folder = tmp_path_factory.mktemp('run')
      train.train(c, folder)
      return [
        [json.loads(line) for line in (folder / name).open()]
        for name in ('metrics.jsonl', 'rollouts.jsonl')
      ]

    yield make


def test_no_step_compiles_once_its_shapes_were_seen(run):
  measured, _ = run(LENGTHS[:1])
  padded = [m['prompt_length'] for m in measured]
  assert set(padded) == set(LENGTHS)
  last = max(padded.index(n) for n in LENGTHS)
  assert last < STEPS - 2, padded
  counted = [m['compilations'] for m in measured]
  assert counted[0] > 3
  # Each length once, however often it comes again.
  assert counted[last:] == counted[last:][:1] * (STEPS - last)
  grown = [b - a for a, b in zip(counted, counted[1:], strict=False)]
  for step, more in enumerate(grown, 1):
    assert (more > 0) == (padded[step] not in padded[:step]), counted


def test_shorter_prompts_are_the_same_numbers_in_less_room(run):
  (short, said), (full, expected) = run(LENGTHS[:1]), run(())
  assert {m['prompt_length'] for m in full} == {LENGTHS[-1]}
  assert [g['completions'] for g in said] == [
    g['completions'] for g in expected
  ]
  four_programs.check_lines(short, full, 'buckets', ('prompt_length',))


# ------------------------------------------------------------------ evaluation


def test_an_evaluation_of_all_lengths_compiles_few_programs(
  tmp_path, monkeypatch
):
  """Sixty lengths of question, and a program for each of five at most."""
  asked = [
    Example(f'x/{i}', (Message('user', 'y' * (3 * i + 1)),), choices=('a', 'b'))
    for i in range(60)
  ]
  made = functools.partial(Benchmark, source='made here', licence='none')
  both = [
    made('a/choice', 'choice', lambda folder: asked, demo=Demo()),
    made(
      'b/reply', 'generate', lambda folder: asked, demo=Demo(), length=4,
      score=lambda examples, said, judge: np.zeros(len(said)),
    ),
  ]  # fmt: skip
  sizes = set()
  coarse = text.coarse

  def watched(length, least):
    if least == 64:  # of a prompt
      sizes.add(coarse(length, least))
    return coarse(length, least)

  monkeypatch.setattr(text, 'coarse', watched)
  counted = metrics.Compilations()
  evaluate.evaluate(
    'random:tiny', both, [conditions.NONE], output=tmp_path, data=None,
    settings=evaluate.Settings(dtype='float32'),
  )  # fmt: skip
  counted.close()
  assert len(sizes) <= 5
  for program in ('jit(logprobs)', 'jit(_sample)'):
    assert 2 <= counted.programs[program] <= len(sizes), counted.programs
