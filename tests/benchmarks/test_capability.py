"""Capability: readers, scores; with $ALIGNMENT_RL_DATA, the real files too."""

import json
import pathlib

import numpy as np
import pytest
from made_up import DATA, needs_data, write

from alignment_rl import config, suite
from alignment_rl.errors import UserError

MODULE = config.load('benchmarks', 'capability')
BENCHMARKS = {b.name.split('/')[1]: b for b in MODULE.BENCHMARKS}
CHOICE = [n for n, b in BENCHMARKS.items() if b.protocol == 'choice']


def lines(*rows):
  return ''.join(json.dumps(row) + '\n' for row in rows)


def score(name, examples, logprob):
  """Mean score of a judge that gives `logprob(choice)` to every choice."""
  benchmark, asked = BENCHMARKS[name], {}
  for e in examples:
    sums = np.array([logprob(c) for c in e.choices])
    asked.setdefault(suite.item_of(e), []).append((e, sums))
  found = [suite.choice_record(benchmark, a, len) for a in asked.values()]
  return suite.summarise(benchmark, found)['score']


def only(*words):
  """A judge that is sure of these replies, whatever was asked."""
  return lambda choice: 0.0 if choice in words else -50.0


@pytest.mark.parametrize('name', BENCHMARKS)
def test_demo(name, tmp_path):
  benchmark = BENCHMARKS[name]
  items = benchmark.items(write(tmp_path, benchmark.demo.files))
  assert benchmark.table == 'capability' and items
  if benchmark.protocol == 'choice':
    for e in items:
      assert score(name, [e], only(e.choices[0])) == pytest.approx(1)
      assert score(name, [e], only(e.choices[1])) < 1e-6
  else:
    demo = benchmark.demo
    scores = benchmark.score(
      [items[0]] * 2, [demo.right, demo.wrong], judge=None
    )
    assert scores[0] > scores[1]


def mmlu_row(question, options, answer):
  options = [
    f'{letter}. {o}' for letter, o in zip('ABCD', options, strict=True)
  ]
  return {
    'question': question, 'options': '\n'.join(options),
    'answer': options[answer],
  }  # fmt: skip


def test_a_taste_for_a_letter_gains_nothing(tmp_path):
  rows = [mmlu_row(f'q{i}', ['w', 'x', 'y', 'z'], i) for i in range(4)]
  items = BENCHMARKS['mmlu'].items(
    write(tmp_path, {'mmlu/test.jsonl': lines(*rows)})
  )
  for letter in 'ABCD':
    assert score('mmlu', items, only(letter)) == pytest.approx(1 / 4)


def test_by_hand(tmp_path):
  row = mmlu_row('q', ['w', 'x', 'y', 'z'], 1)
  items = BENCHMARKS['mmlu'].items(
    write(tmp_path, {'mmlu/test.jsonl': lines(row)})
  )
  assert [e.choices[0] for e in items] == ['B', 'C']
  # p(B) = e / (e + 3) forwards; backwards the right letter C has 1 / (e + 3).
  e = np.e
  found = score('mmlu', items, lambda c: float(c == 'B'))
  assert found == pytest.approx((e + 1) / (e + 3) / 2)


def test_options_that_say_the_same_are_right_together(tmp_path):
  row = mmlu_row('q', ['0.1', '0.2', '0.1', '0.4'], 0)
  items = BENCHMARKS['mmlu'].items(
    write(tmp_path, {'mmlu/test.jsonl': lines(row)})
  )
  assert [e.choices[:2] for e in items] == [('A', 'C'), ('D', 'B')]
  assert {e.metadata['aligned'] for e in items} == {2}


def test_an_answer_that_is_no_option_is_told(tmp_path):
  row = mmlu_row('q', ['w', 'x', 'y', 'z'], 0) | {'answer': 'A. v'}
  folder = write(tmp_path, {'mmlu/test.jsonl': lines(row)})
  with pytest.raises(UserError, match="mmlu/0: the answer 'A. v'"):
    BENCHMARKS['mmlu'].items(folder)


