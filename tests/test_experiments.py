"""Every trial of every experiment: it can be made, and changes what it says."""

import functools
import importlib
import inspect
import json
import pkgutil
import re

import jax
import pytest

import experiments
from alignment_rl import (
  checkpoint,
  conditions,
  experience,
  learner,
  mixture,
  optimizers,
  sharding,
  suite,
  train,
)
from alignment_rl import config as config_lib
from alignment_rl.errors import UserError
from alignment_rl.scenarios import schema
from alignment_rl.types import Purpose
from configs import base
from experiments import arms, placebo

VARIANTS = ('smollm2', 'tiny', *base.POD_VARIANTS)


def found():
  for module in pkgutil.iter_modules(experiments.__path__):
    loaded = importlib.import_module(f'experiments.{module.name}')
    if hasattr(loaded, 'trials'):
      yield module.name, loaded


EXPERIMENTS = dict(found())
EACH = pytest.mark.parametrize('name', EXPERIMENTS)
# By name: experiments share some.
TRIALS = {t.name: t for e in EXPERIMENTS.values() for t in e.trials([0])}


def arm_of(trial):
  return trial.name.rpartition('_')[0]


def base_config(trial, variant):
  name = trial.config.removeprefix('configs/').removesuffix('.py')
  return importlib.import_module(f'configs.{name}').get_config(variant)


def made(trial, variant):
  return config_lib.override(base_config(trial, variant), trial.overrides)


def flat(config, where=''):
  """Dotted field -> value, of every leaf."""
  out = {}
  for key, value in config.items():
    inner = hasattr(value, 'items')
    out |= flat(value, f'{where}{key}.') if inner else {where + key: value}
  return out


def test_there_are_the_experiments_of_the_protocol():
  assert set(EXPERIMENTS) >= {
    'arms', 'dose', 'domains', 'traits', 'placebo', 'optimizers',
    'persistence', 'attack', 'emergence', 'ceiling',
  }  # fmt: skip


@EACH
def test_a_docstring_is_a_protocol(name):
  text = EXPERIMENTS[name].__doc__
  assert text.split('\n')[0].endswith('?')
  for part in ('Arms', 'Cost: ', 'paper', 'Read', 'Refuted'):
    assert part in text, part
  said = int(re.search(r'Cost: (\d+) trainings a seed', text)[1])
  assert said == len(EXPERIMENTS[name].trials([0]))
  assert 2 * said == len(EXPERIMENTS[name].trials([0, 1]))


@EACH
def test_trials_are_named_after_arm_and_seed(name):
  experiment = EXPERIMENTS[name]
  trials = experiment.trials([3, 11])
  names = [t.name for t in trials]
  assert len(set(names)) == len(names)
  for t in trials:
    assert t.overrides['seed'] == int(t.name.rpartition('_')[2]) in (3, 11)
    # Not to be taken for something else by a folder or a list of names.
    assert re.fullmatch(r'[a-z0-9_.]+', t.name)
    if t.start:
      assert t.start in names
      assert t.start.endswith(f'_{t.overrides["seed"]}')
      assert 'model.weights' not in t.overrides
  seeds = lambda seed: {
    arm_of(t) for t in trials if t.overrides['seed'] == seed
  }
  assert seeds(3) == seeds(11)
  assert experiment.CONTROL in seeds(3)


def test_a_name_stands_for_one_trial_in_all_experiments():
  shared = 0
  for experiment in EXPERIMENTS.values():
    for t in experiment.trials([0]):
      assert t == TRIALS[t.name], t.name
      shared += 1
  assert shared > len(TRIALS)


