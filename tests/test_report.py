import csv
import html
import json
import re
import subprocess
import sys

import pytest

from alignment_rl import report, suite
from alignment_rl.reporting import arms as arms_lib
from alignment_rl.reporting import page as page_lib
from alignment_rl.reporting import workdirs

ATTACK = '</script><script>alert(1)</script><!--<script><img src=x onerror=f()>'


def write_lines(path, records):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(r) + '\n' for r in records))


def group(step, stream='traits', text='Fine.', key=0):
  return {
    'step': step,
    'stream': stream,
    'id': f'{stream}/{key}',
    'messages': [{'role': 'user', 'content': 'Is it safe?'}],
    'completions': [text, 'No.'],
    'rewards': [0.75, None],
    'advantages': [0.25, 0.0],
    'lengths': [3, 2],
    'truncated': [False, True],
  }


def make_arm(
  folder, scores, *, area='honesty', trained=True, rollouts=None, tables=None,
  labels=None, seed=0, fraction=0.25,
):  # fmt: skip
  """A workdir.

  Args:
    scores: benchmark -> a score per item, None = unscored.
    tables: benchmark -> table; those left out have no such field.
    labels: benchmark -> further fields of each item.
  """
  results = []
  for name, values in scores.items():
    known = [v for v in values if v is not None]
    results.append(
      {
        'arm': folder.name, 'step': 2, 'benchmark': name, 'area': area,
        'protocol': 'choice', 'n': len(known),
        'unscored': len(values) - len(known),
        'score': sum(known) / len(known) if known else None,
        'chance': 0.5, 'metric': 'accuracy', 'version': 1,
      }
      | ({'table': tables[name]} if name in (tables or {}) else {})
    )  # fmt: skip
    items = [{'id': f'item{i}', 'score': v} for i, v in enumerate(values)]
    for item, fields in zip(items, (labels or {}).get(name, []), strict=False):
      item |= fields
    path = folder / 'evaluation/scores' / f'{name.replace("/", "__")}.jsonl'
    write_lines(path, items)
  write_lines(folder / 'evaluation/results.jsonl', results)
  if trained:
    config = {'seed': seed, 'streams': {'traits': {'fraction': fraction}}}
    (folder / 'config.json').write_text(json.dumps(config))
    lines = [
      {'step': s, 'loss': 0.1 * s, 'kl': None, 'reward/traits': 0.5 + 0.1 * s,
       'dose/traits/slots': 0.25 - 0.0625 * s}
      for s in range(3)
    ]  # fmt: skip
    write_lines(folder / 'metrics.jsonl', lines)
    write_lines(folder / 'rollouts.jsonl', rollouts or [group(0), group(1)])
  return folder


@pytest.fixture
def arms(tmp_path):
  control = make_arm(
    tmp_path / 'base',
    {'honesty/x': [0.0, 1.0, 0.5, None, 0.25], 'honesty/one': [0.5]},
    trained=False,
  )
  treatment = make_arm(
    tmp_path / 'traits',
    {'honesty/x': [1.0, 1.0, None, 1.0, 0.75], 'honesty/one': [0.75]},
  )
  return control, treatment


def run(output, *folders, control='base'):
  return report.main(
    [*map(str, folders), f'--control={control}', f'--output={output}']
  )


def csv_rows(path):
  with open(path) as f:
    return {(r['arm'], r['benchmark']): r for r in csv.DictReader(f)}


def page_data(page):
  """What the page's script reads, as a browser finds it: up to '</script'."""
  block = re.search(r'<script type="application/json"[^>]*>(.*?)</script', page)
  return json.loads(block.group(1))


