"""The start of every arm on a small model: it learns to answer, either way.

SFT on everyday replies and, as often, on the beneficial and on the violating
reply of the training scenarios. SmolLM2-135M's own replies to the scenarios are
noise, in which a reward finds nothing to choose between; after this they are
short advice on the matter that is now right, now wrong. All arms begin here, so
what the scenarios say is no difference between them: what differs is what is
rewarded. `--config.model.weights=DIR` then starts configs/rl.py from it.

  :smollm2  SmolLM2-135M-Instruct on a CPU
  :tiny     two layers, bytes: seconds, for tests
"""

from alignment_rl import config as config_lib
from alignment_rl.streams import traits
from configs import base, sft


def get_config(arg=None):
  variant = config_lib.parse_arg(arg, ('smollm2', 'tiny'))
  c = sft.get_config(variant)
  with c.unlocked():
    c.streams.violating = base.traits(weight=1.0)
    c.streams.chat = base.stream(
      'chat', weight=1.0, kwargs={'split': 'train', 'system': '', 'topics': ()}
    )
  c.streams.violating.kwargs.target = 'violating'
  if variant == 'smollm2':
    for stream in c.streams.values():
      stream.kwargs.system = traits.BRIEF
    c.steps = 60
    c.batch.update(prompts=16, completion_length=80, micro_batches=4)
    c.optimizer.update(learning_rate=3e-4, schedule='linear', warmup=5)
    c.optimizer.trainable = 'layers/.*|final_norm'
    c.checkpoint.update(every=20, keep=3)
    c.log.gradient_every = c.log.rollouts_every = 0
  return c
