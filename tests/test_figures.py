"""Figures of the report, from workdirs made up here."""

import csv
import dataclasses
import json
import math
import re

import numpy as np
import pytest

from alignment_rl import report, stats
from alignment_rl.reporting import arms as arms_lib
from alignment_rl.reporting import (
  attacks,
  contrasts,
  doses,
  hostility,
  pressure,
  transfer,
  wording,
  workdirs,
)
from alignment_rl.scenarios import schema
from alignment_rl.streams import traits

NAN = float('nan')
N = 8  # items of a benchmark


def write_lines(path, records):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(r) + '\n' for r in records))


def write_scores(folder, scores, **fields):
  """An evaluation: benchmark -> a score of all items, or item id -> score."""
  results = []
  for name, items in scores.items():
    if not isinstance(items, dict):
      items = {f'item{i}': items for i in range(N)}
    area = name.split('/')[0]
    table = area if area == 'capability' else 'alignment'
    results.append(
      {'benchmark': name, 'area': area, 'table': table, 'protocol': 'choice',
       'step': 4, 'chance': 0.5, 'metric': 'accuracy', 'version': 1, **fields}
    )  # fmt: skip
    write_lines(
      folder / f'scores/{name.replace("/", "__")}.jsonl',
      [{'id': i, 'score': s} for i, s in items.items()],
    )
  write_lines(folder / 'results.jsonl', results)


def config_of(seed=0, fraction=0.05, weights='package:small', **traits):
  stream = {'fraction': fraction, 'weight': 0.0, 'reward': 'criterion'}
  stream |= {'kwargs': {'domains': ['health', 'law'], 'target': 'beneficial'}}
  for key, value in traits.items():
    place = (
      stream['kwargs'] if key in ('domains', 'traits', 'target') else stream
    )
    place[key] = value
  return {
    'seed': seed, 'model': {'weights': weights}, 'streams': {'traits': stream},
    'algorithm': {'name': 'dr_grpo'}, 'log': {'every': 1},
  }  # fmt: skip


def make_run(
  folder, scores, config=None, *, conditions=(), steps=(), metrics=(), step=4,
  checkpoint=None,
):  # fmt: skip
  """A workdir.

  Args:
    conditions: (name, kind, scores) each.
    steps: (step, scores) of earlier checkpoints.
    metrics: lines.
  """
  place = folder / 'evaluation'
  fields = {'checkpoint': checkpoint or str(folder)}
  write_scores(place, scores, step=step, **fields)
  for name, kind, found in conditions:
    write_scores(
      place / 'conditions' / name.replace(':', '__'), found, condition=name,
      **fields, **({'kind': kind} if kind else {}),
    )  # fmt: skip
  for at, found in steps:
    write_scores(place / f'steps/{at}', found, step=at, **fields)
  if config:
    (folder / 'config.json').write_text(json.dumps(config))
  write_lines(folder / 'metrics.jsonl', list(metrics))
  return folder


def read_arms(*folders):
  return arms_lib.as_arms([workdirs.read_run(f) for f in folders])


def write_report(tmp_path, *folders, control='standard'):
  """Text of the page, and the lines of its CSVs."""
  output = tmp_path / 'r.html'
  arguments = [*map(str, folders), f'--control={control}']
  assert report.main([*arguments, f'--output={output}']) == 0
  read = lambda path: list(csv.DictReader(path.open()))
  text = re.sub(r'<(script|style).*?</\1>', '', output.read_text(), flags=re.S)
  text = re.sub(r'\s+', ' ', re.sub(r'<[^>]*>', '', text)).replace('−', '-')
  return text, read(tmp_path / 'r.csv'), read(tmp_path / 'r.figures.csv')


# ------------------------------------------------------------------ contrasts


def scores_of(tables, clusters=None):
  """benchmark -> scores as an evaluation; NaN = unscored."""
  items = {
    name: {
      f'i{i}': workdirs.Item(
        None if math.isnan(s) else s, clusters and clusters[i], None
      )
      for i, s in enumerate(values)
    }
    for name, values in tables.items()
  }
  lines = {
    n: {'benchmark': n, 'table': 'alignment', 'area': n, 'step': 0}
    for n in tables
  }
  return workdirs.Scores(lines, items)


def test_every_benchmark_weighs_the_same_and_every_item_is_counted():
  a = scores_of({'a': [0.5, 0.75, NAN], 'b': [1.0]})
  b = scores_of({'a': [0.25, 0.25, 0.5], 'b': [0.25]})
  found = contrasts.estimate([[(1, a), (-1, b)]])
  # 'a': 0.25 and 0.5, mean 0.375; 'b': 0.75; their mean 0.5625.
  assert found.value == pytest.approx(0.5625)
  assert (found.items.n, found.benchmarks, found.seeds) == (3, 2, None)
  assert found.by_seed == pytest.approx((0.5625,))