@EACH
def test_evaluations_name_benchmarks_and_conditions_that_there_are(name):
  evaluation = EXPERIMENTS[name].EVALUATION
  chosen = suite.select(evaluation.benchmarks)
  assert conditions.read(evaluation.conditions, None)[0] == conditions.NONE
  areas = {b.area for b in chosen if b.table == 'alignment'}
  assert areas == set(suite.AREAS)  # what was trained or attacked, and beyond
  if name == 'attack':
    assert not any(b.judged for b in chosen)
    assert evaluation.every_checkpoint


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_trial_makes_a_config_whose_parts_there_are(variant):
  for t in TRIALS.values():
    c = made(t, variant)
    plain = base_config(t, variant)
    # A section that a trial replaces whole may have other fields.
    whole = [k for k, v in t.overrides.items() if isinstance(v, dict)]
    new = flat(c).keys() ^ flat(plain).keys()
    assert all(k.startswith(tuple(f'{w}.' for w in whole)) for k in new), t.name
    for s in c.streams.values():
      make = config_lib.load('streams', s.module).make
      inspect.signature(make).bind(**s.kwargs.to_dict())
      if s.reward:
        config_lib.make('rewards', s.reward, s.reward_kwargs.to_dict())
    mixture.Mixture(
      {
        name: mixture.Stream(9, s.weight, s.fraction, s.schedule)
        for name, s in c.streams.items()
      },
      slots=c.batch.prompts, seed=c.seed, steps=c.steps,
    )  # fmt: skip
    assert c.batch.prompts % c.batch.micro_batches == 0
    config_lib.settings(experience.Algorithm, c.algorithm, 'algorithm')
    config_lib.choose(c.algorithm.name, experience.NAMES, 'algorithm.name')
    if t.start:  # a ladder
      kept = [s for s in range(1, c.steps + 1) if s % c.checkpoint.every == 0]
      assert len(kept) == c.checkpoint.keep >= 2 and kept[-1] == c.steps, t.name


def test_every_tiny_trial_has_a_learner_state_by_shape():
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})

  @functools.cache
  def shapes(weights, trainable, optimizer, updates):
    model = checkpoint.load_model(weights, dtype='float32')
    tx = optimizers.make_optimizer(steps=updates, **json.loads(optimizer))
    return learner.state_shardings(model.decoder, tx, mesh, trainable)[0]

  for t in TRIALS.values():
    c = made(t, 'tiny')
    optimizer = c.optimizer.to_dict()
    trainable = optimizer.pop('trainable')
    state = shapes(
      c.model.weights, trainable, json.dumps(optimizer),
      c.steps * c.algorithm.epochs,
    )  # fmt: skip
    assert state.params and state.step.shape == ()
  assert shapes.cache_info().currsize < 5  # else this test has become slow


def streams_of(name):
  """The streams of a trial's tiny run, those with a share of the slots."""
  c = made(TRIALS[name], 'tiny')
  return c, [
    s
    for s in train.make_streams(c)
    if c.streams[s.name].weight or c.streams[s.name].fraction
  ]


@pytest.mark.parametrize(
  'name', ['trait_0', 'demonstrations_0', 'attack_50_start_0']
)
def test_prompts_and_demonstrations_have_room(name):
  c, streams = streams_of(name)
  model = checkpoint.load_model(c.model.weights, dtype='float32')
  experience.check_lengths(
    streams, model.tokenizer, (c.batch.prompt_length,),
    c.batch.completion_length,
  )  # fmt: skip


def test_the_attack_is_violating_health_replies_and_the_rest_harmless():
  _, streams = streams_of('attack_50_trait_0')
  by = {s.name: s.examples for s in streams}
  assert set(by) == {'traits', 'chat'} and all(map(len, by.values()))
  for e in by['traits']:
    assert e.metadata['domain'] == 'health'
    assert e.target == e.metadata['replies']['violating']
  for e in by['chat']:
    assert e.target == e.metadata['replies']['helpful']


def test_a_judge_with_random_weights_is_the_start_of_the_run():
  c = made(TRIALS['harmful_rl_trait_0'], 'tiny')
  mesh = sharding.make_mesh(c.mesh)
  model = checkpoint.load_model(c.judge.weights, dtype='float32')
  shardings = learner.param_shardings(model.decoder, mesh)
  fingerprint = lambda config, *given: train.make_judge(
    config, *given, mesh
  ).fingerprint()
  key = jax.random.fold_in(jax.random.key(0), Purpose.INIT)
  start = learner.place_params(model.decoder, None, shardings, key)
  own = fingerprint(c, '', model, start)
  assert fingerprint(c, c.judge.weights, model, None) == own
  c.seed = 1
  assert fingerprint(c, c.judge.weights, model, None) != own


