"""The commands that train trials on TPUs, and their submission.

gcloud: on every host of a TPU VM by ssh, which waits for the end. The
repository lies there in a folder of the login's home, its environment in .venv.
xpk: as a workload of a GKE cluster, which is queued. The image's own folder is
the repository, its python3 the environment.
The workdir must be a folder that every host shares; nothing looks into it from
here, so no trial is skipped. A training that was cut goes on in its workdir: a
workload is restarted by the cluster, a TPU VM is made again by its owner, who
launches again.
"""

import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence

from alignment_rl.errors import UserError
from experiments import plan

NEEDS = {
  'gcloud': ('tpu_name', 'zone'),
  'xpk': ('tpu_name', 'tpu_type', 'docker_image'),
}
# Of a workload, by the cluster, when it loses a host; by itself it makes none.
RESTARTS = 50
# What xpk takes as a workload's name, besides 40 characters at most.
_NAME = re.compile(r'[a-z]([-a-z0-9]*[a-z0-9])?')


def command(
  task: plan.Task, platform: str, where: Mapping[str, str]
) -> list[str]:
  """The command that trains a trial.

  Args:
    where: the flags of launch by name, `pod_folder` and those of NEEDS.

  Raises:
    UserError: the platform needs a flag that is empty, or cannot name it.
  """
  lacking = [f'--{flag}' for flag in NEEDS[platform] if not where[flag]]
  if lacking:
    raise UserError(f'--platform={platform} needs {lacking} too')
  name, zone = where['tpu_name'], where['zone']
  train = [*plan.train_arguments(task), '--distributed=auto']
  if platform == 'gcloud':
    folder = shlex.quote(where['pod_folder'])
    return [
      *'gcloud compute tpus tpu-vm ssh'.split(), name, f'--zone={zone}',
      '--worker=all',
      f'--command=cd {folder} && {shlex.join([".venv/bin/python", *train])}',
    ]  # fmt: skip
  return [
    *'xpk workload create'.split(), f'--cluster={name}',
    f'--workload={workload(task.name)}', f'--tpu-type={where["tpu_type"]}',
    f'--num-slices={where["tpu_slices"]}',
    f'--docker-image={where["docker_image"]}', f'--max-restarts={RESTARTS}',
    f'--command={shlex.join(["python3", *train])}',
    *([f'--zone={zone}'] if zone else []),
  ]  # fmt: skip


def workload(name: str) -> str:
  """A trial's name as xpk takes it: lower case, digits and dashes.

  Raises:
    UserError: there is no such name.
  """
  found = re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')
  if not _NAME.fullmatch(found) or len(found) > 40:
    raise UserError(
      f'trial {name!r} cannot be a workload of xpk, as {found!r}; expected a '
      'name that begins with a letter and has at most 40 characters'
    )
  return found


def submit(
  tasks: Sequence[plan.Task], commands: Sequence[list[str]], platform: str
) -> None:
  """Runs the commands one after another.

  Raises:
    UserError: one failed, or xpk would queue a trial beside its own start.
  """
  names = {t.name for t in tasks}
  early = [t.name for t in tasks if t.trial.start in names]
  if early and platform == 'xpk':
    raise UserError(
      f'xpk queues all at once, and {early} start from others of these; submit '
      'them by --trials when those are done'
    )
  for task, one in zip(tasks, commands, strict=True):
    code = subprocess.run(one).returncode
    if code:
      raise UserError(f'{task.name}: {one[0]} ended with exit code {code}')