def test_on_one_benchmark_it_is_the_paired_difference():
  rng = np.random.default_rng(0)
  a, b = rng.random((2, 20))
  clusters = [f'source {i // 2}' for i in range(20)]
  found = contrasts.estimate(
    [[(1, scores_of({'x': a}, clusters)), (-1, scores_of({'x': b}, clusters))]],
    resamples=500,
  )
  expected = stats.paired_difference(a, b, clusters, resamples=500)
  for field in ('n', 'difference', 'low', 'high', 'p', 'clusters'):
    assert getattr(found.items, field) == pytest.approx(
      getattr(expected, field)
    ), field


@pytest.mark.parametrize('seed', range(5))
def test_difference_of_slopes_is_slope_minus_slope(seed):
  rng = np.random.default_rng(seed)
  draw = lambda: scores_of({n: rng.random(7 + seed) for n in 'abc'})
  pressed, plain, other, base = (draw() for _ in range(4))
  slope = lambda under, without: [(1, under), (-1, without)]
  minus = lambda terms: [(-w, s) for w, s in terms]
  one, two = slope(pressed, plain), slope(other, base)
  of = lambda *terms: contrasts.estimate([sum(terms, [])])
  both, back = of(one, minus(two)), of(two, minus(one))
  assert both.value == pytest.approx(of(one).value - of(two).value)
  # It is as far from nothing whichever arm is the control.
  assert back.items.low == pytest.approx(-both.items.high)
  assert back.items.p == both.items.p
  # What an item adds to an arm with and without pressure cancels.
  hard = rng.random(7 + seed)
  shifted = lambda s: scores_of(
    {
      n: [i.score + h for i, h in zip(v.values(), hard, strict=True)]
      for n, v in s.items.items()
    }
  )
  moved = slope(shifted(pressed), shifted(plain))
  assert of(moved, minus(two)).items.high == pytest.approx(both.items.high)


def test_an_item_counts_if_all_four_terms_scored_it():
  full = scores_of({'a': [0.5, 0.5, 0.5]})
  parts = [scores_of({'a': [NAN if i == j else 0.5 for j in range(3)]})
           for i in range(2)]  # fmt: skip
  terms = [(1, full), (-1, parts[0]), (-1, parts[1]), (1, full)]
  assert contrasts.estimate([terms]).items.n == 1
  assert contrasts.estimate([[(1, scores_of({'a': [NAN]}))]]).items.n == 0


def run_of(name, seed, value):
  scores = scores_of({'a': [value] * 8, 'b': [value] * 8})
  config = {'seed': seed}
  return workdirs.Run(name, config, [], [], scores, {}, {0: scores})


def test_what_seeds_of_the_control_differ_by_is_the_floor():
  arm = lambda name, *values: arms_lib.Arm(
    name, [run_of(f'{name}_{i}', i, v) for i, v in enumerate(values)]
  )
  last = lambda run: [(1.0, run.last)]
  control = arm('control', 0.25, 0.5)
  near = contrasts.against(arm('near', 0.5, 0.5), control, last)
  # By seed 0.25 and 0.
  assert (near.value, near.floor) == (0.125, 0.25) and near.inside_floor
  assert near.by_seed == (0.25, 0.0) and near.seeds.n == 2
  far = contrasts.against(arm('far', 0.75, 0.75), control, last)
  assert far.value == 0.375 and not far.inside_floor
  single = contrasts.against(arm('near', 0.5), arm('one', 0.5), last)
  assert math.isnan(single.floor) and not single.inside_floor


# ------------------------------------------------------------- under pressure


def estimate(low, high, floor=NAN):
  middle = (low + high) / 2
  pair = stats.PairedDifference(50, middle, low, high, 0.5, 50)
  return contrasts.Estimate(pair, 5, None, (middle,), floor)