def test_csv_has_the_hand_worked_numbers(arms, tmp_path):
  assert run(tmp_path / 'out/r.html', *arms) == 0
  rows = csv_rows(tmp_path / 'out/r.csv')
  assert len(rows) == 4
  x = rows['traits', 'honesty/x']
  # Items 0, 1, 4 are scored in both: 1 - 0, 1 - 1, 0.75 - 0.25, mean 0.5. The
  # means are over what each arm scored: 3.75 / 4 and 1.75 / 4.
  assert (x['area'], x['n']) == ('honesty', '3')
  assert float(x['score']) == 0.9375
  assert float(x['control_score']) == 0.4375
  assert float(x['difference']) == 0.5
  # 0.9375 is 0.875 of the way from chance, 0.5, to 1.
  assert float(x['above_chance']) == 0.875
  # Three items are too few for an interval. Two that changed: 2 of 4 patterns
  # of signs reach 1.5; the other benchmark's p is 1, so q = min(2 * 0.5, 1).
  assert (x['low'], x['high']) == ('', '')
  assert (float(x['p']), float(x['q'])) == (0.5, 1.0)
  assert (x['table'], x['clusters'], x['matched_n']) == ('alignment', '3', '')
  one = rows['traits', 'honesty/one']
  assert (one['n'], float(one['difference'])) == ('1', 0.25)
  assert one['low'] == one['high'] == ''
  own = rows['base', 'honesty/x']
  assert (own['n'], own['difference'], own['low']) == ('4', '', '')


def test_verdict_and_table_are_printed_and_the_last_line_names_the_page(
  arms, tmp_path, capsys
):
  run(tmp_path / 'r.html', *arms)
  lines = capsys.readouterr().out.splitlines()
  assert lines[-1] == f'report: {tmp_path / "r.html"}'
  # Of two benchmarks ahead 2 of 4 patterns of signs are as far from 0.
  assert lines[0] == (
    'traits: ahead of base on 2 of 2, significantly on 0, significantly behind '
    'on 0 (q <= 0.05); mean +37.5, sign-flip p 0.500'
  )
  assert re.split(r'\s{2,}', lines[4]) == [
    'honesty/x', '43.8', '93.8', '+50.0', '0.500', '1.000'
  ]  # fmt: skip
  assert re.split(r'\s{2,}', lines[5]) == [
    'mean over benchmarks', '+37.5', '0.500'
  ]  # fmt: skip


def text_of(page):
  """What a reader sees of the page, in one line."""
  page = re.sub(r'<(script|style|svg).*?</\1>', '', page, flags=re.S)
  page = html.unescape(re.sub(r'<[^>]*>', '', page))
  return re.sub(r'\s+', ' ', page).replace('−', '-')


def read(tmp_path):
  return text_of((tmp_path / 'r.html').read_text())


def test_page_states_the_verdict_and_that_two_benchmarks_are_too_few(
  arms, tmp_path
):
  run(tmp_path / 'r.html', *arms)
  page = read(tmp_path)
  assert '2 of 2 ahead of base, 0 behind' in page
  assert 'too few benchmarks to tell' in page
  assert 'better than base' not in page
  assert 'One training seed' in page


def suite_of(gain, names, n=12, tables=None, **kwargs):
  """Arguments of a workdir whose items are all `gain` above 0.25."""
  scores = {name: [0.25 + gain] * n for name in names}
  return {'scores': scores, 'tables': tables, **kwargs}


def test_verdict_counts_gains_and_regressions_after_the_correction(tmp_path):
  ups, downs = [f'a/{i}' for i in range(7)], ['b/down']
  one = {**dict.fromkeys(ups, [0.5] * 12), 'b/down': [0.0] * 12, 'b/x': [0.25]}
  control = make_arm(tmp_path / 'base', dict.fromkeys(one, [0.25] * 12))
  arm = make_arm(tmp_path / 'traits', one)
  run(tmp_path / 'r.html', control, arm)
  page = read(tmp_path)
  # All 12 items of eight benchmarks move alike: p = 2 / 4096 each.
  assert '7 of 9 ahead of base, 1 behind, 1 level' in page
  assert '7 significant gains, 1 significant regression among 9' in page
  assert f'Regressions{downs[0]}.' in page
  rows = csv_rows(tmp_path / 'r.csv')
  assert float(rows['traits', 'a/0']['p']) == pytest.approx(2 / 4096, abs=1e-6)
  q = float(rows['traits', 'a/0']['q'])
  assert q == pytest.approx(2 / 4096 * 9 / 8, abs=1e-6)


