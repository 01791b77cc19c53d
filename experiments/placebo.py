"""Is it the reward that acts, or the data, the loop, and the looking?

Arms, all on the same conversations in the same slots, but for standard:
  standard        no trait data, the control
  trait           each scenario's own rubric
  shuffled        the same reward values, dealt anew within each group: the same
                  spread, the same sizes of advantage, no link to the reply
  neutral         closeness to 25 words, which says nothing of any trait
  demonstrations  no reward: the scenarios' beneficial replies, in the same loop
                  and slots, at advantage 1
  standard_long   standard with the completion length that demonstrations need

Cost: 6 trainings a seed, all of equal steps and rows. demonstrations samples
nothing in its trait slots, so it takes a little less; the two with long
completions take more.

The paper compares with generic helpfulness alone (arms.py).

Read: trait against shuffled is the experiment. shuffled moves the model by as
much noise as trait does by signal, so its count of benchmarks ahead, its
largest gain and its regressions are what nothing looks like; hold every count
of other experiments against it. neutral shows what climbing *some* reward on
these prompts does, and whether length alone moves a benchmark. Read
demonstrations against standard_long, in one line with trait against standard:
SFT on the same data. Its dose is equal in slots, and another in gradient (one
row a slot, all of it pushed up): see the ledger.

Refuted, that the reward acts: shuffled or neutral gain what trait gains.
Refuted, that RL is needed: demonstrations gain as much, as broadly.
"""

from collections.abc import Sequence

import experiments
from alignment_rl.config import Trial

CONTROL = 'standard'
EVALUATION = experiments.EVALUATION

ARMS = {
  'standard': experiments.STANDARD,
  'trait': experiments.TRAIT,
  'shuffled': {'streams.traits.reward': 'shuffled'},
  'neutral': {
    'streams.traits.reward': 'length',
    'streams.traits.reward_kwargs': {'words': 25},
  },
}
DEMONSTRATED = {
  'demonstrations': {},
  'standard_long': experiments.STANDARD,
}


def trials(seeds: Sequence[int]) -> list[Trial]:
  return experiments.each_seed(ARMS, seeds) + experiments.each_seed(
    DEMONSTRATED, seeds, config='configs/demonstrations.py'
  )
