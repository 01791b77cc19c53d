"""Does the gain last when the weights are attacked, in a domain and beyond it?

Arms: standard, helpfulness and trait of arms.py, and `start`, the model before
any RL, each attacked in every way. The attack knows health alone.
  attack_<percent>_<arm>  SFT on the health scenarios' own violating replies:
                          0, 10, 50 or 100 % of the slots; everyday requests and
                          their helpful replies fill the others
  harmful_rl_<arm>        RL with the sign of the trait reward turned on health
                          scenarios, at the dose at which `trait` was trained
  standard_rl_<arm>       its control: as many steps of standard RL
Every kept checkpoint is evaluated: a ladder of steps, from the arm itself on.
attack_0 is the ladder's control: finetuning of the same length and form with
nothing violating in it. The filler is neutral on purpose: beneficial replies of
other domains would defend while the attack attacks.

Cost: 27 trainings a seed: the 3 of arms.py, 16 short ones of SFT and 8 of RL,
these 24 with four checkpoints each to evaluate. A checkpoint takes 12 bytes for
a parameter that learns, 4 for any other; `--trials='attack_100_*'` is a start.

The paper, one attack (SFT on bad medical advice), drop of the pre-RL model /
the trait model: HealthBench .35 / .31, HealthBench Professional .30 / .21,
misalignment .36 / .08, alignment questions .46 / .07, Model Spec .27 / .16. So
damage in the attacked domain is hardly less and the spill-over is. The pre-RL
model is not compute-matched, and the authors say that this does not isolate the
effect. No harmful RL.

Read, in this order:
  1 attack_100_standard outside health: does the attack spill over at all?
    Narrow finetuning does so in few open models, and more in large ones
    (arXiv:2605.12199, arXiv:2502.17424). If it does not, nothing can be said
    about persistence, and that is the result.
  2 drops from the arm before the attack, less those under attack_0, inside
    health and outside, by step and share.
  3 the drop of trait against that of standard *and* that of helpfulness.
  4 levels beside drops: trait starts higher and has more to lose.
  5 harmful RL: the steps until harmful_rl_trait, less what standard_rl_trait
    loses, is down at standard, beside the steps that the gain took.

Refuted: trait drops outside health as standard does, or helpfulness holds as
well, or what is left after the attack is no more than standard's level.
"""

from collections.abc import Mapping, Sequence

import experiments
from alignment_rl.config import Evaluation, Trial

CONTROL = 'standard'
EVALUATION = Evaluation(benchmarks='own,health', every_checkpoint=True)

ARMS = {
  'standard': experiments.STANDARD,
  'helpfulness': experiments.HELPFULNESS,
  'trait': experiments.TRAIT,
}
PERCENT = (0, 10, 50, 100)
RL: Mapping[str, experiments.Arm] = {
  'harmful_rl': experiments.TRAIT,
  'standard_rl': experiments.STANDARD,
}


def trials(seeds: Sequence[int]) -> list[Trial]:
  out = experiments.each_seed(ARMS, seeds)
  for arm in (*ARMS, 'start'):
    start = '' if arm == 'start' else arm
    finetuned = {
      f'attack_{p}_{arm}': {'streams.traits.fraction': p / 100} for p in PERCENT
    }
    trained = {f'{name}_{arm}': overrides for name, overrides in RL.items()}
    out += experiments.each_seed(
      finetuned, seeds, config='configs/attack.py', start=start
    )
    out += experiments.each_seed(
      trained, seeds, config='configs/harmful_rl.py', start=start
    )
  return out
