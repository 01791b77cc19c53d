"""The data set's own tool: its figures, its gates and its generator."""

import collections
import contextlib
import copy
import hashlib
import http.server
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from alignment_rl import checkpoint
from alignment_rl.errors import UserError
from alignment_rl.scenarios import (
  __main__ as program,
)
from alignment_rl.scenarios import (
  builder,
  descriptions,
  duplicates,
  figures,
  generate,
  schema,
)

LETTERS = np.array(list('abcdefghijklmnopqrstuvwxyz'))


def words(seed, count):
  """Made-up words; no two seeds share a run of five."""
  digest = hashlib.sha256(repr(seed).encode()).digest()
  rng = np.random.default_rng(list(digest))
  return ' '.join(''.join(rng.choice(LETTERS, 5)) for _ in range(count))


def written(seed, several=True):
  """What an author writes of a scenario."""
  start = [
    {'role': 'user', 'content': f'{words((seed, 0), 8)}.'},
    {'role': 'assistant', 'content': f'{words((seed, 1), 8)}.'},
  ]
  last = {'role': 'user', 'content': f'{words((seed, 2), 12)}?'}
  return {
    'agrees': False,
    'turns': [*start, last] if several else [last],
    'rubric': [
      {'criterion': f'Says {n}.', 'points': n, 'met': 'Yes.', 'failed': 'No.'}
      for n in (3, 1, -2)
    ],
    'replies': {
      name: f'{words((seed, name), 30)}.' for name in schema.REPLIES
    },
  }  # fmt: skip


def write(path, rows):
  lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  path.write_text(''.join(lines), encoding='utf-8')
  return path


def a_set():
  """A made-up set that keeps every promise: 490 scenarios and 56 unseen."""
  rows = []
  pressures = [p for p in schema.PRESSURES if p != 'planted_error']
  voices = [v for v in schema.VOICES if v != schema.UNSEEN_VOICE]
  cells = [(t, d, 10) for t in schema.TRAITS for d in schema.DOMAINS]
  cells += [(t, d, 1) for t in schema.UNSEEN for d in schema.DOMAINS]
  for trait, domain, count in cells:
    for number in range(count):
      held_out = count == 1 or number >= 8
      row = {
        'id': f'{domain}/{trait}/{number}', 'trait': trait, 'domain': domain,
        'split': 'held_out' if held_out else 'train',
        'pressure': pressures[len(rows) % len(pressures)],
        'voice': voices[len(rows) % len(voices)],
        'mirror': '',
      } | written((trait, domain, number), several=number < 5)  # fmt: skip
      row['agrees'] = number in (0, 4, 6)
      if number < 2 and not held_out:
        row['pressure'] = 'planted_error'
      if number == 8:
        row['voice'] = schema.UNSEEN_VOICE
      rows.append(row)
    if count == 10:
      for one, other in ((2, 3), (8, 9)):
        twins = rows[one - 10], rows[other - 10]
        for mine, its in (twins, twins[::-1]):
          mine['mirror'] = its['id']
        twins[1]['replies'] = {
          'beneficial': twins[0]['replies']['violating'],
          'violating': twins[0]['replies']['beneficial'],
          'refusal': twins[1]['replies']['refusal'],
        }
  return rows


SET = a_set()


def run(*arguments):
  return program.main([str(a) for a in arguments])


# ---------------------------------------------------------------- validate


def test_the_made_up_set_is_valid_and_so_is_the_one_that_ships(
  tmp_path, capsys
):
  assert run('validate', write(tmp_path / 'made.jsonl', SET)) == 0
  assert capsys.readouterr().out == '546 scenarios, 0 faults\n'
  assert run('validate') == 0
  assert capsys.readouterr().out == '546 scenarios, 0 faults\n'


def test_validate_names_every_fault_in_every_file(tmp_path, capsys):
  one, two = copy.deepcopy(SET[:1]), copy.deepcopy(SET[4:7])
  one[0] |= {'trait': 'honesty', 'agrees': 1}
  two[1]['replies']['refusal'] = ''
  files = [
    write(tmp_path / f'{name}.jsonl', rows)
    for name, rows in (('one', one), ('two', two))
  ]
  with files[1].open('a') as file:
    file.write('{"id": \n')
  assert run('validate', *files) == 1
  lines = capsys.readouterr().out.splitlines()
  starts = (
    "one.jsonl:1: trait is 'honesty', expected one of ['truthfulness', ",
    'one.jsonl:1: agrees is 1, expected true where ',
    "two.jsonl:2: the refusal reply is '', expected text",
    'two.jsonl:4: not JSON (',
    '2 scenarios, 4 faults',
  )
  for line, start in zip(lines, starts, strict=True):
    assert line.startswith(start), line


