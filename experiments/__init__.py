"""Experiments: a file is one question, its arms and how to read the answer.

  python -m experiments.launch list
  python -m experiments.launch NAME --config_variant=smollm2 --workdir=DIR

A docstring is the protocol: question, arms, cost, what the paper found, how to
read the answer and what would refute it. Doses are shares of all slots; 'the
dose' is that of the config (the paper's is 5 %). An arm is what it changes:
dotted field of the config -> value. Experiments that name the same trial share
its training and its workdir, so what they share stands here, once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from alignment_rl.config import Evaluation, Trial

Arm = Mapping[str, Any]

STANDARD: Arm = {'streams.traits.fraction': 0.0}  # the compute-matched control
TRAIT: Arm = {}
HELPFULNESS: Arm = {'streams.traits.reward_kwargs.rubric': 'helpfulness'}

# Every benchmark that a program scores, and the policy's own replies to the
# held-out scenarios and those of unseen traits, by the frozen start of the run.
EVALUATION = Evaluation(benchmarks='all,traits')


def each_alone_and_left_out(
  field: str, values: Sequence[str]
) -> dict[str, Arm]:
  """Arms 'only_<value>' and 'without_<value>' of a field with all of them."""
  rest = {v: tuple(other for other in values if other != v) for v in values}
  return {f'only_{v}': {field: (v,)} for v in values} | {
    f'without_{v}': {field: rest[v]} for v in values
  }


def each_seed(
  arms: Mapping[str, Arm],
  seeds: Sequence[int],
  *,
  config: str = 'configs/rl.py',
  start: str = '',
) -> list[Trial]:
  """Every arm with every seed; one seed after the other, so pairs come first.

  Args:
    arms: name -> overrides.
    config: the file that they override.
    start: arm whose trial of the same seed is the model to begin with; '' = the
      config's own.
  """
  return [
    Trial(
      f'{name}_{seed}',
      config,
      {'seed': seed, **arm},
      start=f'{start}_{seed}' if start else '',
    )
    for seed in seeds
    for name, arm in arms.items()
  ]