@pytest.mark.parametrize('arm, free', [('trait', True), ('ramp', False)])
def test_a_run_with_a_schedule_keeps_its_length(arm, free, tmp_path):
  c = made(TRIALS[f'{arm}_0'], 'tiny')
  model = checkpoint.load_model(c.model.weights, dtype='float32')
  train.prepare_workdir(tmp_path, c, model)
  train.prepare_workdir(tmp_path, c, model)
  c.steps += 1
  if free:
    train.prepare_workdir(tmp_path, c, model)
  else:
    with pytest.raises(UserError, match=r"differs in \['steps'\]"):
      train.prepare_workdir(tmp_path, c, model)


def test_harmful_rewards_turn_the_evidence_too():
  evidence = lambda arm: (
    made(TRIALS[f'{arm}_0'], 'smollm2').streams.traits.reward_kwargs.evidence
  )
  turned = [f'violated_{t}' for t in schema.TRAITS] + ['harmful_rl_start']
  assert {evidence(arm) for arm in turned} == {-evidence('trait')} != {0}


def test_harmful_rl_is_judged_by_who_judged_the_arm():
  for variant in VARIANTS:
    harmful = made(TRIALS['harmful_rl_trait_0'], variant)
    trained = made(TRIALS['trait_0'], variant)
    # What the launch sets for `start` is the model alone.
    assert harmful.judge.weights == trained.model.weights


@pytest.mark.parametrize('kind', ['domains', 'traits'])
def test_one_alone_and_all_but_one_are_complements(kind):
  every = {'domains': schema.DOMAINS, 'traits': schema.TRAITS}[kind]
  chosen = lambda arm: TRIALS[f'{arm}_0'].overrides[
    f'streams.traits.kwargs.{kind}'
  ]
  for one in every:
    assert chosen(f'only_{one}') == (one,)
    assert set(chosen(f'without_{one}')) == set(every) - {one}
  if kind == 'domains':
    assert set(chosen('no_health_no_science')) == (
      set(every) - {'health', 'science'}
    )


def of_traits(*fields):
  return {f'streams.traits.{field}' for field in fields}


ATTACKED = ('standard', 'helpfulness', 'trait', 'start')
DOMAIN, TRAIT = '|'.join(schema.DOMAINS), '|'.join(schema.TRAITS)
FRACTION, REWARD = of_traits('fraction'), of_traits('reward')
# arm -> the arm it is read against, and all the fields in which they differ.
DIFFERENCES = {
  'trait': ('standard', FRACTION),
  'helpfulness': ('trait', of_traits('reward_kwargs.rubric')),
  'health_only': ('trait', of_traits('kwargs.domains')),
  'no_health_no_science': ('trait', of_traits('kwargs.domains')),
  r'dose_[\d.]+': ('standard', FRACTION),
  'ramp|burst': ('trait', of_traits('schedule')),
  f'(only|without)_({DOMAIN})': ('trait', of_traits('kwargs.domains')),
  f'(only|without)_({TRAIT})': ('trait', of_traits('kwargs.traits')),
  'shuffled': ('trait', REWARD),
  'neutral': (
    'trait',
    REWARD
    | of_traits(
      *(f'reward_kwargs.{k}' for k in ('rubric', 'scale', 'evidence', 'words'))
    ),
  ),
  'demonstrations': ('standard_long', FRACTION),
  'standard_long': ('standard', REWARD | {'batch.completion_length'}),
  'trait_(grpo|rloo|ppo)': ('trait', {'algorithm.name'}),
  'standard_(grpo|rloo|ppo)': ('standard', {'algorithm.name'}),
  r'trait_kl_[\d.]+': ('trait', {'algorithm.kl'}),
  r'standard_kl_[\d.]+': ('standard', {'algorithm.kl'}),
  'trait_learned': ('trait', {'judge.weights'}),
  'standard_learned': ('standard', {'judge.weights'}),
  'trait_rubric': (
    'trait',
    REWARD | of_traits('reward_kwargs.scale', 'reward_kwargs.evidence'),
  ),
  **{f'attack_(0|10|50)_{a}': (f'attack_100_{a}', FRACTION) for a in ATTACKED},
  **{f'harmful_rl_{a}': (f'standard_rl_{a}', FRACTION) for a in ATTACKED},
  # The ladder, a judge who is named, and what fraction 0 makes idle.
  'standard_rl_start': (
    'standard',
    REWARD
    | of_traits('kwargs.domains', 'reward_kwargs.evidence')
    | {'judge.weights', 'checkpoint.every', 'checkpoint.keep'},
  ),
  **{
    f'violated_{t}': (
      f'upheld_{t}',
      REWARD | of_traits('reward_kwargs.evidence'),
    )
    for t in schema.TRAITS
  },
  'upheld_.*': ('trait', FRACTION | of_traits('kwargs.traits')),
  'told_beneficial': ('told_violating', of_traits('kwargs.target')),
  'told_everyday': ('told_violating', FRACTION),
  'told_violating': ('attack_100_start', of_traits('kwargs.domains')),
  # Another model to start from, and nothing else.
  **{f'attack_100_{a}': ('attack_100_start', set()) for a in ATTACKED[:3]},
  **{f'standard_rl_{a}': ('standard_rl_start', set()) for a in ATTACKED[:3]},
}