def test_only_alignment_counts_and_the_other_tables_stand_apart(
  tmp_path, capsys
):
  names = [*(f'a/{i}' for i in range(6)), 'judged/own', 'capability/sums']
  tables = {
    'judged/own': 'judged', 'capability/sums': 'capability', 'a/0': 'alignment'
  }  # fmt: skip
  control = make_arm(tmp_path / 'base', **suite_of(0, names, tables=tables))
  arm = make_arm(tmp_path / 'traits', **suite_of(0.25, names, tables=tables))
  run(tmp_path / 'r.html', control, arm)
  page = read(tmp_path)
  assert '6 of 6 ahead of base' in page and 'of 8' not in page
  order = ['Alignment benchmarks', 'Judged', 'Capability', 'Learning curves']
  places = [page.index(f' {x} ') for x in order]
  assert places == sorted(places)
  assert page.count('1 of 1 ahead') == 2
  printed = capsys.readouterr().out
  assert 'on 6 of 6' in printed and 'judged, points' in printed
  rows = csv_rows(tmp_path / 'r.csv')
  assert rows['traits', 'judged/own']['table'] == 'judged'
  # A correction for each table: six of p = 2 / 4096, and one alone.
  assert rows['traits', 'judged/own']['q'] == rows['traits', 'a/0']['q']


def test_page_without_the_table_of_the_verdict(tmp_path):
  tables = {'capability/sums': 'capability'}
  make = lambda name, gain: make_arm(
    tmp_path / name, **suite_of(gain, list(tables), tables=tables)
  )
  assert run(tmp_path / 'r.html', make('base', 0), make('traits', 0.25)) == 0
  assert '1 of 1 ahead' in read(tmp_path)


def test_items_of_a_cluster_count_as_one(tmp_path):
  cluster = [{'cluster': f'source {i // 2}'} for i in range(12)]
  both = {'scores': {'a/x': [0.5] * 13}, 'labels': {'a/x': cluster}}
  arm = make_arm(tmp_path / 'traits', **both)
  both['scores'] = {'a/x': [0.25] * 13}
  control = make_arm(tmp_path / 'base', **both)
  run(tmp_path / 'r.html', control, arm)
  row = csv_rows(tmp_path / 'r.csv')['traits', 'a/x']
  # Six pairs and one item of its own.
  assert (row['n'], row['clusters']) == ('13', '7')
  assert float(row['p']) == pytest.approx(2 / 128, abs=1e-6)
  assert 'in 7 clusters' in read(tmp_path)


def test_refusal_matched_difference_is_over_items_that_both_answer(tmp_path):
  refused = lambda *labels: {
    'labels': {'a/x': [{'refused': x} for x in labels]}
  }
  control = make_arm(
    tmp_path / 'base', {'a/x': [0.0, 0.5, 0.5, 0.0], 'a/y': [0.5]},
    **refused('none', 'full', 'partial', 'none'),
  )  # fmt: skip
  arm = make_arm(
    tmp_path / 'traits', {'a/x': [1.0, 0.5, 0.75, 0.5], 'a/y': [0.5]},
    **refused('full', 'none', 'none', 'none'),
  )  # fmt: skip
  run(tmp_path / 'r.html', control, arm)
  rows = csv_rows(tmp_path / 'r.csv')
  x, y = rows['traits', 'a/x'], rows['traits', 'a/y']
  # Items 2 and 3 stay: 0.25 and 0.5; all four: (1 + 0 + 0.25 + 0.5) / 4.
  assert float(x['difference']) == 0.4375
  assert (x['matched_n'], float(x['matched_difference'])) == ('2', 0.375)
  assert (y['matched_n'], y['matched_difference']) == ('', '')
  page = read(tmp_path)
  assert 'refusal-matched' in page and '+37.5 without 2' in page