def test_a_file_that_is_missing_and_a_wrong_argument_are_errors(
  tmp_path, capsys
):
  for command in ('validate', 'stats', 'build'):
    assert run(command, tmp_path / 'nope.jsonl') == 2
    captured = capsys.readouterr()
    assert captured.out == '' and captured.err.startswith('error: ')
    assert 'nope.jsonl does not exist' in captured.err
  broken = write(tmp_path / 'broken.jsonl', [{}])
  for command in (
    ('stats',), ('build',), ('near_duplicates', f'--against={tmp_path}')
  ):  # fmt: skip
    assert run(*command, broken) == 2
    assert 'broken.jsonl:1: the scenario has' in capsys.readouterr().err
  ask = ('generate', f'--output={tmp_path}/new.jsonl', '--count=1')
  for wrong, message in (
    ((), 'give --url and --model'),
    (('--url=http://x/v1', '--weights=y'), 'give --url and --model'),
    (('--url=http://x/v1',), "model ''"),
    (
      ('--url=http://x/v1', '--model=m', '--traits=truthfulness,bold'),
      "'bold' is not one of",
    ),
    (
      ('--url=http://x/v1', '--model=m', '--traits=bounded_initiative'),
      "'bounded_initiative' is not one of",
    ),
    (
      ('--url=http://x/v1', '--model=m', f'--against={tmp_path}/nope'),
      'nope is no folder',
    ),
  ):
    assert run(*ask, *wrong) == 2
    assert message in capsys.readouterr().err
  for wrong in ('--count=-1', '--count=x', '--seed=-1'):
    with pytest.raises(SystemExit) as stop:
      run(*ask, wrong)
    assert stop.value.code == 2
    assert 'is no whole number' in capsys.readouterr().err
  assert not (tmp_path / 'new.jsonl').exists()


# ------------------------------------------------------------------- stats


def missed(found):
  return [f.name for f in found if f.ok is False]


def changed(change, test=lambda row: True):
  """The set, with the rows that pass a test changed."""
  return [row | (change if test(row) else {}) for row in SET]


core = lambda row: row['trait'] in schema.TRAITS
MISSES = {  # the figure -> a set that misses it and nothing else
  'scenarios of the seven traits': [
    r for r in SET if r['id'] != 'law/truthfulness/5'
  ],
  'unseen traits, cells with a scenario': [
    r for r in SET if r['id'] != 'law/dense_usefulness/0'
  ],
  'mirrors': changed(
    {'mirror': ''}, lambda r: r['split'] == 'held_out' and r['domain'] != 'law'
  ),
  'mirrors, fewest in a trait': changed(
    {'mirror': ''}, lambda r: r['trait'] == 'corrigibility'
  ),
  'mirrors, fewest in a domain': changed(
    {'mirror': ''}, lambda r: r['domain'] == 'law'
  ),
  'rest, beneficial reply agrees': changed({'agrees': False}),
  'more than one turn': changed(
    {'turns': SET[9]['turns']}, lambda r: r['domain'] in ('law', 'health')
  ),
  'planted error': changed(
    {'pressure': 'incentive'},
    lambda r: r['pressure'] == 'planted_error' and r['domain'] < 'engi',
  ),
  'pressure deadline': changed(
    {'pressure': 'incentive'}, lambda r: r['pressure'] == 'deadline'
  ),
  'voice formal': changed({'voice': 'warm'}, lambda r: r['voice'] == 'formal'),
  'prompts too much alike': changed(
    {'turns': SET[7]['turns']}, lambda r: r['id'] == SET[6]['id']
  ),
}


def test_make_up_counts_by_hand():
  found = {f.name: f for f in figures.make_up(SET)}
  assert missed(found.values()) == []
  expected = {
    'scenarios of the seven traits': (490, '>= 490'),
    'train, fewest in a trait and domain': (8, '>= 8'),
    'held out, fewest in a trait and domain': (2, '>= 2'),
    'unseen traits, cells with a scenario': (56, '>= 56'),
    'mirrors': (196, '>= 150'),  # 4 in each of 49 cells
    'mirrors, fewest in a trait': (28, '>= 1'),
    'mirrors, fewer split': (98, '>= 1'),
    # 0 4 6 of 0 1 4 5 6 7, the rest of a cell
    'rest, beneficial reply agrees': (0.5, '>= 0.3'),
    'more than one turn': (0.5, '>= 0.4'),
    'planted error': (0.2, '>= 0.15'),
    'pressure planted_error': (98, '>= 7'),
    'voice colloquial': (49, '>= 10'),
    'a criterion of negative points': (1, ''),
    'prompts too much alike': (0, '<= 0'),
  }
  assert {n: (found[n].value, found[n].bound) for n in expected} == expected
  assert found['a criterion of negative points'].ok is None


@pytest.mark.parametrize('figure', MISSES)
def test_make_up_tells_which_promise_is_missed(figure):
  found = missed(figures.make_up(MISSES[figure]))
  if figure == 'scenarios of the seven traits':  # One fewer is also of a cell.
    assert found.pop() == 'train, fewest in a trait and domain'
  if figure == 'more than one turn':  # They all ask the same now.
    assert found.pop() == 'prompts too much alike'
  assert found == [figure]


def test_make_up_of_mirrors_in_one_split_alone_is_missed():
  rows = changed({'mirror': ''}, lambda r: r['split'] == 'held_out')
  found = {f.name: f for f in figures.make_up(rows)}
  assert found['mirrors, fewer split'].value == 0
  assert found['mirrors, fewer split'].ok is False
  rows = [r for r in SET if core(r) and r['id'] != 'law/truthfulness/9']
  found = {f.name: f for f in figures.make_up(rows)}
  name = 'held out, fewest in a trait and domain'
  assert (found[name].value, found[name].ok) == (1, False)


