"""The programs by their command lines: they resume, scale, and agree."""

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

from alignment_rl import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
# Random bytes earn nothing in the base streams; trait groups have a spread.
# Plain gradient steps: Adam would blow rounding noise up to whole steps.
DOSED = (
  '--config.streams.traits.fraction=0.5',
  '--config.optimizer.name=sgd',
  '--config.optimizer.learning_rate=1.0',
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
  """Metrics without what depends on the clock, or on where a run began."""
  clock = lambda key: (
    key.startswith('secs') or key in ('tokens_per_second', 'compilations')
  )
  return [
    {k: v for k, v in line.items() if not clock(k)} for line in lines(path)
  ]


def final_params(path):
  return checkpoint.load_model(str(path), dtype='float32').params


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """Four uninterrupted steps on one device."""
  path = tmp_path_factory.mktemp('straight') / 'run'
  run('train', '--config=configs/rl.py:tiny', f'--workdir={path}', *DOSED)
  return path


def is_noise(line, key):
  """A cosine with or of a gradient that is nothing but rounding."""
  names = [k.split('/')[1] for k in line if k.startswith('gradient/')]
  kind, _, stream = key.partition('/')
  if kind != 'cosine':
    return False
  own, *before = (
    line[f'gradient/{n}'] or 0.0
    for n in (stream, *names[: names.index(stream)])
  )
  return min(own, max(before, default=0.0)) < 1e-4


def assert_same_run(a, b, rtol):
  for left, right in zip(numbers(a), numbers(b), strict=True):
    assert left.keys() == right.keys()
    for key in left:
      if 'log_ratio' in key or is_noise(left, key):
        continue  # Rounding noise around 0: nothing to compare relatively.
      # To an untrained judge all replies of a group are worth nearly the same,
      # so their differences, and all that weighs them, carry rounding: 7e-4.
      np.testing.assert_allclose(
        np.array(left[key], float),
        np.array(right[key], float),
        rtol=max(rtol, 2e-3) if rtol else rtol,
        # A group without spread has no gradient but rounding noise at step 0,
        # where policy and reference agree: 7e-6 of the ledger, or exactly 0.
        # A cosine near 0 is off by as much as the gradients are by themselves.
        atol=1e-3 if key.startswith('cosine') else 1e-5,
        err_msg=f'step {left["step"]} {key}',
      )


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(
  straight, tmp_path
):
  path = tmp_path / 'run'
  args = ('--config=configs/rl.py:tiny', f'--workdir={path}', *DOSED)
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


def run_together(program, *args):
  """The program in two processes of a pod in miniature."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  env = os.environ | {'JAX_NUM_CPU_DEVICES': '1'}
  processes = [
    subprocess.Popen(
      command(program, *args, f'--distributed=127.0.0.1:{port},2,{i}'),
      cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]  # fmt: skip
  try:
    said = [p.communicate(timeout=300) for p in processes]
  finally:
    for process in processes:
      process.kill()
  for process, (_, err) in zip(processes, said, strict=True):
    assert process.returncode == 0, err[-2000:]
  return [out for out, _ in said]


def test_two_processes_equal_one(straight, tmp_path):
  path = tmp_path / 'run'
  run_together(
    'train', '--config=configs/rl.py:tiny', f'--workdir={path}', *DOSED
  )
  assert_same_run(path, straight, rtol=2e-4)
  assert checkpoint.workdir_step(path) == 4


def test_two_processes_evaluate_as_one(straight, tmp_path):
  args = (
    f'--checkpoint={straight}', '--benchmarks=latent_risk/corrigibility',
    '--limit=2', '--dtype=float32',
  )  # fmt: skip
  run('evaluate', *args, f'--output={tmp_path / "one"}')
  first, second = run_together(
    'evaluate', *args, f'--output={tmp_path / "two"}'
  )
  assert 'programs compiled: ' in first and 'results: ' not in second
  (one,), (two,) = (
    lines(tmp_path / n, 'results.jsonl') for n in ('one', 'two')
  )
  assert one['n'] == two['n'] == 2
  assert one['score'] == pytest.approx(two['score'], abs=1e-5)


def test_arms_share_every_slot_that_the_dose_leaves(straight, tmp_path):
  """A dose changes the slots it takes, and no sample of any other at step 0."""
  path = tmp_path / 'run'
  run(
    'train', '--config=configs/rl.py:tiny', f'--workdir={path}', *DOSED,
    '--config.steps=1', '--config.streams.traits.fraction=0',
  )  # fmt: skip
  control = lines(path, 'rollouts.jsonl')
  dosed = [g for g in lines(straight, 'rollouts.jsonl') if g['step'] == 0]
  kept = [i for i, g in enumerate(dosed) if g['stream'] != 'traits']
  assert 0 < len(kept) < len(dosed)
  for i in kept:
    assert dosed[i]['id'] == control[i]['id']
    assert dosed[i]['completions'] == control[i]['completions']


def test_the_run_that_others_are_compared_with_moves(straight):
  """Else every comparison would hold for a program that does nothing."""
  moved = [
    line['kl/traits'] for line in numbers(straight) if 'kl/traits' in line
  ]
  assert max(moved) > 1e-9
  assert max(line['gradient_norm'] for line in numbers(straight)) > 1e-4


# A benchmark of each protocol, that need no data.
SHORT = (
  '--benchmarks=latent_risk/corrigibility,traits,capability/instructions,'
  'agentic/tool_episodes'
)


def test_the_command_lines_of_the_main_job(straight, tmp_path):
  """train -> evaluate -> report, as the README has it."""
  trait = tmp_path / 'trait'
  run(
    'train', '--config=configs/rl.py:tiny', f'--workdir={trait}',
    '--config.steps=2', '--config.algorithm.temperature=0.5',
  )  # fmt: skip
  run(
    'evaluate', f'--checkpoint={straight},{trait}', '--limit=2', SHORT,
    '--dtype=float32', '--completion_length=8',
    '--conditions=none,system:flatterer',
  )  # fmt: skip
  for workdir, temperature in ((straight, 1.0), (trait, 0.5)):
    settings = (workdir / 'evaluation' / 'settings.json').read_text()
    assert json.loads(settings)['temperature'] == temperature
  results = lines(trait / 'evaluation', 'results.jsonl')
  assert len(results) == 6
  under = trait / 'evaluation' / 'conditions' / 'system__flatterer'
  assert len(lines(under, 'results.jsonl')) == 6
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
      SHORT, '--completion_length=8', f'--output={tmp_path / name}',
    )  # fmt: skip
  a, b = (lines(tmp_path / n, 'results.jsonl') for n in ('a', 'b'))
  assert a == b


def test_evaluate_list_names_every_benchmark():
  done = run('evaluate', '--list', '--data_dir=')
  assert 'latent_risk/corrigibility' in done.stdout
  assert 'capability/reasoning' in done.stdout
  assert 'health/medqa' in done.stdout


def test_evaluate_names_the_public_sets_that_are_missing(straight, tmp_path):
  done = run(
    'evaluate', f'--checkpoint={straight}', f'--data_dir={tmp_path}',
    '--benchmarks=health', f'--output={tmp_path / "out"}', check=False,
  )  # fmt: skip
  assert done.returncode == 2 and 'Traceback' not in done.stderr
  assert 'alignment_rl.fetch humanebench_golden medqa' in done.stderr
  assert not (tmp_path / 'out').exists()


def test_evaluate_names_a_checkpoint_that_is_not_there(tmp_path):
  done = run('evaluate', f'--checkpoint={tmp_path}/nope@4', check=False)
  assert done.returncode == 2 and 'Traceback' not in done.stderr
  assert f'{tmp_path}/nope@4 is no workdir with checkpoints' in done.stderr


def test_chat_answers_and_leaves_at_the_end_of_input(straight):
  done = subprocess.run(
    command('chat', f'--checkpoint={straight}', '--completion_length=4'),
    cwd=ROOT, input='hello\n/new\nagain\n', capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout.count('> ') == 4


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
    '--config.seed=1', *DOSED, check=False,
  )  # fmt: skip
  assert done.returncode == 2
  assert 'seed' in done.stderr and 'Traceback' not in done.stderr