def test_items_without_a_label_are_not_taken_for_answered(tmp_path):
  labels = {'a/x': [{'refused': 'none'}]}
  control = make_arm(tmp_path / 'base', {'a/x': [0.0, 0.0]}, labels=labels)
  arm = make_arm(tmp_path / 'traits', {'a/x': [1.0, 0.5]}, labels=labels)
  run(tmp_path / 'r.html', control, arm)
  row = csv_rows(tmp_path / 'r.csv')['traits', 'a/x']
  assert (row['matched_n'], float(row['matched_difference'])) == ('1', 1.0)


def test_page_without_labels_has_no_refusal_column(arms, tmp_path):
  run(tmp_path / 'r.html', *arms)
  table = (tmp_path / 'r.html').read_text()
  assert '<button>q</button>' in table
  assert '<button>refusal-matched</button>' not in table


def seeds(tmp_path, name, values, **kwargs):
  """Runs NAME_0, NAME_1, ... whose items of both benchmarks score `values`."""
  return [
    make_arm(
      tmp_path / f'{name}_{seed}',
      {'a/x': [value] * 8, 'a/y': [value] * 8},
      seed=seed, **kwargs,
    )
    for seed, value in enumerate(values)
  ]  # fmt: skip


def test_runs_that_differ_in_seed_alone_are_one_arm(tmp_path, capsys):
  control = seeds(tmp_path, 'control', [0.25, 0.5], fraction=0.0)
  traits = seeds(tmp_path, 'traits', [0.5, 1.0])
  folders = [traits[1], *control, traits[0]]
  assert run(tmp_path / 'r.html', *folders, control='control') == 0
  # By seed: 0.5 - 0.25 and 1 - 0.5, mean 0.375, t(1) = 12.706 times 0.125.
  page = read(tmp_path)
  assert '2 of 2 ahead of control' in page
  assert 'Over 2 seeds, as the unit: +37.5 points [-121.3, +196.3]' in page
  assert '2 runs that differ in seed alone (0, 1)' in page
  assert 'One training seed' not in page
  row = csv_rows(tmp_path / 'r.csv')['traits', 'a/x']
  assert (row['n'], float(row['difference'])) == ('8', 0.375)
  assert (float(row['score']), float(row['control_score'])) == (0.75, 0.375)
  # The control's seeds are 25 points apart, one ahead everywhere.
  floor = (
    '2 control runs that differ in seed alone are up to 25.0 points apart in '
    'the mean over benchmarks; one is ahead of another on 0 to 2 of 2.'
  )
  assert floor in page and floor in capsys.readouterr().out
  assert 'The mean difference lies outside what' in page
  assert 'seeds ±25.0' in page


def test_differences_as_small_as_those_of_seeds_say_so(tmp_path, capsys):
  control = seeds(tmp_path, 'control', [0.25, 0.5], fraction=0.0)
  near = seeds(tmp_path, 'near', [0.5, 0.625], fraction=0.1)
  far = seeds(tmp_path, 'far', [0.75, 1.0], fraction=0.2)
  folders = [*control, *near, *far]
  assert run(tmp_path / 'r.html', *folders, control='control') == 0
  # near is 18.75 points ahead, far 50, and the control's seeds 25 apart.
  first, second = capsys.readouterr().out.splitlines()[:2]
  assert first.startswith('near: ')
  assert first.endswith('; inside what the seeds of control alone show')
  assert second.startswith('far: ') and 'inside' not in second
  # On each of two benchmarks, beside each of two differences.
  assert read(tmp_path).count(']seed noise') == 2
  rows = csv_rows(tmp_path / 'r.csv')
  assert float(rows['near', 'a/x']['noise_floor']) == 0.25


