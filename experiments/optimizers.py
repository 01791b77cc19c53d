r"""Does the finding depend on how the reward is read and climbed?

Arms. standard and trait are the base: Dr. GRPO, KL 0.05, the untrained
criterion likelihood. Each variation has a pair of its own:
  standard_X, trait_X        X = grpo, rloo, ppo: the algorithm
  standard_kl_K, trait_kl_K  K = 0, 0.01, 0.2: pull to the reference, per nat
  standard_learned, trait_learned  a trained reward model reads the criteria
  trait_rubric               a judge says yes or no to them; control: standard

Cost: 17 trainings a seed. The learned reward model is read from REWARD_MODEL,
which is made first, where launch is called:
  python -m alignment_rl.reward_train --config=configs/reward_model.py:smollm2 \
      --workdir=runs/reward
It reads the everyday requests too, hence its own control. A run without that
folder stops with a sentence, and stops no other.

The paper names neither its algorithm nor its reward model.

Read each trait_X against standard_X (`report --control=standard_X` on the
pair), and those differences beside each other. At one learning rate algorithms
move a model by different steps, so compare gains at an equal KL to the
reference, not at an equal step: kl/traits is in the metrics. With gold rewards
on (`--set=log.gold_every=5`) trait_kl_0 and trait_learned show whether the
reward is being gamed: reward/traits rises and gold/second does not.

Refuted, that the finding is one of trait RL: a gain under one algorithm, one KL
or one reading of the reward only.
"""

from collections.abc import Mapping, Sequence

import experiments
from alignment_rl.config import Trial

CONTROL = 'standard'
EVALUATION = experiments.EVALUATION

# A workdir of reward_train, from where launch is called; yours may be another.
REWARD_MODEL = 'runs/reward'

VARIATIONS: Mapping[str, experiments.Arm] = {
  **{name: {'algorithm.name': name} for name in ('grpo', 'rloo', 'ppo')},
  **{f'kl_{kl:g}': {'algorithm.kl': kl} for kl in (0.0, 0.01, 0.2)},
  'learned': {'judge.weights': REWARD_MODEL},
}
ARMS = {
  'standard': experiments.STANDARD,
  'trait': experiments.TRAIT,
  **{
    f'{arm}_{name}': {**overrides, **variation}
    for name, variation in VARIATIONS.items()
    for arm, overrides in (
      ('standard', experiments.STANDARD),
      ('trait', experiments.TRAIT),
    )
  },
  'trait_rubric': {
    'streams.traits.reward': 'rubric',
    'streams.traits.reward_kwargs': {'rubric': 'scenario'},
  },
}


def trials(seeds: Sequence[int]) -> list[Trial]:
  return experiments.each_seed(ARMS, seeds)