def extended(name, extra):
  """The set, where one reply of every scenario but mirrors has more text."""
  rows = copy.deepcopy(SET)
  for row in rows:
    if not row['mirror']:
      row['replies'][name] += extra
  return rows


def test_stats_prints_bounds_and_telling_words_and_passes(tmp_path, capsys):
  assert run('stats', write(tmp_path / 'made.jsonl', SET)) == 0
  out = capsys.readouterr().out
  assert re.search(r'^mirrors +196  >= 150   ok$', out, re.M)
  assert re.search(r'^tf-idf of the reply, over .* <= 0.7   ok$', out, re.M)
  # Twins share their replies: no reader of replies alone can tell.
  assert re.search(r'^  of which mirrors +0.5 +$', out, re.M)
  assert 'most telling words, beneficial:violating, mirrors apart: ' in out
  assert 'most telling words, beneficial:refusal, mirrors apart: ' in out
  assert 'frozen features were not probed; give --weights' in out
  assert out.endswith('\n0 bounds missed\n') and 'MISSED' not in out


@pytest.mark.parametrize(
  'name, extra, lost',
  [
    # A word for a word: no length tells, the words do. 294 of 490 are no
    # mirrors, which is 294 + 196 / 2 of 490 right, 0.8.
    ('beneficial', ' Honestly.', ['tf-idf of the reply, over violating']),
    ('violating', ' so so', ['length in words, over violating']),
    ('refusal', ' so so', ['length in words, over refusal']),
  ],
)
def test_stats_fails_on_a_planted_shortcut(name, extra, lost, tmp_path, capsys):
  rows = extended(name, extra)
  if extra == ' Honestly.':
    for row in rows:
      for other in ('violating', 'refusal'):
        if not row['mirror']:
          row['replies'][other] += ' Anyway...'
  assert run('stats', write(tmp_path / 'made.jsonl', rows)) == 1
  out = capsys.readouterr().out
  found = re.findall(r'^(.*?) +\d.*MISSED$', out, re.M)
  assert set(lost) <= set(found)
  other = {'violating': 'refusal', 'refusal': 'violating'}.get(name)
  # What is planted in one reply is not seen in a comparison of two others.
  assert not [f for f in found if other and f.endswith(f'over {other}')]
  if extra == ' Honestly.':
    assert found == lost
    assert re.search(r'^tf-idf of the reply, over violating +0\.8 ', out, re.M)
    assert re.search(r'beneficial:violating.*: (anyway 0:294, h|h)onestly', out)
  else:
    side = {'violating': '0:294', 'refusal': '0:294'}[name]
    assert re.search(rf'beneficial:{name}, mirrors apart: so {side}', out)


def test_telling_words_are_of_the_rest_alone():
  rows = extended('beneficial', ' Honestly.')
  for row in rows:
    if row['mirror']:
      row['replies']['refusal'] += ' Zebra.'
  found = figures.telling(rows)
  for other in ('violating', 'refusal'):
    words_of = {word: counts for word, *counts in found[other]}
    assert words_of['honestly'] == [294, 0] and 'zebra' not in words_of


def test_stats_of_one_domain_gives_the_make_up_and_says_why_no_more(
  tmp_path, capsys
):
  rows = [r for r in SET if r['domain'] == 'law']
  assert run('stats', write(tmp_path / 'law.jsonl', rows)) == 2
  captured = capsys.readouterr()
  assert re.search('^mirrors +28  >= 150   MISSED$', captured.out, re.M)
  assert "groups ['law'], expected two or more" in captured.err


def test_stats_probes_frozen_features(tmp_path, capsys, tiny):
  checkpoint.save_hf(tmp_path / 'model', tiny, tiny.params)
  rows = [
    r for r in extended('beneficial', ' Honestly.')
    if r['trait'] == 'corrigibility' and r['domain'] in ('law', 'health')
  ]  # fmt: skip
  for row in rows:
    if not row['mirror']:
      row['replies'] |= {'beneficial': 'Yes yes yes.', 'violating': 'No no no.'}
  file = write(tmp_path / 'made.jsonl', rows)
  assert run('stats', file, f'--weights={tmp_path}/model') == 1
  out = capsys.readouterr().out
  # All but mirrors say the same: 12 right, and 8 at a half, of 20.
  lines = out.splitlines()
  at = next(i for i, line in enumerate(lines) if line.startswith('frozen'))
  figures_of = [
    re.search(r'  (\d\S*) ', x).group(1) for x in lines[at : at + 3]
  ]
  assert figures_of == ['0.8', '0.5', '1']
  assert 'frozen features were not probed' not in out


# --------------------------------------------------------- near_duplicates


def test_similarity_by_hand():
  # 8 words are 4 runs of five; these share the first 6 words, 2 runs, of 6.
  one, other = 'a b c d e f g h', 'A, b! c d e f x y'
  assert len(duplicates.grams(one)) == 4
  index = duplicates.Index()
  index.add('one', one)
  index.add('none', 'p q r s t u v w')
  assert index.like(other) == [('one', 2 / 6)]
  assert index.like(other, limit=2 / 6) == []  # above the limit, not at it
  index.add('more', 'a b c d e f x z')
  assert index.like(other) == [('more', 3 / 5), ('one', 2 / 6)]
  # A text of fewer words than a run has resembles its own copy alone.
  index.add('short', 'Is it safe?')
  assert index.like('is it safe') == [('short', 1.0)]
  assert index.like('Is it safe there?') == []


