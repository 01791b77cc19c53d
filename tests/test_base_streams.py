"""The two base streams: their problems, their checkers and their rewards."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from alignment_rl import scoring
from alignment_rl.errors import UserError
from alignment_rl.rewards import instructions as instructions_reward
from alignment_rl.rewards import reasoning as reasoning_reward
from alignment_rl.streams import instructions, reasoning
from alignment_rl.types import Example

STREAMS = (reasoning, instructions)
PROSE = 'We walked home slowly. The rain had stopped by then.'

ANSWERS = (  # text, its final answer, whether its last line is `Answer: X`
  ('**Answer:** **-12.**\n\n', '-12', True),
  ('answer : x = 13', '13', True),  # all up to the last equals sign is dropped
  ('Answer: $\\boxed{1/2}$.', '1/2', True),
  ('Answer: −4', '-4', True),  # a typographic minus
  ('Answer: of, the, "you"!', 'of, the, "you', True),  # ends are stripped
  ('Answer: 7\nI hope this helps.', '7', False),
  ('Answer: 3\nNo, wait.\nAnswer: 4', '4', True),
  ('The sum is 7.', '7', False),
  ('Answer:\n7', '7', False),  # nothing on the marked line
  ('Answer: ...', '', True),  # nothing left; the reward asks for an answer too
  (' \n\t\n', '', False),
)
CHECKS = (  # kind, keywords, texts that satisfy it, texts that do not
  # A lone dash is no word; an empty text is the guard's business.
  ('max_words', {'n': 3}, ["it's well-known - here ", ''], ['a b c 4']),
  ('min_words', {'n': 2}, ['naïve  café\n'], ['one ... ! -', '']),
  # Abbreviations, decimals, list numbers end none; an unfinished one counts.
  ('sentences', {'n': 2}, ['Dr. Lee paid 3.50, e.g. for tea. "Why?" '], ['A.']),
  ('sentences', {'n': 2}, ['One. And then', '1. Go\n2. Eat'], ['A? B! C.', '']),
  # A line that is blank but for a space parts; a rule says nothing.
  ('paragraphs', {'n': 2}, ['a\nb\n \n\nc\n\n---\n'], ['a\nb', '']),
  ('bullets', {'n': 2}, ['So:\n- a\n  * b\n**c**\n-d\n- '], ['- a', 'a - b']),
  ('numbered', {'n': 2}, ['1. a\n2) b\n3.5 is none'], ['in 1. or 2. place']),
  # Whole words, any case, accents composed or not.
  ('contains', {'words': ['café', 'go']}, ['GO: cafe\u0301!'], ['good café']),
  ('avoids', {'word': 'the'}, ['other themes', ''], ['by The sea']),
  ('starts_with', {'phrase': 'My hint'}, ['  my hint: rest'], ['my hints', '']),
  ('ends_with', {'phrase': 'luck!'}, ['Good luck! \n'], ['unluck!', 'luck!.']),
  ('lower_case', {}, ['straße 7!'], ['éÉ', '123', '']),  # needs a letter
  ('no_commas', {}, ['one; two', ''], ['a, b', '一，二']),
  ('number', {}, ['take ٣ eggs'], ['x² and ten', '']),  # Arabic-Indic three
  ('title', {}, ['See [[ Tea Time ]] now'], ['[[ ]] [Tea]', '']),
  ('question', {}, ['Shall we go?" \n'], ['Why? Because.', '']),
)
VARIED = ' '.join(f'w{i}' for i in range(20))
GUARDED = (
  (PROSE, True),
  (' \n\t', False),
  ('?!... 1 2 3 4 5', False),  # no word has a letter
  ('Yes it is.', False),  # three words
  ('so it goes on ' * 6, False),  # 4 words of 24 are different, and 3 * 4 <= 24
  ('a b c d e f g h. ' * 3 + VARIED, False),  # varied, but said three times
  ('a b c d e f g h. ' * 2 + VARIED, True),
)


def test_final_answer_reads_the_last_marked_line():
  assert ANSWERS == tuple((a[0], *scoring.final_answer(a[0])) for a in ANSWERS)


@pytest.mark.parametrize('kind, keywords, good, bad', CHECKS)
def test_satisfies_agrees_with_hand_worked_texts(kind, keywords, good, bad):
  constraint = {'kind': kind, **keywords}
  assert [t for t in good if not scoring.satisfies(t, constraint)] == []
  assert [t for t in bad if scoring.satisfies(t, constraint)] == []


def test_well_formed_refuses_blank_noise_and_loops():
  assert [(t, scoring.well_formed(t)) for t, _ in GUARDED] == [*GUARDED]


@pytest.mark.parametrize('stream', STREAMS)
def test_streams_share_no_prompt_between_splits_and_repeat_none(stream):
  make = lambda split, n, s: [
    e.messages[0].content for e in stream.make(split=split, size=n, seed=s)
  ]
  train, held_out = make('train', 1000, 0), make('held_out', 400, 0)
  assert (len(set(train)), len(set(held_out))) == (1000, 400)
  assert not set(train) & set(held_out + make('held_out', 400, 1))
  assert max(len(p.split()) for p in train + held_out) < 70


@pytest.mark.parametrize('stream', STREAMS)
def test_streams_are_prefixes_of_longer_ones_in_plain_json(stream):
  short = stream.make(**stream.SAMPLE)
  long = stream.make(**{**stream.SAMPLE, 'size': 40})
  assert short == long[: len(short)]
  assert len({e.id for e in long}) == 40
  for e in long:
    assert json.loads(json.dumps(e.metadata)) == e.metadata
    assert [m.role for m in e.messages] == ['user']


def test_streams_are_equal_in_every_process_and_load_their_library_late():
  made = [s.make(split='held_out', size=60, seed=5) for s in STREAMS]
  code = """import sys
