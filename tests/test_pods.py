"""RL, SFT, reward training and evaluation say the same on every mesh.

One run of all four on each: on 1, 2, 4 and 8 devices of this process, and on 2
and 4 processes of a pod in miniature. What they wrote is then read elsewhere.
"""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import four_programs
import jax
import numpy as np
import pytest

from alignment_rl import checkpoint

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module')
def start(tiny, tmp_path_factory):
  """A model folder, with weights that tell tokens apart."""
  folder = tmp_path_factory.mktemp('start')
  checkpoint.save_hf(folder, tiny, tiny.params)
  return folder


@pytest.fixture(scope='module')
def attach():
  """Attaches the first n devices alone, until the module's tests are done."""
  with contextlib.ExitStack() as stack:

    def only(n):
      stack.close()
      patched = stack.enter_context(pytest.MonkeyPatch.context())
      four_programs.attach(patched, n)

    yield only


@pytest.fixture(scope='module')
def one(start, attach, tmp_path_factory):
  """On one device: what all others are compared with."""
  folder = tmp_path_factory.mktemp('one')
  attach(1)
  four_programs.run(start, folder, (1, 1, 1))
  return folder


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def check_equal(folder, expected, steps=2):
  """Metrics, samples, parameters and evaluations of the four programs."""
  for name in ('rl', 'sft', 'reward'):
    check_metrics(folder / name, expected / name)
    found, wanted = (
      checkpoint.load_model(str(x / name), dtype='float32').params
      for x in (folder, expected)
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
      found, wanted,
    )  # fmt: skip
  spoken = lambda x: [
    (r['id'], r['completions'], r['lengths'])
    for r in lines(x / 'rl' / 'rollouts.jsonl')
  ]
  assert spoken(folder) == spoken(expected)
  check_evaluations(folder, expected, steps)


def check_metrics(folder, expected, steps=slice(None)):
  found, wanted = (
    lines(x / 'metrics.jsonl')[steps] for x in (folder, expected)
  )
  four_programs.check_lines(found, wanted, folder.name)


def check_evaluations(folder, expected, steps):
  kept = pathlib.Path('evaluation', str(steps), 'scores')
  for name in ('a__choice', 'b__reply'):
    found, wanted = (
      {r['id']: r for r in lines(x / kept / f'{name}.jsonl')}
      for x in (folder, expected)
    )
    assert found.keys() == wanted.keys() and len(found) == 6
    for id, record in found.items():
      assert record.get('text') == wanted[id].get('text')
      assert record['score'] == pytest.approx(wanted[id]['score'], abs=1e-4)


def test_the_runs_that_others_are_compared_with_move(one):
  for name, read in (
    ('rl', 'nll/shown'), ('sft', 'nll/shown'), ('reward', 'loss')
  ):  # fmt: skip
    measured = lines(one / name / 'metrics.jsonl')
    assert len(measured) == 2
    assert all(m['gradient_norm'] > 0.01 for m in measured), name
    assert measured[0][read] != pytest.approx(measured[1][read], rel=0.01)
  rewards = [m['reward/sampled'] for m in lines(one / 'rl/metrics.jsonl')]
  assert all(0 < r < 1 for r in rewards) and len(set(rewards)) > 1


SIZES = {
  2: {'mesh': (2, 1, 1)},
  4: {'mesh': (2, 1, 2), 'rollout': (1, 4, 1)},
  8: {'mesh': (1, 4, 2), 'rollout': (8, 1, 1)},
}


@pytest.fixture(scope='module', params=SIZES, ids='{}_devices'.format)
def many(request, start, attach, tmp_path_factory):
  folder = tmp_path_factory.mktemp('many')
  attach(request.param)
  four_programs.run(start, folder, **SIZES[request.param])
  return folder


def test_devices_equal_one(many, one):
  check_equal(many, one)


PODS = {
  # Each process is a slice of its own: fsdp within it, data across.
  2: {'devices': 2, 'mesh': '2,2,1', 'slices': 2, 'rollout': '4,1,1'},
  # Updates shard over processes, and no token of a rollout waits for one.
  4: {'devices': 1, 'mesh': '1,2,2', 'slices': 1, 'rollout': '4,1,1'},
}


@pytest.fixture(scope='module', params=PODS, ids='{}_processes'.format)
def pod(request, start, tmp_path_factory):
  folder, n = tmp_path_factory.mktemp('pod'), request.param
  about = PODS[n]
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{s.getsockname()[1]}'
  env = os.environ | {'JAX_NUM_CPU_DEVICES': str(about['devices'])}
  processes = [
    subprocess.Popen(
      [
        sys.executable, '-m', 'tests.four_programs', start, folder,
        f'{address},{n},{i}', about['mesh'], str(about['slices']),
        about['rollout'],
      ],
      cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True,
    )
    for i in range(n)
  ]  # fmt: skip
  try:
    said = [p.communicate()[1] for p in processes]
  finally:
    for process in processes:
      process.kill()
  assert [p.returncode for p in processes] == [0] * n, said[0][-2000:]
  return folder


def test_processes_equal_one(pod, one):
  check_equal(pod, one)


# ----------------------------------------- what one mesh wrote, read on another


@pytest.fixture(scope='module')
def go_on(start, attach, tmp_path_factory):
  """A copy of a folder's runs, with a third step made on one device."""

  def make(folder):
    copy = tmp_path_factory.mktemp('copy') / 'runs'
    shutil.copytree(folder, copy)
    attach(1)
    four_programs.run(start, copy, (1, 1, 1), steps=3)
    return copy

  return make


@pytest.fixture(scope='module')
def longer(one, go_on):
  return go_on(one)


def test_a_third_step_is_made(longer):
  for name in ('rl', 'sft', 'reward'):
    assert [m['step'] for m in lines(longer / name / 'metrics.jsonl')] == [
      0, 1, 2
    ]  # fmt: skip


@pytest.mark.parametrize('many', [8], indirect=True)
def test_what_eight_devices_wrote_goes_on_on_one(many, go_on, longer):
  check_equal(go_on(many), longer, steps=3)


@pytest.mark.parametrize('pod', [2], indirect=True)
def test_what_two_processes_wrote_goes_on_in_one(pod, go_on, longer):
  check_equal(go_on(pod), longer, steps=3)
