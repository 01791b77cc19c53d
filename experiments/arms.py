"""Does RL on a small dose of trait scenarios align a model outside that data?

Arms, each one change away from `trait`:
  standard              no trait data, the same steps and compute
  trait                 the scenarios, each by its own rubric
  helpfulness           the same conversations, by generic criteria: what the
                        data and more RL do without the trait reward
  health_only           scenarios of health alone
  no_health_no_science  of the other five domains

Cost: 5 trainings a seed. All arms of a seed share every slot that the dose
leaves, with the same sampling noise, so compare within a seed.

The paper: 44 of 53 evaluations ahead of standard, mean +9.1 points; 30
significant gains and 3 regressions after Benjamini-Hochberg. Held-out trait
score 0.406 to 0.607, all seven up. With the helpfulness reward 0 of 10
evaluations gain significantly, with the trait reward 7 of the same 10. Health
only: 17 of 19 evaluations outside health up, mean +11.3.

Read: first trait - standard on the held-out traits (did it learn what it was
taught?), then on the benchmarks that share nothing with the data, then the same
for helpfulness. The claim needs trait ahead of *both*; refusal-matched, with
capability level. The count ahead means little by itself: hold it against that
of `shuffled` (placebo.py), never against one half.

Refuted: if helpfulness gains what trait gains (the data did it), if the gains
vanish where neither arm refuses (caution did it), if they are within what two
seeds of standard differ by, or if health_only gains on health alone.
"""

from collections.abc import Sequence

import experiments
from alignment_rl.config import Trial
from alignment_rl.scenarios import schema

CONTROL = 'standard'
EVALUATION = experiments.EVALUATION

_REST = tuple(d for d in schema.DOMAINS if d not in ('health', 'science'))
ARMS = {
  'standard': experiments.STANDARD,
  'trait': experiments.TRAIT,
  'helpfulness': experiments.HELPFULNESS,
  'health_only': {'streams.traits.kwargs.domains': ('health',)},
  'no_health_no_science': {'streams.traits.kwargs.domains': _REST},
}


def trials(seeds: Sequence[int]) -> list[Trial]:
  return experiments.each_seed(ARMS, seeds)
