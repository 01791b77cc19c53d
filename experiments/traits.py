"""Does one trait teach the others, and traits that nothing teaches?

Arms, at the same dose and in all seven domains:
  standard         no trait data, the control
  trait            all seven traits
  only_<trait>     one trait's scenarios, the other six never seen
  without_<trait>  the other six, that one never seen

Cost: 16 trainings a seed. As in domains.py, an arm of one trait repeats its 56
scenarios seven times as often as `trait` does.

The paper trains on fifteen traits at once, scores seven of them, and has no
ablation. Here eight further traits (`schema.UNSEEN`) are never trained on, by
any arm.

Read: the matrix (trained on) x (tested on) of differences from standard: the
seven benchmarks of the trained traits (14 items each) and
latent_risk/unseen_traits (56). Broad alignment says that rows rise away from
the diagonal, that without_<trait> rises on that trait, and that unseen_traits
rises in all rows. A trait whose row is high and whose column is low teaches
without being taught: a seed for a smaller data set.

Refuted: a diagonal alone, or unseen_traits at standard's level in every row.
"""

from collections.abc import Sequence

import experiments
from alignment_rl.config import Trial
from alignment_rl.scenarios import schema

CONTROL = 'standard'
EVALUATION = experiments.EVALUATION

ARMS = {
  'standard': experiments.STANDARD,
  'trait': experiments.TRAIT,
  **experiments.each_alone_and_left_out(
    'streams.traits.kwargs.traits', schema.TRAITS
  ),
}


def trials(seeds: Sequence[int]) -> list[Trial]:
  return experiments.each_seed(ARMS, seeds)