from alignment_rl.rewards import reasoning as _
from alignment_rl.streams import instructions as i, reasoning as r
assert 'reasoning_gym' not in sys.modules
print([s.make(split='held_out', size=60, seed=5) for s in (r, i)])"""
  found = subprocess.run(
    [sys.executable, '-c', code], check=True, capture_output=True, text=True,
    env={**os.environ, 'PYTHONHASHSEED': '7', 'JAX_PLATFORMS': 'cpu'},
  )  # fmt: skip
  assert found.stdout.strip() == repr(made)


def test_mistakes_of_the_user_are_named():
  for stream in STREAMS:
    with pytest.raises(UserError, match="'test'"):
      stream.make(split='test', size=1, seed=0)
  with pytest.raises(UserError, match='chess'):
    reasoning.make(split='train', size=1, seed=0, tasks=('chess',))
  with pytest.raises(UserError, match='lower the size'):
    reasoning.make(split='held_out', size=9999, seed=0, tasks=('gcd',))
  with pytest.raises(UserError, match='format_share is 2'):
    reasoning_reward.make(format_share=2)
  for wrong in ({'kind': 'rhymes'}, {'n': 2}, {'kind': 'bullets', 'm': 2}):
    with pytest.raises(UserError, match='constraint'):
      scoring.satisfies('a text', wrong)


def test_reasoning_reward_scores_answer_and_format_for_every_task():
  examples = reasoning.make(split='train', size=110, seed=2)
  answers = [e.metadata['entry']['answer'] for e in examples]
  reward = reasoning_reward.make()
  # right and marked 0.9 + 0.1; right 0.9; marked 0.1; marked but empty 0. A
  # list of guesses is wrong: the library would pay a part for the right one.
  for frame, expected in (
    ('So:\nAnswer: {}.', 1.0), ('Answer: {}\nGood luck.', 0.9),
    ('Answer: zz', 0.1), ('Answer: .', 0.0), ('Answer: Yes No {} 1 2', 0.1),
  ):  # fmt: skip
    found = reward(examples, [frame.format(a) for a in answers], judge=None)
    np.testing.assert_array_equal(found, np.float32([expected] * 110))
  for junk in ('NaN', 'sNaN', '1e999999999', '²', '\x00', '9' * 5000, '{}['):
    found = reward(examples, [f'Answer: {junk}'] * 110, judge=None)
    assert (found <= np.float32(0.1)).all()


def reply(constraints):
  """A reply that meets one or two compatible constraints."""
  want = {c['kind']: c for c in constraints}
  get = lambda kind, key, other: want.get(kind, {key: other})[key]
  last = [want[k]['phrase'] for k in want if k == 'ends_with']
  start = '[[tea]]' if 'title' in want else get('starts_with', 'phrase', '')
  first = f'{start} calm care 7 {" ".join(get("contains", "words", []))}'
  parts = [first, 'rest well', 'go slow', 'look around']
  parts = parts[: get('sentences', 'n', 2) - len(last)]
  if 'min_words' in want:
    parts[-1] += ''.join(f' w{i}' for i in range(30))
  parts = [p + '.' for p in parts] + last
  if 'question' in want:
    parts[-1] = parts[-1][:-1] + '?'
  items = range(get('bullets', 'n', get('numbered', 'n', 0)))
  rows = [('- a' if 'bullets' in want else f'{i + 1}. a') for i in items]
  between = '\n\n' if 'paragraphs' in want else '\n' if rows else ' '
  return between.join([parts[0], *rows, ' '.join(parts[1:])])


def test_instructions_can_all_be_met_within_fifty_words():
  kinds = instructions.CONSTRAINTS
  assert set(kinds) == set(scoring.CHECKERS)
  for a, b in itertools.combinations(kinds, 2):
    if instructions.compatible(a, b):
      for x, y in itertools.product(kinds[a].values(), kinds[b].values()):
        both = [{'kind': a, **x}, {'kind': b, **y}]
        example = Example('x', (), metadata={'constraints': both})
        assert instructions_reward.share(example, reply(both)) == 1, both
        assert len(scoring.words(reply(both))) <= 50


def test_instructions_reward_is_the_share_met_by_well_formed_text():
  metadata = {'constraints': [{'kind': 'no_commas'}, {'kind': 'number'}]}
  examples = [Example('x', (), metadata=metadata)] * 5
  # Both; no comma alone; neither; blank; both, but a loop.
  texts = [PROSE + ' 7', PROSE, 'One, two, or three it is', '', '7 ' * 20]
  found = instructions_reward.make()(examples, texts, judge=None)
  np.testing.assert_array_equal(found, np.float32([1, 0.5, 0, 0, 0]))


@pytest.mark.parametrize('reward', [reasoning_reward, instructions_reward])
def test_rewards_prefer_the_good_case_and_refuse_other_streams(reward):
  for example, good, bad in reward.CASES:
    found = reward.make()([example] * 2, [good, bad], judge=None)
    assert found[0] > found[1]
  with pytest.raises(UserError, match='another reward'):
    reward.make()([Example('traits/1', ())], ['a reply'], judge=None)
