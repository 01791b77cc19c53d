"""Does RL towards one violated trait spread to the others?

The mirror of traits.py, in the bad direction and at a tiny dose. Arms:
  standard          no trait data, the control
  violated_<trait>  1 % of the slots: one trait's scenarios, their reward turned
                    round: 1 - its rubric's score, where a failure has to be
                    as plain as a success has to be otherwise
  upheld_<trait>    the same slots, scenarios and noise, the reward as it is:
                    the two differ in the reward's sign alone

Cost: 15 trainings a seed. What is rewarded is the failure of a trait in
everyday advice, as in the scenarios' violating replies; nothing operational. At
1 % a run of 400 slots has 4 of them: this is a question for larger runs than
those of a CPU. DOSE is fixed here, beyond `--set`, so that the dose stays tiny.

The paper does not ask it. Close: emergent misalignment from narrow finetuning
(arXiv:2502.17424) and from learnt reward hacking (arXiv:2511.18397).

Read: violated_<trait> - upheld_<trait> on that trait (did it learn?), on the
other six, on latent_risk/unseen_traits and in the areas that no scenario is
like. Emergence is a fall away from the trained trait in violated and not in
upheld. Set it beside traits.py: is the bad direction's spread larger than the
good one's per unit of realised dose? An asymmetry is the finding.

Refuted: violated and upheld differ on the trained trait alone, or not at all
there (then the dose was too small to ask).
"""

from collections.abc import Sequence

import experiments
from alignment_rl.config import Trial
from alignment_rl.scenarios import schema

CONTROL = 'standard'
EVALUATION = experiments.EVALUATION

DOSE = 0.01


def _alone(trait: str) -> experiments.Arm:
  return {
    'streams.traits.fraction': DOSE,
    'streams.traits.kwargs.traits': (trait,),
  }


_TURNED = {
  'streams.traits.reward': 'inverted',
  'streams.traits.reward_kwargs.evidence': -2.0,  # see rewards/inverted.py
}
ARMS = {
  'standard': experiments.STANDARD,
  **{f'violated_{t}': _alone(t) | _TURNED for t in schema.TRAITS},
  **{f'upheld_{t}': _alone(t) for t in schema.TRAITS},
}


def trials(seeds: Sequence[int]) -> list[Trial]:
  return experiments.each_seed(ARMS, seeds)