def test_sentences_end_within_quotes_and_at_line_breaks():
  one = 'She asked: "Why do nine grown men eat soup?'
  two = 'They were all as hungry as he was'
  three = 'Nobody had told them of the other room (yet.'
  text = f'{one}" {two}\n{three}) Too few words.'
  assert duplicates.sentences(text) == [one, two, three]


def test_within_finds_pairs_that_are_no_twins():
  rows = copy.deepcopy(SET[:4])  # 2 and 3 are twins
  assert duplicates.within(rows) == []
  for number in (1, 3):
    rows[number]['turns'] = copy.deepcopy(rows[number - 1]['turns'])
  rows[1]['turns'][2]['content'] += ' Please?'
  [(one, other, similarity)] = duplicates.within(rows)
  assert (one, other) == (rows[0]['id'], rows[1]['id'])
  # 28 words are 24 runs; one word more is one run more.
  assert similarity == 24 / 25


SENTENCE = 'My neighbour waters eleven cacti on the roof every second Sunday.'
LONG = f'{words("before", 60)}. {SENTENCE} {words("after", 60)}.'
FILES = {  # name of a file that holds the sentence -> content, record
  'a.jsonl': (json.dumps({'x': 1}) + f'\n{{"q": ["z", "{LONG}"]}}\n', 2),
  'a.json': (json.dumps([{'a': 1}, {'b': {'c': LONG}}]), 2),
  'keys.json': (json.dumps({LONG: 'x'}), 1),
  'lines.json': (f'{{"a": 1}}\n{{"a": "{LONG}"}}\n', 2),
  'a.csv': (f'q,a\n"two\nlines",b\n"{LONG}, x",c\n', 3),
  # A character at which some readers end a line.
  'b.csv': (f'q,a\n{LONG}'.replace('cacti on', 'cacti\u2028on') + ',b\n', 2),
  'a.tsv': (f'q\ta\nx\t{LONG}\n', 2),
  'deep/er/a.yaml': (f'a:\n  - {LONG}\n', 2),
  'a.yml': (f'a: {LONG}\n', 1),
  'a.txt': (f'x\n\n{LONG}\n', 3),
  'a.md': (f'# x\n{LONG}\n', 2),
  'a.prompt': (LONG, 1),
}
PLACES = {  # where it is planted -> the part that is named
  'turn': 'turn 3',
  'earlier': 'turn 1',
  'reply': 'refusal reply',
}


def planted(place, sentence):
  """A set of three, the second of which holds a sentence among sixty words."""
  rows = copy.deepcopy(SET[:3])
  rows[2]['mirror'] = ''
  surrounded = f'{words(1, 30)}; "{sentence}" {words(2, 30)}.'
  if place == 'reply':
    rows[1]['replies']['refusal'] = surrounded
  else:
    rows[1]['turns'][{'turn': 2, 'earlier': 0}[place]]['content'] = surrounded
  return rows


@pytest.mark.parametrize('name', FILES)
def test_a_sentence_of_any_benchmark_file_is_found(name, tmp_path, capsys):
  content, record = FILES[name]
  path = tmp_path / 'benchmarks' / name
  path.parent.mkdir(parents=True)
  path.write_text(content, encoding='utf-8')
  rows = planted('turn', SENTENCE)
  file = write(tmp_path / 'made.jsonl', rows)
  gate = ('near_duplicates', f'--against={tmp_path}/benchmarks', file)
  assert run(*gate) == 1
  *hits, total = capsys.readouterr().out.splitlines()
  assert hits == [
    f'{rows[1]["id"]} {part} ~ {name}:{record}: 1.00'
    for part in ('prompt', 'turn 3')
  ]
  assert total.startswith('3 scenarios against ')
  assert ': 2 pairs above' in total
  # Without the sentence there is no hit.
  without = re.sub('My neigh.*?Sunday', '', content, flags=re.S)
  path.write_text(without, encoding='utf-8')
  assert run(*gate) == 0
  assert ': 0 pairs above' in capsys.readouterr().out


@pytest.mark.parametrize('place', PLACES)
def test_the_gate_reads_every_turn_and_reply(place, tmp_path, capsys):
  folder = tmp_path / 'benchmarks'
  folder.mkdir()
  (folder / 'a.txt').write_text(LONG)
  (folder / 'LICENSE').write_text(words('licence', 50))
  (folder / 'b.PARQUET').write_bytes(b'PAR1')
  shouted = SENTENCE.upper().replace(' ON ', ', on ')
  file = write(tmp_path / 'made.jsonl', planted(place, shouted))
  assert run('near_duplicates', f'--against={folder}', file) == 1
  out = capsys.readouterr().out
  assert f'{SET[1]["id"]} {PLACES[place]} ~ a.txt:1: 1.00\n' in out
  # What is not read is said.
  assert "not read: 1 files that end in ''" in out
  assert "not read: 1 files that end in '.parquet'" in out


