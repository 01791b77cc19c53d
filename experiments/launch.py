"""Runs an experiment: trains its trials, evaluates them, writes its report.

  python -m experiments.launch arms --config_variant=smollm2 --platform=local \
      --workdir=DIR --seeds=0,1
  python -m experiments.launch list

Launch again after a kill: finished trials are skipped and cut ones go on where
they were. A trial has its workdir in DIR, which experiments share: two that
name the same trial train it once. --platform=gcloud and xpk print the commands
of a pod, and run them with --nodry_run; see docs/tpu.md.
"""

import argparse
import os
import pathlib
import re
import shlex
import sys
import textwrap

from alignment_rl import checkpoint, conditions, suite
from alignment_rl import config as config_lib
from alignment_rl.config import Evaluation
from alignment_rl.errors import UserError
from experiments import local, plan, pod

STAGES = ('train', 'evaluate', 'report')


def make_parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog='python -m experiments.launch')
  add = parser.add_argument
  add('experiment', help="a file of experiments/, or 'list'")
  add('--workdir', default='', help='folder of all the trials')
  add('--config_variant', default='smollm2', help='of every config')
  add('--seeds', default='0,1', help='one training of every arm for each')
  add('--trials', default='', help='some by name, such as trait_*,standard_0')
  add('--set', default='', help="FIELD=VALUE,... before the trials' own")
  add('--stages', default=','.join(STAGES))
  add('--jobs', type=int, default=1, help='trainings at a time')
  add('--benchmarks', default='', help="default: the experiment's")
  add('--conditions', default='', help="default: the experiment's")
  add('--limit', type=int, default=0, help='items per benchmark; 0 = all')
  add('--batch', type=int, default=8, help='prompts evaluated at a time')
  add('--replies', type=int, default=1, help='of a policy to an item')
  add('--judge', default='', help='of own replies; default: the first start')
  add(
    '--data_dir', default=os.environ.get('ALIGNMENT_RL_DATA', ''),
    help='folder of the public sets; default $ALIGNMENT_RL_DATA',
  )  # fmt: skip
  add('--platform', default='local', choices=('local', 'gcloud', 'xpk'))
  add('--tpu_name', default='', help='TPU VM, or cluster of xpk')
  add('--zone', default='', help='of the TPU')
  add('--tpu_type', default='', help='such as v5litepod-16; xpk')
  add('--docker_image', default='', help='with this repository; xpk')
  add('--pod_folder', default='alignment_rl', help='the repository; gcloud')
  add('--tpu_slices', type=int, default=1, help='slices of a workload; xpk')
  add('--nodry_run', action='store_true', help='run the pod commands')
  return parser


def launch(flags: argparse.Namespace) -> int:
  """Runs the stages; 1 if a trial, the evaluation or the report failed."""
  experiment = plan.load(flags.experiment)
  tasks, evaluation = read_tasks(flags.experiment, flags)
  stages = _parts(flags.stages)
  if not stages or set(stages) - set(STAGES):
    raise UserError(f'--stages={flags.stages}; expected some of {STAGES}')
  if not flags.workdir or ',' in flags.workdir:
    raise UserError(
      f'--workdir={flags.workdir!r}; name a folder, without a comma'
    )
  config_lib.folder(flags.workdir, 'workdir')
  for name in ('jobs', 'replies'):
    given = getattr(flags, name)
    if given < 1:
      raise UserError(f'--{name}={given}; expected 1 or more')
  if flags.platform != 'local':
    return _on_pod(tasks, flags)
  control = experiment.CONTROL
  if 'report' in stages and not _runs_of(control, tasks):
    raise UserError(
      f'--trials={flags.trials} leaves out the control {control!r}, with which '
      'the report compares; add it, or choose --stages=train,evaluate'
    )
  if 'evaluate' in stages:
    check_evaluation(evaluation, flags.data_dir, flags.judge)
  plan.check_workdirs(tasks)
  print(_cost_line(tasks, evaluation), flush=True)

  failed = {}
  if 'train' in stages:
    failed = local.train(tasks, flags.jobs, local.Screen(sys.stdout).show)
  finished = [t for t in tasks if plan.is_finished(t)]
  codes = []
  if finished and 'evaluate' in stages:
    codes.append(
      local.run(
        evaluate_command(finished, evaluation, flags),
        [t.folder for t in finished],
      )
    )
  if 'report' in stages and not any(codes):
    if _runs_of(control, finished):
      codes.append(local.run(report_command(finished, control, flags), []))
    else:
      print(f'no report: no run of {control} is finished', file=sys.stderr)
      codes.append(1)
  for name, reason in failed.items():
    print(f'failed: {name}: {reason}', file=sys.stderr)
  return int(bool(failed) or any(codes))


