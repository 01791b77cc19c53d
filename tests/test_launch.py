"""Experiments launched: what is checked, run, skipped, resumed and shown."""

import argparse
import io
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import absl.flags
import jax
import numpy as np
import pytest
from ml_collections import config_flags

import experiments
from alignment_rl import checkpoint, evaluate
from alignment_rl import config as config_lib
from alignment_rl.config import Evaluation, Trial
from alignment_rl.errors import UserError
from experiments import launch, local, plan, pod

ROOT = pathlib.Path(__file__).parents[1]
SMALL = '''"""Does a small model learn? Read the table.

More words.
"""

from alignment_rl.config import Evaluation, Trial

CONTROL = 'standard'
EVALUATION = Evaluation('latent_risk/corrigibility', every_checkpoint=True)
TUNED = {
  'checkpoint.every': 1,
  'streams.traits.kwargs.domains': ('health',),
  'streams.traits.kwargs.system': "It's so, 'no' (x)=1",
  'streams.traits.reward_kwargs': {
    'rubric': 'helpfulness', 'scale': 2.0, 'evidence': 0.0
  },
  'algorithm.skip_zero_spread': True,
  'algorithm.kl': 0,
  'optimizer.learning_rate': 2e-5,
}


def trials(seeds):
  return [
    Trial(f'{arm}_{s}', overrides={'seed': s} | overrides, start=start and f'{start}_{s}')
    for s in seeds
    for arm, overrides, start in (
      ('tuned', TUNED, 'trait'),
      ('standard', {'streams.traits.fraction': 0.0}, ''),
      ('trait', {}, ''),
      ('broken', {'streams.traits.reward': 'nope'}, ''),
      ('after', {}, 'broken'),
    )
  ]
'''  # noqa: E501


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
  monkeypatch.chdir(ROOT)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder that holds the experiment 'small'."""
  path = tmp_path_factory.mktemp('experiments')
  (path / 'small.py').write_text(SMALL)
  return path


@pytest.fixture
def small(folder, monkeypatch):
  path = [*experiments.__path__, str(folder)]
  monkeypatch.setattr(experiments, '__path__', path)
  yield plan.load('small')
  del sys.modules['experiments.small']


def flags(*args):
  return launch.make_parser().parse_args(
    ['small', '--config_variant=tiny', '--seeds=3', *map(str, args)]
  )


def start(folder, *args, **kwargs):
  """The command line, with the experiment of the test."""
  code = (
    f'import sys, experiments; experiments.__path__.append({str(folder)!r})\n'
    'from experiments import launch; sys.exit(launch.main())'
  )
  command = [sys.executable, '-c', code, 'small', '--config_variant=tiny']
  return subprocess.Popen(
    [*command, '--seeds=3', *map(str, args)], cwd=ROOT, text=True,
    env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'}, **kwargs,
  )  # fmt: skip


def run(folder, *args):
  """(exit code, stdout, stderr)."""
  pipe = subprocess.PIPE
  process = start(folder, *args, stdout=pipe, stderr=pipe)
  out, err = process.communicate()
  return process.returncode, out, err


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


# --------------------------------------------------------------- the real thing


@pytest.fixture(scope='module')
def launched(folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs')
  return workdir, *run(
    folder, f'--workdir={workdir}', '--set=steps=2', '--jobs=2', '--limit=2'
  )


def test_a_failed_trial_stops_none_but_those_that_start_from_it(launched):
  workdir, code, out, err = launched
  assert code == 1
  failed = [x for x in err.splitlines() if x.startswith('failed: ')]
  assert len(failed) == 2, err[-2000:]
  assert failed[0].startswith("failed: broken_3: error: unknown rewards 'nope'")
  assert failed[1] == 'failed: after_3: it starts from broken_3, which failed'
  assert not (workdir / 'after_3').exists()
  for name in ('standard_3', 'trait_3', 'tuned_3'):
    assert f'{name}: done, step 2/2' in out
    assert checkpoint.workdir_step(workdir / name) == 2


def test_the_command_line_makes_the_config_that_was_checked(launched, small):
  """Tuples, texts with commas and quotes, whole sections, numbers, start."""
  workdir = launched[0]
  tasks, _ = launch.read_tasks(
    'small', flags(f'--workdir={workdir}', '--set=steps=2')
  )
  trained = [t for t in tasks if plan.is_finished(t)]
  assert [t.name for t in trained] == ['standard_3', 'trait_3', 'tuned_3']
  for t in trained:
    found = json.loads((t.folder / 'config.json').read_text())
    assert found == json.loads(t.config.to_json_best_effort()), t.name
  assert found['model']['weights'] == str(workdir / 'trait_3')
  assert found['streams']['traits']['kwargs']['domains'] == ['health']


def test_every_kept_checkpoint_is_evaluated_and_reported(launched):
  workdir, _, out, _ = launched
  folder = workdir / 'tuned_3' / 'evaluation'
  (last,) = lines(folder / 'results.jsonl')
  (first,) = lines(folder / 'steps' / '1' / 'results.jsonl')
  assert (first['arm'], first['step'], first['n']) == ('tuned_3', 1, 2)
  assert (last['arm'], last['step'], last['n']) == ('tuned_3', 2, 2)
  assert not (workdir / 'trait_3' / 'evaluation' / 'steps').exists()
  page = (workdir / 'small.html').read_text()
  assert 'latent_risk/corrigibility' in page
  assert (workdir / 'small.csv').exists()
  assert f'report: {workdir / "small.html"}' in out


def test_a_step_of_a_workdir_is_a_model(launched):
  tuned = launched[0] / 'tuned_3'
  read = lambda at: checkpoint.load_model(f'{tuned}{at}', dtype='float32')
  first, second, last = (read(at).params for at in ('@1', '@2', ''))
  jax.tree.map(np.testing.assert_array_equal, second, last)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), first, last)
  assert max(jax.tree.leaves(moved)) > 0


def test_the_judge_is_where_the_first_run_began(launched):
  """Else runs that start from different arms would have different judges."""
  workdir = launched[0]
  for source in ('tuned_3', 'tuned_3@1', 'trait_3'):
    assert evaluate._default_judge(str(workdir / source)) == 'random:tiny'


def test_finished_trials_are_skipped(launched, folder):
  workdir = launched[0]
  names = ('standard_3', 'trait_3', 'tuned_3')
  logs = [(workdir / name / 'log.txt').read_bytes() for name in names]
  code, out, err = run(
    folder, f'--workdir={workdir}', '--set=steps=2', '--stages=train',
    f'--trials={",".join(names)}',
  )  # fmt: skip
  assert code == 0, err[-2000:]
  assert logs == [(workdir / name / 'log.txt').read_bytes() for name in names]
  assert all(f'{name}: done, step 2/2' in out for name in names)


def test_a_launch_that_is_killed_trains_nothing_twice(folder, tmp_path):
  """Its process goes on and is waited for; what is cut with it, resumes."""
  args = (
    f'--workdir={tmp_path}', '--set=steps=12', '--stages=train',
    '--trials=trait_3',
  )  # fmt: skip
  trial = tmp_path / 'trait_3'
  first = start(folder, *args, start_new_session=True)
  while not (trial / 'checkpoints' / '2').exists():
    assert first.poll() is None, 'ended before it could be killed'
    time.sleep(0.05)
  os.killpg(first.pid, signal.SIGSTOP)
  first.kill()
  first.wait()
  assert local.lock(trial) is None
  out = tmp_path / 'out.txt'
  with open(out, 'w') as file:
    second = start(folder, *args, stdout=file)
  while 'trait_3: elsewhere' not in out.read_text():
    assert second.poll() is None, 'did not wait for the process that is left'
    time.sleep(0.05)
  before = checkpoint.workdir_step(trial)
  assert before < 12
  os.killpg(first.pid, signal.SIGKILL)
  assert second.wait() == 0
  assert checkpoint.workdir_step(trial) == 12
  steps = [line['step'] for line in lines(trial / 'metrics.jsonl')]
  assert steps == list(range(12))
  assert 'trait_3: running' in out.read_text()


# ------------------------------------------------------- processes without jax


@pytest.fixture
def stub(monkeypatch):
  """Trains by a line of Python; a trial is finished once it has left a file."""
  code = {}

  def arguments(task):
    done = f'import pathlib; pathlib.Path({str(task.folder)!r}, "end").touch()'
    return ['-c', f'{code.get(task.name, "")}\n{done}']

  monkeypatch.setattr(plan, 'train_arguments', arguments)
  end = lambda task: (task.folder / 'end').exists()
  monkeypatch.setattr(plan, 'is_finished', end)
  monkeypatch.setattr(local, 'POLL', 0.02)
  return code


def tasks_of(workdir, **starts):
  """Tasks by name, each with the name of its start."""
  trials = [Trial(n, overrides={}, start=s) for n, s in starts.items()]
  return plan.make_tasks(
    plan.order(trials), variant='tiny', settings='', workdir=workdir
  )


def states(seen, name):
  """The states that a trial went through."""
  found = [row.state for rows in seen for row in rows if row.name == name]
  return list(dict.fromkeys(found))


def test_a_killed_process_is_told_from_one_that_says_why(stub, tmp_path):
  stub['a'] = 'import os; print("step 3", flush=True); os.kill(os.getpid(), 9)'
  stub['b'] = 'import sys; print("error: no data"); sys.exit(2)'
  stub['c'] = 'print("all well")'
  why = local.train(tasks_of(tmp_path, a='', b='', c=''), 1, lambda rows: None)
  assert why == {'a': 'killed by signal 9', 'b': 'error: no data'}
  assert (tmp_path / 'a' / 'log.txt').read_text() == 'step 3\n'


@pytest.mark.parametrize('jobs', [1, 2, 3])
def test_no_more_than_jobs_run_at_a_time_and_starts_come_first(
  stub, tmp_path, jobs
):
  tasks = tasks_of(tmp_path, late='a', a='', b='', c='')
  stub.update(dict.fromkeys('abc', 'import time; time.sleep(0.2)'))
  stub['late'] = f'open({str(tmp_path / "a" / "end")!r})'
  seen = []
  assert local.train(tasks, jobs, seen.append) == {}
  at_a_time = [sum(r.state == 'running' for r in rows) for rows in seen]
  assert max(at_a_time) == jobs
  for name in ('a', 'b', 'c', 'late'):
    assert states(seen, name)[-2:] == ['running', 'done']


def test_a_trial_in_another_launch_is_waited_for_and_not_trained(
  stub, tmp_path
):
  tasks = tasks_of(tmp_path, a='')
  held, seen = local.lock(tmp_path / 'a'), []

  def show(rows):
    seen.append(rows)
    if len(seen) == 3:
      (tmp_path / 'a' / 'end').touch()
      held.close()

  assert local.train(tasks, 1, show) == {}
  assert states(seen, 'a') == ['elsewhere', 'done']
  assert not (tmp_path / 'a' / 'log.txt').exists()


def test_a_lock_lives_as_long_as_the_last_process_that_has_it(tmp_path):
  held = local.lock(tmp_path)
  process = subprocess.Popen(['sleep', '60'], pass_fds=[held.fileno()])
  held.close()
  assert local.lock(tmp_path) is None
  local.stop([process])
  assert local.lock(tmp_path) is not None


def test_sigterm_ends_the_processes_too(stub, tmp_path):
  tasks = tasks_of(tmp_path, a='')
  stub['a'] = 'import time; time.sleep(600)'
  show = lambda rows: os.kill(os.getpid(), signal.SIGTERM)
  with local.ends_by_signal(), pytest.raises(KeyboardInterrupt):
    local.train(tasks, 1, show)
  assert local.lock(tmp_path / 'a') is not None
  assert not (tmp_path / 'a' / 'end').exists()


def test_a_command_has_the_locks_of_its_workdirs(tmp_path):
  code = (
    'import fcntl, sys\n'
    f'file = open({str(tmp_path / "a" / "lock")!r}, "w")\n'
    'try: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n'
    'except BlockingIOError: sys.exit(7)'
  )
  command = [sys.executable, '-c', code]
  assert local.run(command, [tmp_path / 'b', tmp_path / 'a']) == 7
  assert local.run(command, [tmp_path / 'b']) == 0


# ----------------------------------------------------------- what is to be run


def test_order_puts_a_start_before_what_starts_from_it():
  trials = [
    Trial('c', start='b'),
    Trial('a'),
    Trial('b', start='a'),
    Trial('d', start='not of these'),
  ]
  assert [t.name for t in plan.order(trials)] == ['a', 'd', 'b', 'c']


@pytest.mark.parametrize(
  'trials, said',
  [
    ([Trial('a'), Trial('a')], r"several trials are called \['a'\]"),
    (
      [Trial('a', start='b'), Trial('b', start='a'), Trial('c')],
      r"\['a', 'b'\] start from each other",
    ),
  ],
)
def test_order_refuses_what_cannot_be_ordered(trials, said):
  with pytest.raises(UserError, match=said):
    plan.order(trials)


def test_select_takes_trials_by_pattern_in_their_own_order():
  trials = [Trial(n) for n in ('standard_0', 'trait_0', 'trait_1')]
  taken = lambda *p: [t.name for t in plan.select(trials, p)]
  assert taken() == ['standard_0', 'trait_0', 'trait_1']
  assert taken('trait_*') == ['trait_0', 'trait_1']
  assert taken('*_1', 'standard_0') == ['standard_0', 'trait_1']
  with pytest.raises(UserError, match=r'--trials=nope is none of .*trait_0'):
    taken('trait_0', 'nope')


def test_settings_are_parted_where_a_field_begins():
  text = "steps=40,streams.traits.kwargs.domains=('law', 'health'),a.b=x=1"
  assert plan.parse_settings(text) == {
    'steps': '40',
    'streams.traits.kwargs.domains': "('law', 'health')",
    'a.b': 'x=1',
  }
  assert plan.parse_settings('') == {}
  with pytest.raises(UserError, match='--set=steps is not FIELD=VALUE'):
    plan.parse_settings('steps')


def make(*trials, settings='', workdir='runs'):
  return plan.make_tasks(
    trials, variant='tiny', settings=settings, workdir=pathlib.Path(workdir)
  )


def test_a_trial_is_its_config_the_set_fields_and_then_its_own():
  dosed = Trial('a', overrides={'streams.traits.fraction': 0.5})
  plain = Trial('b', start='a')
  attack = Trial('c', 'configs/sft.py')
  settings = 'steps=7,algorithm.kl=0'
  a, b, c = make(dosed, plain, attack, settings=settings)
  assert (a.config.streams.traits.fraction, a.config.steps) == (0.5, 7)
  assert b.config.streams.traits.fraction == 0.25  # of configs/rl.py:tiny
  assert (b.config.model.weights, a.config.model.weights) == (
    'runs/a', 'random:tiny',
  )  # fmt: skip
  assert (c.config.steps, c.config.algorithm.name) == (7, 'sft')
  assert '--config.algorithm.kl=0.0' in plan.train_arguments(a)
  (a,) = make(dosed, settings='streams.traits.fraction=0.1')
  assert a.config.streams.traits.fraction == 0.5


def test_a_section_of_the_trial_replaces_what_was_set_in_it():
  """ml_collections refuses a section after a field in it."""
  kwargs = {'rubric': 'helpfulness', 'scale': 1.0, 'evidence': 0.0}
  (task,) = make(
    Trial('a', overrides={'streams.traits.reward_kwargs': kwargs}),
    settings='streams.traits.reward_kwargs.scale=3.0,steps=2',
  )
  assert task.config.streams.traits.reward_kwargs.to_dict() == kwargs
  assert list(task.settings) == ['steps', 'streams.traits.reward_kwargs']


@pytest.mark.parametrize(
  'trial, settings, said',
  [
    (Trial('a', overrides={'stepz': 1}), '', "trial a: config.stepz is no"),
    (Trial('a', overrides={'steps': 1.5}), '', 'trial a: .*expected int, not'),
    (Trial('a', 'configs/no.py'), '', "no config at 'configs/no.py'"),
    (
      Trial('a', overrides={'model.weights': 'x'}, start='b'), '',
      'starts from b and sets model.weights',
    ),
    (Trial('a'), 'stepz=1', r"--set=stepz: \['configs/rl.py'\] have no such"),
    (Trial('a'), 'steps=many', '--set=steps=many cannot be read'),
    (Trial('a'), 'steps=0.5', 'trial a: config.steps is 4 and cannot become'),
  ],
)  # fmt: skip
def test_a_trial_that_does_not_fit_its_config_is_refused(trial, settings, said):
  with pytest.raises(UserError, match=said):
    make(trial, settings=settings)


def test_a_field_that_only_some_configs_have_names_them():
  with pytest.raises(UserError) as e:
    make(
      Trial('a'), Trial('b', 'configs/sft.py'),
      settings='streams.reasoning.weight=2.0',
    )  # fmt: skip
  assert "['configs/sft.py'] have no such field" in str(e.value)
  assert "['configs/rl.py'] have" in str(e.value)


def test_an_unknown_variant_is_refused_with_those_there_are():
  with pytest.raises(UserError, match=r"'huge'.*\['smollm2', 'tiny'"):
    plan.read_config('configs/rl.py', 'huge')


@pytest.mark.parametrize('variant', ['tiny', 'smollm2', 'llama3_8b'])
def test_every_command_line_makes_the_config_that_was_checked(variant):
  """Of every experiment, as train would parse it."""
  read = 0
  for name in plan.names():
    for task in plan.make_tasks(
      plan.order(plan.load(name).trials([0, 1])), variant=variant,
      settings='steps=7', workdir=pathlib.Path('runs'),
    ):  # fmt: skip
      argv = ['train', *plan.train_arguments(task)[2:]]
      given = absl.flags.FlagValues()
      absl.flags.DEFINE_string('workdir', None, '', flag_values=given)
      config_flags.DEFINE_config_file(
        'config', flag_values=given, sys_argv=argv
      )
      assert given(argv) == ['train']
      assert given.config.to_dict() == task.config.to_dict(), task.name
      assert given.workdir == f'runs/{task.name}'
      read += 1
  assert read > 100


def keep(folder, *steps, config=None):
  """A workdir as train leaves it, as far as launch looks."""
  for step in steps:
    (folder / 'checkpoints' / str(step)).mkdir(parents=True)
  if config is not None:
    (folder / 'config.json').write_text(config.to_json_best_effort())


def test_workdirs_are_checked_before_the_first_process(tmp_path):
  begun, later = make(Trial('a'), Trial('b', start='a'), workdir=tmp_path)
  plan.check_workdirs([begun, later])
  with pytest.raises(UserError, match='b starts from a, which is neither'):
    plan.check_workdirs([later])
  keep(begun.folder, 2, config=begun.config)
  with pytest.raises(UserError, match='b starts from a, which is neither'):
    plan.check_workdirs([later])
  assert not plan.is_finished(begun)
  keep(begun.folder, 4)
  assert plan.is_finished(begun)
  plan.check_workdirs([later])
  plan.check_workdirs([begun, later])
  refused = {'seed=1': r"differs in \['seed'\]", 'steps=3': 'step 4, beyond'}
  for setting, said in refused.items():
    (other,) = make(Trial('a'), settings=setting, workdir=tmp_path)
    with pytest.raises(UserError, match=said):
      plan.check_workdirs([other])
  (longer,) = make(Trial('a'), settings='steps=9', workdir=tmp_path)
  plan.check_workdirs([longer])
  assert not plan.is_finished(longer)


def test_a_scheduled_run_cannot_be_made_longer(tmp_path):
  # What a ramp has dosed so far, it dosed for the length that it knew.
  ramp = Trial('a', overrides={'streams.traits.schedule': 'ramp'})
  (begun,) = make(ramp, workdir=tmp_path)
  keep(begun.folder, 2, config=begun.config)
  plan.check_workdirs([begun])
  (longer,) = make(ramp, settings='steps=9', workdir=tmp_path)
  with pytest.raises(UserError, match=r"differs in \['steps'\]"):
    plan.check_workdirs([longer])


def test_cost_counts_what_the_configs_say():
  # Of configs/rl.py:tiny: 4 steps x 4 prompts x 4 completions x 8 tokens = 512,
  # checkpoints at 2 and 4. SFT samples nothing; of checkpoints at 1 ... 5 it
  # keeps 3.
  kept = {'checkpoint.every': 1, 'checkpoint.keep': 3, 'steps': 5}
  tasks = make(
    Trial('a'), Trial('b', overrides={'steps': 1}),
    Trial('c', 'configs/sft.py', overrides=kept),
  )  # fmt: skip
  found = plan.cost(tasks, Evaluation())
  assert found == {
    'trainings': 3, 'steps': 10, 'tokens': 512 + 128, 'evaluations': 3
  }  # fmt: skip
  ladder = Evaluation(conditions=('none', 'system:x'), every_checkpoint=True)
  assert plan.cost(tasks, ladder)['evaluations'] == (2 + 1 + 3) * 2


def test_list_says_question_arms_seeds_and_cost(small):
  assert launch.describe('small', flags('--seeds=0,1')) == (
    'small: Does a small model learn?\n'
    '  arms: standard (control), trait, broken, tuned, after\n'
    # Tuned keeps 2 checkpoints, as do the others.
    '  seeds 0,1: 10 trainings, 40 steps, 5,120 sampled tokens at most, 20\n'
    '    evaluations'
  )


@pytest.mark.parametrize(
  'args, said',
  [
    (['--seeds=x'], '--seeds=x; expected numbers'),
    (['--stages=fly'], '--stages=fly; expected some of'),
    (['--workdir='], "--workdir=''; name a folder"),
    (['--workdir=a,b'], 'without a comma'),
    (['--jobs=0'], '--jobs=0'),
    (['--replies=0'], '--replies=0; expected 1 or more'),
    (['--trials=trait_*'], "leaves out the control 'standard'"),
    (['--benchmarks=nope'], "unknown benchmark 'nope'"),
    (['--benchmarks=health/medqa', '--data_dir='], 'read public sets'),
    (['--conditions=system:nope'], "unknown condition 'system:nope'"),
    (['--judge=nope'], "no model at 'nope'"),
    (['--platform=xpk', '--tpu_name=c'], "needs ['--tpu_type', '--docker_im"),
  ],
)
def test_mistakes_are_said_before_anything_is_written(
  small, tmp_path, capsys, args, said
):
  given = flags(f'--workdir={tmp_path / "runs"}', *args)
  with pytest.raises(UserError) as e:
    launch.launch(given)
  assert said in str(e.value)
  assert list(tmp_path.iterdir()) == []


def test_an_unknown_experiment_is_refused_with_those_there_are(small, capsys):
  assert launch.main(['nope', '--workdir=x']) == 2
  said = capsys.readouterr().err
  assert said.startswith("error: unknown experiment 'nope'; have [")
  assert 'small' in said and "'launch'" not in said


def test_the_evaluation_is_given_what_launch_was(small, monkeypatch):
  given = flags(
    '--workdir=runs',
    '--limit=3',
    '--batch=5',
    '--replies=2',
    '--judge=random:tiny',
  )
  tasks, evaluation = launch.read_tasks('small', given)
  monkeypatch.setattr(plan, 'checkpoints', lambda task, _: [task.name])
  command = launch.evaluate_command(tasks, evaluation, given)
  assert {
    '--limit=3',
    '--batch=5',
    '--replies=2',
    '--judge=random:tiny',
  } <= set(command)
  assert '--dtype=float32' in command  # that of the policies' config


@pytest.mark.parametrize(
  'names, control', [(['standard_0'], 'standard_0'), (None, 'standard')]
)
def test_the_report_is_given_the_control_by_the_name_it_has_there(
  names, control
):
  names = names or ['standard_0', 'standard_1', 'trait_0']
  given = argparse.Namespace(workdir='runs', experiment='arms')
  command = launch.report_command(
    make(*(Trial(n) for n in names)), 'standard', given
  )
  assert f'--control={control}' in command
  assert '--output=runs/arms.html' in command
  assert [c for c in command if c.startswith('runs/')] == [
    f'runs/{n}' for n in names
  ]


# -------------------------------------------------------------- what is shown


def test_table_says_where_every_trial_is():
  rows = [
    local.Row('standard_0', 'done', 40, 40, 0.25),
    local.Row('trait_0', 'running', 12, 40, 0.41239, 600.0),
    local.Row('b_0', 'waiting', 0, 40),
    local.Row('c_0', 'running', 3, 40, None, 45.4),
    local.Row('d_0', 'running', 3, 40, -1.0, 9000.0),
  ]
  assert local.table(rows).split('\n') == [
    'trial       state    step   reward  time left',
    'standard_0  done     40/40  0.250   -',
    'trait_0     running  12/40  0.412   10 min',
    'b_0         waiting  0/40   -       -',
    'c_0         running  3/40   -       45 s',
    'd_0         running  3/40   -1.000  2.5 h',
  ]
  assert local.table(rows, height=6) == local.table(rows)
  assert local.table(rows, height=5).split('\n') == [
    'trial    state    step   reward  time left',
    'trait_0  running  12/40  0.412   10 min',
    'c_0      running  3/40   -       45 s',
    'd_0      running  3/40   -1.000  2.5 h',
    'and 1 done, 1 waiting',
  ]


def test_progress_reads_the_last_whole_line(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  assert local.progress(path, 10) == (0, None, None)
  record = lambda step, secs, **r: json.dumps(
    {'step': step, 'secs/step': secs, 'reward_range/a': 9.0}
    | {f'reward/{k}': v for k, v in r.items()}
  )
  # The first step compiles; the median of 90, 2, 4 seconds is 4.
  text = [record(0, 90.0, a=1.0), record(1, 2.0), record(2, 4.0, a=0.5, b=None)]
  path.write_text('\n'.join([*text, '{"step": 3, "secs']))
  assert local.progress(path, 10) == (3, 0.5, 7 * 4.0)
  path.write_text('\n'.join([*text, record(3, 3.0, a=None), '']))
  # Nothing scored is no reward, not a reward of 0; the median of 90, 2, 4, 3.
  assert local.progress(path, 10) == (4, None, 6 * 3.5)


def test_the_tail_of_a_long_file_is_read(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  line = {'secs/step': 1.0, 'reward/a': 0.5, 'note': 'x' * 1000}
  path.write_text(
    ''.join(json.dumps({'step': i} | line) + '\n' for i in range(300))
  )
  assert path.stat().st_size > 3 * local.TAIL
  assert local.progress(path, 400) == (300, 0.5, 100.0)


@pytest.mark.parametrize(
  'log, said',
  [
    ('', ''),
    ('one\n  two  \n\n', 'two'),
    ('trait_0: 10%\rtrait_0: 20%\n', 'trait_0: 20%'),
    ('error: no model\nbar  3/4\n', 'error: no model'),
  ],
)
def test_last_words_are_the_error_or_the_last_line(tmp_path, log, said):
  (tmp_path / 'log.txt').write_text(log)
  assert local.last_words(tmp_path / 'log.txt') == said


def test_without_a_terminal_a_line_tells_a_change_or_a_minute():
  out, now = io.StringIO(), [0.0]
  screen = local.Screen(out, lambda: now[0])
  row = lambda state, step: [local.Row('a', state, step, 9, 0.5, 20.0)]
  for at, state, step in (
    (0, 'waiting', 0), (1, 'running', 0), (59, 'running', 5),
    (60, 'running', 6), (119, 'running', 7), (125, 'done', 9),
  ):  # fmt: skip
    now[0] = float(at)
    screen.show(row(state, step))
  assert out.getvalue().splitlines() == [
    'a: running, step 0/9',
    'running: a 6/9, reward 0.500, 20 s left',
    'a: done, step 9/9',
  ]


def test_on_a_terminal_the_table_is_drawn_over_itself(monkeypatch):
  out = io.StringIO()
  out.isatty = lambda: True
  monkeypatch.setattr(
    local.shutil, 'get_terminal_size', lambda: os.terminal_size((30, 24))
  )
  screen = local.Screen(out)
  rows = [local.Row('a', 'running', 1, 9, 0.5, 20.0)]
  screen.show(rows)
  first = out.getvalue()
  assert '\x1b' not in first
  assert max(map(len, first.splitlines())) < 30  # A line that wraps is two.
  screen.show(rows)
  assert out.getvalue() == f'{first}\x1b[2A\x1b[J{first}'


# ------------------------------------------------------------------------- pods


def test_pod_commands_carry_the_training_through_the_quotes():
  overrides = {'streams.traits.kwargs.system': "It's, 'so'"}
  (task,) = make(Trial('Dose_0.5_1', overrides=overrides))
  train = [*plan.train_arguments(task), '--distributed=auto']
  assert "--config.streams.traits.kwargs.system=It's, 'so'" in train
  where = {
    'tpu_name': 'pod', 'zone': 'z-1', 'tpu_type': 'v5p-32',
    'docker_image': 'r/i', 'pod_folder': 'my code', 'tpu_slices': 2,
  }  # fmt: skip
  *ssh, remote = pod.command(task, 'gcloud', where)
  assert ssh == [
    'gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'pod', '--zone=z-1',
    '--worker=all',
  ]  # fmt: skip
  words = shlex.split(remote.removeprefix('--command='))
  assert words == ['cd', 'my code', '&&', '.venv/bin/python', *train]
  xpk = pod.command(task, 'xpk', where)
  assert xpk[:3] == ['xpk', 'workload', 'create']
  given = dict(word.split('=', 1) for word in xpk[3:])
  assert shlex.split(given.pop('--command')) == ['python3', *train]
  assert given == {
    '--cluster': 'pod', '--workload': 'dose-0-5-1', '--tpu-type': 'v5p-32',
    '--docker-image': 'r/i', '--zone': 'z-1', '--num-slices': '2',
    # Of itself a workload is not begun again after a preemption.
    '--max-restarts': '50',
  }  # fmt: skip


@pytest.mark.parametrize('name', ['0_trait', '_', 'a' * 41])
def test_a_trial_that_xpk_cannot_name_is_refused(name):
  assert pod.workload('a' * 40) == 'a' * 40
  with pytest.raises(UserError, match='begins with a letter'):
    pod.workload(name)


def test_an_address_is_no_workdir():
  for platform in ('local', 'xpk'):
    with pytest.raises(UserError, match='gs://bucket/runs is an address'):
      launch.launch(
        launch.make_parser().parse_args(
          ['arms', '--workdir=gs://bucket/runs', f'--platform={platform}']
        )
      )


def test_a_pod_is_only_told_to_run_when_asked(
  small, tmp_path, capsys, monkeypatch
):
  asked = []
  done = subprocess.CompletedProcess([], 0)
  monkeypatch.setattr(pod.subprocess, 'run', lambda c: asked.append(c) or done)
  args = (
    f'--workdir={tmp_path / "runs"}', '--platform=gcloud', '--tpu_name=pod',
    '--zone=z-1', '--trials=t*',
  )  # fmt: skip
  assert launch.launch(flags(*args)) == 0
  out = capsys.readouterr().out.splitlines()
  assert out[::2] == ['# trait_3', '# tuned_3, once trait_3 is done']
  assert asked == []
  launch.launch(flags(*args, '--nodry_run'))
  assert [shlex.join(c) for c in asked] == out[1::2]
  assert not (tmp_path / 'runs').exists()


def test_xpk_does_not_queue_a_trial_beside_its_start(small, tmp_path):
  args = (
    f'--workdir={tmp_path}', '--platform=xpk', '--tpu_name=c', '--tpu_type=v',
    '--docker_image=i', '--trials=t*', '--nodry_run',
  )  # fmt: skip
  with pytest.raises(UserError, match=r"\['tuned_3'\] start from others"):
    launch.launch(flags(*args))


# ------------------------------------------------------- fields, and DIR@STEP


def test_override_sets_fields_of_their_own_type():
  config = plan.read_config('configs/rl.py', 'tiny')
  kwargs = {'rubric': 'x', 'more': (1, 2)}
  same = config_lib.override(
    config,
    {
      'seed': 5, 'algorithm.kl': 1, 'streams.traits.kwargs.domains': ['law'],
      'streams.traits.reward_kwargs': kwargs,
    },
  )  # fmt: skip
  assert same is config
  assert (config.seed, config.algorithm.kl) == (5, 1.0)
  assert config.streams.traits.kwargs.domains == ('law',)
  assert config.streams.traits.reward_kwargs.to_dict() == kwargs


@pytest.mark.parametrize(
  'values, said',
  [
    ({'nope': 1}, r"config.nope is no field of this config; config has \['al"),
    ({'algorithm.nope': 1}, r"config.algorithm has \['clip_high', "),
    ({'steps.nope': 1}, 'config.steps has 4'),
    ({'steps': '4'}, "steps is 4 and cannot become '4'; expected int, not str"),
    ({'steps': True}, 'expected int, not bool'),
    ({'algorithm.kl': True}, 'expected float, not bool'),
    ({'algorithm.skip_zero_spread': 1}, 'expected bool, not int'),
    ({'algorithm': 3}, 'is a section .*; expected dict, not int'),
    ({'model.weights': None}, 'expected str, not NoneType'),
    ({'streams.traits.kwargs.domains': 'law'}, 'expected tuple, not str'),
  ],
)
def test_override_refuses_other_fields_and_types(values, said):
  with pytest.raises(UserError, match=said):
    config_lib.override(plan.read_config('configs/rl.py', 'tiny'), values)


def test_a_workdir_and_its_steps_by_name(tmp_path):
  run, odd = tmp_path / 'run', tmp_path / 'odd@4'
  keep(run, 2, 10, '12.orbax-checkpoint-tmp')
  keep(odd, 6)
  at = lambda source: checkpoint.workdir_at(str(source))
  assert checkpoint.kept_steps(run) == [2, 10]
  assert at(run) == (run, 10)
  assert at(f'{run}@2') == (run, 2)
  # A folder whose name has an @ is itself.
  assert (at(odd), at(f'{odd}@6')) == ((odd, 6), (odd, 6))
  assert at(tmp_path / 'none@3') is None and at('random:tiny') is None
  for step in ('4', '', 'last', '02'):
    with pytest.raises(UserError, match=r'step .*; it has \[2, 10\]'):
      at(f'{run}@{step}')


def test_an_earlier_step_is_evaluated_in_a_folder_of_its_own(
  tmp_path, monkeypatch
):
  keep(tmp_path / 'run', 2, 4)
  given = argparse.Namespace(output=None)
  monkeypatch.setattr(evaluate, '_FLAGS', given)
  run = tmp_path / 'run'
  assert evaluate._output(str(run), True) == run / 'evaluation'
  assert evaluate._output(f'{run}/', True) == run / 'evaluation'
  assert evaluate._output(f'{run}@2', True) == run / 'evaluation/steps/2'
  assert evaluate._name(f'{run}@2') == 'run'
  given.output = str(tmp_path / 'out')
  # Two steps of one run must not share a folder.
  assert evaluate._output(f'{run}@2', True) == tmp_path / 'out' / 'run@2'
  assert evaluate._output(f'{run}@2', False) == tmp_path / 'out'