@pytest.mark.parametrize(
  'harmed, harmful, helpful, verdict, says',
  [
    ((-0.3, -0.1), (0.05, 0.2), (-0.01, 0.015), 'shown', 'as much, to within'),
    ((-0.3, -0.1), (0.05, 0.2), (-0.05, 0.01), 'shown in part', 'is open'),
    ((-0.3, -0.1), (0.05, 0.2), (-0.2, -0.1), 'shown in part', 'less as well'),
    ((-0.3, -0.1), (0.05, 0.2), (0.03, 0.1), 'shown in part', 'more'),
    ((-0.3, -0.1), (0.05, 0.2), None, 'shown in part', 'No helpful'),
    ((-0.3, -0.1), (-0.05, 0.2), (-0.01, 0.01), 'not shown', 'Harm is not'),
    ((-0.3, 0.1), (0.05, 0.2), (-0.01, 0.01), 'cannot be tested', 'nothing'),
  ],
)
def test_selective_persistence(harmed, harmful, helpful, verdict, says):
  found, why = pressure.selective(
    estimate(*harmed), estimate(*harmful), helpful and estimate(*helpful)
  )
  assert found == verdict and says in why


@pytest.mark.parametrize(
  'low, verdict', [(0.01, 'shown'), (-0.2, 'shown in part')]
)
def test_persistence_is_shown_over_seeds_as_well(low, verdict):
  harmful = estimate(0.05, 0.2)
  seeds = dataclasses.replace(harmful.items, n=2, low=low)
  harmful = dataclasses.replace(harmful, seeds=seeds)
  found, _ = pressure.selective(estimate(-0.3, -0.1), harmful, estimate(0, 0))
  assert found == verdict


def test_persistence_inside_the_noise_of_seeds_is_not_shown():
  found, why = pressure.selective(
    estimate(-0.3, -0.1), estimate(0.05, 0.15, floor=0.1), estimate(0, 0)
  )
  assert found == 'not shown' and 'inside the ±10.0' in why


def pressed(tmp_path, name, plain, harmful, helpful, seed=0, **kwargs):
  """Two benchmarks, one of which no condition applies to."""
  return make_run(
    tmp_path / name,
    {'health/a': plain, 'honesty/b': plain, 'latent_risk/read': 0.125},
    config_of(seed=seed, **kwargs),
    conditions=[
      (f'system:{who}', kind, {'health/a': level, 'honesty/b': level})
      for who, kind, level in (
        ('rook', 'harmful', harmful), ('max', 'harmful', harmful),
        ('nurse', 'helpful', helpful),
      )
    ],
  )  # fmt: skip


def test_slopes_by_hand_on_the_page(tmp_path):
  # Slopes: harmful -0.3 and -0.1, helpful +0.1 both.
  folders = [
    pressed(tmp_path, 'standard', 0.5, 0.2, 0.6, fraction=0.0),
    pressed(tmp_path, 'trait', 0.6, 0.5, 0.7),
  ]
  page, rows, numbers = write_report(tmp_path, *folders)
  assert 'trait: selective persistence shown' in page
  assert '2 harmful and 1 helpful' in page
  found = {(n['where'], n['arm'], n['what']): n for n in numbers}
  value = lambda *key: round(float(found[key]['value']), 6)
  assert value('none', 'trait', 'score') == 0.6
  assert value('system:rook', 'trait', 'score') == 0.5
  assert value('system:rook', 'trait', 'slope') == -0.1
  assert value('all harmful', 'standard', 'slope') == -0.3
  assert value('all harmful', 'trait', 'slope minus standard’s') == 0.2
  assert value('all helpful', 'trait', 'slope minus standard’s') == 0.0
  assert value('harmful, health', 'trait', 'slope minus standard’s') == 0.2
  # latent_risk/read has no conversation and is in no level here.
  assert found['none', 'trait', 'score']['n'] == str(2 * N)
  assert found['harmful, honesty', 'trait', 'slope']['n'] == str(N)
  assert ('none', 'trait', 'slope') not in found
  assert {r['benchmark'] for r in rows} == {
    'health/a', 'honesty/b', 'latent_risk/read'
  }  # fmt: skip


def test_a_control_without_conditions_leaves_slopes_without_a_comparison(
  tmp_path,
):
  control = make_run(tmp_path / 'standard', {'health/a': 0.5}, config_of())
  arm = pressed(tmp_path, 'trait', 0.6, 0.5, 0.7, fraction=0.1)
  page, _, numbers = write_report(tmp_path, control, arm)
  assert 'standard was not evaluated under conditions' in page
  assert {n['what'] for n in numbers} == {'score', 'slope'}


def test_only_conditions_that_all_have_are_compared(tmp_path):
  one = pressed(tmp_path, 'standard', 0.5, 0.2, 0.6)
  two = pressed(tmp_path, 'trait', 0.6, 0.5, 0.7, fraction=0.1)
  (two / 'evaluation/conditions/system__max/results.jsonl').unlink()
  assert list(pressure.shared(read_arms(one, two))) == [
    'system:rook', 'system:nurse'
  ]  # fmt: skip


