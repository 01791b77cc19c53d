"""Evaluation on a tiny model: same numbers however it is batched or cut."""

import dataclasses
import json

import numpy as np
import pytest

from alignment_rl import conditions, evaluate, results, suite, text
from alignment_rl.errors import UserError
from alignment_rl.suite import Benchmark, Demo
from alignment_rl.types import Example, Message


def benchmark(name, protocol, examples, **kwargs):
  return Benchmark(
    name, protocol, lambda folder: examples, 'made here', 'none', Demo(),
    **kwargs,
  )  # fmt: skip


def ask(id, question, choices=(), **metadata):
  said = (Message('user', question),) if question else ()
  return Example(id, said, choices=choices, metadata=metadata)


def world(example, said):
  """Counts; over after three replies, or when one of them is empty."""
  return None if len(said) == 3 or not said[-1] else f'turn {len(said)}'


LISTED = [
  ask(
    f'l/{i}#{k}', f'q{i}{"ab"[k]}', ('A', 'B', 'C')[: 2 + i % 2], item=f'l/{i}'
  )
  for i in range(3)
  for k in range(2)
]
SUITE = [
  benchmark('a/listed', 'choice', LISTED, normalise='sum'),
  benchmark(
    'a/texts', 'choice',
    [ask(f't/{i}', 'x' * (9 * i + 1), ('yes', 'no no', 'o'), aligned=2)
     for i in range(5)],
  ),
  benchmark(
    'b/raw', 'choice', [ask(f'r/{i}', '', ('he ran', 'she ran')) for i in '12'],
    reading='even',
  ),
  benchmark(
    'b/reply', 'generate', [ask(f'g/{i}', f'say {i}') for i in range(5)],
    score=lambda examples, said, judge: np.array([len(s) % 2 for s in said]),
    length=6,
  ),
  benchmark(
    'c/world', 'episode', [ask(f'e/{i}', f'go {i}') for i in range(3)],
    score=lambda examples, said, judge: np.array([len(s) / 3 for s in said]),
    respond=world, turns=3, length=4, chance=0.5,
  ),
]  # fmt: skip
UNDER = [
  conditions.NONE,
  conditions.Condition('prefill:p', 'harmful', 'Well'),
]
SETTINGS = evaluate.Settings(dtype='float32')


def run(output, suite_=SUITE, under=UNDER, settings=SETTINGS, rows=3):
  return evaluate.evaluate(
    'random:tiny', suite_, under, output=output, data=None,
    settings=settings, rows=rows,
  )  # fmt: skip


def read(folder):
  """{path below: records} of every scores file, in any order of lines."""
  return {
    str(path.relative_to(folder)): {
      r['id']: r for r in map(json.loads, path.read_text().splitlines())
    }
    for path in sorted(folder.rglob('scores/*.jsonl'))
  }


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp('whole')
  return folder, run(folder)


def test_every_item_is_there_once(whole):
  folder, lines = whole
  # The texts by themselves have no conversation to press on.
  assert len(lines) == 2 * len(SUITE) - 1
  n = {(line['benchmark'], line['condition']): line['n'] for line in lines}
  assert n['a/listed', 'none'] == 3 and n['a/texts', 'prefill:p'] == 5
  assert ('b/raw', 'prefill:p') not in n
  for name, records in read(folder).items():
    path = folder / name
    assert len(path.read_text().splitlines()) == len(records)
  kept = [json.loads(x) for x in (folder / 'results.jsonl').open()]
  under = folder / 'conditions' / 'prefill__p' / 'results.jsonl'
  kept += [json.loads(x) for x in under.open()]
  assert kept == lines


def test_results_of_two_runs_are_equal(whole, tmp_path):
  folder, lines = whole
  again = run(tmp_path)
  assert again == lines and read(tmp_path) == read(folder)


def test_what_was_finished_before_stays(whole, tmp_path):
  folder, _ = whole
  for part in (SUITE[:2], SUITE[1:]):
    run(tmp_path, suite_=part)
  kept = lambda at: [json.loads(x) for x in (at / 'results.jsonl').open()]
  assert kept(tmp_path) == kept(folder) and read(tmp_path) == read(folder)


@pytest.fixture(scope='module')
def thrice(tmp_path_factory):
  """An evaluation of three replies to an item, whose batches part items."""
  folder = tmp_path_factory.mktemp('thrice')
  settings = dataclasses.replace(SETTINGS, replies=3)
  return folder, run(folder, settings=settings, rows=4), settings


def test_several_replies_are_one_record_with_their_mean(whole, thrice):
  folder, _ = whole
  tripled, lines, settings = thrice
  # Nothing is missing.
  assert lines == run(tripled, settings=settings, rows=4)
  many, one, n = read(tripled), read(folder), 0
  for name, records in one.items():
    for id, record in records.items():
      found = many[name][id]
      if 'text' not in record:
        assert found == record  # A choice is read, not heard.
        continue
      n += 1
      said = found.pop('replies')
      assert said[0] == {k: record[k] for k in said[0]}
      assert len({str(r['text']) for r in said}) > 1
      assert found.pop('score') == pytest.approx(
        np.mean([r['score'] for r in said])
      )
      assert found.items() <= record.items()
  assert n == 2 * (5 + 3)
  line = next(x for x in lines if x['benchmark'] == 'b/reply')
  assert line['n'] == 5 and line['unscored'] == 0