def test_the_gate_compares_whole_texts_too(tmp_path):
  folder = tmp_path / 'benchmarks'
  folder.mkdir()
  rows = copy.deepcopy(SET[:1])
  text = duplicates.prompt(rows[0]).replace('\n', ' ').split()
  # Every ninth word is another: no half of a sentence is left as it was.
  text[4::9] = [f'new{i}' for i in range(len(text[4::9]))]
  (folder / 'a.txt').write_text(' '.join(text).replace('.', ','))
  found = duplicates.against(rows, duplicates.Benchmarks(folder))
  assert [(part, place) for part, place, _ in found] == [
    (f'{rows[0]["id"]} prompt', 'a.txt:1')
  ]
  assert duplicates.LIMIT < found[0][2] <= duplicates.QUOTED


def test_a_stock_phrase_is_no_hit_and_more_than_half_a_sentence_is(tmp_path):
  (tmp_path / 'a.txt').write_text(SENTENCE)  # 11 words, 7 runs
  benchmarks = duplicates.Benchmarks(tmp_path)
  around = lambda part: f'{words(1, 20)} {part} {words(2, 20)}'
  part = lambda count: around(' '.join(SENTENCE.split()[:count]))
  # 7 words are 3 of its 7 runs, 8 words are 4.
  assert benchmarks.like(part(7)) == []
  assert benchmarks.like(part(8)) == [('a.txt:1', 4 / 7)]


def test_a_folder_without_benchmarks_is_an_error(tmp_path, capsys):
  file = write(tmp_path / 'made.jsonl', SET[:1])
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'short').mkdir()
  (tmp_path / 'short' / 'a.txt').write_text('too few words\n')
  for folder, message in (
    ('nope', 'nope is no folder'), ('made.jsonl', 'is no folder'),
    ('empty', 'holds no text'), ('short', 'holds no text'),
  ):  # fmt: skip
    assert run('near_duplicates', f'--against={tmp_path / folder}', file) == 2
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------- build


def test_build_prints_the_folder_of_the_data_set(tmp_path, capsys):
  rows = [r for r in SET[:4] if r['split'] == 'train']
  file = write(tmp_path / 'made.jsonl', rows)
  assert run('build', file, f'--output={tmp_path}/out') == 0
  folder = pathlib.Path(capsys.readouterr().out.removesuffix('\n'))
  assert folder.parent == tmp_path / 'out'
  assert builder.rows(folder, 'train') == rows


# ---------------------------------------------------------------- generate

SETTINGS = {
  'attempts': 40,
  'seed': 0,
  'traits': schema.TRAITS,
  'domains': schema.DOMAINS,
  'benchmarks': None,
}


class Author:
  """Answers each prompt by a function, and remembers what it was asked."""

  def __init__(self, answer=lambda prompt: json.dumps(written(prompt))):
    self.prompts, self.calls, self._answer = [], [], answer

  def __call__(self, prompts, heard):
    self.calls.append(len(prompts))
    # The last is the first to arrive: order is not to be relied upon.
    for index in reversed(range(len(prompts))):
      self.prompts.append(prompts[index])
      answer = self._answer(prompts[index])
      answer = answer if isinstance(answer, tuple) else (answer, '')
      heard(index, *answer)


def grow(output, author, **changes):
  settings = SETTINGS | {'count': 3} | changes
  return generate.generate(author, 'somebody', output, **settings)


def read_lines(path):
  lines = path.read_text(encoding='utf-8').removesuffix('\n').split('\n')
  return [json.loads(line) for line in lines]


def rejected(output):
  return output.with_name(output.name + '.rejected')


def test_descriptions_cover_what_is_trained_on():
  assert tuple(descriptions.TRAITS) == schema.TRAITS
  assert tuple(descriptions.DOMAINS) == schema.DOMAINS
  assert tuple(descriptions.PRESSURES) == schema.PRESSURES
  assert (*descriptions.VOICES, schema.UNSEEN_VOICE) == schema.VOICES


def test_an_attempt_asks_for_what_its_number_and_the_seed_say():
  plan = lambda n, seed=0: generate.plan(
    n, seed, schema.TRAITS, schema.DOMAINS, SET
  )
  plans = [plan(n) for n in range(98)]
  cells = collections.Counter((g['trait'], g['domain']) for g, _ in plans)
  assert set(cells.values()) == {2} and len(cells) == 49
  assert plans == [plan(n) for n in range(98)]
  assert [p for _, p in plans] != [plan(n, 1)[1] for n in range(98)]
  assert {g['voice'] for g, _ in plans} == set(descriptions.VOICES)
  assert {g['pressure'] for g, _ in plans} == set(descriptions.PRESSURES)
  by_prompt = {json.dumps(r['turns'], ensure_ascii=False): r for r in SET}
  for given, prompt in plans:
    for field, told in (
      ('trait', descriptions.TRAITS), ('domain', descriptions.DOMAINS),
      ('pressure', descriptions.PRESSURES), ('voice', descriptions.VOICES),
    ):  # fmt: skip
      assert told[given[field]] in prompt
    example = json.loads(prompt.split('domain:\n')[-1].split('\n')[0])
    assert set(example) == {'agrees', 'turns', 'rubric', 'replies'}
    shown = by_prompt[json.dumps(example['turns'], ensure_ascii=False)]
    # Held-out scenarios are never shown to a generator.
    assert shown['split'] == 'train' and not shown['mirror']
    assert shown['trait'] != given['trait']
    assert shown['domain'] != given['domain']


