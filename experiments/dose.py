"""How much trait data does it take, and does it matter when it comes?

Arms:
  standard  0 %, the control
  dose_P    P % of all slots: 0.5, 1, 2, 5, 10, 25, 50. Slots taken at a low
            dose are taken at every higher one too.
  trait     the config's own dose: the dose_P that equals it can be left out
            (`--trials`)
  ramp      the dose of `trait` in total, from nothing to twice as much
  burst     the same total in five bursts of a twentieth of the run each, at
            four times the dose, evenly spread; no trait data between them

Cost: 11 trainings a seed. `--set=streams.traits.fraction=...` moves trait, ramp
and burst alone.

The paper has one dose, 5 %, constant; nothing is known of the curve.

Read: the mean over alignment benchmarks against the dose, planned and realised
(the ledger's tokens, |advantage| and gradient norm: short replies and groups
without spread make it another than planned). Beside it capability, since at 25
and 50 % the standard data that is lost may cost more than the dose brings. ramp
and burst - trait say whether order matters at an equal total; ramp has more of
its dose late, so what it gains may be recency, which burst, placed evenly, is
free of.

Refuted, that the dose is what acts: a curve that does not rise from 0.5 to
10 %, or jumps at the smallest dose and is flat after it.
"""

from collections.abc import Sequence

import experiments
from alignment_rl.config import Trial

CONTROL = 'standard'
EVALUATION = experiments.EVALUATION

PERCENT = (0.5, 1, 2, 5, 10, 25, 50)
ARMS = {
  'standard': experiments.STANDARD,
  'trait': experiments.TRAIT,
  **{f'dose_{p:g}': {'streams.traits.fraction': p / 100} for p in PERCENT},
  'ramp': {'streams.traits.schedule': 'ramp'},
  'burst': {'streams.traits.schedule': 'burst'},
}


def trials(seeds: Sequence[int]) -> list[Trial]:
  return experiments.each_seed(ARMS, seeds)
