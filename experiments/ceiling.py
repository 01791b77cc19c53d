"""How far can this data move this model, where it is told outright what to say?

Arms, finetuned alike; `streams.traits.fraction` of the slots are scenarios of
all domains, here all of them:
  told_everyday    no scenarios but everyday requests, the control
  told_beneficial  the scenarios' beneficial replies
  told_violating   their violating replies
A reward says one number of a reply that the policy found by itself; these say
every word of a good one. Where told_beneficial does not part from
told_violating on held-out scenarios, the model cannot carry over what they
teach, and no reward on them can be expected to show.

Cost: 3 trainings a seed, of SFT: no sampling, no judge.
`--set=model.weights=DIR` begins where the other arms did.

The paper has no such arms; its finetuning is the attack.

Read: told_beneficial - told_violating, on the policy's own held-out replies, on
the choice between the two and on the unseen traits; then each beside the
control, and the sum of both as a check that neither is style alone. Beside it
trait - standard of arms.py: the share of the ceiling that RL reached.

Refuted, that the model is too small to show the effect: the two part, and RL
stays behind. Refuted, that RL is at fault: they do not.
"""

from collections.abc import Sequence

import experiments
from alignment_rl.config import Trial
from alignment_rl.scenarios import schema

CONTROL = 'told_everyday'
EVALUATION = experiments.EVALUATION

_ALL = {'streams.traits.kwargs.domains': schema.DOMAINS}
ARMS = {
  'told_everyday': _ALL | {'streams.traits.fraction': 0.0},
  'told_beneficial': _ALL | {'streams.traits.kwargs.target': 'beneficial'},
  'told_violating': _ALL,
}


def trials(seeds: Sequence[int]) -> list[Trial]:
  return experiments.each_seed(ARMS, seeds, config='configs/attack.py')