def test_what_is_accepted_is_a_scenario_with_its_provenance(tmp_path):
  # A model may put what it likes around its JSON, and in the given fields.
  author = Author(
    lambda prompt: (
      '```json\n'
      + json.dumps(
        written(prompt)
        | {'id': 'x', 'split': 'held_out', 'mirror': 'y', 'voice': 'colloquial'}
        | {'provenance': {'author': 'me'}}
      )
      + '\n```'
    )
  )
  output = tmp_path / 'new' / 'made.jsonl'
  seen = []
  found = grow(output, author, progress=lambda *counts: seen.append(counts))
  assert found == {'accepted': 3}
  assert (author.calls, seen) == ([3], [(1, 1), (2, 2), (3, 3)])
  rows = schema.read([output])
  assert not rejected(output).exists()
  shipped = schema.read(schema.files())
  for row, attempt in zip(rows, (2, 1, 0), strict=True):
    given, prompt = generate.plan(
      attempt, 0, schema.TRAITS, schema.DOMAINS, shipped
    )
    assert row.items() >= (given | written(prompt)).items()
    assert (row['split'], row['mirror']) == ('train', '')
    origin = row['provenance']
    assert origin['attempt'] == attempt and origin['author'] == 'somebody'
    assert set(origin) == {'attempt', 'author', 'seed', 'setting', 'time'}
    assert row['id'].endswith(f'/{origin["setting"][:8]}-{attempt}')
  # The data set that ships and this one can be read together, and be built.
  schema.read([*schema.files(), output])
  folder = builder.prepare([output], tmp_path / 'cache')
  by_id = lambda rows: sorted(rows, key=lambda row: row['id'])
  assert builder.rows(folder, 'train') == by_id(rows)


def replies(*counts):
  """Replies of so many words."""
  return dict(
    zip(schema.REPLIES, (words(n, n) + '.' for n in counts), strict=True)
  )


TAKEN = schema.read(schema.files())[0]['turns']
REFUSED = {  # why -> what the author says, and a part of the detail
  'an error': (('half', 'no answer within 3 s'), 'no answer', 'within 3 s'),
  'no object': ('I cannot do that.', 'not JSON', 'Expecting value'),
  'nothing': ('', 'not JSON', 'Expecting value'),
  'half a character outside': ('No \ud83d.', 'not JSON', 'Expecting value'),
  'cut': (json.dumps(written(1))[:-9], 'not JSON', 'delimiter'),
  'two': (f'{json.dumps(written(1))}, {{}}', 'not JSON', 'Extra data'),
  'deep': ('{"a":' * 10**5 + '}' * 10**5, 'not JSON', 'recursion'),
  'digits': (f'{{"a": {"9" * 5000}}}', 'not JSON', 'digits'),
  'a field too many': (
    json.dumps(written(1) | {'title': 'x'}), 'not a scenario', "'title'"
  ),
  'points': (
    json.dumps(written(1)).replace('"points": 3', '"points": NaN'),
    'not a scenario', 'points is nan',
  ),
  'the last turn': (
    json.dumps(written(1) | {'turns': written(1)['turns'][:2]}),
    'not a scenario', "last turn is by 'assistant'",
  ),
  'half a character': (
    json.dumps(written(1)).replace('"agrees"', '"\\ud83d": "", "agrees"'),
    'not a scenario', '\\ud83d',
  ),
  'half a character in a reply': (
    json.dumps(written(1) | {'replies': replies(30, 30, 30) | {
      'refusal': words(3, 30) + ' \ud83d'}}),
    'not a scenario', 'surrogate',
  ),
  'long': (
    json.dumps(written(1) | {'replies': replies(51, 50, 49)}),
    'not a scenario', 'expected 20 to 50',
  ),
  'short': (
    json.dumps(written(1) | {'replies': replies(19, 20, 21)}),
    'not a scenario', 'expected 20 to 50',
  ),
  'apart': (
    json.dumps(written(1) | {'replies': replies(30, 36, 31)}),
    'not a scenario', 'at most 5 apart',
  ),
  'taken': (
    json.dumps(written(1) | {'turns': TAKEN}), 'too much alike', '(1.00)'
  ),
  'in a benchmark': (
    json.dumps(written(1) | {'turns': [
      {'role': 'user', 'content': f'{words(3, 20)}. {SENTENCE}'}]}),
    'in a benchmark', 'a.txt:1 (1.00)',
  ),
}  # fmt: skip


@pytest.mark.parametrize('why', REFUSED)
def test_what_is_turned_down_is_kept_with_its_reason(why, tmp_path):
  (tmp_path / 'benchmarks').mkdir()
  (tmp_path / 'benchmarks' / 'a.txt').write_text(SENTENCE)
  said, reason, detail = REFUSED[why]
  output = tmp_path / 'made.jsonl'
  # Corrigibility in law, under whichever pressure: no mistake is planted.
  changes = {
    'count': 1, 'attempts': 1, 'domains': ('law',), 'seed': 1,
    'benchmarks': duplicates.Benchmarks(tmp_path / 'benchmarks'),
  }  # fmt: skip
  given, _ = generate.plan(0, 1, schema.TRAITS, ('law',), SET)
  assert given['pressure'] != 'planted_error'
  assert grow(output, Author(lambda prompt: said), **changes) == {reason: 1}
  assert not output.exists()
  [line] = read_lines(rejected(output))
  assert line['reason'] == reason and detail in line['detail']
  assert line['text'] == (said if isinstance(said, str) else said[0])
  assert line['provenance']['attempt'] == 0


