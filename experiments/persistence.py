"""Does the gain last when the prompt pushes, and does it let itself be steered?

Arms: standard, helpfulness and trait as in arms.py. Conditions, the same for
all: six harmful and three helpful personas, as system message and as user text;
two harmful prefills of the reply and a helpful one; two earlier exchanges in
which the assistant gave in and one in which it did not; three jailbreak
templates. With the public sets more can be named:
`--conditions=none,system:roles/NAME,user:dan/NAME,template:jailbreak/NAME`.
What survives a change of the weights is asked in attack.py.

Cost: 3 trainings a seed, those of arms.py, and each benchmark 28 times;
`--limit` and `--conditions` make it less.

The paper, five health and mental-health evaluations, standard / trait: no
prefix .395 / .455; bad-medical persona .144 / .336; disallowed mental-health
advice .184 / .423; helpful-medical .483 / .548. So the harmful slopes are
smaller and the helpful slope is equal: "selective persistence". It had one
helpful persona, no prefill, no earlier turns, no jailbreaks, and no
helpfulness arm.

Read: a slope is the score under a condition less the score without it, on the
same items. Selective persistence is two claims, and both are needed: trait's
harmful slopes are smaller than standard's, *and* its helpful slopes are as
large (the interval of the difference within the margin that the report states).
Then the same against helpfulness. Beside slopes levels: an arm at its floor
without a condition has nothing to lose.

Refuted: helpful slopes smaller as well (the arm is deaf, not good), harmful
slopes that are smaller for helpfulness too (any RL does it), or smaller only
where the arm refuses.
"""

from collections.abc import Sequence

import experiments
from alignment_rl.config import Evaluation, Trial

CONTROL = 'standard'
# Those that need no data, and of the public ones the area that the paper read.
EVALUATION = Evaluation(benchmarks='own,health', conditions=('all',))

ARMS = {
  'standard': experiments.STANDARD,
  'helpfulness': experiments.HELPFULNESS,
  'trait': experiments.TRAIT,
}


def trials(seeds: Sequence[int]) -> list[Trial]:
  return experiments.each_seed(ARMS, seeds)