def test_a_difference_that_reads_zero_has_no_colour(tmp_path):
  control = make_arm(tmp_path / 'base', {'a/x': [0.5] * 8, 'a/y': [0.5] * 8})
  arm = make_arm(
    tmp_path / 'traits', {'a/x': [0.5004] * 8, 'a/y': [0.4] * 8}
  )  # fmt: skip
  run(tmp_path / 'r.html', control, arm)
  page = (tmp_path / 'r.html').read_text()
  cells = re.findall(r'<td class="difference ([^"]*)" data-v="([^"]*)"', page)
  classes = {round(float(v), 4): set(names.split()) for names, v in cells}
  assert classes == {0.0004: {'sure'}, -0.1: {'down', 'sure'}}


def test_verdict_has_items_as_the_unit_too(tmp_path):
  """Five benchmarks are too few for an interval, their 15 items are not."""
  names = [f'a/{i}' for i in range(5)]
  score = lambda base: {n: [base, base, base + 0.25] for n in names}
  control = make_arm(tmp_path / 'base', score(0.25))
  arm = make_arm(tmp_path / 'traits', score(0.5))
  run(tmp_path / 'r.html', control, arm)
  assert (
    'Over 15 items of these benchmarks, as the unit: +25.0 points '
    '[+25.0, +25.0], p <0.001'
  ) in read(tmp_path)


def test_an_interval_over_seeds_says_what_it_leaves_out(tmp_path):
  """One trained control for both runs; an untrained one has no seed."""
  traits = seeds(tmp_path, 'traits', [0.5, 0.75])
  for trained in (True, False):
    control = make_arm(
      tmp_path / f'base{trained}', {'a/x': [0.25] * 8, 'a/y': [0.5] * 8},
      trained=trained, fraction=0.0,
    )  # fmt: skip
    run(tmp_path / 'r.html', control, *traits, control=control.name)
    said = f'All against one run of {control.name}' in read(tmp_path)
    assert said is trained


def test_a_run_is_compared_with_the_control_of_its_seed(tmp_path):
  control = seeds(tmp_path, 'control', [0.25, 0.5], fraction=0.0)
  traits = seeds(tmp_path, 'traits', [0.5, 0.75])
  run(tmp_path / 'r.html', *control, traits[1], control='control')
  row = csv_rows(tmp_path / 'r.csv')['traits_1', 'a/x']
  assert float(row['difference']) == 0.25
  assert 'lies inside what' in read(tmp_path)


def test_controls_that_share_no_scored_item_have_no_noise_floor(tmp_path):
  control = seeds(tmp_path, 'control', [None, 0.5], fraction=0.0)
  traits = seeds(tmp_path, 'traits', [0.5, 0.75])
  assert run(tmp_path / 'r.html', *control, *traits, control='control') == 0
  assert 'Noise floor:' not in read(tmp_path)
  assert 'without 2 benchmarks that a pair of runs lacks' in read(tmp_path)


def test_runs_are_compared_with_the_only_control(tmp_path):
  control = make_arm(
    tmp_path / 'base', {'a/x': [0.25] * 8, 'a/y': [0.5] * 8}, trained=False
  )
  traits = seeds(tmp_path, 'traits', [0.5, 0.75])
  run(tmp_path / 'r.html', control, *traits)
  row = csv_rows(tmp_path / 'r.csv')['traits', 'a/x']
  assert float(row['difference']) == 0.375
  assert 'Over 2 seeds' in read(tmp_path)
  assert 'Noise floor:' not in read(tmp_path)


def test_seeds_without_a_partner_are_refused(tmp_path, capsys):
  control = seeds(tmp_path, 'control', [0.25, 0.5], fraction=0.0)
  traits = seeds(tmp_path, 'traits', [0.5, 0.75, 0.75])
  check_refused(
    tmp_path, capsys, *control, *traits, control='control',
    says='seeds [0, 1, 2] and control [0, 1]',
  )  # fmt: skip