def test_a_condition_without_a_kind_is_refused(tmp_path, capsys):
  folder = make_run(
    tmp_path / 'standard', {'health/a': 0.5},
    conditions=[('system:rook', '', {'health/a': 0.5})],
  )  # fmt: skip
  arguments = [str(folder), '--control=standard']
  assert report.main([*arguments, f'--output={tmp_path / "r.html"}']) == 2
  assert "'system:rook', kind None" in capsys.readouterr().err


# ---------------------------------------------------------------- dose curves


def dosed(tmp_path, name, score, fraction, **kwargs):
  logged = [
    {'step': s, 'dose/traits/slots': fraction * (0.5 + s / 2),
     'dose/traits/gradient': None}
    for s in range(2)
  ]  # fmt: skip
  return make_run(
    tmp_path / name, {'a/x': score, 'a/y': score},
    config_of(fraction=fraction, **kwargs), metrics=logged,
  )  # fmt: skip


def test_dose_curve_by_hand(tmp_path):
  control, *arms = read_arms(
    dosed(tmp_path, 'standard', 0.5, 0.0),
    dosed(tmp_path, 'half', 0.75, 0.5),
    dosed(tmp_path, 'ramp', 0.625, 0.125, schedule='ramp'),
    dosed(tmp_path, 'eighth', 0.5, 0.125),
    dosed(tmp_path, 'other', 0.5, 0.25, domains=['law']),
  )
  found = doses.ladder([control, *arms], control)
  assert [(d.arm.name, d.schedule) for d in found] == [
    ('standard', ''), ('eighth', ''), ('ramp', 'ramp'), ('half', '')
  ]  # fmt: skip
  # The last line of the log: what was asked for.
  assert [d.shares['slots'] for d in found] == [0, 0.125, 0.125, 0.5]
  assert math.isnan(found[1].shares['gradient'])
  assert [d.difference and d.difference.value for d in found] == [
    None, 0.0, 0.125, 0.25
  ]  # fmt: skip
  (figure,) = doses.figures([control, *arms], control)
  plots = figure.drawing
  assert [p.below for p in plots] == [
    'planned share of slots',
    'share of slots',
  ]
  line, ramp = plots[0].series
  # Along a square root: 0.125 / 0.5 is a quarter, at one half.
  assert [(p.x, p.y) for p in line.points] == [(0, 0), (0.5, 0), (1, 0.25)]
  assert [(p.x, p.y) for p in ramp.points] == [(0.5, 0.125)]
  assert not ramp.joined and ramp.label == 'ramp'
  assert figure.sentences == [
    '3 doses: ahead of standard by an interval that leaves out 0: ramp and '
    'half; behind: none. The largest, half: +25.0 [+25.0, +25.0] points (n 16).'
  ]


def test_one_dose_is_no_curve(tmp_path):
  control, arm = read_arms(
    dosed(tmp_path, 'standard', 0.5, 0.0), dosed(tmp_path, 'trait', 0.5, 0.5)
  )
  assert doses.figures([control, arm], control) == []


# ------------------------------------------------------------------- transfer


@pytest.mark.parametrize(
  'item, topic',
  [
    ('traits/health/corrigibility/7', ('health', 'corrigibility')),
    ('truthfulqa/health/corrigibility/7', None), ('traits/12', None),
  ],
)  # fmt: skip
def test_topic_of_a_scenario(item, topic):
  assert transfer.topic(item) == topic


def test_domain_is_the_scenarios_own_before_that_of_its_area():
  line = {'area': 'health'}
  assert transfer.domain(line, 'traits/law/human_welfare/1') == 'law'
  assert transfer.domain(line, 'healthbench/3') == 'health'
  assert transfer.domain({'area': 'agentic'}, 'medical/3') is None


def test_scenarios_say_their_topic_by_their_id():
  rows = schema.read(schema.files())
  assert len(rows) > 500
  for row in rows:
    example = traits.to_example(row, target='beneficial', system='')
    assert transfer.topic(example.id) == (row['domain'], row['trait'])


def with_topics(tmp_path, name, health, law, fraction=0.05, **kwargs):
  """Six scenarios of each domain in one benchmark, and one of no domain."""
  scenarios = {f'traits/health/t{i % 2}/{i}': health for i in range(6)}
  scenarios |= {f'traits/law/t{i % 2}/{i}': law for i in range(6)}
  return make_run(
    tmp_path / name,
    {'latent_risk/t': scenarios, 'health/public': 0.5, 'agentic/x': 0.5},
    config_of(fraction=fraction, **kwargs),
  )