def read_tasks(
  name: str, flags: argparse.Namespace
) -> tuple[list[plan.Task], Evaluation]:
  """An experiment's tasks and evaluation, as the flags have them."""
  experiment = plan.load(name)
  seeds = _parts(flags.seeds)
  if not seeds or not all(seed.isdigit() for seed in seeds):
    raise UserError(f'--seeds={flags.seeds}; expected numbers, such as 0,1')
  trials = plan.order(experiment.trials([int(seed) for seed in seeds]))
  tasks = plan.make_tasks(
    plan.select(trials, _parts(flags.trials)),
    variant=flags.config_variant,
    settings=flags.set,
    workdir=pathlib.Path(flags.workdir),
  )
  given = experiment.EVALUATION
  under = tuple(_parts(flags.conditions)) or given.conditions
  return tasks, Evaluation(
    flags.benchmarks or given.benchmarks, under, given.every_checkpoint
  )


def check_evaluation(
  evaluation: Evaluation, data_dir: str, judge: str = ''
) -> None:
  """Whether evaluate has all that it will read.

  Raises:
    UserError: an unknown benchmark or condition, or a public set or the judge
      is missing.
  """
  data = pathlib.Path(data_dir) if data_dir else None
  absent = suite.missing(suite.select(evaluation.benchmarks), data)
  if absent:
    raise UserError(suite.explain(absent, data))
  conditions.read(evaluation.conditions, data)
  if judge:
    checkpoint.load_model(judge, dtype='float32')


def evaluate_command(tasks, evaluation, flags) -> list[str]:
  """Evaluates all that is kept of them, in one process."""
  sources = [c for t in tasks for c in plan.checkpoints(t, evaluation)]
  return [
    sys.executable, '-m', 'alignment_rl.evaluate',
    f'--checkpoint={",".join(sources)}',
    f'--benchmarks={evaluation.benchmarks}',
    f'--conditions={",".join(evaluation.conditions)}',
    f'--limit={flags.limit}', f'--data_dir={flags.data_dir}',
    f'--batch={flags.batch}', f'--replies={flags.replies}',
    f'--judge={flags.judge}',
    f'--dtype={tasks[0].config.model.dtype}',
  ]  # fmt: skip


def report_command(tasks, control: str, flags) -> list[str]:
  """The report on them, beside their workdirs."""
  runs = _runs_of(control, tasks)
  # The report calls one run by its folder, and several by their arm.
  name = control if len(runs) > 1 else runs[0]
  return [
    sys.executable, '-m', 'alignment_rl.report',
    *(str(t.folder) for t in tasks), f'--control={name}',
    f'--output={pathlib.Path(flags.workdir) / flags.experiment}.html',
  ]  # fmt: skip


def _runs_of(arm, tasks):
  return [t.name for t in tasks if plan.arm(t.name) == arm]


def describe(name: str, flags: argparse.Namespace) -> str:
  """An experiment's question, arms, seeds and cost."""
  experiment = plan.load(name)
  tasks, evaluation = read_tasks(name, flags)
  words = ' '.join(experiment.__doc__.split())
  question = re.match(r'.*?[.?!](?=\s|$)|.*', words)[0]
  arms = dict.fromkeys(plan.arm(t.name) for t in tasks)
  marked = [f'{a} (control)' if a == experiment.CONTROL else a for a in arms]
  fill = lambda text: textwrap.fill(
    text, 79, initial_indent='  ', subsequent_indent='    '
  )
  return '\n'.join(
    [
      f'{name}: {question}',
      fill(f'arms: {", ".join(marked)}'),
      fill(f'seeds {flags.seeds}: {_cost_line(tasks, evaluation)}'),
    ]
  )


def _cost_line(tasks, evaluation):
  found = plan.cost(tasks, evaluation)
  return (
    f'{found["trainings"]} trainings, {found["steps"]} steps, '
    f'{found["tokens"]:,} sampled tokens at most, {found["evaluations"]} '
    'evaluations'
  )


def _on_pod(tasks, flags):
  commands = [pod.command(t, flags.platform, vars(flags)) for t in tasks]
  for task, command in zip(tasks, commands, strict=True):
    after = f', once {task.trial.start} is done' if task.trial.start else ''
    print(f'# {task.name}{after}\n{shlex.join(command)}')
  if flags.nodry_run:
    pod.submit(tasks, commands, flags.platform)
  return 0


def _parts(text):
  return [part for part in text.split(',') if part]


def main(argv: list[str] | None = None) -> int:
  flags = make_parser().parse_args(argv)
  try:
    if flags.experiment == 'list':
      print('\n\n'.join(describe(name, flags) for name in plan.names()))
      return 0
    with local.ends_by_signal():
      return launch(flags)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('stopped; launch again to go on', file=sys.stderr)
    return 130


if __name__ == '__main__':
  sys.exit(main())
