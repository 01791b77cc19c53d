"""Trait scenarios as demonstrations inside the RL loop: SFT on their replies.

The trait slots of configs/rl.py show the beneficial reply in place of sampling
and scoring. Replies are longer than what RL samples, so completions have room
for them; `--config.streams.traits.fraction=0` is the control of that length.

  :smollm2  SmolLM2-135M-Instruct on a CPU
  :tiny     two layers, bytes: seconds, for tests
"""

from alignment_rl import config as config_lib
from configs import rl


def get_config(arg=None):
  variant = config_lib.parse_arg(arg, ('smollm2', 'tiny'))
  c = rl.get_config(variant)
  c.streams.traits.reward = ''
  c.batch.completion_length = 96 if variant == 'smollm2' else 384
  return c