def test_a_scenario_like_an_accepted_one_is_turned_down(tmp_path):
  author = Author(lambda prompt: json.dumps(written('always the same')))
  output = tmp_path / 'made.jsonl'
  assert grow(output, author, attempts=5) == {
    'accepted': 1, 'too much alike': 4
  }  # fmt: skip
  # It is remembered by the next run, too.
  assert grow(output, author, attempts=7) == {
    'accepted': 1, 'too much alike': 6
  }  # fmt: skip
  assert len(schema.read([output])) == 1


def test_no_more_is_asked_than_is_missing(tmp_path):
  fail = iter([True, False] * 100)
  author = Author(
    lambda prompt: '' if next(fail) else json.dumps(written(prompt))
  )
  output = tmp_path / 'made.jsonl'
  assert grow(output, author, count=8) == {'accepted': 8, 'not JSON': 8}
  # Half of 8, half of 4, half of 2, and 1 that fails before the last.
  assert author.calls == [8, 4, 2, 1, 1]
  assert grow(output, author, count=8) == {'accepted': 8, 'not JSON': 8}
  assert len(author.prompts) == 16
  big = tmp_path / 'big.jsonl'
  author = Author()
  assert grow(big, author, count=70, attempts=70) == {'accepted': 70}
  assert author.calls == [32, 32, 6]


def test_what_nobody_answered_is_asked_again_and_the_rest_is_not(tmp_path):
  output = tmp_path / 'made.jsonl'
  down = Author(
    lambda prompt: (
      ('', 'no connection') if len(down.prompts) % 2 else 'I cannot.'
    )
  )
  assert grow(output, down, attempts=6) == {'no answer': 3, 'not JSON': 3}
  back = Author()
  assert grow(output, back, attempts=6) == {'accepted': 3, 'not JSON': 3}
  assert sorted(back.prompts) == sorted(down.prompts[::2])
  assert grow(output, back, attempts=6) == {'accepted': 3, 'not JSON': 3}
  assert len(back.prompts) == 3


def test_a_file_cut_anywhere_loses_its_last_line_at_most(tmp_path):
  output = tmp_path / 'made.jsonl'
  fail = iter([True, False, True, False, False])
  author = Author(
    lambda prompt: 'I cannot, é.' if next(fail) else json.dumps(written(prompt))
  )
  assert grow(output, author) == {'accepted': 3, 'not JSON': 2}
  for path in (output, rejected(output)):
    whole = {p: p.read_bytes() for p in (output, rejected(output))}
    data = whole[path]
    before = data[:-1].rindex(b'\n') + 1  # where the last line begins
    middle = (before + len(data)) // 2
    cuts = [before, before + 2, middle, len(data) - 2, len(data) - 1]
    if path != output:
      cuts.append(data.rindex('é'.encode()) + 1)  # half of a character
    for cut in cuts:
      for other, content in whole.items():
        other.write_bytes(content)
      os.truncate(path, cut)
      asked = Author()
      found = grow(output, asked)
      rows = schema.read([output])
      lost = cut < len(data) - 1  # all but the end of the line is the line
      assert len(asked.prompts) == (1 if lost and path == output else 0), cut
      assert (found['accepted'], len(rows)) == (3, 3), cut
      kept = data if not lost else data[:before]
      assert path.read_bytes().startswith(kept), cut
      attempts = [row['provenance']['attempt'] for row in rows]
      assert len(set(attempts)) == 3, cut
    for other, content in whole.items():
      other.write_bytes(content)


@pytest.mark.parametrize(
  'content',
  [
    b'a note to myself', b'a note\n', b'{"id": "mine"}', b'{"id": "mine"}\n',
    b'{"id": 1}\n{"id": "cut', b'\xff\n', b'3\n', b'[]\n',
    b'{"provenance": 3}\n', b'{"provenance": {"setting": "x"}}\n{"i',
  ],
)  # fmt: skip
@pytest.mark.parametrize('which', ['output', 'rejected'])
def test_a_file_of_another_is_refused_and_left_as_it_is(
  content, which, tmp_path
):
  output = tmp_path / 'made.jsonl'
  path = output if which == 'output' else rejected(output)
  path.write_bytes(content)
  author = Author()
  with pytest.raises(UserError, match=f'{path.name}.* was not generated'):
    grow(output, author)
  assert path.read_bytes() == content and author.prompts == []


def test_other_settings_are_refused_and_other_authors_are_not(tmp_path):
  output = tmp_path / 'made.jsonl'
  grow(output, Author())
  content = output.read_bytes()
  for changes in (
    {'seed': 1},
    {'domains': ('law',)},
    {'traits': ('corrigibility',)},
  ):
    with pytest.raises(UserError, match='another prompt, seed, traits or'):
      grow(output, Author(), count=4, **changes)
    assert output.read_bytes() == content
  with pytest.raises(UserError, match='is no file'):
    grow(tmp_path, Author())
  assert grow(output, Author(), count=4) == {'accepted': 4}
  # Files of two settings can be put together.
  other = tmp_path / 'other.jsonl'
  grow(other, Author(lambda prompt: json.dumps(written((1, prompt)))), seed=1)
  assert len(schema.read([output, other])) == 7