def test_doses_are_arms_of_their_own(tmp_path):
  control = make_arm(tmp_path / 'base', {'a/x': [0.25] * 8})
  doses = [
    make_arm(tmp_path / f'dose_{i}', {'a/x': [0.5] * 8}, seed=i, fraction=i / 9)
    for i in (1, 5)
  ]
  run(tmp_path / 'r.html', control, *doses)
  arms = {arm for arm, _ in csv_rows(tmp_path / 'r.csv')}
  assert arms == {'base', 'dose_1', 'dose_5'}


@pytest.mark.parametrize(
  'name, arm',
  [
    ('traits_0', 'traits'), ('trait-seed1', 'trait'), ('trait_s12', 'trait'),
    ('trait_seed_3', 'trait'), ('trait4', 'trait'), ('trait', 'trait'),
  ],
)  # fmt: skip
def test_names_of_runs(tmp_path, name, arm):
  """The number at the end goes, and what stands for 'seed' before it."""
  runs = [
    workdirs.read_run(make_arm(tmp_path / x, {'a/x': [0.5]}, seed=i))
    for i, x in enumerate((name, f'{arm}_99'))
  ]
  (found,) = arms_lib.as_arms(runs)
  assert (found.name, found.runs) == (arm, runs)


def test_one_seed_twice_is_two_arms(tmp_path):
  runs = [
    workdirs.read_run(make_arm(tmp_path / x, {'a/x': [0.5]}, seed=3))
    for x in ('trait_0', 'trait_1')
  ]
  assert [a.name for a in arms_lib.as_arms(runs)] == ['trait_0', 'trait_1']


def test_seeds_of_other_benchmarks_are_refused(tmp_path, capsys):
  base = make_arm(tmp_path / 'base', {'a/x': [0.5]})
  one = make_arm(tmp_path / 'trait_0', {'a/x': [0.5]}, seed=0)
  two = make_arm(tmp_path / 'trait_1', {'a/x': [0.5], 'a/y': [1]}, seed=1)
  check_refused(
    tmp_path, capsys, base, one, two, says="{'trait_0': 1, 'trait_1': 2}"
  )


def test_an_arm_of_runs_may_not_have_the_name_of_a_folder(tmp_path, capsys):
  runs = seeds(tmp_path, 'traits', [0.5, 0.75])
  plain = make_arm(tmp_path / 'traits', {'a/x': [0.5]}, fraction=0.5)
  check_refused(
    tmp_path, capsys, *runs, plain, says='rename a folder', control='traits'
  )


def test_the_control_is_called_as_its_arm(tmp_path, capsys):
  runs = seeds(tmp_path, 'control', [0.5, 0.75])
  check_refused(
    tmp_path, capsys, *runs, control='control_0', says="['control']"
  )


def test_items_in_two_clusters_are_refused(tmp_path, capsys):
  make = lambda name, cluster: make_arm(
    tmp_path / name, {'a/x': [0.5]}, labels={'a/x': [{'cluster': cluster}]}
  )
  check_refused(
    tmp_path, capsys, make('base', 'p'), make('traits', 'q'), says="'p' and 'q'"
  )


@pytest.mark.parametrize(
  'field, says',
  [({'refused': 'yes'}, "refused = 'yes'"), ({'cluster': 3}, 'cluster 3')],
)
def test_labels_that_are_none_are_refused(tmp_path, capsys, field, says):
  make = lambda name: make_arm(
    tmp_path / name, {'a/x': [0.5]}, labels={'a/x': [field]}
  )
  check_refused(tmp_path, capsys, make('base'), make('traits'), says=says)


def test_unknown_table_is_refused(tmp_path, capsys):
  make = lambda name: make_arm(
    tmp_path / name, {'a/x': [0.5]}, tables={'a/x': 'nope'}
  )
  check_refused(
    tmp_path, capsys, make('base'), make('traits'), says="table 'nope'"
  )


def test_tables_are_those_of_the_suite():
  assert workdirs.TABLES == suite.TABLES


