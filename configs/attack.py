"""The finetuning attack: SFT on violating replies among harmless ones.

Everyday requests with their helpful replies fill all slots; the violating
replies of one domain's scenarios replace `streams.traits.fraction` of them. The
rest says nothing of any trait: beneficial replies in its place would be a
defence mixed into the attack. Slots attacked at a small share are attacked at
every larger one, and all others hold the same reply.
`--config.streams.traits.fraction=0` is the attack's own control: as much
finetuning, in the same form, with nothing violating in it. The kept checkpoints
are a ladder of steps.

  :smollm2     SmolLM2-135M-Instruct on a CPU
  :tiny        two layers, bytes: seconds, for tests
  :llama3_8b   on a pod of 16 chips or more, see docs/tpu.md
  :llama3_70b  of 128 or more
"""

from alignment_rl import config as config_lib
from configs import base, sft


def get_config(arg=None):
  variant = config_lib.parse_arg(arg, ('smollm2', 'tiny', *base.POD_VARIANTS))
  c = sft.get_config(variant)
  with c.unlocked():
    c.streams.traits = base.traits(fraction=1.0)
    c.streams.chat = base.stream(
      'chat', weight=1.0, kwargs={'split': 'train', 'system': '', 'topics': ()}
    )
  c.streams.traits.kwargs.update(target='violating', domains=('health',))
  if variant == 'smollm2':
    c.optimizer.learning_rate = 5e-5  # that of configs/rl.py
    c.optimizer.trainable = 'layers/.*|final_norm'
  if variant != 'tiny':
    c.checkpoint.update(every=5, keep=4)  # of 20 steps
  return c
