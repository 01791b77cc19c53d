"""The commands that train trials on TPUs, and their submission.

gcloud: on every host of a TPU VM by ssh, which waits for the end. The
repository lies there in a folder of the login's home.
xpk: as a workload of a GKE cluster, which is queued. The image's own folder is
the repository.
The workdir must be a folder that every host shares; nothing looks into it from
here, so no trial is skipped.
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


def command(
  task: plan.Task, platform: str, where: Mapping[str, str]
) -> list[str]:
  """The command that trains a trial.

  Args:
    where: the flags of launch by name, `pod_folder` and those of NEEDS.

  Raises:
    UserError: the platform needs a flag that is empty.
  """
  lacking = [f'--{flag}' for flag in NEEDS[platform] if not where[flag]]
  if lacking:
    raise UserError(f'--platform={platform} needs {lacking} too')
  name, zone = where['tpu_name'], where['zone']
  train = shlex.join(
    ['python3', *plan.train_arguments(task), '--distributed=auto']
  )
  if platform == 'gcloud':
    folder = shlex.quote(where['pod_folder'])
    return [
      *'gcloud compute tpus tpu-vm ssh'.split(), name, f'--zone={zone}',
      '--worker=all', f'--command=cd {folder} && {train}',
    ]  # fmt: skip
  # A name there has lower case, digits and dashes, 40 at most.
  workload = re.sub(r'[^a-z0-9]+', '-', task.name.lower())
  return [
    *'xpk workload create'.split(), f'--cluster={name}',
    f'--workload={workload[:40].strip("-")}', f'--tpu-type={where["tpu_type"]}',
    f'--docker-image={where["docker_image"]}', f'--command={train}',
    *([f'--zone={zone}'] if zone else []),
  ]  # fmt: skip


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