def test_transfer_matrix_by_hand(tmp_path):
  control, *arms = read_arms(
    with_topics(tmp_path, 'standard', 0.25, 0.25, 0.0, traits=['t0', 't1']),
    with_topics(tmp_path, 'all', 0.75, 0.5, traits=['t0', 't1']),
    with_topics(tmp_path, 'only_law', 0.25, 0.5, traits=['t0', 't1'],
           domains=['law']),
    with_topics(tmp_path, 'only_health', 0.5, 0.375, traits=['t0', 't1'],
           domains=['health']),
    with_topics(tmp_path, 'dose', 1.0, 1.0, 0.5, traits=['t0', 't1']),
    with_topics(tmp_path, 'other', 1.0, 1.0, traits=['t0', 't1'],
           reward='shuffled', domains=['law']),
  )  # fmt: skip
  found = transfer.matrix([control, *arms], control, 'domains')
  rows = found.blocks[transfer.PART]
  # In the order of the domains; neither other doses nor other rewards.
  assert list(rows) == ['only_health', 'only_law']
  assert list(found.blocks) == [transfer.PART, transfer.ALL]
  assert list(found.blocks[transfer.ALL]) == ['all']
  value = lambda arm, column: rows[arm][column].value
  assert value('only_health', 'health') == 0.25
  assert value('only_health', 'law') == 0.125
  assert value('only_health', transfer.ELSEWHERE) == 0.125
  assert value('only_law', transfer.ELSEWHERE) == 0.0
  assert rows['only_law']['law'].items.n == 6
  # Health: six scenarios at +0.25 and the public benchmark at 0; each of the
  # two benchmarks weighs the same. Others: law at 0.125 and agentic at 0.
  assert value('only_health', 'all of health') == pytest.approx(0.125)
  assert value('only_health', 'all but health') == pytest.approx(0.0625)
  assert transfer.matrix([control, *arms], control, 'traits') is None


def test_left_out_and_unseen_traits(tmp_path):
  names = ['t0', 't1', 'x']  # No scenario here is about x.
  control, *arms = read_arms(
    with_topics(tmp_path, 'standard', 0.25, 0.25, 0.0, traits=names),
    with_topics(tmp_path, 'only_t0', 0.5, 0.5, traits=['t0']),
    with_topics(tmp_path, 'without_t0', 0.5, 0.5, traits=['t1', 'x']),
  )
  found = transfer.matrix([control, *arms], control, 'traits')
  assert list(found.blocks[transfer.PART]) == ['only_t0']
  assert list(found.blocks[transfer.LEFT_OUT]) == ['without_t0']
  assert found.columns == ['t0', 't1', transfer.ELSEWHERE]
  assert found.blocks[transfer.PART]['only_t0']['elsewhere'].items.n == 6
  page, _, _ = write_report(
    tmp_path, *(tmp_path / a.name for a in [control, *arms])
  )
  assert 'Transfer between traits' in page
  assert (
    '1 arms trained on a part, on the traits that they never saw: ahead of '
    'standard by an interval that leaves out 0: only_t0; behind: none. only_t0 '
    'there: +25.0 [+25.0, +25.0] points (n 6).'
  ) in page


# -------------------------------------------------------------------- attacks


def both(health, outside):
  return {'health/a': health, 'agentic/b': outside}


def trained(tmp_path, name, score, seed=0, **kwargs):
  return make_run(
    tmp_path / name, both(score, score), config_of(seed, **kwargs)
  )


def attacked(tmp_path, name, begins, middle, last, seed=0, share=1.0):
  """Finetuning against health, evaluated after steps 2 and 4."""
  config = config_of(
    seed, share, str(begins), target='violating', domains=['health']
  )
  config['streams']['chat'] = {'weight': 1.0, 'fraction': 0.0}
  config['algorithm'] = {'name': 'sft'}
  return make_run(
    tmp_path / name, both(*last), config, steps=[(2, both(*middle))]
  )


def numbers_of(lines):
  values = {(n['where'], n['arm'], n['what']): n['value'] for n in lines}
  return {key: float(value) for key, value in values.items()}