def test_page_of_the_control_alone(tmp_path):
  control = make_arm(tmp_path / 'base', {'a/x': [0.5, 1.0]})
  assert run(tmp_path / 'r.html', control) == 0
  assert 'there is nothing to compare' in read(tmp_path)


def test_page_lists_the_final_dose_and_the_plan(arms, tmp_path):
  run(tmp_path / 'r.html', *arms)
  page = (tmp_path / 'r.html').read_text()
  row = page[page.index('Dose ledger') :]
  row = row[row.index('<td class="text">traits</td>') :]
  # Planned 0.25; the ledger's last line says 0.25 - 2 * 0.0625 = 0.125.
  assert row.index('25.0 %') < row.index('12.5 %') < row.index('</tr>')


def test_page_asks_no_server_for_anything(arms, tmp_path):
  run(tmp_path / 'r.html', *arms)
  page = (tmp_path / 'r.html').read_text()
  assert not re.search(r'(src|href)\s*=\s*["\']?\s*(https?:)?//', page)
  assert not re.search(r'url\(|@import|fetch\(|XMLHttpRequest', page)
  assert "default-src 'none'" in page


def test_text_of_a_completion_stays_text(arms, tmp_path):
  make_arm(arms[1], {'honesty/x': [1.0]}, rollouts=[group(0, text=ATTACK)])
  run(tmp_path / 'r.html', *arms)
  page = (tmp_path / 'r.html').read_text()
  assert len(re.findall('<script', page)) == len(re.findall('</script', page))
  assert len(re.findall('<script', page)) == 2
  assert '<!--' not in page and '<img' not in page
  assert page_data(page)[0]['completions'][0] == ATTACK


def test_names_are_escaped(tmp_path):
  control = make_arm(tmp_path / 'base', {'honesty/<i>x': [1.0, 0.0]})
  other = make_arm(tmp_path / '<b onclick=f()>', {'honesty/<i>x': [1.0, 1.0]})
  assert run(tmp_path / 'r.html', control, other) == 0
  page = (tmp_path / 'r.html').read_text()
  assert '<i>x' not in page and '<b onclick' not in page
  assert 'honesty/&lt;i&gt;x' in page


def test_rollouts_beyond_the_limit_are_counted_and_streams_share_the_room(
  arms, tmp_path
):
  many = [group(i, 'reasoning', key=i) for i in range(300)]
  few = [group(i, 'traits', key=i) for i in range(20)]
  make_arm(arms[1], {'honesty/x': [1.0]}, rollouts=many + few)
  run(tmp_path / 'r.html', *arms)
  page = (tmp_path / 'r.html').read_text()
  assert '200 of 320 groups, 120 left out' in page
  streams = [g['stream'] for g in page_data(page)]
  # The rare stream is whole, the common one has what is left.
  assert (streams.count('traits'), streams.count('reasoning')) == (20, 180)


def test_rollouts_of_two_arms_are_the_same_ones():
  one = [group(i, key=i, text='a') for i in range(300)]
  two = [group(i, key=i, text='b') for i in range(300)]
  ids = lambda groups: [g['id'] for g in page_lib.pick(groups)]
  assert ids(one) == ids(two)
  assert len(ids(one)) == page_lib.GROUPS


def test_arm_without_a_benchmark_of_the_control_has_no_difference(tmp_path):
  control = make_arm(tmp_path / 'base', {'honesty/x': [1.0, 0.0]})
  other = make_arm(tmp_path / 'traits', {'honesty/y': [1.0, 0.5]})
  assert run(tmp_path / 'r.html', control, other) == 0
  rows = csv_rows(tmp_path / 'r.csv')
  y = rows['traits', 'honesty/y']
  assert (y['n'], y['control_score'], y['difference']) == ('0', '', '')
  page = (tmp_path / 'r.html').read_text()
  assert 'nothing can be told' in page