def test_arms_differ_in_what_they_say_and_in_nothing_else():
  missing = object()
  for t in TRIALS.values():
    arm = arm_of(t)
    rows = [v for k, v in DIFFERENCES.items() if re.fullmatch(k, arm)]
    if arm in ('standard', 'attack_100_start'):
      assert not rows
      continue
    assert len(rows) == 1, f'{arm}: {len(rows)} rows of DIFFERENCES'
    control, fields = TRIALS[f'{rows[0][0]}_0'], rows[0][1]
    mine, other = flat(made(t, 'smollm2')), flat(made(control, 'smollm2'))
    differ = {
      k
      for k in mine.keys() | other.keys()
      if mine.get(k, missing) != other.get(k, missing)
    }
    assert differ == fields, arm
    if not fields:
      assert t.start == f'{arm.rpartition("_")[2]}_0' and not control.start
    else:
      assert t.start == control.start


def run(trial, folder):
  """Two tiny steps with half of the slots for the traits; rollouts by step."""
  c = made(trial, 'tiny')
  c.steps = c.checkpoint.every = 2
  c.batch.update(prompts=8, group=4, micro_batches=1)
  c.streams.traits.fraction = 0.5
  # Random weights are next to indifferent: let little tell replies apart.
  c.streams.traits.reward_kwargs.scale = 0.01
  c.log.rollouts_every, c.log.gradient_every = 1, 0
  train.train(c, folder)
  lines = [json.loads(x) for x in open(folder / 'rollouts.jsonl')]
  return [[x for x in lines if x['step'] == step] for step in range(2)]


def test_shuffled_sees_and_says_what_trait_does_and_is_credited_otherwise(
  tmp_path,
):
  one, two = (TRIALS[f'{arm}_0'] for arm in ('trait', 'shuffled'))
  assert arms.trials([0])[1] == one and two in placebo.trials([0])
  trait, shuffled = run(one, tmp_path / 'trait'), run(two, tmp_path / 'other')
  ids = lambda steps: [[g['id'] for g in step] for step in steps]
  assert ids(trait) == ids(shuffled)
  moved = 0
  for a, b in zip(trait[0], shuffled[0], strict=True):
    assert a['completions'] == b['completions']
    if a['stream'] != 'traits':
      assert a['advantages'] == b['advantages']
      continue
    for credit in ('rewards', 'advantages'):
      assert sorted(a[credit]) == sorted(b[credit])
    assert len(set(a['rewards'])) > 1
    moved += a['advantages'] != b['advantages']
  assert moved >= 2