def test_attack_ladder_by_hand(tmp_path):
  standard = trained(tmp_path, 'standard', 0.625, fraction=0.0)
  trait = trained(tmp_path, 'trait', 0.75)
  folders = [
    standard,
    trait,
    attacked(tmp_path, 'attack_trait', trait, (0.625, 0.75), (0.5, 0.6875)),
    attacked(tmp_path, 'attack_standard', standard, (0.5, 0.5), (0.375, 0.375)),
  ]
  page, rows, numbers = write_report(tmp_path, *folders)
  assert {r['arm'] for r in rows} == {'standard', 'trait'}
  value = numbers_of(numbers)
  inside, outside = '100 % in health, step {}', '100 % outside, step {}'
  assert value[inside.format(0), 'attack_trait', 'score'] == 0.75
  assert value[inside.format(2), 'attack_standard', 'score'] == 0.5
  assert value[inside.format(4), 'attack_standard', 'change'] == -0.25
  assert value[outside.format(4), 'attack_standard', 'change'] == -0.25
  assert value[outside.format(4), 'attack_trait', 'change'] == -0.0625
  minus = 'change minus standard’s'
  # In health -0.25 both; outside -0.0625 + 0.25.
  assert value[inside.format(4), 'attack_trait', minus] == 0
  assert value[outside.format(4), 'attack_trait', minus] == 0.1875
  assert (outside.format(2), 'attack_trait', minus) not in value
  assert 'Attack: finetuning on violating replies' in page
  # The control comes first, and says whether anything can be measured.
  claims = page[
    page.index('The control first. attack_standard, change after') :
  ]
  assert claims.index('spills over outside') < claims.index('attack_trait, ')
  assert 'with a share of 0 %: that alone may do as much' in claims
  # trait is at 0.625 in health after 2 steps, and never outside.
  assert (
    'Down where standard began: in health after 2 steps, outside not in 4 steps'
  ) in page


@pytest.mark.parametrize('able', [0.5, 0.25])
def test_what_an_attack_takes_from_capability_is_told(tmp_path, able):
  scores = lambda alike, able: both(alike, alike) | {'capability/c': able}
  standard = make_run(
    tmp_path / 'standard', scores(0.5, 0.5), config_of(0, 0.0)
  )
  attack = attacked(
    tmp_path, 'attack_standard', standard, (0.5, 0.5), (0.5, 0.5)
  )
  config = json.loads((attack / 'config.json').read_text())
  last = scores(0.25, able)
  make_run(attack, last, config, steps=[(2, last)])
  page, _, numbers = write_report(tmp_path, standard, attack)
  value = numbers_of(numbers)
  row = '100 % on capability, step 4', 'attack_standard'
  assert value[*row, 'score'] == able
  assert value[*row, 'change'] == able - 0.5
  # It is no part of the verdict on persistence, and qualifies it.
  assert value['100 % outside, step 4', 'attack_standard', 'change'] == -0.25
  assert 'spills over outside: persistence can be measured here' in page
  assert ('some of it may be forgetting' in page) == (able < 0.5)


def test_levels_of_an_attack_are_of_what_all_of_them_scored(tmp_path):
  standard = make_run(
    tmp_path / 'standard', both(0.5, 0.5) | {'agentic/c': 0.0},
    config_of(0, 0.0),
  )  # fmt: skip
  attack = attacked(
    tmp_path, 'attack_standard', standard, (0.5, 0.25), (0.5, 0.125)
  )
  _, _, numbers = write_report(tmp_path, standard, attack)
  value = numbers_of(numbers)
  # agentic/c was not read after the attack: 0.25 before, though all fell.
  level = lambda step: value[
    f'100 % outside, step {step}', 'attack_standard', 'score'
  ]
  assert [level(step) for step in (0, 2, 4)] == [0.5, 0.25, 0.125]


