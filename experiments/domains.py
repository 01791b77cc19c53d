"""Does what is learnt in one domain carry over to the others?

Arms, at the same dose and with all seven traits:
  standard          no trait data, the control
  trait             all seven domains
  only_<domain>     one domain's scenarios, the other six never seen
  without_<domain>  the other six, that one never seen

Cost: 16 trainings a seed. An arm of one domain sees each of its 56 scenarios
seven times as often as `trait` does: fewer prompts at an equal dose. Narrow
gains may then be the repetition's doing; without_<domain> has next to none of
that.

The paper has two rows of this matrix: health alone raises 17 of 19 evaluations
outside health (14 significantly, mean +11.3 points, 1 significant regression),
and training without health and science raises health about as much as training
with them. No other source domain was tried.

Read: the matrix (trained on) x (tested on) of differences from standard, on the
held-out scenarios by their domain; 22 items a cell, so read rows, columns and
the diagonal against the rest before any cell. The sharpest test is
without_<domain> on that domain: as high as `trait` there is transfer. Then
only_health on the benchmarks outside the area `health`, as the paper has it.

Refuted: a matrix with a diagonal alone, or without_<domain> at standard's level
on that domain.
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
    'streams.traits.kwargs.domains', schema.DOMAINS
  ),
}


def trials(seeds: Sequence[int]) -> list[Trial]:
  return experiments.each_seed(ARMS, seeds)