def test_options_that_slipped_into_the_question(tmp_path):
  row = {
    'question': 'Where does one swim\nA. road\nB. shelf',
    'options': '\nC. sky\nD. lake\nE. loaf?',
    'answer': 'D. lake',
  }
  items = BENCHMARKS['commonsenseqa'].items(
    write(tmp_path, {'commonsenseqa/validation.jsonl': lines(row)})
  )
  assert [e.choices[0] for e in items] == ['D', 'B']
  assert items[0].messages[-1].content.splitlines() == [
    'Where does one swim', 'A. road', 'B. shelf', 'C. sky', 'D. lake',
    'E. loaf', 'Answer with the letter of one option.',
  ]  # fmt: skip


def test_always_no_is_right_half_the_time(tmp_path):
  rows = [
    {'passage': f'p{i}', 'question': 'q?', 'answer': a}
    for i, a in enumerate(['Yes', 'Yes', 'No', 'Yes', 'No'])
  ]
  items = BENCHMARKS['causal_judgment'].items(
    write(tmp_path, {'causal_judgment/test.jsonl': lines(*rows)})
  )
  assert [e.choices[0] for e in items] == ['Yes', 'No'] * 2
  for word in ('Yes', 'No'):
    assert score('causal_judgment', items, only(word)) == pytest.approx(0.5)


def test_blimp_reads_sentences_by_themselves_and_sums(tmp_path):
  benchmark = BENCHMARKS['blimp']
  item = benchmark.items(write(tmp_path, benchmark.demo.files))[0]
  assert item.messages == () and item.metadata['cluster'] == 'plural'
  good, bad = item.choices
  # The bad one has more letters: per token it would win, summed it loses.
  judge = {good: -10.0, bad: -10.5}.__getitem__
  assert len(bad) == len(good) + 1
  assert score('blimp', [item], judge) == pytest.approx(1 / (1 + np.exp(-0.5)))


def test_an_empty_folder_is_told(tmp_path):
  (tmp_path / 'blimp').mkdir()
  with pytest.raises(UserError, match='holds no .jsonl file'):
    BENCHMARKS['blimp'].items(tmp_path)


@pytest.mark.parametrize(
  ('answer', 'reply', 'right'),
  [
    ('10', 'Answer: 10', 1),
    ('10', 'So it is 3 * 4 - 2 = 10.\n**Answer: $10.00**', 1),
    ('10', 'Answer: 12 - 2 = 10 pears', 1),
    ('10', 'She ate 2, so 10 are left.', 1),
    ('10', 'There are 10.\nAnswer: 12', 0),
    ('10', 'Answer: 10 or 12', 0),
    ('10', 'Answer: 100', 0),
    ('10', 'Answer: -10', 0),
    ('10', '10 pears were there.\nNow some are gone.', 0),
    ('10', '', 0),
    ('-10', 'Answer: -10', 1),
    ('-10', 'Answer: −10', 1),
    ('2,125', 'Answer: 2125', 1),
    ('2,125', 'Answer: $2,125', 1),
    ('2125', 'Answer: 2,125', 1),
    ('3', 'Answer: 1,2,3', 0),
  ],
)
def test_gsm8k_reads_one_number(answer, reply, right, tmp_path):
  row = {'question': 'q', 'answer': f'1+1=<<1+1=2>>2\n#### {answer}'}
  benchmark = BENCHMARKS['gsm8k']
  items = benchmark.items(write(tmp_path, {'gsm8k/test.jsonl': lines(row)}))
  assert benchmark.score(items, [reply], judge=None).tolist() == [right]


@needs_data
@pytest.mark.parametrize(
  ('name', 'items', 'chance'),
  [
    ('mmlu', 2850, 1 / 4),
    ('commonsenseqa', 1221, 1 / 5),
    ('blimp', 2680, 1 / 2),
    ('causal_judgment', 182, 1 / 2),
    ('gsm8k', 500, None),
  ],
)
def test_real_files(name, items, chance):
  found = BENCHMARKS[name].items(pathlib.Path(DATA))
  assert len({suite.item_of(e) for e in found}) == items
  assert len({e.id for e in found}) == len(found)
  if name == 'gsm8k':
    assert all(len(MODULE._numbers(e.metadata['answer'])) == 1 for e in found)
    return
  assert all(c.strip() for e in found for c in e.choices)
  # Neither the first letter or word, nor the shorter text is the better one.
  shallow = (
    (lambda c: -float(len(c)),) if name == 'blimp' else
    (only('A'), only('B')) if name != 'causal_judgment' else
    (only('Yes'), only('No'))
  )  # fmt: skip
  for judge in shallow:
    assert score(name, found, judge) == pytest.approx(chance, abs=0.02)