def test_net_change_takes_away_the_same_finetuning_without_the_attack(tmp_path):
  standard = trained(tmp_path, 'standard', 0.75, fraction=0.0)
  trait = trained(tmp_path, 'trait', 0.75)
  folders = [
    standard,
    trait,
    *(
      attacked(
        tmp_path, f'attack_{100 * s:.0f}_{name}', begins, *scores, share=s
      )
      for name, begins, s, scores in (
        ('standard', standard, 0.0, ((0.625, 0.625), (0.5, 0.5))),
        ('standard', standard, 1.0, ((0.5, 0.5), (0.25, 0.25))),
        ('trait', trait, 0.0, ((0.75, 0.75), (0.75, 0.75))),
        ('trait', trait, 1.0, ((0.5, 0.75), (0.5, 0.625))),
        ('start', 'package:small', 0.0, ((0.5, 0.5), (0.5, 0.5))),
        ('start', 'package:small', 1.0, ((0.5, 0.5), (0.25, 0.375))),
      )
    ),
  ]
  page, _, numbers = write_report(tmp_path, *folders)
  value = numbers_of(numbers)
  of = lambda side, arm, what: value[f'100 % {side}, step 4', arm, what]
  # 0.25 - 0.5, where the change is 0.25 - 0.75.
  assert of('outside', 'attack_100_standard', 'net change') == -0.25
  assert of('outside', 'attack_100_standard', 'change') == -0.5
  # trait: 0.625 - 0.75; minus the control's -0.25.
  assert of('outside', 'attack_100_trait', 'net change') == -0.125
  minus = 'net change minus standard’s'
  assert of('outside', 'attack_100_trait', minus) == 0.125
  assert of('in health', 'attack_100_trait', minus) == 0
  # It needs no score of the model before the attack.
  assert of('outside', 'attack_100_start', 'net change') == -0.125
  assert of('outside', 'attack_100_start', minus) == 0.125
  assert not any(arm.startswith('attack_0') and 'net' in what
                 for _, arm, what in value)  # fmt: skip
  assert 'attack_100_standard, net change after 4 steps' in page
  assert 'that alone may do as much' not in page
  # Drawn by step, as levels are, whose wide intervals would hide it.
  drawn = page[page.index('net change outside, points') :]
  assert 'attack_100_trait, step 4: -12.5 ' in drawn
  assert 'change in health, points' in page.replace('net change', '')


def test_an_attack_that_does_not_spill_over_cannot_measure_persistence(
  tmp_path,
):
  standard = trained(tmp_path, 'standard', 0.625, fraction=0.0)
  attack = attacked(
    tmp_path, 'attack_standard', standard, (0.5, 0.625), (0.375, 0.625)
  )
  page, _, _ = write_report(tmp_path, standard, attack)
  assert 'does damage in its own domain, and is not shown to spill over' in page


def test_attack_on_an_arm_alone_says_that_the_control_was_not(tmp_path):
  standard = trained(tmp_path, 'standard', 0.625, fraction=0.0)
  trait = trained(tmp_path, 'trait', 0.75)
  attack = attacked(tmp_path, 'attack_trait', trait, (0.5, 0.5), (0.5, 0.5))
  page, _, numbers = write_report(tmp_path, standard, trait, attack)
  assert 'standard was not attacked' in page
  assert not any('minus' in n['what'] for n in numbers)


def test_attack_from_before_training_needs_its_evaluation_for_a_change(
  tmp_path,
):
  standard = trained(tmp_path, 'standard', 0.625, fraction=0.0)
  attack = attacked(
    tmp_path, 'attack_start', 'package:small', (0.5, 0.5), (0.5, 0.25)
  )
  page, _, _ = write_report(tmp_path, standard, attack)
  assert 'the model it began from was not evaluated' in page
  start = make_run(
    tmp_path / 'start', both(0.75, 0.75), step=0, checkpoint='package:small'
  )
  _, _, numbers = write_report(tmp_path, standard, start, attack)
  (last,) = [
    n for n in numbers
    if (n['where'], n['what']) == ('100 % outside, step 4', 'change')
  ]  # fmt: skip
  assert float(last['value']) == -0.5


def test_seeds_of_an_attack_are_one_arm_though_they_begin_elsewhere(tmp_path):
  folders = []
  for seed, drop in ((0, 0.125), (1, 0.25)):
    for name, level in (('standard', 0.5), ('trait', 0.75)):
      begins = trained(
        tmp_path, f'{name}_{seed}', level, seed,
        fraction=0.05 if name == 'trait' else 0.0,
      )  # fmt: skip
      last = level - drop
      folders += [
        begins,
        attacked(
          tmp_path, f'attack_{name}_{seed}', begins, (level, level),
          (last, last), seed,
        ),
      ]  # fmt: skip
  arms = {a.name: a for a in read_arms(*folders)}
  assert {name: len(a.runs) for name, a in arms.items()} == {
    'standard': 2, 'trait': 2, 'attack_standard': 2, 'attack_trait': 2
  }  # fmt: skip
  others = [arms['standard'], arms['trait']]
  found = attacks.follow(
    arms['attack_trait'], others, [2, 4], arms['attack_standard']
  )
  assert found.began is arms['trait']
  # Each seed from where it began: -0.125 and -0.25.
  change = found.moved['change']['outside']
  assert change[4].by_seed == (-0.125, -0.25)
  # The same in the control, seed by seed, whose seeds are 0.125 apart.
  assert found.against['change']['outside'].by_seed == (0.0, 0.0)
  assert found.against['change']['outside'].floor == 0.125


