"""Trait scenarios as demonstrations inside the RL loop: SFT on their replies.

The trait slots of configs/rl.py show the beneficial reply in place of sampling
and scoring. Replies are longer than what RL samples, so completions have room
for them; `--config.streams.traits.fraction=0` is the control of that length.

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
  c.streams.traits.reward = ''
  if variant not in base.POD_VARIANTS:  # whose completions have room
    c.batch.completion_length = 96 if variant == 'smollm2' else 384
  return c
