import csv
import json
import re
import subprocess
import sys

import pytest

from alignment_rl import report

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


def make_arm(folder, scores, *, area='honesty', trained=True, rollouts=None):
  """A workdir; `scores` is benchmark -> a score per item, None = unscored."""
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
    )  # fmt: skip
    items = [{'id': f'item{i}', 'score': v} for i, v in enumerate(values)]
    path = folder / 'evaluation/scores' / f'{name.replace("/", "__")}.jsonl'
    write_lines(path, items)
  write_lines(folder / 'evaluation/results.jsonl', results)
  if trained:
    config = {'seed': 0, 'streams': {'traits': {'fraction': 0.25}}}
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


def page_data(page):
  """What the page's script reads, as a browser finds it: up to '</script'."""
  block = re.search(r'<script type="application/json"[^>]*>(.*?)</script', page)
  return json.loads(block.group(1))


def test_csv_has_the_hand_worked_numbers(arms, tmp_path):
  assert run(tmp_path / 'out/r.html', *arms) == 0
  with open(tmp_path / 'out/r.csv') as f:
    rows = {(r['arm'], r['benchmark']): r for r in csv.DictReader(f)}
  assert len(rows) == 4
  x = rows['traits', 'honesty/x']
  # Items 0, 1, 4 are scored in both: 1 - 0, 1 - 1, 0.75 - 0.25, mean 0.5. The
  # means are over what each arm scored: 3.75 / 4 and 1.75 / 4.
  assert (x['area'], x['n']) == ('honesty', '3')
  assert float(x['score']) == 0.9375
  assert float(x['control_score']) == 0.4375
  assert float(x['difference']) == 0.5
  # Of 27 draws one is all 0 and one all 1, 3.7 % each: beyond 2.5 %.
  assert (float(x['low']), float(x['high'])) == (0.0, 1.0)
  one = rows['traits', 'honesty/one']
  assert (one['n'], float(one['difference'])) == ('1', 0.25)
  assert one['low'] == one['high'] == ''
  own = rows['base', 'honesty/x']
  assert (own['n'], own['difference'], own['low']) == ('4', '', '')


def test_table_is_printed_and_the_last_line_names_the_page(
  arms, tmp_path, capsys
):
  run(tmp_path / 'r.html', *arms)
  lines = capsys.readouterr().out.splitlines()
  assert lines[-1] == f'report: {tmp_path / "r.html"}'
  assert re.split(r'\s{2,}', lines[2]) == [
    'honesty/x', '43.8', '93.8', '+50.0 [0.0, +100.0]',
  ]  # fmt: skip
  # Of +50 and +25 the mean is 37.5; draws reach from one to the other.
  assert 'mean over benchmarks' in lines[3]
  assert lines[3].endswith('+37.5 [+25.0, +50.0]')


def test_page_states_the_verdict_and_that_two_benchmarks_are_too_few(
  arms, tmp_path
):
  run(tmp_path / 'r.html', *arms)
  page = (tmp_path / 'r.html').read_text()
  assert 'Ahead of base on 2 of 2, behind on 0.' in page
  assert 'too few benchmarks to tell' in page
  assert 'better than base' not in page


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
  ids = lambda groups: [g['id'] for g in report.pick(groups)]
  assert ids(one) == ids(two)
  assert len(ids(one)) == report.GROUPS


def test_arm_without_a_benchmark_of_the_control_has_no_difference(tmp_path):
  control = make_arm(tmp_path / 'base', {'honesty/x': [1.0, 0.0]})
  other = make_arm(tmp_path / 'traits', {'honesty/y': [1.0, 0.5]})
  assert run(tmp_path / 'r.html', control, other) == 0
  with open(tmp_path / 'r.csv') as f:
    rows = {(r['arm'], r['benchmark']): r for r in csv.DictReader(f)}
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