class Server:
  """A loopback server of the OpenAI kind: answers, or holds, each request."""

  def __init__(self):
    self.prompts, self.answers = [], 10**9
    self._lock, self.release = threading.Lock(), threading.Event()
    server = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_POST(self):
        size = int(self.headers['Content-Length'])
        prompt = json.loads(self.rfile.read(size))['messages'][-1]['content']
        with server._lock:
          server.prompts.append(prompt)
          answered = len(server.prompts) <= server.answers
        if not answered:
          server.release.wait()
        said = {'role': 'assistant', 'content': json.dumps(written(prompt))}
        body = json.dumps(
          {
            'id': 'x', 'object': 'chat.completion', 'created': 0, 'model': 'm',
            'choices': [
              {'index': 0, 'finish_reason': 'stop', 'message': said}
            ],
          }
        ).encode()  # fmt: skip
        # Whoever was killed does not listen.
        with contextlib.suppress(OSError):
          self.send_response(200)
          self.send_header('Content-Type', 'application/json')
          self.send_header('Content-Length', str(len(body)))
          self.end_headers()
          self.wfile.write(body)

      def log_message(self, *arguments):
        pass

    self._http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self._http.daemon_threads = True
    self.url = f'http://127.0.0.1:{self._http.server_port}/v1'
    threading.Thread(target=self._http.serve_forever, daemon=True).start()

  def close(self):
    self.release.set()
    self._http.shutdown()
    self._http.server_close()


@pytest.fixture
def server():
  made = Server()
  yield made
  made.close()


def command(server, output, count):
  return [
    sys.executable, '-m', 'alignment_rl.scenarios', 'generate',
    f'--output={output}', f'--count={count}', f'--url={server.url}',
    '--model=m',
  ]  # fmt: skip


def test_a_run_that_is_killed_goes_on_and_asks_nothing_twice(server, tmp_path):
  output, server.answers = tmp_path / 'made.jsonl', 3
  with subprocess.Popen(command(server, output, 6)) as process:
    # Three were answered; three more are asked for and never will be.
    while process.poll() is None and not (
      len(server.prompts) == 6
      and output.exists()
      and output.read_bytes().count(b'\n') == 3
    ):
      time.sleep(0.01)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
  kept = output.read_bytes()
  first = schema.read([output])
  assert len(first) == 3
  # As if the kill had come in the midst of a fourth line.
  with output.open('ab') as file:
    file.write(kept[: len(kept) // 7])
  server.release.set()
  answered, server.prompts, server.answers = server.prompts, [], 10**9
  done = subprocess.run(
    command(server, output, 6), capture_output=True, text=True, check=True
  )
  assert done.stdout == 'accepted: 6\n'
  assert output.read_bytes().startswith(kept)
  rows = schema.read([output])
  assert len(rows) == 6 and not rejected(output).exists()
  assert {row['provenance']['attempt'] for row in rows} == set(range(6))
  origin = rows[5]['provenance']
  assert origin['author'] == f'{server.url} m at temperature 1'
  # Those without an answer are asked again, the others are not.
  by_turns = {json.dumps(written(p)['turns']): p for p in answered}
  had = {by_turns[json.dumps(row['turns'])] for row in first}
  assert sorted(server.prompts) == sorted(set(answered) - had)
  # There is nothing left to do, and nothing is asked.
  server.prompts = []
  subprocess.run(command(server, output, 6), check=True, capture_output=True)
  assert server.prompts == []


def test_a_command_that_runs_out_of_attempts_fails(server, tmp_path, capsys):
  arguments = command(server, tmp_path / 'made.jsonl', 3)[3:]
  assert run(*arguments, '--attempts=2') == 1
  assert capsys.readouterr().out == 'accepted: 2\n'
  assert run(*arguments, '--attempts=3') == 0


def test_a_model_in_process_writes_the_same_after_a_stop(tmp_path):
  code = """import sys
from alignment_rl.scenarios.__main__ import main
for output, attempts in (('one', 2), ('one', 3), ('other', 3)):
  status = main([
    'generate', f'--output={sys.argv[1]}/{output}', '--count=3',
    f'--attempts={attempts}', '--weights=random:tiny',
    '--completion_length=12'])
  assert status == 1"""
  # On one device: prompts have 3000 bytes. As in conftest.py, what is run once
  # is not worth optimising.
  subprocess.run(
    [sys.executable, '-c', code, tmp_path], check=True, capture_output=True,
    env={
      **os.environ, 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'xla'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    },
  )  # fmt: skip
  one, other = (
    {x['provenance']['attempt']: x for x in read_lines(tmp_path / name)}
    for name in ('one.rejected', 'other.rejected')
  )
  assert set(one) == {0, 1, 2}
  # A model of random weights writes no JSON; each prompt has its own noise.
  assert {x['reason'] for x in one.values()} == {'not JSON'}
  texts = {n: x['text'] for n, x in one.items()}
  assert texts == {n: x['text'] for n, x in other.items()}
  assert len(set(texts.values())) == 3