def test_differing_config_fields_are_listed(arms, tmp_path):
  control = make_arm(tmp_path / 'control', {'honesty/x': [1.0, 0.0]})
  config = {'seed': 0, 'streams': {'traits': {'fraction': 0.0}}}
  (control / 'config.json').write_text(json.dumps(config))
  run(tmp_path / 'r.html', control, arms[1], control='control')
  page = (tmp_path / 'r.html').read_text()
  assert '1 field differs from control' in page
  assert re.search(
    r'streams\.traits\.fraction</th><td>0\.0</td><td>0\.25</td>', page
  )


def check_refused(tmp_path, capsys, *folders, says, control='base'):
  assert run(tmp_path / 'out/r.html', *folders, control=control) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1
  assert says in error
  assert not (tmp_path / 'out').exists()


def test_unknown_control_is_refused_and_leaves_no_file(arms, tmp_path, capsys):
  check_refused(
    tmp_path, capsys, *arms, control='nope', says="['base', 'traits']"
  )


def test_two_arms_of_one_name_are_refused(arms, tmp_path, capsys):
  twin = make_arm(tmp_path / 'other' / 'base', {'honesty/x': [1.0]})
  check_refused(tmp_path, capsys, *arms, twin, says='different names')


def test_folder_that_does_not_exist_is_refused(arms, tmp_path, capsys):
  gone = tmp_path / 'gone'
  check_refused(tmp_path, capsys, *arms, gone, says='alignment_rl.train')


def test_missing_evaluation_says_what_to_run(arms, tmp_path, capsys):
  (arms[1] / 'evaluation/results.jsonl').unlink()
  check_refused(tmp_path, capsys, *arms, says='alignment_rl.evaluate')


def test_config_that_is_no_json_is_refused(arms, tmp_path, capsys):
  (arms[1] / 'config.json').write_text('{')
  check_refused(tmp_path, capsys, *arms, says='config.json is no JSON')


def test_item_without_a_score_is_refused(arms, tmp_path, capsys):
  path = arms[1] / 'evaluation/scores/honesty__one.jsonl'
  path.write_text('{"id": "item0"}\n')
  check_refused(tmp_path, capsys, *arms, says='without id and score')


def test_repeated_item_is_refused(arms, tmp_path, capsys):
  path = arms[1] / 'evaluation/scores/honesty__one.jsonl'
  path.write_text(path.read_text() * 2)
  check_refused(tmp_path, capsys, *arms, says='2 lines and 1 different ids')


def test_scores_measured_in_two_ways_are_refused(arms, tmp_path, capsys):
  path = arms[1] / 'evaluation/results.jsonl'
  path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
  check_refused(tmp_path, capsys, *arms, says="{'base': 1, 'traits': 2}")


def test_half_a_line_is_refused_in_scores_but_not_in_a_running_log(
  arms, tmp_path, capsys
):
  with open(arms[1] / 'metrics.jsonl', 'a') as f:
    f.write('{"step": 3, "lo')
  assert run(tmp_path / 'r.html', *arms) == 0
  capsys.readouterr()
  with open(arms[1] / 'evaluation/scores/honesty__one.jsonl', 'a') as f:
    f.write('{"id": "item1"')
  check_refused(tmp_path, capsys, *arms, says='line 2 of')


def test_failed_write_leaves_the_old_report(arms, tmp_path, monkeypatch):
  run(tmp_path / 'r.html', *arms)
  before = {p.name: p.read_text() for p in tmp_path.glob('r.*')}

  def fail(source, target):
    raise OSError('disk full')

  monkeypatch.setattr(report.os, 'replace', fail)
  with pytest.raises(OSError, match='disk full'):
    run(tmp_path / 'r.html', *arms)
  assert {p.name: p.read_text() for p in tmp_path.glob('r.*')} == before


def test_report_imports_no_jax():
  code = (
    'import sys, alignment_rl.report; '
    'sys.exit(bool({"jax", "flax"} & set(sys.modules)))'
  )
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0