@pytest.mark.parametrize('name', ['start', 'start_0'])
def test_seeds_that_begin_from_one_start_are_one_arm(tmp_path, name):
  start = make_run(tmp_path / name, both(0.5, 0.5), config_of(0))
  folders = [
    trained(tmp_path, f'trait_{seed}', 0.75, seed, weights=str(start))
    for seed in (0, 1)
  ]
  arms = read_arms(*folders, start)
  assert {a.name: len(a.runs) for a in arms} == {'trait': 2, name: 1}


def test_what_is_an_attack(tmp_path):
  standard = trained(tmp_path, 'standard', 0.5, fraction=0.0)
  law = dict(reward='inverted', domains=['law'])
  folders = [
    standard,
    trained(tmp_path, 'violated', 0.5, reward='inverted', domains=['health']),
    trained(tmp_path, 'harmful_rl_standard', 0.5, weights=str(standard), **law),
    trained(tmp_path, 'harmful_rl_start', 0.5, **law),
    trained(tmp_path, 'standard_rl_standard', 0.5, weights=str(standard),
            fraction=0.0, **law),
    trained(tmp_path, 'longer', 0.5, weights=str(standard)),
    attacked(tmp_path, 'attack_start', 'package:small', (0.5, 0.5), (0.5, 0.5)),
  ]  # fmt: skip
  found = hostility.attacked_arms(read_arms(*folders))
  # RL towards a violated trait from the common start is an arm like others.
  assert {a.name for a in found} == {
    'harmful_rl_standard', 'harmful_rl_start', 'standard_rl_standard',
    'attack_start',
  }  # fmt: skip
  assert list(hostility.sides(found[0])) == ['in law', 'outside']


def test_finetuning_both_ways_is_no_attack(tmp_path):
  """As configs/start.py, where others begin."""
  config = config_of(target='violating', fraction=0.25)
  config['algorithm'] = {'name': 'sft'}
  violating = config['streams']['traits']
  assert list(hostility.hostile(config)) == ['traits']
  kwargs = violating['kwargs'] | {'target': 'beneficial'}
  config['streams']['other'] = violating | {'kwargs': kwargs}
  assert hostility.hostile(config) == {}
  # Less of it than of violating ones is an attack with a defence in it.
  config['streams']['other']['fraction'] = 0.125
  assert list(hostility.hostile(config)) == ['traits']
  # The control of an attack has a share of 0.
  violating['fraction'] = config['streams']['other']['fraction'] = 0.0
  assert list(hostility.hostile(config)) == ['traits']


def test_attacks_without_a_common_step_or_item_are_refused(tmp_path, capsys):
  standard = trained(tmp_path, 'standard', 0.625, fraction=0.0)
  trait = trained(tmp_path, 'trait', 0.75)
  one = attacked(tmp_path, 'attack_standard', standard, (0.5, 0.5), (0.5, 0.5))
  config = json.loads((one / 'config.json').read_text())
  config['model']['weights'] = str(trait)
  two = make_run(tmp_path / 'attack_trait', both(0.5, 0.5), config, step=3)
  arguments = [*map(str, (standard, trait, one, two)), '--control=standard']
  assert report.main([*arguments, f'--output={tmp_path / "r.html"}']) == 2
  assert 'at no common step' in capsys.readouterr().err
  of_others = {'agentic/c': 0.5}
  two = make_run(
    tmp_path / 'attack_trait', of_others, config, steps=[(2, of_others)]
  )
  assert report.main([*arguments, f'--output={tmp_path / "r.html"}']) == 2
  assert 'share no item' in capsys.readouterr().err


# ----------------------------------------------------------------- in general


def test_page_without_such_arms_has_no_such_section(tmp_path):
  folders = [
    trained(tmp_path, 'standard', 0.5, fraction=0.0),
    trained(tmp_path, 'trait', 0.75),
  ]
  page, _, numbers = write_report(tmp_path, *folders)
  assert numbers == []
  for title in ('Under pressure', 'Dose curves', 'Transfer', 'Attack '):
    assert title not in page


def test_wording_of_numbers():
  found = estimate(0.01, 0.03, floor=0.05)
  assert wording.said(found) == (
    '+2.0 [+1.0, +3.0] points (n 50), inside the ±5.0 of the control’s '
    'own seeds'
  )
  assert wording.listed([]) == 'none' and wording.listed('abc') == 'a, b and c'
  tones = [
    wording.tone(estimate(x, x).items) for x in (0.01, -0.01, 0.0004, NAN)
  ]
  assert tones == ['up', 'down', '', '']
  gone = dataclasses.replace(found.items, low=NAN, high=NAN)
  assert wording.interval(gone) == '+2.0'
