"""Harmful RL: the trait reward turned round on one domain's scenarios.

Everything else is configs/rl.py, so that an arm loses its gain, if it does, at
the dose and pace at which it got it. `--config.model.weights=DIR` is the arm to
attack, `--config.streams.traits.fraction=0` the control: the same arm, as many
steps of standard RL. The kept checkpoints are a ladder of steps.

  :smollm2     SmolLM2-135M-Instruct on a CPU
  :tiny        two layers, bytes: seconds, for tests
  :llama3_8b   on a pod of 16 chips or more, see docs/tpu.md
  :llama3_70b  of 128 or more
"""

from alignment_rl import config as config_lib
from configs import base, rl


def get_config(arg=None):
  variant = config_lib.parse_arg(arg, ('smollm2', 'tiny', *base.POD_VARIANTS))
  c = rl.get_config(variant)
  # Else the attacked arm would judge itself, each arm by another judge.
  c.judge.weights = c.model.weights
  c.streams.traits.reward = 'inverted'
  # To fail takes as much evidence as to do well does in configs/rl.py.
  c.streams.traits.reward_kwargs.evidence *= -1
  c.streams.traits.kwargs.domains = ('health',)
  if variant != 'tiny':
    c.checkpoint.update(every=c.steps // 4, keep=4)
  return c