def test_joined_replies_count_what_is_unscored_and_the_strongest_refusal():
  reply = lambda score, refused: {
    'id': 'g/1', 'cluster': 'c', 'score': score, 'refused': refused,
    'truncated': refused == 'full', 'text': refused,
  }  # fmt: skip
  records = [
    suite.join_replies(
      [reply(0.5, 'none'), reply(None, 'full'), reply(1.0, 'partial')]
    ),
    suite.join_replies([reply(None, 'none')] * 3),
  ]
  assert [r['score'] for r in records] == [0.75, None]
  assert [r['refused'] for r in records] == ['full', 'none']
  assert records[0]['cluster'] == 'c'
  line = suite.summarise(SUITE[3], records)
  assert (line['n'], line['unscored'], line['score']) == (1, 4, 0.75)
  assert line['refused'] == line['refused_partly'] == pytest.approx(1 / 6)
  assert line['truncated'] == pytest.approx(1 / 6)


class Cut(Exception):
  pass


@pytest.mark.parametrize('after', [5, 8, 11])
def test_a_cut_evaluation_of_several_replies_goes_on_to_the_same_records(
  thrice, tmp_path, monkeypatch, after
):
  folder, lines, settings = thrice
  cut_then_go_on(tmp_path, monkeypatch, after, lines, settings=settings, rows=4)
  assert read(tmp_path) == read(folder)


@pytest.mark.parametrize('after', [1, 4, 7, 9])
def test_a_cut_evaluation_goes_on_to_the_same_records(
  whole, tmp_path, monkeypatch, after
):
  folder, lines = whole
  cut_then_go_on(tmp_path, monkeypatch, after, lines)
  assert read(tmp_path) == read(folder)


def cut_then_go_on(tmp_path, monkeypatch, after, lines, **kwargs):
  calls, add = [], results.Store.add

  def dying(self, condition, name, records):
    calls.append(name)
    if len(calls) > after:
      path = self._path(condition, name)
      path.parent.mkdir(parents=True, exist_ok=True)
      with path.open('a') as file:  # half a record, as a kill leaves it
        file.write('{"id": "hal')
      raise Cut
    add(self, condition, name, records)

  with monkeypatch.context() as patched:
    patched.setattr(results.Store, 'add', dying)
    with pytest.raises(Cut):
      run(tmp_path, **kwargs)
  assert not (tmp_path / 'results.jsonl').exists()
  assert run(tmp_path, **kwargs) == lines


def test_a_finished_evaluation_is_not_run_again(whole, monkeypatch):
  folder, lines = whole
  # Whatever is run is padded first.
  monkeypatch.setattr(text, 'pad', lambda *a: pytest.fail('it ran a batch'))
  assert run(folder) == lines


def test_fewer_items_or_other_batches_say_the_same_of_each_item(
  whole, tmp_path
):
  folder, _ = whole
  few = dataclasses.replace(SETTINGS, limit=2)
  run(tmp_path, settings=few, rows=2)
  full = read(folder)
  for name, records in read(tmp_path).items():
    assert (
      len(records) == 2
      and list(records) == list(full[name])[:2]
      or (set(records) <= set(full[name]))
    )
    for id, record in records.items():
      want = full[name][id]
      assert record['score'] == pytest.approx(want['score'], abs=1e-4)
      assert record.get('text') == want.get('text')


def test_a_greater_limit_adds_to_a_smaller_one(whole, tmp_path):
  folder, lines = whole
  few = dataclasses.replace(SETTINGS, limit=2)
  assert {line['n'] for line in run(tmp_path, settings=few)} == {2}
  assert run(tmp_path) == lines
  found, expected = read(tmp_path), read(folder)
  assert found.keys() == expected.keys()
  assert all(found[name] == expected[name] for name in expected)


def test_a_record_says_what_earned_the_score(whole):
  folder, _ = whole
  records = read(folder)
  listed = records['scores/a__listed.jsonl']['l/1']
  assert [a['choices'] for a in listed['asked']] == [['A', 'B', 'C']] * 2
  shares = []
  for asked in listed['asked']:
    p = np.exp(asked['logprobs'])
    shares.append(p[0] / p.sum())
  assert listed['score'] == pytest.approx(np.mean(shares), rel=1e-3)
  said = records['scores/c__world.jsonl']['e/0']
  assert isinstance(said['text'], list) and said['refused'] == 'none'
  pressed = records['conditions/prefill__p/scores/b__reply.jsonl']['g/0']
  assert pressed['text'].startswith('Well')


def test_another_evaluation_in_the_same_folder_is_refused(whole):
  folder, _ = whole
  with pytest.raises(UserError, match='seed 0 not 1'):
    run(folder, settings=dataclasses.replace(SETTINGS, seed=1))


def test_records_of_another_version_are_measured_again(tmp_path):
  one = [benchmark('a/listed', 'choice', LISTED, normalise='sum')]
  run(tmp_path, one, [conditions.NONE])
  path = tmp_path / 'scores' / 'a__listed.jsonl'
  path.write_text(path.read_text().replace('"score": 0', '"score": 7'))
  assert run(tmp_path, one, [conditions.NONE])[0]['score'] > 1
  newer = [dataclasses.replace(one[0], version=2)]
  (line,) = run(tmp_path, newer, [conditions.NONE])
  assert 0 < line['score'] < 1 and line['version'] == 2


def test_missing_sets_are_all_named_before_anything_runs(tmp_path):
  absent = [
    dataclasses.replace(SUITE[0], files=('one', 'two')),
    dataclasses.replace(SUITE[1], files=('three',)),
  ]
  with pytest.raises(UserError, match='one, three, two.*fetch'):
    run(tmp_path / 'out', absent)
  assert not (tmp_path / 'out').exists()
  (tmp_path / 'two').mkdir()
  assert suite.missing(absent, tmp_path) == {
    'a/listed': ['one'], 'a/texts': ['three']
  }  # fmt: skip
